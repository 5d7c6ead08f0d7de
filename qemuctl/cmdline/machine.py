"""The whole command line before it is rendered."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from qemuctl.cmdline.chardev import SocketChardev
from qemuctl.structs import Struct


class Element(Protocol):
    """One switch with its value."""

    def arguments(self) -> list[str]:
        """The option and its value."""


class Machine(Struct):
    """What QEMU gets, in order.

    ``recorder`` is the event monitor, which needs files that the launcher
    makes; ``folders`` must exist before QEMU starts; ``extra_args`` are the
    user's and come last.
    """

    binary: Path
    content: tuple[Element, ...]
    recorder: tuple[Element, ...] = ()
    extra_args: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()

    @property
    def listening(self) -> tuple[Path, ...]:
        """The unix sockets of chardevs: monitors, agent, serial console.

        The launcher binds them itself and hands each over as a descriptor, so
        that a client can connect before QEMU runs and no path is raced for.
        """
        return tuple(
            element.path
            for element in self.content
            if isinstance(element, SocketChardev) and element.path is not None
        )
