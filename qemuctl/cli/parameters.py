"""The parameters that many commands share, and what completes them."""

from __future__ import annotations

from typing import Annotated

from qemuctl.cli.declare import Argument, Option
from qemuctl.cli.output import speak_json
from qemuctl.errors import UsageError
from qemuctl.units import parse_duration


def complete_names(incomplete: str) -> list[str]:
    """VM names for the shell's completion."""
    from qemuctl.registry.vms import names

    return [name for name in names() if name.startswith(incomplete)]


def complete_images(incomplete: str) -> list[str]:
    """Image names for the shell's completion."""
    from qemuctl.image.names import TINY, stored

    return [name for name in (TINY, *stored()) if name.startswith(incomplete)]


Name = Annotated[
    str,
    Argument(metavar="NAME", help="the VM's name", autocompletion=complete_names),
]
Names = Annotated[
    list[str],
    Argument(metavar="NAME…", help="names of VMs", autocompletion=complete_names),
]
SomeNames = Annotated[
    list[str] | None,
    Argument(metavar="[NAME…]", help="names of VMs", autocompletion=complete_names),
]
Json = Annotated[
    bool,
    Option(
        "--json",
        help="print JSON; errors are objects on stderr",
        callback=speak_json,
        is_eager=True,
    ),
]
Timeout = Annotated[
    str, Option("--timeout", metavar="TIME", help="such as 30, 30s or 2m")
]


def seconds(text: str) -> float:
    """A duration from the command line. Raises UsageError."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(str(error)) from error
