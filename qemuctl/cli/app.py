"""The typer application, and the parameters that many commands share."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    name="qemuctl",
    help="Virtual machines as ordinary processes: no libvirt, no root, no daemon.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def complete_names(incomplete: str) -> list[str]:
    """VM names for the shell's completion."""
    from qemuctl.vm.definitions import names

    return [name for name in names() if name.startswith(incomplete)]


def complete_images(incomplete: str) -> list[str]:
    """Image names for the shell's completion."""
    return [name for name in ("tiny",) if name.startswith(incomplete)]


Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="the VM's name", autocompletion=complete_names),
]
Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME…", help="names of VMs", autocompletion=complete_names),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Timeout = Annotated[
    str, typer.Option("--timeout", metavar="TIME", help="such as 30, 30s or 2m")
]


def example(text: str) -> str:
    """The end of a command's help: what one would type."""
    return f"Example:  {text}"


def seconds(text: str) -> float:
    """A duration from the command line. Raises UsageError."""
    from qemuctl.errors import UsageError
    from qemuctl.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(str(error)) from error
