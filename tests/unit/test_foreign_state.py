"""Saved states: which are our own, and what is let in of the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qemuctl.errors import SpecError
from qemuctl.paths import VmPaths
from qemuctl.registry import rename, vms
from qemuctl.registry.saved_state import StateFile, disks_then, read_state
from qemuctl.savestate.foreign_state import check_state, remember_save, saved_here
from qemuctl.spec import Disk
from tests.unit.stores import add_vm
from tests.unit.test_state_file import ABOUT, written

SPEC = "name: web\ndisks: [{path: disks/disk0.qcow2}]\n"


@pytest.fixture
def web(bare_home: Path) -> VmPaths:
    add_vm("web", disks=(Disk(size=1 << 20),))
    return vms.find("web")


@pytest.fixture
def state(web: VmPaths, tmp_path: Path) -> Callable[..., StateFile]:
    """Makes a file that says what it is told to."""

    def make(**change: object) -> StateFile:
        disks = disks_then({"disk0": web.disks / "disk0.qcow2"}, web.state)
        about = replace(ABOUT, home=str(web.state), spec=SPEC, disks=disks)
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.state"
        written(path, about=replace(about, **change))
        return read_state(path)

    return make


def test_a_vm_remembers_what_it_was_saved_to(
    web: VmPaths, state: Callable[..., StateFile]
) -> None:
    first, second = state(), state(saved_at=2.5)
    assert not saved_here(first)
    remember_save(web, first)
    assert saved_here(first)
    assert not saved_here(second)
    rename.rename("web", "www")
    assert saved_here(first)
    for number in range(150):
        remember_save(VmPaths.of("www"), replace(first, head_sha256=f"{number:064}"))
    assert len(VmPaths.of("www").saves.read_text().splitlines()) == 100
    assert not saved_here(first)
    VmPaths.of("www").saves.write_bytes(b"\xff")
    assert not saved_here(first)


def test_a_vm_that_is_off_takes_a_state_that_knows_its_disks(
    web: VmPaths, state: Callable[..., StateFile]
) -> None:
    check_state(state(), web)


@pytest.mark.parametrize(
    "change",
    [
        {"disks": ()},
        {"disks": (), "spec": "name: web\n"},
        {"disks": (), "spec": "name: web\ndisks: [{size: 1M}]\n"},
    ],
)
def test_a_state_that_does_not_know_a_vms_disks_is_not_let_in(
    web: VmPaths, state: Callable[..., StateFile], change: dict[str, object]
) -> None:
    with pytest.raises(SpecError, match="leads outside of the VM") as caught:
        check_state(state(**change), web)
    assert "--trust" in (caught.value.hint or "")


def test_a_new_vm_is_made_where_nothing_is_copied_for_it(
    web: VmPaths, state: Callable[..., StateFile]
) -> None:
    new = VmPaths.of("new")
    check_state(state(disks=(), spec="name: web\n"), new)
    check_state(state(disks=(), spec="name: web\nimage: tiny\n"), new)
    for spec in (
        SPEC,
        "name: web\ndisks: [{size: 1M}]\n",
        "name: web\ncloud_init: {enabled: true}\n",
        "name: web\nboot: {kernel: kernel}\n",
    ):
        with pytest.raises(SpecError, match="home: leads outside of the VM"):
            check_state(state(spec=spec), new)
