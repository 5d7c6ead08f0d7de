"""What state a VM is in, and which request is admitted in it.

QEMU's run state is the truth; `State` only sums it up for people, and adds
what QEMU cannot say of itself: that it is not there, not yet, or not
answering. Which request is possible when is data::

                 start                  pause
        off ───────────────► running ◄────────► paused
         ▲                      │ │    resume
         └────── stop, kill ────┘ └─► panicked, io-error, crashed …

`admit` looks a request up and answers accepted, nothing to do, or denied
with the reason.
"""

from __future__ import annotations

from enum import StrEnum

from qemuctl.errors import StateError
from qemuctl.structs import Struct


class State(StrEnum):
    """The states that `ls` shows."""

    OFF = "off"
    BUSY = "busy"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    PANICKED = "panicked"
    IO_ERROR = "io-error"
    CRASHED = "crashed"
    STOPPING = "stopping"
    SNAPSHOTTING = "snapshotting"
    UNRESPONSIVE = "unresponsive"
    UNREACHABLE = "unreachable"

    @property
    def live(self) -> bool:
        """Whether there is a process."""
        return self not in (State.OFF, State.BUSY)


# RunState of QEMU's schema (run-state.json).
_RUN_STATES = {
    "prelaunch": State.PAUSED,
    "paused": State.PAUSED,
    "debug": State.PAUSED,
    "watchdog": State.PAUSED,
    "finish-migrate": State.PAUSED,
    "postmigrate": State.PAUSED,
    "save-vm": State.PAUSED,
    "restore-vm": State.PAUSED,
    "colo": State.PAUSED,
    "running": State.RUNNING,
    "inmigrate": State.STARTING,
    "suspended": State.SUSPENDED,
    "guest-panicked": State.PANICKED,
    "io-error": State.IO_ERROR,
    "internal-error": State.CRASHED,
    "shutdown": State.STOPPING,
}


def from_run_state(status: str) -> State:
    """The state that a `query-status` reply means."""
    return _RUN_STATES.get(status, State.RUNNING)


class Action(StrEnum):
    """Requests whose answer depends on the state."""

    START = "start"
    STOP = "stop"
    KILL = "kill"
    PAUSE = "pause"
    RESUME = "resume"
    RESET = "reset"
    REBOOT = "reboot"
    EXEC = "exec"
    SSH = "ssh"
    COPY = "cp"
    CONSOLE = "console"
    QMP = "qmp"
    EDIT = "edit"
    REMOVE = "rm"
    RENAME = "rename"
    CLONE = "clone"
    EXPORT = "export"
    MEDIUM = "change the medium"
    MEASURE = "measure"
    CHANGE = "change"
    SCREEN = "show the screen of"
    KEYS = "send keys to"
    SNAPSHOT = "snapshot"
    REVERT = "revert"
    FORGET = "remove a snapshot of"
    SAVE = "save"
    RESTORE = "restore"
    MIGRATE = "migrate"


class Accepted(Struct, kw_only=False):
    """Go on."""


class NothingToDo(Struct, kw_only=False):
    """It is so already."""

    reason: str


class Denied(Struct, kw_only=False):
    """Not in this state, and what would help."""

    reason: str
    hint: str | None = None


Verdict = Accepted | NothingToDo | Denied

_STUCK = Denied("QEMU does not answer", "end it with: qemuctl kill NAME")
# QEMU is there, and whoever removed its sockets, or has another /tmp, cannot ask it.
_UNSEEN = Denied(
    "its sockets cannot be seen from here: another /tmp, or one that was cleaned",
    "use it from where it was started, or: qemuctl stop NAME",
)
_IS_OFF = Denied("the VM is off", "start it with: qemuctl start NAME")
_IS_ON = Denied("the VM is on", "stop it first with: qemuctl stop NAME")
_HALTED = Denied("the guest has stopped for good", "qemuctl reset NAME, or stop it")
_GUEST_PAUSED = Denied("the VM is paused", "qemuctl resume NAME")
_DISK_FAILED = Denied(
    "a disk's error has stopped the VM", "qemuctl ls tells which; then: resume NAME"
)
_GOING = Denied("the VM is stopping")
_COMING = Denied("the VM is starting")
# QEMU answers nobody until all of the RAM is written, or read.
_SNAPSHOTTING = Denied(
    "a snapshot is being made or loaded", "it is soon done; or: qemuctl kill NAME"
)
_ASLEEP = Denied("its guest is asleep (ACPI S3)", "wake it with: qemuctl resume NAME")
# It is off, and being cloned, exported, renamed or removed.
_BUSY = Denied("another command is working on it", "try again when that is done")

_TALK = frozenset(
    {
        Action.PAUSE,
        Action.RESUME,
        Action.RESET,
        Action.QMP,
        Action.MEDIUM,
        Action.SCREEN,
        Action.REVERT,
        Action.FORGET,
    }
)
_OFFLINE = frozenset(
    {Action.REMOVE, Action.RENAME, Action.CLONE, Action.EXPORT, Action.RESTORE}
)
_EITHER_WAY = frozenset({Action.SNAPSHOT, Action.REVERT, Action.FORGET})

_SPECIAL: dict[tuple[Action, State], Verdict] = {
    (Action.START, State.OFF): Accepted(),
    (Action.START, State.STARTING): Denied("another command is starting it"),
    (Action.START, State.STOPPING): _GOING,
    (Action.START, State.UNRESPONSIVE): _STUCK,
    (Action.START, State.PAUSED): NothingToDo("it is on already, and paused"),
    # Its guest hears nothing, and would not be asked to shut down.
    (Action.STOP, State.SNAPSHOTTING): _SNAPSHOTTING,
    (Action.STOP, State.OFF): NothingToDo("it is off already"),
    (Action.KILL, State.OFF): NothingToDo("it is off already"),
    (Action.PAUSE, State.PAUSED): NothingToDo("it is paused already"),
    (Action.PAUSE, State.SUSPENDED): NothingToDo("it is asleep (ACPI S3)"),
    (Action.PAUSE, State.IO_ERROR): NothingToDo("a disk error has paused it"),
    (Action.PAUSE, State.PANICKED): _HALTED,
    (Action.PAUSE, State.CRASHED): _HALTED,
    (Action.RESUME, State.RUNNING): NothingToDo("it is running already"),
    (Action.RESUME, State.PANICKED): _HALTED,
    (Action.RESUME, State.CRASHED): _HALTED,
    (Action.QMP, State.STOPPING): Accepted(),
    (Action.QMP, State.STARTING): Accepted(),
    (Action.KEYS, State.STARTING): _COMING,
    (Action.SNAPSHOT, State.STARTING): _COMING,
    (Action.SNAPSHOT, State.PAUSED): Accepted(),
    (Action.SNAPSHOT, State.SUSPENDED): _ASLEEP,
    (Action.SAVE, State.STARTING): _COMING,
    (Action.SAVE, State.PAUSED): Accepted(),
    (Action.SAVE, State.SUSPENDED): _ASLEEP,
    (Action.MIGRATE, State.OFF): Denied(
        "the VM is off", "move its files: qemuctl migrate NAME DEST --offline"
    ),
    (Action.MIGRATE, State.STARTING): _COMING,
    (Action.MIGRATE, State.PAUSED): Accepted(),
    (Action.MIGRATE, State.SUSPENDED): _ASLEEP,
    # QEMU leaves its internal-error only by a reset.
    (Action.REVERT, State.CRASHED): _HALTED,
    # A key wakes it.
    (Action.KEYS, State.SUSPENDED): Accepted(),
}


def admit(action: Action, state: State) -> Verdict:
    """Whether ``action`` makes sense in ``state``; a pure look-up."""
    special = _SPECIAL.get((action, state))
    if special is not None:
        return special
    if state is State.BUSY:
        return Accepted() if action is Action.EDIT else _BUSY
    if action is Action.START:
        return NothingToDo(f"it is on already ({state})")
    if action in _OFFLINE:
        return Accepted() if state is State.OFF else _IS_ON
    if action in (Action.STOP, Action.KILL, Action.EDIT):
        return Accepted()
    if state is State.OFF:
        return Accepted() if action in _EITHER_WAY else _IS_OFF
    if state is State.UNREACHABLE:
        return _UNSEEN
    if action in (Action.CONSOLE, Action.MEASURE):
        return Accepted()
    return _admit_talk(action, state)


def _admit_talk(action: Action, state: State) -> Verdict:
    """Requests that QEMU, and perhaps the guest, must answer."""
    if state is State.UNRESPONSIVE:
        return _STUCK
    if state is State.SNAPSHOTTING:
        return _SNAPSHOTTING
    if state is State.STOPPING:
        return _GOING
    if action is Action.CHANGE and state is State.STARTING:
        return _COMING
    if action in _TALK:
        return _COMING if state is State.STARTING else Accepted()
    if state in (State.PANICKED, State.CRASHED):
        return _HALTED
    if state is State.IO_ERROR:
        return _DISK_FAILED
    if state in (State.PAUSED, State.SUSPENDED):
        return _GUEST_PAUSED
    return Accepted()


def require(action: Action, state: State, name: str) -> NothingToDo | None:
    """None when accepted, the verdict when there is nothing to do.

    Raises StateError with the reason, and what would help, when denied.
    """
    verdict = admit(action, state)
    if isinstance(verdict, Denied):
        hint = verdict.hint.replace("NAME", name) if verdict.hint else None
        raise StateError(f"{action} {name}", state, verdict.reason, hint=hint)
    return verdict if isinstance(verdict, NothingToDo) else None
