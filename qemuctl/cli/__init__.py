"""The command line: the only room that prints or exits.

`declare` holds what commands there are, each with its parameters. A simple command
line is read by `plain`; all others, and help, by the typer application that `app`
makes of the same declarations. The names here are loaded when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qemuctl.lazy import exports

if TYPE_CHECKING:
    from qemuctl.cli.app import command_help, run_by_typer

__getattr__ = exports(
    __name__, {"command_help": "qemuctl.cli.app", "run_by_typer": "qemuctl.cli.app"}
)

__all__ = ["command_help", "run_by_typer"]
