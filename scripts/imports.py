#!/usr/bin/env python3
"""Holds commands to the modules that they may load.

Each command of `imports.txt` is run in a home of its own, one after the other, and
qemuctl's modules are counted at its end: that is exact, however busy the machine is.
More than are written there is an error, and so is a library that takes long to load
and that the command must do without. ``--update`` writes what there is now.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

TABLE = Path(__file__).with_suffix(".txt")
AGENTLESS = {"exec"}  # fails: nothing has booted
# typer loads pydantic where it reads a command line.
NEVER = {"httpx", "rich", "psutil", "pycdlib", "pydantic"}
PARSER = {"typer"}
RUN = """
import atexit, pathlib, sys
told = pathlib.Path(sys.argv.pop(1))
atexit.register(lambda: told.write_text(" ".join(sys.modules)))
from qemuctl.cli.main import main
main()
"""


def loaded(command: str, home: Path) -> list[str]:
    """All modules that a command loads; ends the script where it fails."""
    told = home / "modules"
    done = subprocess.run(
        [sys.executable, "-c", RUN, told, *command.split()],
        env=os.environ | {"QEMUCTL_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode and command.split()[0] not in AGENTLESS:
        sys.exit(f"{command}: {done.stderr.decode()}")
    return told.read_text().split()


def unwanted(command: str) -> set[str]:
    """The libraries that a command must do without."""
    return NEVER if command.endswith("--help") else NEVER | PARSER


def main() -> None:
    table = [line.split(maxsplit=1) for line in TABLE.read_text().splitlines()]
    wrong, lines = [], []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for most, command in table:
                found = loaded(command, Path(folder))
                own = [name for name in found if name.split(".")[0] == "qemuctl"]
                lines.append(f"{len(own):>4}  {command}\n")
                if len(own) > int(most):
                    wrong.append(f"{command}: {len(own)} modules, {most} at most")
                libraries = sorted(unwanted(command) & {*found})
                wrong += [f"{command}: loads {library}" for library in libraries]
        finally:
            loaded("rm web --force", Path(folder))
    if "--update" in sys.argv:
        TABLE.write_text("".join(lines))
    elif wrong:
        sys.exit("\n".join([*wrong, "python -X importtime tells what loads what"]))


if __name__ == "__main__":
    main()
