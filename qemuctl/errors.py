"""The whole exception tree.

::

    QemuctlError(message, *, hint=None)        exit status 1 unless said
    ├ UsageError                               2: the request makes no sense
    ├ SpecError(path, line, key)               the user's YAML or flags
    ├ HostError                                this host lacks something
    ├ DamagedFile(path)                        a file of qemuctl's own makes no sense
    ├ ImageError(argv, returncode, stderr)     an image, or qemu-img, said no
    │ └ ImageInUse(path)                       another process has it open
    ├ LaunchError(argv, returncode, stderr)    QEMU did not start
    ├ TemplateError                            a template cannot be made or used
    ├ StateFileError                           a saved machine is not what it was
    ├ MigrationError(phase)                    a VM has not come where it was to go
    ├ StateError(action, state, reason)        not possible in this state
    │ ├ NotFound(name)                         no such VM
    │ └ NameInUse(name)                        there is one already
    ├ HotplugError(outcome)                    refused 1, pending 3
    ├ UnexpectedExit(status, log_tail)         QEMU ended while it was needed
    ├ WaitTimeout(stage, console_tail)         names what it waited for
    ├ NotReady(by_ssh)                         waiting for the agent is in vain
    ├ AgentError                               the guest agent's channel
    │ └ AgentRefused                           it answered with an error
    └ QmpError
      ├ CommandError(command, class_, desc)    QEMU answered with an error
      └ MonitorLost                            outcome unknown: ask again

Messages start in lower case and have no full stop; what is wrong comes after
a colon. An error carries data, so that a program need not parse its text.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path


class QemuctlError(Exception):
    """Anything that qemuctl can explain to its user.

    ``hint`` says what to do about it, in one or a few lines.
    """

    exit_status = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(QemuctlError):
    """The request itself makes no sense, whatever the state of the VM."""

    exit_status = 2


class SpecError(QemuctlError):
    """What the user wrote is not a valid spec.

    ``path`` and ``line`` (counted from 1) tell where, ``key`` is the dotted
    name of the field, such as ``disks[0].format``.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        line: int | None = None,
        key: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.problem, self.path, self.line, self.key = message, path, line, key
        where = f"{path}:{line}" if path and line else path
        parts = [part for part in (where, key, message) if part]
        super().__init__(": ".join(parts), hint=hint)


class HostError(QemuctlError):
    """This host lacks something that the request needs."""


class DamagedFile(QemuctlError):
    """A file that qemuctl keeps makes no sense, and is not taken for one that is not
    there; ``hint`` says what to do about it."""

    def __init__(
        self, path: Path, *, problem: str = "makes no sense", hint: str
    ) -> None:
        self.path = path
        super().__init__(f"the file {path} {problem}", hint=hint)


class ToolError(QemuctlError):
    """A program that qemuctl ran failed: its command line and own words."""

    def __init__(
        self,
        message: str,
        *,
        argv: Sequence[str] = (),
        returncode: int | None = None,
        stderr: str = "",
        hint: str | None = None,
    ) -> None:
        self.argv = list(argv)
        self.returncode = returncode
        self.stderr = stderr
        super().__init__(message, hint=hint)

    @property
    def command(self) -> str:
        """The command line, quoted for a shell."""
        return shlex.join(self.argv)


class ImageError(ToolError):
    """An image cannot be used, or qemu-img refused."""


class ImageInUse(ImageError):
    """Another process has the image open, most often a running VM."""

    def __init__(
        self,
        path: Path,
        *,
        returncode: int | None = None,
        stderr: str = "",
        hint: str | None = None,
    ) -> None:
        self.path = path
        super().__init__(
            f"is in use by another process: {path}",
            returncode=returncode,
            stderr=stderr,
            hint=hint or "a running VM has it open; stop that VM first",
        )


class LaunchError(ToolError):
    """QEMU did not come up; ``stderr`` holds its own words."""


class TemplateError(QemuctlError):
    """A template cannot be made, or not be used as it is."""


class StateFileError(QemuctlError):
    """A saved machine cannot be used: its file is damaged, or something has changed."""


class MigrationError(QemuctlError):
    """A VM was not moved; ``phase`` tells how far it had come."""

    def __init__(self, message: str, phase: str, *, hint: str | None = None) -> None:
        self.phase = phase
        super().__init__(message, hint=hint)


class StateError(QemuctlError):
    """The action is not possible in the state that the VM is in."""

    def __init__(
        self, action: str, state: str, reason: str, *, hint: str | None = None
    ) -> None:
        self.action, self.state, self.reason = action, state, reason
        super().__init__(f"cannot {action}: {reason}", hint=hint)


class NotFound(StateError):
    """There is no VM of this name."""

    def __init__(self, name: str, *, hint: str | None = None) -> None:
        self.name = name
        super().__init__("find the VM", "absent", f"no VM is named {name!r}", hint=hint)
        self.message = f"no such VM: {name}"


class NameInUse(StateError):
    """A VM of this name exists already."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        super().__init__("create the VM", "present", f"the name is in use: {name}")
        self.message = f"a VM of this name exists already: {name}"
        self.hint = f"choose another name, or remove it with: qemuctl rm {name}"
        self.path = path


class HotplugError(QemuctlError):
    """A change of a running VM did not come about; ``outcome`` is ``refused`` by the
    guest or by QEMU, or ``pending``: the guest may still do it."""

    def __init__(self, message: str, outcome: str, *, hint: str | None = None) -> None:
        self.outcome = outcome
        self.exit_status = 3 if outcome == "pending" else 1
        super().__init__(message, hint=hint)


class UnexpectedExit(QemuctlError):
    """QEMU ended while something still needed it.

    ``status`` is the exit status, negative for a signal, None if unknown.
    """

    def __init__(self, message: str, *, status: int | None, log_tail: str = "") -> None:
        self.status, self.log_tail = status, log_tail
        super().__init__(message, hint=log_tail.strip() or None)


class WaitTimeout(QemuctlError):
    """Something did not happen in time; ``stage`` names what was waited for, ``why`` is
    what is known of the reason."""

    def __init__(
        self,
        stage: str,
        seconds: float,
        *,
        console_tail: str = "",
        why: str | None = None,
    ) -> None:
        self.stage, self.seconds, self.console_tail = stage, seconds, console_tail
        tail = console_tail.rstrip()
        last = f"the console's last lines:\n{tail}" if tail else None
        super().__init__(
            f"timed out after {seconds:g} s: waiting for {stage}",
            hint="\n".join(filter(None, [why, last])) or None,
        )


class NotReady(QemuctlError):
    """The guest's agent will not come: the guest does not boot, or, with ``by_ssh``,
    it has no agent and its ssh server answers."""

    def __init__(self, message: str, *, by_ssh: bool = False) -> None:
        self.by_ssh = by_ssh
        super().__init__(message)


class AgentError(QemuctlError):
    """The guest agent refused, sent nonsense, or is not there."""


class AgentRefused(AgentError):
    """The guest agent answered a request with an error."""


class QmpError(QemuctlError):
    """A QMP exchange failed."""


class CommandError(QmpError):
    """QEMU answered a command with an error, in its own class and words."""

    def __init__(self, command: str, class_: str, desc: str) -> None:
        self.command, self.class_, self.desc = command, class_, desc
        super().__init__(f"QEMU refused {command}: {desc}")


class MonitorLost(QmpError):
    """The monitor went away before the reply: the outcome is unknown."""
