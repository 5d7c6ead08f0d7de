"""The command line's entry point."""

from __future__ import annotations

from typing import Annotated

import typer

from qemuctl import __version__
from qemuctl.cli import (  # noqa: F401 (each adds its commands)
    care,
    console,
    execute,
    images,
    lifecycle,
    look,
    run,
    specs,
    wait,
)
from qemuctl.cli.app import app
from qemuctl.cli.running import guarded


def _version(wanted: bool) -> None:
    if wanted:
        print(f"qemuctl {__version__}")
        raise typer.Exit


@app.callback()
def _qemuctl(
    _show_version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="the version"),
    ] = False,
) -> None:
    """Virtual machines as ordinary processes: no libvirt, no root, no daemon."""


def main() -> None:
    """Runs the command line of this process."""
    guarded(app)
