"""Running a coroutine as a command: signals, errors, exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

from qemuctl.cli.output import note, report
from qemuctl.errors import QemuctlError, ToolError

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


def explain(error: QemuctlError) -> None:
    """Prints an error, with QEMU's command line where that helps."""
    report(error.message, error.hint)
    if isinstance(error, ToolError) and error.argv:
        from qemuctl.cmdline import format_argv

        note(f"\nthe command was:\n{format_argv(error.argv)}")


def guarded(work: Any) -> NoReturn:
    """Runs the whole program: no traceback reaches a user who did not ask."""
    debug = os.environ.get("QEMUCTL_DEBUG", "") not in ("", "0")
    try:
        work()
        status = 0
        sys.stdout.flush()
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
        report(str(error) or type(error).__name__)
        status = 1
    except Exception as error:
        if debug:
            raise
        report(f"this should not have happened: {type(error).__name__}: {error}")
        note("\nhint: QEMUCTL_DEBUG=1 shows where")
        status = 1
    raise SystemExit(status)
