"""Who uses which file: no disk has two writers, and no file that somebody
needs is taken away."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from qemuctl.errors import ImageError, QemuctlError, SpecError, StateError
from qemuctl.image.chain import DEEPEST, backing_path
from qemuctl.image.qcow2 import is_qcow2, read_header
from qemuctl.image.trust import of_template
from qemuctl.paths import VmPaths, images_dir, kept_dir, templates_dir, vms_dir
from qemuctl.process import runs
from qemuctl.registry.disks.resolve import image_of
from qemuctl.registry.records.process_record import Record
from qemuctl.registry.states import State
from qemuctl.registry.template import read_template
from qemuctl.registry.vms import names
from qemuctl.spec import Disk, Spec, load_spec
from qemuctl.structs import Struct


class Opened(Struct, kw_only=False):
    """A file that the QEMU of a VM has open; ``path`` leads to it."""

    vm: str
    path: Path
    written: bool


def opened() -> Iterator[Opened]:
    """What all VMs that are on have open, by their processes' descriptors: disks
    come and go while a VM runs, and each has others below it."""
    for name in names():
        paths = VmPaths.of(name)
        is_on = runs(paths.lock)
        record = Record.read(paths.record) if is_on else None
        if record is not None:
            yield from _descriptors(name, record.qemu.pid)


def _descriptors(vm: str, pid: int) -> Iterator[Opened]:
    process = Path(f"/proc/{pid}")
    with contextlib.suppress(OSError):  # it ends in this moment
        for link in (process / "fd").iterdir():
            if link.readlink().is_absolute():
                info = (process / "fdinfo" / link.name).read_text()
                flags = int(info.partition("flags:")[2].split()[0], 8)
                yield Opened(vm, link, flags & os.O_ACCMODE != os.O_RDONLY)


def user_of(path: Path, *, written: bool = False, but: str = "") -> str | None:
    """The VM that has a file open now, or with ``written`` writes to it."""
    for file in opened():
        if file.vm != but and (file.written or not written):
            with contextlib.suppress(OSError):
                if file.path.samefile(path):
                    return file.vm
    return None


def check_not_written(spec: Spec, paths: VmPaths) -> None:
    """Raises StateError, naming the other VM, when a disk of this resolved spec
    is open elsewhere and either of the two writes to it; and SpecError when it
    would write to what others are made from, or own."""
    for index, disk in enumerate(spec.disks):
        check_free(disk, f"disks[{index}]", paths, f"start {paths.name}")


def check_free(disk: Disk, key: str, paths: VmPaths, action: str) -> None:
    """As `check_not_written`, for one resolved disk: of which ``key`` is the place
    in the spec, and ``action`` what is to be done with it."""
    path = Path(disk.path or "")
    if path.parent == paths.disks:
        return
    if not disk.readonly:
        check_nobodys(path, key, paths)
    other = user_of(path, written=disk.readonly, but=paths.name)
    if other is not None:
        raise StateError(
            action, State.OFF, f"the VM {other} is using this disk image: {path}",
            hint=f"stop it first with: qemuctl stop {other}",
        )  # fmt: skip


def check_nobodys(path: Path, key: str, paths: VmPaths) -> None:
    """Raises SpecError for a file that is not this VM's, or the user's, to change."""
    where = path.resolve()
    owner = None
    if where.is_relative_to(images_dir().resolve()):
        owner = "it is in the image store"
    elif where.is_relative_to(vms_dir().resolve()):
        name = where.relative_to(vms_dir().resolve()).parts[0]
        owner = f"it belongs to the VM {name}" if name != paths.name else None
    elif of_template(where) is not None:
        owner = f"it belongs to the template {of_template(where)}"
    above = [name for name in built_on(path) if name != paths.name]
    if above:
        owner = f"disks of other VMs are made from it: {', '.join(above)}"
    if owner is not None:
        raise SpecError(
            f"not to be written to, for {owner}: {path}",
            key=key,
            hint="say readonly: on, or give a copy: qemuctl image convert",
        )


def needing(where: Path) -> list[str]:
    """The VMs, on or off, that cannot do without the files below a folder, which
    is not their own; and kept disks, in words. One whose spec cannot be read
    needs what its text has the name of."""
    inside = where.resolve()
    found = []
    for name in names():
        paths = VmPaths.of(name)
        if paths.state.resolve() == inside:
            continue
        files, named = itertools.chain.from_iterable(_stacks_in(paths.disks)), False
        try:
            files = itertools.chain(files, _named(load_spec(paths.spec)))
        except QemuctlError:
            with contextlib.suppress(FileNotFoundError):  # removed in this moment
                named = inside.name in paths.spec.read_text(errors="replace")
        if any(file.resolve().is_relative_to(inside) for file in files):
            found.append(name)
        elif named:
            found.append(f"{name}, whose spec cannot be read")
    with contextlib.suppress(FileNotFoundError):
        for folder in sorted(kept_dir().iterdir()):
            kept = itertools.chain.from_iterable(_stacks_in(folder))
            if any(file.resolve().is_relative_to(inside) for file in kept):
                found.append(f"the kept disks in {folder}")
    return found + [f"the template {name}" for name in _templates_on(inside)]


def _templates_on(inside: Path) -> Iterator[str]:
    """The templates that stand on a file below a folder, which is not theirs."""
    for folder in sorted(templates_dir().glob("*")):
        own = folder.resolve()
        if own.is_relative_to(inside) or inside.is_relative_to(own):
            continue
        disks = map(_stacks_in, folder.glob("*/disks"))
        files = itertools.chain.from_iterable(itertools.chain.from_iterable(disks))
        with contextlib.suppress(QemuctlError):
            template = read_template(folder)
            if template is not None:  # to be made again from what it names
                files = itertools.chain(files, _named(template.spec))
        if any(file.resolve().is_relative_to(inside) for file in files):
            yield folder.name


def built_on(path: Path) -> list[str]:
    """The VMs, on or off, that have a disk on top of a file, whatever its name."""
    found = []
    for name in names():
        stacks = list(_stacks_in(VmPaths.of(name).disks))
        with contextlib.suppress(QemuctlError):
            stacks += _given(load_spec(VmPaths.of(name).spec))
        if any(_same(file, path) for stack in stacks for file in stack[1:]):
            found.append(name)
    return found


def _same(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return one.samefile(other)
    return one.resolve() == other.resolve()


def _named(spec: Spec) -> Iterator[Path]:
    """What a spec names: disks with all below them, its image, a kernel, a CD."""
    yield from itertools.chain.from_iterable(_given(spec))
    for name in (spec.boot.kernel, spec.boot.initrd, spec.cdrom):
        if name:
            yield Path(name)
    if spec.image is not None:
        yield Path(spec.image) if spec.image_is_file else images_dir() / spec.image
    with contextlib.suppress(QemuctlError):
        image = image_of(spec)  # a tiny one has a folder elsewhere
        if image is not None:
            yield image.folder


def _given(spec: Spec) -> Iterator[list[Path]]:
    """The files of each disk that is the user's own, from the top."""
    for disk in spec.disks:
        if disk.path is not None:
            yield _stack(Path(disk.path), disk.driver)


def _stacks_in(folder: Path) -> Iterator[list[Path]]:
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(folder.iterdir()):
            yield _stack(path, path.suffix.removeprefix("."))


def _stack(path: Path, format_: str) -> list[Path]:
    """A disk's file and those below it, trusted or not, as far as they are there:
    what is missing or damaged hides nothing that is known."""
    found = [path]
    while format_ == "qcow2" and len(found) <= DEEPEST:
        try:
            header = read_header(path)
            below = backing_path(path, header.backing_file or "json:")
            if below is None:
                break
            format_ = header.backing_format or ("qcow2" if is_qcow2(below) else "raw")
        except ImageError:
            break
        path = below
        found.append(path)
    return found
