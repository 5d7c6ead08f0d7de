"""`run`: a throwaway VM for one command, or for one look at its console."""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import Coroutine
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from qemuctl.cli import flags
from qemuctl.cli.console import escape_key, key_name
from qemuctl.cli.declare import Argument, Option, command
from qemuctl.cli.output import building, note, working
from qemuctl.cli.parameters import Timeout, complete_images, seconds
from qemuctl.cli.running import run_async
from qemuctl.cli.templates import complete_templates
from qemuctl.cli.words import Escape, Interactive, NoStdin, Tty, Typed

if TYPE_CHECKING:
    from qemuctl.spec import Spec
    from qemuctl.vm.vm import Vm


@command("run", example="echo data | qemuctl run tiny wc -c", for_guest=True)
@flags.describing
def run(
    image: Annotated[
        str | None,
        Argument(
            metavar="[IMAGE]",
            help="an image's name, or ./disk.qcow2",
            autocompletion=complete_images,
        ),
    ] = None,
    command: Annotated[
        list[str] | None,
        Argument(metavar="[COMMAND…]", help="what to run in the guest"),
    ] = None,
    file: flags.File = None,
    name: Annotated[str | None, Option(help="the name's beginning")] = None,
    *,
    given: flags.Given,
    timeout: Timeout = "120",
    template: Annotated[
        str | None,
        Option(help="start from this template", autocompletion=complete_templates),
    ] = None,
    cold: Annotated[
        bool, Option("--cold", help="really boot, not from a template")
    ] = False,
    rm: Annotated[
        bool, Option("--rm", help="remove it at the end (it always is)")
    ] = True,
    no_stdin: NoStdin = False,
    interactive: Interactive = False,
    tty: Tty = False,
    escape: Escape = "^]",
) -> None:
    """Boot a throwaway VM and run a command in it.

    Output is streamed, standard input passed on, and the guest's exit status
    is the command's own. Without a command it is the console; Ctrl-] leaves. A QEMU
    that fails passes its status on.
    Nothing is left afterwards, whatever happens. --timeout is for the boot.

    For a command the guest is booted and frozen the first time, and each later one
    goes on from there, in a fraction of a second; --cold boots.
    """
    if file is not None and image is not None:
        # With a file the first word after the options belongs to the command.
        command, image = [image, *(command or [])], None
    typed = Typed(no_stdin, interactive, tty)
    if template is not None:
        words = [image, *(command or [])] if image is not None else command
        other = {**given, "file": file, "name": name, "cold": cold}
        raise SystemExit(_forked(template, words or [], other, typed))
    if file is None and image is None:
        from qemuctl.errors import UsageError

        raise UsageError("an image is missing", hint="qemuctl run tiny -- uname -a")
    name = name or (None if file else f"run-{secrets.token_hex(2)}")
    del rm
    # Before anything is loaded: that takes a moment, too.
    with Starting(f"starting {image or file}") as starting:
        spec, _ = flags.spec_from(name=name, image=image, file=file, flags=given)
        flags.check_boots(spec)
        # Who looks at a console, or boots from a CD, wants to see the boot.
        cold = cold or not command or given["boot"] is not None
        typed.check(command or [], f"its console: qemuctl run {image or f'-f {file}'}")
        key = escape_key(escape)
        work = _run(spec, command or [], seconds(timeout), cold, typed, key, starting)
        raise SystemExit(_status(work))


class Starting(contextlib.ExitStack):
    """What is shown until there is a guest: ``say`` changes it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.say = self.enter_context(working(text))


def _status(work: Coroutine[Any, Any, int]) -> int:
    """The status of a command, or QEMU's own: a guest may choose that one too, by the
    device isa-debug-exit."""
    from qemuctl.errors import UnexpectedExit

    try:
        return run_async(work)
    except UnexpectedExit as error:
        error.exit_status = max(error.status or 0, error.exit_status)
        raise


def _forked(
    template: str, words: list[str], given: dict[str, Any], typed: Typed
) -> int:
    """Runs a command in a fork of a named template."""
    from qemuctl.cli.fork import fork
    from qemuctl.errors import UsageError

    other = [f"--{key.replace('_', '-')}" for key, value in given.items() if value]
    if other:
        raise UsageError(f"a template is what it was made of: {', '.join(other)}")
    if not words:
        raise UsageError(
            "a command is missing", hint=f"to stay: qemuctl fork {template}"
        )
    fork(template, words, **asdict(typed))
    return 0


async def _run(
    spec: Spec,
    command: list[str],
    patience: float,
    cold: bool,
    typed: Typed,
    escape: bytes | None,
    starting: Starting,
) -> int:
    from qemuctl.cli.notices import say_accelerator, say_doubts
    from qemuctl.errors import NotReady, UsageError, WaitTimeout
    from qemuctl.host import inspect_host

    if command and not spec.agent:
        raise UsageError(
            "a command needs the guest's agent: the spec says agent: false"
        )
    if not command and not spec.serial:
        raise UsageError(
            "the console needs the serial port: the spec says serial: false"
        )
    say_doubts(spec)
    progress = building(f"building the image {spec.image}, once:")
    if not command:
        return await _look(spec, progress, escape, starting)
    from qemuctl.cli.in_guest import run_command
    from qemuctl.templates.fresh_vm import fresh

    async with contextlib.AsyncExitStack() as stack:
        guest = fresh(
            spec,
            cold=cold,
            timeout=patience,
            progress=progress,
            notice=note,
            status=starting.say,
        )
        try:
            vm = await stack.enter_async_context(guest)
        except (NotReady, WaitTimeout):  # and being emulated may be the reason
            say_accelerator(inspect_host(spec).accel.reason, spec.accel)
            raise
        starting.close()
        say_accelerator(vm.record.accel_reason, spec.accel)
        return await run_command(vm, command, typed)


async def _look(
    spec: Spec, progress: Any, escape: bytes | None, starting: Starting
) -> int:
    from qemuctl.boot.start import launch
    from qemuctl.cli.notices import say_accelerator

    async with contextlib.AsyncExitStack() as stack:
        vm = await stack.enter_async_context(
            launch(spec, paused=True, progress=progress)
        )
        starting.close()
        say_accelerator(vm.record.accel_reason, spec.accel)
        return await _console(vm, escape)


async def _console(vm: Vm, escape: bytes | None) -> int:
    from qemuctl.guest import console

    # Connected before the guest runs its first instruction: nothing is missed.
    reader, writer = await console.connect(vm.paths.serial_socket)
    if sys.stdin is not None and sys.stdin.isatty():
        note(f"{key_name(escape)} leaves the console and removes the VM")
    await vm.power.resume()
    left = await console.interact(reader, writer, escape)
    if left:
        return 0
    ended = await vm.wait_exit()
    if not ended.clean:
        raise vm.unexpected_exit(ended)
    return 0
