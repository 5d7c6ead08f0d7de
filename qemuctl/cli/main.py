"""The command line's entry point."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from qemuctl.cli.listing import print_listing, quick_ls
from qemuctl.cli.running import guarded


def _prepare() -> None:
    """Makes Ctrl-C and closed streams harmless wherever they meet us.

    Until a command says otherwise, an interrupt ends the process on the spot:
    Python's own way, an exception anywhere, may be lost or come out as a
    traceback. Commands with something to undo take the signals themselves.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Looking for plugins of pydantic's, which we have none of, takes 10 ms.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (to the end)
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115


def main() -> None:
    """Runs the command line of this process."""
    _prepare()
    switches = quick_ls(sys.argv[1:])
    if switches is not None:
        guarded(lambda: print_listing(names=(), **switches))
    from qemuctl.cli.app import run

    guarded(lambda: run(sys.argv[1:]))
