"""The command line as a command server that can kill a command at a chosen step."""

from __future__ import annotations

import sys
from pathlib import Path

from qemuctl.cli.main import main
from qemuctl.cli.serving import preload
from qemuctl.command_server import become
from qemuctl.command_server.server import Server
from qemuctl.command_server.worker import Program
from tests import steps


def command() -> None:
    # Another program takes the worker's place: its client is a test, which goes on.
    become.client = None
    steps.install()
    main()


if __name__ == "__main__":
    preload()
    Server(Path(sys.argv[1]), Program(command), lifeline=0).serve()
