"""A `Machine` as an argument list, and an argument list as shell text."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from qemuctl.cmdline.chardev import SocketChardev
from qemuctl.cmdline.machine import Element, Machine


def argv(
    machine: Machine,
    *,
    sockets: Mapping[Path, int] | None = None,
    paused: bool = False,
) -> list[str]:
    """The argument list, the binary first.

    ``sockets`` maps each path of ``machine.listening`` to the inherited
    descriptor that listens on it. Without it QEMU binds the paths itself and
    the event recorder is left out, so that the line works when it is pasted.
    ``paused`` adds ``-S``: the guest waits for ``cont``. Raises KeyError when
    a listening path has no descriptor.
    """
    content: Iterable[Element] = machine.content
    if sockets is not None:
        content = [
            element.inherited(sockets[element.path])
            if isinstance(element, SocketChardev) and element.path is not None
            else element
            for element in (*machine.content, *machine.recorder)
        ]
    words = [str(machine.binary)]
    for element in content:
        words += element.arguments()
    if paused:
        words.append("-S")
    return [*words, *machine.extra_args]


def format_argv(words: Sequence[str], *, folders: Iterable[Path] = ()) -> str:
    """Shell text that runs ``words``: one option with its value a line.

    ``folders`` are made first, so that the text also works for a VM that has
    never been started (``machine.folders``).
    """
    lines: list[list[str]] = []
    for word in words:
        # A value that starts with "-" gets a line of its own, which is as good.
        joins = (
            bool(lines)
            and len(lines) > 1
            and len(lines[-1]) == 1
            and lines[-1][0].startswith("-")
            and not word.startswith("-")
        )
        if joins:
            lines[-1].append(word)
        else:
            lines.append([word])
    text = " \\\n  ".join(shlex.join(line) for line in lines)
    made = [str(folder) for folder in folders]
    if made:
        text = f"{shlex.join(['mkdir', '-p', '-m', '700', '--', *made])} &&\n{text}"
    return text
