"""The course of a migration, as data: what each phase does, and what undoes it."""

from __future__ import annotations

from enum import StrEnum

from qemuctl.structs import Struct


class Phase(StrEnum):
    """Where a migration is."""

    CHECK = "check"
    PREPARE = "prepare"
    STORAGE = "storage"
    RAM = "ram"
    SWITCH = "switch-over"
    CONFIRM = "confirm"
    CLEAN = "clean-up"


class Step(Struct):
    """What a phase is ``called`` for people and what it ``does``, what undoes it, and
    whether the guest stands still in it."""

    called: str
    does: str
    undone_by: str
    still: bool = False


STEPS = {
    Phase.CHECK: Step(
        called="asking both sides",
        does="both sides are asked whether it can be done",
        undone_by="nothing has been changed",
    ),
    Phase.PREPARE: Step(
        called="preparing",
        does="the other side starts a QEMU that waits",
        undone_by="the other side removes what it made",
    ),
    Phase.STORAGE: Step(
        called="disks",
        does="its disks are copied while its guest runs",
        undone_by="the copying is called off",
    ),
    Phase.RAM: Step(
        called="memory",
        does="its memory is copied while its guest runs",
        undone_by="the copying is called off",
    ),
    Phase.SWITCH: Step(
        called="switching over",
        does="its guest stands still here, and the rest is copied",
        undone_by="its guest goes on here",
        still=True,
    ),
    Phase.CONFIRM: Step(
        called="confirming",
        does="the other side is told to go on",
        undone_by="both sides are asked: migrate-recover",
        still=True,
    ),
    Phase.CLEAN: Step(
        called="clearing up",
        does="its guest runs there, and is removed here",
        undone_by="migrate-recover does the rest",
    ),
}
