"""The course of a migration, as data: what each phase does, and what undoes it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Where a migration is."""

    CHECK = "check"
    PREPARE = "prepare"
    STORAGE = "storage"
    RAM = "ram"
    SWITCH = "switch-over"
    CONFIRM = "confirm"
    CLEAN = "clean-up"


@dataclass(frozen=True)
class Step:
    """What a phase does, what undoes it, and whether the guest stands still in it."""

    does: str
    undone_by: str
    still: bool = False


STEPS = {
    Phase.CHECK: Step("both sides are asked whether it can be done", "nothing to undo"),
    Phase.PREPARE: Step(
        "the receiver starts a QEMU that waits", "the receiver removes what it made"
    ),
    Phase.STORAGE: Step(
        "disks are copied while the guest runs", "the copying is called off"
    ),
    Phase.RAM: Step("memory is copied while the guest runs", "QEMU calls it off"),
    Phase.SWITCH: Step(
        "the guest stops here, and the rest is copied", "the guest goes on here",
        still=True,
    ),
    Phase.CONFIRM: Step(
        "the receiver is told to go on", "only both sides together know: recover",
        still=True,
    ),
    Phase.CLEAN: Step("what is left here is removed", "recover does the rest"),
}  # fmt: skip
