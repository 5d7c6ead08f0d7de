"""The VMs that exist, as folders: create, load, rename, remove."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from qemuctl import durable
from qemuctl.errors import NameInUse, NotFound, StateError
from qemuctl.paths import VmPaths, private_dir, vms_dir
from qemuctl.process import held
from qemuctl.process.working import making, working
from qemuctl.registry.records.process_record import Record

if TYPE_CHECKING:  # `ls` must not pay for pydantic
    from qemuctl.spec import Spec


def names() -> list[str]:
    """The names of all VMs, throwaway ones too, sorted."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(
            entry.name
            for entry in os.scandir(vms_dir())
            if entry.is_dir() and not entry.name.startswith(".")
        )
    return []


def find(name: str) -> VmPaths:
    """The paths of an existing VM. Raises NotFound, with the nearest name."""
    paths = VmPaths.of(name)
    if not _exists(paths, name):
        close = get_close_matches(name, names(), 1)
        raise NotFound(name, hint=f"did you mean {close[0]}?" if close else None)
    record = Record.read(paths.record)
    if record is not None and held(paths.lock):
        return paths.ran_in(_run_folder(record))
    return paths


def _run_folder(record: Record) -> Path:
    """Where the sockets of a VM that is on are: where its QEMU sees them, if that has
    another ``/tmp`` than we (proc_pid_root(5))."""
    run = Path(record.run)
    there = Path(f"/proc/{record.qemu.pid}/root") / run.relative_to("/")
    # Not Path.is_dir, which raises where a folder does not let us in.
    seen = os.path.isdir(run)  # noqa: PTH112
    if not seen and record.qemu.alive() and os.path.isdir(there):  # noqa: PTH112
        return there
    return run


def _exists(paths: VmPaths, name: str) -> bool:
    # A name with a slash would name a folder elsewhere, none the one of all VMs.
    if not name or "/" in name or name.startswith("."):
        return False
    try:
        # The lock counts too: a VM whose spec is lost can still be ended and removed.
        return paths.spec.is_file() or paths.lock.is_file()
    except OSError:  # a name too long for a folder
        return False


def load(name: str) -> Spec:
    """The spec of a VM. Raises NotFound, or SpecError for a damaged file."""
    from qemuctl.spec import load_spec

    # The folder is the name: a rename may have been cut short before the text.
    return load_spec(find(name).spec, name=name)


def create(spec: Spec, text: str | None = None) -> VmPaths:
    """Makes the folder of a new VM; ``text`` is the spec as its user wrote it.

    Raises NameInUse. The folder appears whole or not at all; its disks are
    made at the first start.
    """
    with creating(spec, text):
        pass
    return VmPaths.of(spec.name)


@contextlib.contextmanager
def creating(spec: Spec, text: str | None = None) -> Iterator[VmPaths]:
    """As `create`, with a block in which files can be put into the new folder.

    The VM is there, by a rename, once the block has ended well, and on the disk with
    all of it: large files are best synced in the block, in a thread.
    """
    from qemuctl.registry.mac_addresses import unlike
    from qemuctl.spec import dump
    from qemuctl.spec.rewrite import rewritten

    private_dir(vms_dir())
    paths = VmPaths.of(spec.name)
    if paths.state.exists():
        raise name_in_use(spec.name)
    own = unlike(spec, (VmPaths.of(name).spec for name in names()))
    if own is not spec:
        text = dump(own) if text is None else rewritten(text, own)
        spec = own
    with making(vms_dir(), f".new-{spec.name}-") as fresh:
        (fresh / paths.spec.name).write_text(text if text is not None else dump(spec))
        (fresh / paths.lock.name).touch(0o600)
        yield VmPaths(fresh, paths.run)
        try:
            durable.sync_tree(fresh)
            # rename(2) refuses to replace a folder that is not empty.
            durable.move(fresh, paths.state)
        except OSError as error:
            if paths.state.exists():
                raise name_in_use(spec.name) from error
            raise


def name_in_use(name: str) -> NameInUse:
    """The error for a name that is taken."""
    return NameInUse(name, VmPaths.of(name).state)


def replace(name: str, text: str, *, expected: str | None = None) -> None:
    """Puts a new spec in the place of a VM's, as a whole.

    Raises StateError unless the present one is ``expected``, if that is given.
    """
    with writing(name) as path:
        if expected is not None and path.read_text() != expected:
            raise StateError(
                f"change {name}", "changed", "another command has changed it meanwhile"
            )
        write(path, text)


@contextlib.contextmanager
def writing(name: str) -> Iterator[Path]:
    """The file of a VM's spec, which nobody else changes for the block; a short one,
    for others stand still meanwhile. Raises NotFound, HostError."""
    paths = find(name)
    with working(paths.state):
        yield paths.spec


def write(path: Path, text: str) -> None:
    """Puts a spec's text in the place of another, as a whole and on the disk."""
    durable.write(path, text)


def set_cdrom(name: str, medium: str) -> None:
    """Changes the medium in a VM's spec, for its next start; empty is none.

    Raises NotFound, SpecError.
    """
    from qemuctl.spec import changed, parse_spec

    text = find(name).spec.read_text()
    new = changed(text, parse_spec(text, name=name), "cdrom", medium)
    replace(name, new, expected=text)


# How a folder begins that is in a VM's, and has its spec in an editor.
EDITING = ".edit-"
