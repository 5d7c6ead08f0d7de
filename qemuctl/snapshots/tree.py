"""The snapshots of a VM as its user sees them: what is recorded, held against what
the disks have, and drawn as a tree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field

from qemuctl.snapshots.records import GUARD, Entry, Records
from qemuctl.structs import Struct
from qemuctl.tail import plain


class Tag(Struct):
    """A snapshot in one disk's file; ``ram_bytes`` is 0 without the state of a
    running guest."""

    created_at: float
    ram_bytes: int


class DiskTags(Struct):
    """A disk that is written to, and the snapshots in its file by their names.

    ``problem`` says why they are not known.
    """

    id: str
    tags: Mapping[str, Tag] = field(default_factory=dict)
    problem: str | None = None


class Snapshot(Struct):
    """One snapshot of a VM; times in seconds since the epoch.

    ``ram_bytes`` is None where it has disks only. ``consistency`` is ``ram``,
    ``frozen``, ``crash`` or ``off``, None where nobody knows. ``problem`` says what
    keeps it from being used, ``current`` that the VM has come from it last.
    ``fork_of`` is the template of a VM that was a fork then: the RAM fits until that
    one is stopped.
    """

    name: str
    created_at: float
    ram_bytes: int | None
    disks: tuple[str, ...]
    parent: str | None = None
    state: str | None = None
    consistency: str | None = None
    description: str = ""
    qemu: str | None = None
    machine: str | None = None
    fork_of: str | None = None
    current: bool = False
    problem: str | None = None


def snapshots(records: Records, disks: Sequence[DiskTags]) -> list[Snapshot]:
    """All that are recorded or on a disk, each after its parent, oldest first."""
    found = [_recorded(each, records, disks) for each in records.entries.values()]
    unknown = {name for disk in disks for name in disk.tags}
    unknown -= records.entries.keys() | {GUARD}
    found += [_unrecorded(name, disks) for name in unknown]
    return [one for _, one in drawn(found)]


def drawn(rows: Iterable[Snapshot]) -> Iterator[tuple[str, Snapshot]]:
    """Each row with the lines of the tree that lead to it, parents first.

    One whose parent is not there is a root; so is one of several that are each
    other's, in a file that somebody has edited.
    """
    left = dict(enumerate(sorted(rows, key=lambda row: (row.created_at, row.name))))
    names = {row.name for row in left.values()}
    children: dict[str | None, list[int]] = {}
    for number, row in left.items():
        parent = row.parent if row.parent in names else None
        children.setdefault(parent, []).append(number)
    roots = [*children.pop(None, ()), *left]
    waiting = [(number, "", "") for number in reversed(roots)]
    while waiting:
        number, lines, below = waiting.pop()
        current = left.pop(number, None)
        if current is None:
            continue
        yield lines, current
        inner = [child for child in children.pop(current.name, ()) if child in left]
        for child in reversed(inner):
            mark, more = ("└─ ", "   ") if child == inner[-1] else ("├─ ", "│  ")
            waiting.append((child, below + mark, below + more))


def missing_on(entry: Entry, disks: Sequence[DiskTags]) -> str | None:
    """Why an entry is not whole on the disks that the VM has; None when it is."""
    known = {disk.id: disk for disk in disks}
    gone = [id_ for id_ in entry.disks if id_ not in known]
    if gone:
        return f"the VM has no disk {' and no disk '.join(gone)}"
    for id_ in entry.disks:
        problem = known[id_].problem
        if problem is not None:
            return f"{id_} cannot be read: {problem}"
    lost = [id_ for id_ in entry.disks if entry.name not in known[id_].tags]
    if lost:
        return f"missing on {', '.join(lost)}"
    if entry.has_ram and _ram(entry.name, disks) is None:
        return "its RAM is missing"
    return None


def _ram(name: str, disks: Sequence[DiskTags]) -> int | None:
    tags = [disk.tags[name] for disk in disks if name in disk.tags]
    return max((tag.ram_bytes for tag in tags), default=0) or None


def _recorded(entry: Entry, records: Records, disks: Sequence[DiskTags]) -> Snapshot:
    return Snapshot(
        name=entry.name,
        created_at=entry.created_at,
        ram_bytes=_ram(entry.name, disks) if entry.has_ram else None,
        disks=entry.disks,
        parent=entry.parent,
        state=entry.state,
        consistency=entry.consistency,
        description=entry.description,
        qemu=entry.qemu,
        machine=entry.topology.get("machine"),
        fork_of=entry.fork_of,
        current=entry.name == records.current,
        problem=missing_on(entry, disks),
    )


def _unrecorded(name: str, disks: Sequence[DiskTags]) -> Snapshot:
    having = {disk.id: disk.tags[name] for disk in disks if name in disk.tags}
    return Snapshot(
        # It may be anything that somebody has written into the file.
        name=" ".join(plain(name).split()),
        created_at=max(tag.created_at for tag in having.values()),
        ram_bytes=_ram(name, disks),
        disks=tuple(having),
        problem="not made here, so nothing else is known of it",
    )
