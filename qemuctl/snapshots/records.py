"""What the disks themselves do not tell of a VM's snapshots, in a file beside them.

Whether a snapshot exists is for the disks to say: they hold it. The file has where
each one came from, and what the VM was like then. A second file is there only while
a command makes, loads or removes a snapshot, so that the next one can end what a
killed one has begun.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from qemuctl import durable
from qemuctl.errors import DamagedFile, UsageError
from qemuctl.paths import VmPaths
from qemuctl.spec.scalars import check_name
from qemuctl.structs import Struct

Consistency = Literal["ram", "frozen", "crash", "off"]
GUARD = ".before-revert"
"""The tag of what disks held before a revert of a VM that is off."""
FORK_OF = "fork of the template"
"""What a fork is, in its topology: its RAM lies over that of its template."""


class Entry(Struct):
    """One snapshot, as it was when it was taken; ``created_at`` in seconds since the
    epoch.

    ``state`` is that of the VM: running, paused or off. ``consistency`` tells what
    it holds: ``ram``, or disks only, with file systems ``frozen``, as after a
    ``crash``, or of a VM that was ``off``. ``disks`` are the ids of its disks,
    ``topology`` is what must be the same for its RAM to fit, and ``ballooned`` how
    much the balloon was asked to hold, in bytes.
    """

    name: str
    created_at: float
    state: str
    consistency: Consistency
    disks: tuple[str, ...]
    parent: str | None = None
    description: str = ""
    qemu: str | None = None
    topology: Mapping[str, str] = field(default_factory=dict)
    ballooned: int | None = None

    @property
    def has_ram(self) -> bool:
        return self.consistency == "ram"

    @property
    def fork_of(self) -> str | None:
        """The template that the VM was a fork of; None for any other VM."""
        return self.topology.get(FORK_OF)


class Records(Struct):
    """All entries by name, and which one the VM has come from last.

    ``damaged`` tells that the file made no sense: it is kept when another is
    written.
    """

    entries: Mapping[str, Entry] = field(default_factory=dict)
    current: str | None = None
    damaged: bool = False

    @classmethod
    def read(cls, path: Path) -> Self:
        """What the file says; nothing where there is none, or it makes no sense."""
        try:
            value = json.loads(path.read_text())
            entries = [_entry(each) for each in value["snapshots"]]
            current = value.get("current")
            known = {each.name: each for each in entries}
            return cls(entries=known, current=current if current in known else None)
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return cls(damaged=True)

    def write(self, path: Path) -> None:
        """Replaces the file as a whole. Raises HostError."""
        value = {
            "current": self.current,
            "snapshots": [asdict(each) for each in self.entries.values()],
        }
        if self.damaged:
            path.replace(path.with_name(f"{path.name}.damaged"))
        durable.write_json(path, value)

    def added(self, entry: Entry) -> Records:
        """With one more, a child of the current one, which it becomes."""
        fresh = replace(entry, parent=self.current)
        return replace(
            self, entries={**self.entries, entry.name: fresh}, current=entry.name
        )

    def removed(self, name: str) -> Records:
        """Without one, whose children are now its parent's."""
        gone = self.entries.get(name)
        if gone is None:
            return self
        left = {
            each.name: replace(each, parent=gone.parent)
            if each.parent == name
            else each
            for each in self.entries.values()
            if each.name != name
        }
        current = gone.parent if self.current == name else self.current
        return replace(self, entries=left, current=current)

    def at(self, name: str) -> Records:
        """With another one as the current."""
        return replace(self, current=name)


def _entry(value: dict[str, Any]) -> Entry:
    entry = Entry(**value)
    texts = (entry.name, entry.description, entry.state, entry.parent or "")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("not a text")
    return replace(
        entry,
        disks=tuple(map(str, entry.disks)),
        topology={str(key): str(each) for key, each in dict(entry.topology).items()},
        created_at=float(entry.created_at),
    )


# -- what is under way ---------------------------------------------------------


class UnderWay(Struct):
    """A command that has begun to ``create``, ``load``, ``apply`` (to disks alone)
    or ``remove`` a snapshot; ``frozen`` tells that it froze the file systems, ``job``
    is QEMU's name for the load."""

    what: Literal["create", "load", "apply", "remove"]
    name: str
    frozen: bool = False
    job: str | None = None

    def begin(self, paths: VmPaths) -> None:
        """Writes it down. Raises HostError."""
        durable.write_json(paths.snapshotting, asdict(self))


def under_way(paths: VmPaths) -> UnderWay | None:
    """What was begun and not ended; None where there is nothing.

    Raises DamagedFile where nobody can tell what it was: a snapshot may be on some
    disks only, or some may be taken back to one.
    """
    try:
        with durable.understood(paths.snapshotting, _either_way(paths)):
            return _under_way(json.loads(paths.snapshotting.read_text()))
    except FileNotFoundError:
        return None


def _under_way(value: dict[str, Any]) -> UnderWay:
    mark = UnderWay(**value)
    if mark.what not in ("create", "load", "apply", "remove"):
        raise ValueError("no such work")
    if not isinstance(mark.name, str):
        raise TypeError("not a name")
    return mark


def to_settle(paths: VmPaths) -> tuple[UnderWay, Records] | None:
    """What is to be ended, and the snapshots that are written down. Raises DamagedFile
    where one of the two makes no sense."""
    mark, records = under_way(paths), Records.read(paths.snapshots)
    if mark is None:
        return None
    if records.damaged and mark.what in ("create", "load"):
        # What was made is not known from what was not, nor what was to be loaded.
        raise DamagedFile(paths.snapshots, hint=_either_way(paths))
    return mark, records


def _either_way(paths: VmPaths) -> str:
    return (
        "disks may be of two times, one here and one there; once the VM is off, take "
        f"all of them back to a snapshot: qemuctl snapshot revert {paths.name} SNAP; "
        f"or go on from them as they are: qemuctl start {paths.name} --fresh"
    )


def ended(paths: VmPaths) -> None:
    """Nothing is under way any more."""
    durable.remove(paths.snapshotting)


def check_snapshot_name(name: str) -> str:
    """The name of a snapshot, which is as plain as that of a VM. Raises UsageError."""
    if name.isdecimal():
        raise UsageError(
            f"not a name for a snapshot: {name}",
            hint="QEMU would take digits alone for the number of another",
        )
    try:
        return check_name(name)
    except ValueError as error:
        raise UsageError(str(error)) from error
