"""What `snapshot ls` shows: records held against disks, and drawn as a tree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuctl.errors import DamagedFile, HostError, UsageError
from qemuctl.paths import VmPaths
from qemuctl.snapshots.records import (
    GUARD,
    Entry,
    Records,
    UnderWay,
    check_snapshot_name,
    ended,
    under_way,
)
from qemuctl.snapshots.topology import differences
from qemuctl.snapshots.tree import DiskTags, Snapshot, Tag, drawn, snapshots

RAM, NONE = Tag(created_at=5.0, ram_bytes=100), Tag(created_at=5.0, ram_bytes=0)


def entry(name: str, **more: Any) -> Entry:
    given: dict[str, Any] = {
        "created_at": 1.0, "state": "running", "consistency": "ram",
        "disks": ("disk0",),
    }  # fmt: skip
    return Entry(name=name, **(given | more))


def disk(id: str = "disk0", **tags: Tag) -> DiskTags:
    return DiskTags(id=id, tags=tags)


def family() -> Records:
    """a, its children b and c, and d, a child of b."""
    records = Records().added(entry("a")).added(entry("b", created_at=2.0))
    records = records.at("a").added(entry("c", created_at=3.0))
    return records.at("b").added(entry("d", created_at=4.0))


def shown(records: Records, *disks: DiskTags) -> list[str]:
    rows = snapshots(records, disks)
    return [f"{lines}{row.name}" for lines, row in drawn(rows)]


def test_each_is_below_its_parent_and_oldest_first() -> None:
    assert shown(family()) == ["a", "├─ b", "│  └─ d", "└─ c"]
    assert family().current == "d"


def test_one_is_the_child_of_where_the_vm_came_from() -> None:
    entries = family().entries
    assert [entries[name].parent for name in "abcd"] == [None, "a", "a", "b"]


def test_the_children_of_what_is_removed_become_its_parents() -> None:
    records = family().removed("b")
    assert shown(records) == ["a", "├─ c", "└─ d"]
    assert records.current == "d"
    records = records.removed("d")
    assert records.current == "a"
    records = records.removed("a")
    assert shown(records) == ["c"]
    assert (records.current, records.entries["c"].parent) == (None, None)
    assert records.removed("nobody") == records


def test_what_is_on_the_disks_and_not_recorded_is_shown_as_such() -> None:
    (row,) = snapshots(Records(), [disk(x=RAM), disk("disk1", x=NONE)])
    assert (row.name, row.ram_bytes, row.disks) == ("x", 100, ("disk0", "disk1"))
    assert row.created_at == 5.0
    assert "not made here" in str(row.problem)


def test_a_name_that_somebody_wrote_cannot_drive_the_terminal() -> None:
    (row,) = snapshots(Records(), [disk(**{"\x1b[2Jx\ny": NONE})])
    assert row.name == "x y"


def test_what_keeps_disks_during_a_revert_is_nobodys_business() -> None:
    assert snapshots(Records(), [disk(**{GUARD: NONE})]) == []


@pytest.mark.parametrize(
    ("disks", "problem"),
    [
        ([disk(a=RAM)], None),
        ([], "the VM has no disk disk0"),
        ([disk()], "missing on disk0"),
        ([disk(a=NONE)], "its RAM is missing"),
        ([DiskTags(id="disk0", problem="it is gone")], "disk0 cannot be read: it is"),
    ],
)
def test_the_disks_have_the_last_word(
    disks: list[DiskTags], problem: str | None
) -> None:
    (row,) = snapshots(Records().added(entry("a")), disks)
    if problem is None:
        assert (row.problem, row.ram_bytes) == (None, 100)
    else:
        assert str(row.problem).startswith(problem)


def test_a_snapshot_of_disks_misses_no_ram() -> None:
    (row,) = snapshots(Records().added(entry("a", consistency="off")), [disk(a=NONE)])
    assert (row.problem, row.ram_bytes) == (None, None)


ROWS = st.lists(
    st.builds(
        Snapshot,
        name=st.sampled_from("abcdef"),
        created_at=st.floats(0, 9),
        ram_bytes=st.none(),
        disks=st.just(()),
        parent=st.sampled_from([None, *"abcdefg"]),
    ),
    max_size=12,
)


@given(ROWS)
def test_whatever_the_file_says_each_row_is_shown_once(rows: list[Snapshot]) -> None:
    found = [row for _, row in drawn(rows)]
    key = lambda row: (row.name, row.created_at, str(row.parent))  # noqa: E731
    assert sorted(found, key=key) == sorted(rows, key=key)


def test_a_long_line_of_them_is_drawn() -> None:
    records = Records()
    for number in range(2000):
        records = records.added(entry(f"s{number}", created_at=float(number)))
    assert len(shown(records)) == 2000


# -- the files ---------------------------------------------------------------------


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "snapshots.json"
    records = family().added(
        entry("e", description="ü", topology={"machine": "q35"}, ballooned=5)
    )
    records.write(path)
    assert Records.read(path) == records
    assert list(tmp_path.iterdir()) == [path]


WHOLE = {"name": "a", "created_at": 1, "state": "off", "consistency": "off",
         "disks": []}  # fmt: skip
WRONG = ({"name": 5}, {"created_at": "x"}, {"disks": None}, {"colour": "red"})


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", '{"snapshots": 5}', '{"snapshots": [{"name": "a"}]}'),
        *(json.dumps({"snapshots": [WHOLE | wrong]}) for wrong in WRONG),
    ],
)
def test_a_file_that_makes_no_sense_is_kept_aside(tmp_path: Path, text: str) -> None:
    path = tmp_path / "snapshots.json"
    path.write_text(text)
    records = Records.read(path)
    assert records.damaged
    assert records.entries == {}
    records.added(entry("a")).write(path)
    assert list(Records.read(path).entries) == ["a"]
    assert (tmp_path / "snapshots.json.damaged").read_text() == text


def test_a_current_one_that_is_not_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "snapshots.json"
    path.write_text(json.dumps({"current": "x", "snapshots": []}))
    assert Records.read(path) == Records()
    assert Records.read(tmp_path / "nothing") == Records()


def test_what_cannot_be_written_leaves_the_old(tmp_path: Path) -> None:
    path = tmp_path / "snapshots.json"
    path.mkdir()
    with pytest.raises(HostError, match="cannot write"):
        family().write(path)
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_under_way_is_known_until_it_has_ended(tmp_path: Path) -> None:
    paths = VmPaths(tmp_path, tmp_path)
    assert under_way(paths) is None
    mark = UnderWay(what="create", name="a", frozen=True)
    mark.begin(paths)
    assert under_way(paths) == mark
    paths.snapshotting.write_text("{")
    with pytest.raises(DamagedFile, match="makes no sense"):
        under_way(paths)
    ended(paths)
    ended(paths)
    assert not paths.snapshotting.exists()


@pytest.mark.parametrize("name", ["", "12", "a b", "../a", "-a", ".a", "a\n", "x" * 99])
def test_a_name_is_plain(name: str) -> None:
    with pytest.raises(UsageError):
        check_snapshot_name(name)


def test_a_difference_names_what_was_and_what_is() -> None:
    then = {"machine": "pc-q35-7.2", "disk1": "virtio-blk-pci on port1", "nic0": "x"}
    now = {"machine": "pc-q35-10.0", "nic0": "x", "nic1": "y"}
    assert differences(then, now) == [
        "machine: pc-q35-7.2 then, pc-q35-10.0 now",
        "disk1: virtio-blk-pci on port1 then, none now",
        "nic1: none then, y now",
    ]
