"""The command line's entry point."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from qemuctl import cli
from qemuctl.cli.plain import call_of
from qemuctl.cli.running import guarded


def _prepare() -> None:
    """Makes Ctrl-C and closed streams harmless wherever they meet us.

    Until a command says otherwise, an interrupt ends the process on the spot:
    Python's own way, an exception anywhere, may be lost or come out as a
    traceback. Commands with something to undo take the signals themselves.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # typer loads pydantic, whose plugins, of which there are none, take 10 ms to seek.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (to the end)
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115


def main() -> None:
    """Runs the command line of this process."""
    _prepare()
    guarded(lambda: _run(sys.argv[1:]))


def _run(words: Sequence[str]) -> None:
    call = call_of(words)
    if call is None:
        cli.run_by_typer(words)
    else:
        call()
