"""Command lines whose end is a command for the guest."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

from qemuctl.cli.declare import Option
from qemuctl.errors import UsageError
from qemuctl.structs import Struct

NoStdin = Annotated[
    bool,
    Option("--no-stdin", "-n", help="leave standard input to others, as ssh -n"),
]
Interactive = Annotated[
    bool,
    Option("--interactive", "-i", help="pass on what is typed, line by line"),
]
Escape = Annotated[
    str,
    Option(
        metavar="KEY",
        help="the key that leaves the console, such as ^t; the guest gets all others; "
        "or none",
    ),
]
# Those who know docker type -it.
Tty = Annotated[bool, Option("--tty", "-t", hidden=True)]
# Without arguments they converse; the guest's agent has no terminal for them.
_SHELLS = {"ash", "bash", "dash", "fish", "ksh", "sh", "zsh", "python", "python3"}
_ONLY_SHELL = {"-i", "-l", "--login"}


class Typed(Struct, kw_only=False):
    """Which part of our standard input a command in the guest gets."""

    no_stdin: bool = False
    interactive: bool = False
    tty: bool = False

    def check(self, command: Sequence[str], terminals: str) -> None:
        """Raises UsageError for a command that needs a terminal: the agent has none.
        ``terminals`` are the commands that give one."""
        silent = is_shell(command) and is_terminal() and not self.interactive
        if self.tty or silent:
            raise UsageError(
                "the guest's agent has no terminal to run a command on",
                hint=f"{terminals}; line by line, without a prompt: -i",
            )

    @property
    def passed_on(self) -> bool:
        """Whether there is an input to pass on. A terminal's keys are for whoever
        typed the command, unless they are asked for; /dev/null spares the guest the
        processes that would feed nothing."""
        if self.no_stdin or sys.stdin is None or sys.stdin.closed:
            return False
        if is_terminal():
            return self.interactive
        try:  # its descriptor may be closed all the same
            given = os.fstat(sys.stdin.fileno())
        except OSError:
            return False
        return not os.path.samestat(given, os.stat(os.devnull))  # noqa: PTH116


def is_terminal() -> bool:
    """Whether standard input is one."""
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()


def is_shell(command: Sequence[str]) -> bool:
    """Whether a command does nothing but to converse."""
    name, *rest = command or [""]
    return os.path.basename(name) in _SHELLS and set(rest) <= _ONLY_SHELL  # noqa: PTH119
