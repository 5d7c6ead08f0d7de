"""How typer reads command lines whose end is a command for the guest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand

from qemuctl.cli.declare import NAMING


class GuestCommand(TyperCommand):
    """A command that ends in one for the guest, from its first word on.

    The options of qemuctl may stand before the VM's name and right after it; what
    follows the guest's command belongs to that, with or without ``--`` before it.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.allow_interspersed_args = False
        first, words, naming = self._split(ctx, args)
        if words and first[-1:] != ["--"] and not naming:
            name, *rest = words
            then, words, _ = self._split(ctx, rest)
            if then[-1:] == ["--"]:
                then.pop()
            args = [*first, *then, "--", name, *words]
        return list(super().parse_args(ctx, args))

    def _split(
        self, ctx: Any, args: Sequence[str]
    ) -> tuple[list[str], list[str], bool]:
        """The options at the beginning, the words from the first that is none on,
        and whether the options say what the VM is."""
        found, *_ = self.make_parser(ctx).parse_args([*args])
        words: list[str] = []
        naming = False
        for parameter in self.params:
            value = found.get(parameter.name)
            if parameter.param_type_name == "argument" and value:
                words += [value] if isinstance(value, str) else value
            elif parameter.name in NAMING and value:
                naming = True
        return [*args[: len(args) - len(words)]], words, naming
