"""`SyncGuest`: the verbs of `Guest` for a test that has no event loop."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from qemuctl.testing.verbs import TIMEOUT, Verbs

if TYPE_CHECKING:
    from qemuctl.guest.agent import Result
    from qemuctl.power.stop import StopReport
    from qemuctl.qmp import Event
    from qemuctl.spec import Spec
    from qemuctl.testing.loop import LoopThread
    from qemuctl.vm.vm import Vm

T = TypeVar("T")


class SyncGuest:
    """A guest whose agent answers, and the verbs that tests use on it.

    Each verb does what that of `Guest` does, and raises the same. ``guest`` lives
    in the loop of ``loop``.
    """

    def __init__(self, guest: Verbs, loop: LoopThread) -> None:
        self._guest = guest
        self._loop = loop

    def __repr__(self) -> str:
        return repr(self._guest)

    @property
    def plain(self) -> SyncGuest:
        """This guest: its verbs wait."""
        return self

    @property
    def awaitable(self) -> Verbs:
        """The same guest with verbs that are coroutines, of any event loop."""
        return self._guest

    @property
    def vm(self) -> Vm:
        """The VM for all else, to be used in its own loop: see `do`."""
        return self._guest.vm

    @property
    def spec(self) -> Spec:
        """What the VM was started with."""
        return self._guest.spec

    @property
    def name(self) -> str:
        """The VM's name, for the command line: qemuctl console NAME."""
        return self._guest.name

    @property
    def console(self) -> str:
        """What the guest has written to its serial console so far."""
        return self._guest.console

    @property
    def booted_from(self) -> Literal["fork", "cold"]:
        """Whether it is a fork of a guest that had booted, or booted itself."""
        return self._guest.booted_from

    def do(self, work: Callable[[Vm], Coroutine[Any, Any, T]]) -> T:
        """Anything else that the VM can do: ``do(lambda vm: vm.memory.state())``."""
        return self._loop.call(self._guest.do(work))

    # -- commands ----------------------------------------------------------

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = TIMEOUT,
        input: bytes | str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Runs a command, a string by /bin/sh, and waits for its end."""
        return self._loop.call(
            self._guest.run(command, timeout=timeout, input=input, env=env)
        )

    def succeed(
        self, *commands: str | Sequence[str], timeout: float | None = TIMEOUT
    ) -> str:
        """Runs commands that must succeed; gives what they wrote."""
        return self._loop.call(self._guest.succeed(*commands, timeout=timeout))

    def fail(
        self, *commands: str | Sequence[str], timeout: float | None = TIMEOUT
    ) -> str:
        """Runs commands that must fail; gives what they wrote."""
        return self._loop.call(self._guest.fail(*commands, timeout=timeout))

    # -- waiting -----------------------------------------------------------

    def wait_until_succeeds(self, command: str, *, timeout: float = TIMEOUT) -> str:
        """Runs a script again and again until it succeeds; gives what it wrote."""
        return self._loop.call(
            self._guest.wait_until_succeeds(command, timeout=timeout)
        )

    def wait_until_fails(self, command: str, *, timeout: float = TIMEOUT) -> str:
        """Runs a script again and again until it fails; gives what it wrote."""
        return self._loop.call(self._guest.wait_until_fails(command, timeout=timeout))

    def wait_for_unit(self, unit: str, *, timeout: float = TIMEOUT) -> None:
        """Waits until systemd says that a unit is active; not for one that failed."""
        self._loop.call(self._guest.wait_for_unit(unit, timeout=timeout))

    def wait_for_port(
        self, port: int, address: str = "127.0.0.1", *, timeout: float = TIMEOUT
    ) -> None:
        """Waits until something in the guest listens on a TCP port."""
        self._loop.call(self._guest.wait_for_port(port, address, timeout=timeout))

    def wait_for_file(self, path: str, *, timeout: float = TIMEOUT) -> None:
        """Waits until there is something at a path in the guest."""
        self._loop.call(self._guest.wait_for_file(path, timeout=timeout))

    def wait_for_console(self, pattern: str, *, timeout: float = TIMEOUT) -> str:
        """Waits for a regular expression on the serial console; gives the match."""
        return self._loop.call(self._guest.wait_for_console(pattern, timeout=timeout))

    def wait_for_event(self, name: str, *, timeout: float = TIMEOUT) -> Event:
        """Waits for an event of QEMU that this has not given yet."""
        return self._loop.call(self._guest.wait_for_event(name, timeout=timeout))

    # -- files, screen and keys --------------------------------------------

    def copy_in(
        self, source: str | Path, target: str, *, timeout: float | None = TIMEOUT
    ) -> str:
        """Copies a file or a folder into the guest; gives its path there."""
        return self._loop.call(self._guest.copy_in(source, target, timeout=timeout))

    def copy_out(
        self, source: str, target: str | Path, *, timeout: float | None = TIMEOUT
    ) -> Path:
        """Copies a file or a folder out of the guest; gives its path here."""
        return self._loop.call(self._guest.copy_out(source, target, timeout=timeout))

    def screenshot(self, path: str | Path) -> Path:
        """Writes what the screen shows to a PNG file."""
        return self._loop.call(self._guest.screenshot(path))

    def send_keys(self, *combinations: str) -> None:
        """Presses combinations of keys, such as ``ctrl-alt-delete``."""
        self._loop.call(self._guest.send_keys(*combinations))

    def type(self, text: str) -> None:
        """Types a text on a US keyboard; a newline is Enter."""
        self._loop.call(self._guest.type(text))

    # -- network -----------------------------------------------------------

    def forward(self, port: int) -> int:
        """A port of 127.0.0.1 that leads to a TCP port of the guest."""
        return self._loop.call(self._guest.forward(port))

    def block_network(self, *, timeout: float = TIMEOUT) -> None:
        """Pulls the cables of all cards out; the guest has then seen it."""
        self._loop.call(self._guest.block_network(timeout=timeout))

    def unblock_network(self, *, timeout: float = TIMEOUT) -> None:
        """Plugs the cables of all cards in; the guest has then seen it."""
        self._loop.call(self._guest.unblock_network(timeout=timeout))

    # -- power -------------------------------------------------------------

    def pause(self) -> bool:
        """Stops the guest's processors; False when they were stopped."""
        return self._loop.call(self._guest.pause())

    def resume(self) -> bool:
        """Lets the guest's processors run; False when they did."""
        return self._loop.call(self._guest.resume())

    def reboot(self, *, timeout: float = TIMEOUT) -> None:
        """Has the guest reboot, and waits until it is ready again."""
        self._loop.call(self._guest.reboot(timeout=timeout))

    def shutdown(self, *, timeout: float = TIMEOUT) -> StopReport | None:
        """Has the guest shut down, else ends it; tells how. It is then over."""
        return self._loop.call(self._guest.shutdown(timeout=timeout))

    def crash(self) -> None:
        """Ends QEMU at once: what the guest has not written to its disks is lost."""
        self._loop.call(self._guest.crash())
