"""What `vm.nics` gives back."""

from __future__ import annotations

from typing import Literal

from qemuctl.guest.info import Interface
from qemuctl.hotplug.sight import Sight
from qemuctl.hotplug.unplug import Removal
from qemuctl.structs import Struct

Link = Literal["up", "down"]


class ChangedNic(Struct):
    """A card, and where the change was made: in the VM that runs, in its spec."""

    id: str
    live: bool
    configured: bool


class AddedNic(ChangedNic):
    """A card that was added; ``forwards`` as `Record.forwards`, and ``guest`` is set
    when it was added live."""

    mac: str
    model: str
    forwards: tuple[str, ...] = ()
    guest: Sight | None = None


class RemovedNic(ChangedNic):
    """A card that was removed, with what it was plugged into."""

    outcome: Removal = Removal.REMOVED


class LinkedNic(ChangedNic):
    """A card whose cable is plugged in (``up``) or out."""

    link: Link


class ChangedForward(ChangedNic):
    """A forward that came or went; ``id`` is its card's. ``forward`` is the notation
    of the spec, ``address`` as `Record.forwards` when it is live."""

    forward: str
    address: str | None = None


class NicForward(Struct):
    """One forward of a card: ``text`` as `Record.forwards` where it is live, else as
    the spec has it."""

    text: str
    live: bool
    configured: bool


class NicStatus(Struct):
    """A card as the VM has it now, as its spec has it, or both.

    ``live`` is None where QEMU was not asked; ``link`` and ``mac`` are those of now
    if there is one now, ``configured_link`` is that of the next start. ``leaving``
    tells that the guest was asked to let go of it and has not yet. ``guest`` is its
    interface, as the guest's agent tells.
    """

    id: str
    type: str
    model: str
    mac: str
    link: Link
    live: bool | None
    configured: bool
    configured_link: Link | None = None
    leaving: bool = False
    forwards: tuple[NicForward, ...] = ()
    guest: Interface | None = None
