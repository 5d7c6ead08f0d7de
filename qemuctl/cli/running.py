"""Running a coroutine as a command: signals, errors, exit status."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from qemuctl.cli.output import note, report
from qemuctl.errors import ImageInUse, LaunchError, QemuctlError
from qemuctl.waiting import heard_by

T = TypeVar("T")


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end; a signal cancels it, so that it undoes
    what it had begun, and gives the status that a shell expects."""
    import asyncio
    import signal

    received: list[int] = []

    async def main() -> T:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def cancel(number: int) -> None:
            received.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup ignores a signal on our behalf; so be it.
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, cancel, number)
        # What was called off is no error, also where a library has not waited for it.
        loop.set_exception_handler(
            lambda loop, about: (
                None
                if isinstance(about.get("exception"), asyncio.CancelledError)
                else loop.default_exception_handler(about)
            )
        )
        heard_by(note)
        return await work

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        if not received:
            raise
        raise SystemExit(128 + received[0]) from None
    except BrokenPipeError:
        raise SystemExit(_output_closed()) from None


def _output_closed() -> int:
    """Whoever read our output has gone: says no more, not at exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


@contextlib.contextmanager
def undoing() -> Iterator[None]:
    """For the block, Ctrl-C is an exception: there is something to undo."""
    import signal

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def for_each(names: Sequence[str], work: Callable[[str], object]) -> None:
    """Does ``work`` for every name, whatever happens to the others.

    The errors are told as they come; the status is that of the last one.
    """
    status = 0
    for name in names:
        try:
            work(name)
        except QemuctlError as error:
            if len(names) == 1:
                raise
            explain(error)
            status = error.exit_status
    if status:
        raise SystemExit(status)


def explain(error: QemuctlError) -> None:
    """Prints an error, with QEMU's command line where that helps."""
    if isinstance(error, ImageInUse):
        from qemuctl.registry.file_users import user_of

        user = user_of(error.path)
        if user is not None:
            error.hint = f"the VM {user} has it open: qemuctl stop {user}"
    if isinstance(error, LaunchError) and error.argv:
        from qemuctl.cmdline import format_argv

        # First, for it is long, and the reason should be what stays in sight.
        note(f"the command was:\n{format_argv(error.argv)}\n")
    kind, status = type(error).__name__, error.exit_status
    report(error.message, error.hint, kind=kind, status=status)


def _status(work: Callable[[], object]) -> Any:
    """The status with which it ends; what it has printed has gone out by then."""
    status: Any = 0
    try:
        work()
    except SystemExit as end:
        status = end.code
    sys.stdout.flush()
    return status


def guarded(work: Callable[[], object]) -> NoReturn:
    """Runs the whole program: no traceback reaches a user who did not ask."""
    debug = os.environ.get("QEMUCTL_DEBUG", "") not in ("", "0")
    status: Any = 0
    try:
        status = _status(work)
    except QemuctlError as error:
        if debug:
            raise
        explain(error)
        status = error.exit_status
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        status = _output_closed()
    except OSError as error:
        if debug:
            raise
        what = error.strerror or str(error) or type(error).__name__
        report(
            f"{what[0].lower()}{what[1:]}"
            + f": {error.filename}" * bool(error.filename),
            kind=type(error).__name__,
        )
        status = 1
    except Exception as error:
        if debug:
            raise
        kind = type(error).__name__
        report(f"this should not have happened: {kind}: {error}", kind=kind)
        note("\nhint: QEMUCTL_DEBUG=1 shows where")
        status = 1
    raise SystemExit(status)
