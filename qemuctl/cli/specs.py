"""`spec schema|example|check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from qemuctl.cli.declare import Argument, group
from qemuctl.cli.flags import read_spec
from qemuctl.cli.output import note, print_json

spec = group("spec", "About the YAML file of a VM.")


@spec.command(example="qemuctl spec schema > vm.schema.json")
def schema() -> None:
    """Print the JSON schema, for editors and other programs."""
    from qemuctl.spec import json_schema

    print_json(json_schema())


@spec.command("example", example="qemuctl spec example > web.yaml")
def show_example() -> None:
    """Print a commented file with every field and its default."""
    from qemuctl.spec import example as text

    print(text(), end="")


@spec.command(example="qemuctl spec check web.yaml")
def check(
    file: Annotated[
        Path, Argument(metavar="FILE", help="a YAML spec; - is standard input")
    ],
) -> None:
    """Say whether a file is a valid spec, and what is wrong with it."""
    note(f"{file}: fine, it describes {read_spec(file)[0].name}")
