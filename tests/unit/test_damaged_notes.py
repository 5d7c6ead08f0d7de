"""Notes of what is under way that a power cut has damaged: refused, with what to do.

None of them is taken for "nothing was under way".
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qemuctl.boot import at_snapshot
from qemuctl.boot.start import start
from qemuctl.copies.clone import clone
from qemuctl.errors import DamagedFile, QemuctlError
from qemuctl.image.snapshots import snapshot_apply, snapshot_create
from qemuctl.migration.arrival import Mark, ask
from qemuctl.migration.arrivals import Arrival
from qemuctl.migration.place import home_id
from qemuctl.migration.recovery import recover
from qemuctl.paths import VmPaths, state_home
from qemuctl.registry import removal, vms
from qemuctl.registry.disks.disk_files import make_seed
from qemuctl.registry.records.disk_ledger import made_names
from qemuctl.registry.records.hotplug_journal import Journal
from qemuctl.registry.records.migration_journal import check_here
from qemuctl.registry.records.moved_away import check_not_moved
from qemuctl.registry.records.plugged_specs import plugged_disks
from qemuctl.snapshots import offline
from qemuctl.snapshots.records import GUARD
from qemuctl.spec import CloudInit, Disk
from qemuctl.vm.listing import listing
from tests.unit.disk_images import MIB, content, write
from tests.unit.stores import add_vm

pytestmark = pytest.mark.usefixtures("bare_home")

TOKEN = "0" * 32
DAMAGE = {
    "empty": b"", "cut": b'{"what": "app', "zeros": bytes(64), "binary": b"\xff\xfe",
    "a list of nothing": b"[null]", "a number": b"5",
    "unknown": b'{"what": "?", "name": "x"}',
}  # fmt: skip
damaged = pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)


@pytest.fixture
def web() -> VmPaths:
    """A VM that is off."""
    return add_vm("web", image=None)


@pytest.fixture
def pair() -> VmPaths:
    """One that has two disks."""
    disk = Disk(size=MIB, format="qcow2")
    return add_vm("web", image=None, disks=(disk, disk))


def disks(pair: VmPaths) -> list[Path]:
    return [pair.disk(0, "qcow2"), pair.disk(1, "qcow2")]


@damaged
async def test_disks_of_two_times_are_not_started(web: VmPaths, damage: bytes) -> None:
    web.snapshotting.write_bytes(damage)
    for refused in (
        start("web"), offline.create_snapshot("web", "x"),
        offline.settle("web"), clone("web", "new"),
    ):  # fmt: skip
        with pytest.raises(QemuctlError) as caught:
            await refused
        assert caught.value.hint is not None
        assert "qemuctl s" in caught.value.hint
    assert web.snapshotting.read_bytes() == damage
    assert offline.list_snapshots("web") == []


async def test_all_disks_can_be_taken_back_to_one_snapshot(pair: VmPaths) -> None:
    """Also where a revert was cut short in its middle."""
    for disk in disks(pair):
        write(disk, 0, 4096, 1)
    before = [content(disk) for disk in disks(pair)]
    await offline.create_snapshot("web", "one")
    for disk in disks(pair):
        write(disk, 0, 4096, 2)
        await snapshot_create(disk, GUARD)
    await snapshot_apply(disks(pair)[0], "one")
    assert content(disks(pair)[0]) != content(disks(pair)[1])
    pair.snapshotting.write_bytes(b"")
    await at_snapshot.revert("web", "one")
    assert [content(disk) for disk in disks(pair)] == before
    assert not pair.snapshotting.exists()
    assert [one.name for one in offline.list_snapshots("web")] == ["one"]


async def test_the_disks_can_be_taken_as_they_are(web: VmPaths) -> None:
    web.snapshotting.write_bytes(b"")
    await offline.settle("web", as_they_are=True)
    assert not web.snapshotting.exists()
    await offline.settle("web")


@pytest.mark.parametrize("what", ["create", "load"])
async def test_what_was_made_is_not_removed_where_the_list_is_damaged(
    pair: VmPaths, what: str
) -> None:
    await offline.create_snapshot("web", "one")
    pair.snapshotting.write_text(json.dumps({"what": what, "name": "one"}))
    pair.snapshots.write_bytes(b"")
    with pytest.raises(DamagedFile, match=r"snapshots\.json") as caught:
        await start("web")
    assert "start web --fresh" in str(caught.value.hint)
    assert [one.name for one in offline.list_snapshots("web")] == ["one"]


@damaged
async def test_a_vm_that_may_run_elsewhere_stays_off(
    web: VmPaths, damage: bytes
) -> None:
    web.migration.write_bytes(damage)
    with pytest.raises(DamagedFile) as caught:
        await start("web")
    assert "qemuctl migrate-recover web --here" in str(caught.value.hint)
    with pytest.raises(DamagedFile):
        check_here(web, "start")
    (row,) = listing(include_off=True)
    assert "migration" in str(row.ended)
    with pytest.raises(DamagedFile):
        await recover("web")
    assert not await recover("web", here=True)
    check_here(web, "start")


def _unreadable_mark(web: VmPaths) -> Path:
    return web.arriving


def _unreadable_landing(web: VmPaths) -> Path:
    return web.landed


def _unreadable_arrival(_web: VmPaths) -> Path:
    path = state_home() / "arrivals" / TOKEN
    path.parent.mkdir()
    return path


@damaged
@pytest.mark.parametrize(
    "where", [_unreadable_mark, _unreadable_landing, _unreadable_arrival]
)
async def test_nobody_is_told_that_a_vm_never_came(
    web: VmPaths, where: Callable[[VmPaths], Path], damage: bytes
) -> None:
    """Its guest would be let go on over there, and may run here."""
    path = where(web)
    path.write_bytes(damage)
    with pytest.raises(DamagedFile) as caught:
        await ask(TOKEN)
    assert f"rm {path}" in str(caught.value.hint)


async def test_another_damaged_arrival_does_not_matter(web: VmPaths) -> None:
    add_vm("other", image=None).arriving.write_bytes(b"")
    Mark(token=TOKEN, undertaker=None, forwards={}).write(web)
    Arrival(token=TOKEN, name="web", stepped=True).write()
    assert (await ask(TOKEN))["fate"] == "arrived"


@damaged
async def test_devices_on_their_way_are_not_forgotten(
    web: VmPaths, damage: bytes
) -> None:
    web.journal.write_bytes(damage)
    with pytest.raises(DamagedFile) as caught:
        Journal(web.journal).changes()
    with pytest.raises(DamagedFile):
        await start("web")
    assert f"rm {web.journal}" in str(caught.value.hint)
    removal.remove("web")  # with all of it


@damaged
def test_plugged_disks_are_not_forgotten(web: VmPaths, damage: bytes) -> None:
    web.plugged.write_bytes(damage)
    with pytest.raises(DamagedFile) as caught:
        plugged_disks(web)
    assert "qemuctl start web" in str(caught.value.hint)


def test_names_of_disks_that_were_made_are_not_forgotten(web: VmPaths) -> None:
    web.made.write_bytes(b"\xff")
    with pytest.raises(DamagedFile, match="made"):
        made_names(web)


@damaged
def test_a_vm_that_has_moved_stays_off(web: VmPaths, damage: bytes) -> None:
    web.moved.write_bytes(damage)
    with pytest.raises(QemuctlError) as caught:
        check_not_moved(web)
    assert "--fresh" in str(caught.value.hint)


@pytest.mark.parametrize("damage", [b"", b" \n", b"\xff"])
def test_a_guest_is_not_set_up_anew(web: VmPaths, damage: bytes) -> None:
    spec = vms.load("web").model_copy(update={"cloud_init": CloudInit()})
    web.instance.write_bytes(damage)
    with pytest.raises(DamagedFile) as caught:
        make_seed(spec, web, None)
    assert f"rm {web.instance}" in str(caught.value.hint)


def test_a_home_has_one_identity_for_good() -> None:
    known = home_id()
    assert home_id() == known
    (state_home() / "id").write_bytes(b"")
    with pytest.raises(DamagedFile) as caught:
        home_id()
    assert f"rm {state_home() / 'id'}" in str(caught.value.hint)
    (state_home() / "id").unlink()
    assert home_id() != known
