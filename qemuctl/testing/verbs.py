"""`Verbs`: what a test does with a guest that is booted.

The verbs may be awaited from any event loop: each is carried out in the guest's
own one, which may be another thread's.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Literal,
    ParamSpec,
    Self,
    TypeVar,
)

from qemuctl import bounded
from qemuctl.connection.connection import channel_broke
from qemuctl.errors import AgentError, QemuctlError, QmpError, StateError, UsageError
from qemuctl.process import wait_gone
from qemuctl.qmp import Event, eventlog, eventstream
from qemuctl.tail import plain
from qemuctl.testing import network, watch
from qemuctl.testing.command import Command, CommandFailed, by_shell, in_short
from qemuctl.testing.loop import across

if TYPE_CHECKING:
    from qemuctl.guest.agent import Result
    from qemuctl.power.stop import StopReport
    from qemuctl.spec import Spec
    from qemuctl.testing.loop import LoopThread
    from qemuctl.vm.vm import Vm

P = ParamSpec("P")
T = TypeVar("T")

# Seconds that a verb waits unless it is told otherwise.
TIMEOUT = 120.0
# Seconds in which QEMU ends, when its channels broke because it does.
_LAST_MOMENTS = 1.0

Verb = Callable[Concatenate["Verbs", P], Coroutine[Any, Any, T]]


def verb(work: Verb[P, T]) -> Verb[P, T]:
    """Carries a method out in the guest's loop, and has its errors tell all.

    An error that comes because QEMU has ended says so, and how. A hint becomes a
    note of the exception, which is what a traceback shows.
    """

    @functools.wraps(work)
    async def carried_out(guest: Verbs, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await across(
                _plainly(guest, work(guest, *args, **kwargs)), guest.loop
            )
        except QemuctlError as error:
            if error.hint and error.hint not in getattr(error, "__notes__", ()):
                error.add_note(error.hint)
            raise

    return carried_out


async def _plainly(guest: Verbs, work: Coroutine[Any, Any, T]) -> T:
    try:
        return await work
    except (AgentError, QmpError, StateError, OSError) as error:
        qemu = guest.vm.record.qemu
        if channel_broke(error):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_MOMENTS):
                    await wait_gone(qemu)
        if qemu.alive():
            raise
        raise guest.vm.unexpected_exit(await guest.vm.wait_exit()) from error


class Verbs:
    """A guest whose agent answers, and the verbs that tests use on it.

    ``vm`` is its VM for all else (see `do`), ``spec`` what it was started with,
    ``loop`` the event loop that the VM lives in, that of ``thread``. All times are in
    seconds; None, where it may be given, is no limit.

    When QEMU ends while a verb needs it, because the guest panicked or for any
    other reason, the verb raises UnexpectedExit at once, with the console's end.
    """

    def __init__(self, vm: Vm, spec: Spec, thread: LoopThread) -> None:
        self.vm = vm
        self.spec = spec
        self.loop = thread.loop
        self._thread = thread
        self._forwarding = asyncio.Lock()
        past = list(eventlog.past(vm.paths.events))
        self._begun = past[-1].at if past else 0.0
        self._waited: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<guest {self.name}>"

    @property
    def awaitable(self) -> Self:
        """This guest: its verbs are coroutines."""
        return self

    @property
    def name(self) -> str:
        """The VM's name, for the command line: qemuctl console NAME."""
        return self.vm.name

    @property
    def console(self) -> str:
        """What the guest has written to its serial console so far, the last megabytes
        of it if that is much."""
        try:
            written = bounded.content(self.vm.paths.serial_log)
        except FileNotFoundError:  # the VM has been removed
            return ""
        return plain(written.decode(errors="replace"))

    @property
    def booted_from(self) -> Literal["fork", "cold"]:
        """Whether it is a fork of a guest that had booted, or booted itself."""
        forked = getattr(self.vm.record, "template", None) is not None
        return "fork" if forked else "cold"

    @verb
    async def do(self, work: Callable[[Vm], Coroutine[Any, Any, T]]) -> T:
        """Anything else that the VM can do, in its loop:
        ``do(lambda vm: vm.memory.balloon(...))``. Raises what that raises."""
        return await work(self.vm)

    # -- commands ----------------------------------------------------------

    @verb
    async def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = TIMEOUT,
        input: bytes | str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Runs a command in the guest and waits for its end (guest-exec).

        A string is a script for /bin/sh, a list runs as it is, found on the agent's
        PATH. ``env`` is set beside the agent's environment. The output is kept
        whole, up to the agent's limit of 16 MiB.

        Raises WaitTimeout after having ended the command in the guest, AgentError
        when it cannot be started or the guest reboots meanwhile.
        """
        return await self._run(command, timeout, input, env)

    @verb
    async def succeed(
        self, *commands: str | Sequence[str], timeout: float | None = TIMEOUT
    ) -> str:
        """Runs commands one after the other, each in ``timeout``; gives what they
        wrote to standard output, without the last line's end.

        Raises CommandFailed at the first that does not end with status 0, or writes
        more than the agent keeps; else as `run` does.
        """
        output = b""
        for command in commands:
            result = await self._run(command, timeout)
            what = in_short(result.argv)
            if not result.ok:
                how = f"failed with status {result.status}"
                if result.signal is not None:
                    how = f"was ended by signal {result.signal}"
                raise CommandFailed(f"a command {how}: {what}", result)
            if result.truncated:
                raise CommandFailed(f"a command wrote more than 16 MiB: {what}", result)
            output += result.stdout
        return output.decode(errors="replace").removesuffix("\n")

    @verb
    async def fail(
        self, *commands: str | Sequence[str], timeout: float | None = TIMEOUT
    ) -> str:
        """Runs commands that must fail, as `succeed` does; raises CommandFailed at
        the first that does not."""
        output = b""
        for command in commands:
            result = await self._run(command, timeout)
            if result.ok:
                what = in_short(result.argv)
                raise CommandFailed(f"a command did not fail: {what}", result)
            output += result.stdout
        return output.decode(errors="replace").removesuffix("\n")

    async def _run(
        self,
        command: str | Sequence[str],
        timeout: float | None,
        input: bytes | str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        argv = by_shell(command) if isinstance(command, str) else list(command)
        data = input.encode() if isinstance(input, str) else input
        one = Command(self.vm, argv, input=data, env=env)
        try:
            return await self.vm.unless_ended(one.result(), timeout)
        except TimeoutError as error:
            stage = f"the end in the guest of: {in_short(argv)}"
            raise one.overdue(stage, timeout or 0) from error

    # -- waiting -----------------------------------------------------------

    @verb
    async def wait_until_succeeds(
        self, command: str, *, timeout: float = TIMEOUT
    ) -> str:
        """Runs a script in the guest, up to ten times a second, until it succeeds;
        gives what it wrote to standard output then, without the last line's end.

        Raises WaitTimeout with what it wrote last. As all waiting, it goes on when
        the guest reboots.
        """
        return await watch.until_succeeds(self.vm, command, timeout)

    @verb
    async def wait_until_fails(self, command: str, *, timeout: float = TIMEOUT) -> str:
        """As `wait_until_succeeds`, until the script fails."""
        return await watch.until_fails(self.vm, command, timeout)

    @verb
    async def wait_for_unit(self, unit: str, *, timeout: float = TIMEOUT) -> None:
        """Waits until systemd in the guest says that a unit is active.

        Raises CommandFailed with the unit's status at once when it has failed, or
        there is no systemd.
        """
        await watch.until_unit(self.vm, unit, timeout)

    @verb
    async def wait_for_port(
        self, port: int, address: str = "127.0.0.1", *, timeout: float = TIMEOUT
    ) -> None:
        """Waits until something in the guest listens on a TCP port, on ``address`` or
        on all; nothing is connected to it (/proc/net/tcp)."""
        await watch.until_port(self.vm, port, address, timeout)

    @verb
    async def wait_for_file(self, path: str, *, timeout: float = TIMEOUT) -> None:
        """Waits until there is something at a path in the guest."""
        await watch.until_file(self.vm, path, timeout)

    @verb
    async def wait_for_console(self, pattern: str, *, timeout: float = TIMEOUT) -> str:
        """Waits for a regular expression on the serial console, what it said before
        included; gives the text that matched. ``^`` and ``$`` are a line's ends."""
        return await self.vm.wait_console(pattern, timeout=timeout)

    @verb
    async def wait_for_event(self, name: str, *, timeout: float = TIMEOUT) -> Event:
        """Waits for an event of QEMU, such as RESET: the next since the guest was
        ready, or since this has last given one of that name.

        So it may be called after what causes the event. Raises UnexpectedExit when
        QEMU ends without it.
        """
        after = self._waited.get(name, self._begun)

        def wanted(event: Event) -> bool:
            return event.name == name and event.at > after

        with self.vm.deadline(f"the event {name}", timeout):
            file = self.vm.paths.events
            coming = eventstream.after(0, file, wanted)
            event = await self.vm.unless_ended(coming, timeout)
        self._waited[name] = event.at
        return event

    # -- files, screen and keys --------------------------------------------

    @verb
    async def copy_in(
        self, source: str | Path, target: str, *, timeout: float | None = TIMEOUT
    ) -> str:
        """Copies a file or a folder into the guest, and gives its path there.

        A folder as the target takes in what is copied. Raises as `Files.put` does.
        """
        with self.vm.deadline(f"{source} to be copied in", timeout or 0):
            async with asyncio.timeout(timeout):
                return await self.vm.files.put(Path(source), target, recursive=True)

    @verb
    async def copy_out(
        self, source: str, target: str | Path, *, timeout: float | None = TIMEOUT
    ) -> Path:
        """Copies a file or a folder out of the guest, and gives its path here; raises
        as `Files.get` does."""
        with self.vm.deadline(f"{source} to be copied out", timeout or 0):
            async with asyncio.timeout(timeout):
                return await self.vm.files.get(source, Path(target), recursive=True)

    @verb
    async def screenshot(self, path: str | Path) -> Path:
        """Writes what the screen shows to a PNG file (screendump). Raises StateError
        when there is no screen, ImageError when it cannot be written."""
        await self.vm.screen.shot(Path(path))
        return Path(path)

    @verb
    async def send_keys(self, *combinations: str) -> None:
        """Presses combinations of keys, such as ``ctrl-alt-delete`` (send-key). Raises
        UsageError for what is no key, StateError when there is no keyboard."""
        await self.vm.keyboard.send(*combinations)

    @verb
    async def type(self, text: str) -> None:
        """Types a text on a US keyboard; a newline is Enter. Raises as `send_keys`."""
        await self.vm.keyboard.type(text)

    # -- network -----------------------------------------------------------

    @verb
    async def forward(self, port: int) -> int:
        """A port of 127.0.0.1 that leads to a TCP port of the guest, the same for the
        same (hostfwd_add). Raises SpecError when no card is of type user."""
        if not 1 <= port <= 65535:
            raise UsageError(f"not a port: {port}")
        async with self._forwarding:
            return await network.host_port(self.vm, port)

    @verb
    async def block_network(self, *, timeout: float = TIMEOUT) -> None:
        """Pulls the cables of all cards out, and waits until the guest sees it
        (set_link)."""
        await network.move_cables(self.vm, "down", timeout=timeout)

    @verb
    async def unblock_network(self, *, timeout: float = TIMEOUT) -> None:
        """Plugs the cables of all cards in, and waits until the guest sees it
        (set_link)."""
        await network.move_cables(self.vm, "up", timeout=timeout)

    # -- power -------------------------------------------------------------

    @verb
    async def pause(self) -> bool:
        """Stops the guest's processors (stop); False when they were stopped."""
        return await self.vm.power.pause()

    @verb
    async def resume(self) -> bool:
        """Lets the guest's processors run (cont); False when they did."""
        return await self.vm.power.resume()

    @verb
    async def reboot(self, *, timeout: float = TIMEOUT) -> None:
        """Has the guest reboot, and waits until it is ready again.

        Raises WaitTimeout when it does not, or does not come back.
        """
        end = time.monotonic() + timeout
        before = await self._boot(timeout)
        await self.vm.power.reboot(timeout=end - time.monotonic())
        await self.vm.wait_ready(timeout=end - time.monotonic())
        if before == await self._boot(end - time.monotonic()):
            action = f"reboot {self.name}"
            raise StateError(action, "running", "it still runs the boot it ran")

    async def _boot(self, timeout: float) -> str:
        """What tells one boot of the kernel from another."""
        name = "/proc/sys/kernel/random/boot_id"
        return (await self._run(["cat", name], timeout)).text

    @verb
    async def shutdown(self, *, timeout: float = TIMEOUT) -> StopReport | None:
        """Has the guest shut down in ``timeout``, else ends it; tells which step
        did it, and how it ended. None when it was off. The guest is then over."""
        return await self.vm.power.stop(timeout=timeout)

    @verb
    async def crash(self) -> None:
        """Ends QEMU at once (SIGKILL): what the guest has not written to its disks by
        then is lost. The guest is then over."""
        await self.vm.power.kill()
