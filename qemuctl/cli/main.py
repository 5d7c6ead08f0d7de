"""The command line's entry point."""

from __future__ import annotations

import sys

from qemuctl.cli.listing import print_listing, quick_ls
from qemuctl.cli.running import guarded


def main() -> None:
    """Runs the command line of this process."""
    switches = quick_ls(sys.argv[1:])
    if switches is not None:
        guarded(lambda: print_listing(**switches))
    from qemuctl.cli.app import app

    guarded(app)
