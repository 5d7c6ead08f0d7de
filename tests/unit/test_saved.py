"""Whether a VM goes on from a saved state: the file, and what QEMU's events tell."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qemuctl.errors import StateError
from qemuctl.paths import VmPaths
from qemuctl.registry.records.saved_marker import discard, is_saved
from qemuctl.registry.states import Action
from qemuctl.savestate.save import check_movable

STOP, RESUME = "STOP", "RESUME"
ACTIVE, DONE, FAILED = "active", "completed", "failed"


def paths(folder: Path, *events: str) -> VmPaths:
    """A VM with a saved state, and these events in its last run."""
    found = VmPaths(folder, folder)
    found.saved.touch()
    lines = []
    for name in events:
        data = {} if name.isupper() else {"status": name}
        event = {
            "event": "MIGRATION" if data else name, "data": data,
            # The host's clock goes where it likes.
            "timestamp": {"seconds": 1000 - len(lines), "microseconds": 0},
        }  # fmt: skip
        lines.append(json.dumps(event))
    found.events.write_text("\n".join(lines) + "\n")
    return found


@pytest.mark.parametrize(
    ("events", "saved"),
    [
        ((RESUME, STOP, ACTIVE, DONE), True),
        # It was saved paused, or brought up and saved before it ran.
        ((ACTIVE, DONE), True),
        # It went on although it had been saved: whoever did that was killed.
        ((RESUME, STOP, ACTIVE, DONE, RESUME), False),
        ((RESUME, STOP, ACTIVE, DONE, RESUME, STOP), False),
        # And was saved again.
        ((RESUME, STOP, ACTIVE, DONE, RESUME, STOP, ACTIVE, DONE), True),
        # A start that could not read it, or was cut off.
        ((ACTIVE, FAILED), True),
        ((ACTIVE,), True),
        ((), True),
        # A start from it, and one from the disks.
        ((ACTIVE, DONE, RESUME), False),
        ((RESUME,), False),
    ],
)
def test_what_the_guest_has_left_behind_is_no_state(
    tmp_path: Path, events: tuple[str, ...], saved: bool
) -> None:
    assert is_saved(paths(tmp_path, *events)) is saved


def test_without_the_file_nothing_is_saved(tmp_path: Path) -> None:
    vm = paths(tmp_path)
    discard(vm)
    assert not is_saved(vm)
    discard(vm)


def test_only_a_vm_with_memory_of_its_own_can_be_saved() -> None:
    def vm(*, attached: bool = False, template: str | None = None) -> Any:
        record = SimpleNamespace(attached=attached, template=template, accel="kvm")
        return cast(Any, SimpleNamespace(name="web", record=record))

    check_movable(vm(), Action.SAVE)
    with pytest.raises(StateError, match="it is a throwaway VM"):
        check_movable(vm(attached=True), Action.SAVE)
    with pytest.raises(StateError, match="its RAM is that of the template db"):
        check_movable(vm(template="db"), Action.SAVE)
