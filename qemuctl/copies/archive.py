"""A VM as one file, to be kept or taken elsewhere.

A tar archive::

    qemuctl.json     first: its name, and size and SHA-256 of each file
    vm.yaml          second: the spec, complete in itself, no image is needed
    disks/diskN.qcow2  every disk, flattened
    kernel, initrd   where the VM is booted without a boot loader
    instance-id      where cloud-init knows the guest by it

Nothing in an archive is believed: names, sizes and checksums are held
against the list, disks may not name other files, and the spec may not lead
outside of the VM unless its user says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, cast

from qemuctl import tars
from qemuctl.copies.foreign_spec import check_inside
from qemuctl.copies.portable_spec import (
    BOOT_FILES,
    boot_files,
    disk_name,
    image_to_go,
    made,
    portable,
)
from qemuctl.durable import sync_tree
from qemuctl.errors import ImageError
from qemuctl.image.chain import chain
from qemuctl.image.convert import convert
from qemuctl.image.manifest import sha256_of
from qemuctl.image.overlay import check_format
from qemuctl.image.progress import WHOLE, Progress, silent
from qemuctl.image.qemu_img import check_readable
from qemuctl.image.whole import scratch, whole
from qemuctl.paths import VmPaths
from qemuctl.registry.disks.disk_files import (
    DiskFile,
    another_instance,
    disk_files,
    make_seed,
)
from qemuctl.registry.disks.resolve import image_of
from qemuctl.registry.disks.unknown_drives import check_drives
from qemuctl.registry.mac_addresses import without_macs
from qemuctl.registry.offline import locked
from qemuctl.registry.states import Action, State
from qemuctl.registry.vms import creating
from qemuctl.spec import Spec, dump, load_spec, parse_spec, resolve_paths
from qemuctl.structs import Struct
from qemuctl.thread import Tick, in_thread

_LIST, _SPEC = "qemuctl.json", "vm.yaml"
_DISK = re.compile(r"disks/[a-z][a-z0-9-]{0,19}\.qcow2")
_FORMAT = 1
_LARGEST_TEXT = 1024 * 1024
_PART = 4 * 1024 * 1024


class _File(Struct, kw_only=False):
    """One file of an archive: its size in bytes and SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


async def export(
    name: str, target: Path, *, compress: bool = False, progress: Progress = silent
) -> None:
    """Writes a VM that is off into one file, whole or not at all.

    ``compress`` makes disks smaller and takes longer. Raises NotFound,
    StateError when the VM is on, ImageError, also when ``target`` exists.
    """
    with locked(name, Action.EXPORT) as paths:
        await export_locked(paths, target, compress=compress, progress=progress)


async def export_locked(
    paths: VmPaths,
    target: Path,
    *,
    compress: bool = False,
    progress: Progress = silent,
) -> None:
    """As `export`, for whoever has the VM's lock."""
    name = paths.name
    with whole(target) as fresh:
        spec = load_spec(paths.spec, name=name)
        check_drives(spec, Action.EXPORT, State.OFF)
        image = await image_to_go(spec)
        disks = disk_files(spec, paths, image)
        text = dump(portable(spec, paths, image, disks))
        with scratch(fresh.parent) as folder:
            (folder / "disks").mkdir()
            for disk in made(spec, disks):
                copy = folder / disk_name(disk)
                await _flatten(disk, copy, spec, compress, progress)
            (folder / _SPEC).write_text(text, encoding="utf-8")
            beside = boot_files(spec, paths, image)
            if paths.instance.exists():
                beside[paths.instance.name] = paths.instance
            for key, path in beside.items():
                await asyncio.to_thread(shutil.copyfile, path, folder / key)
            await in_thread(partial(_pack, name, folder, fresh, progress))


async def _flatten(
    disk: DiskFile, target: Path, spec: Spec, compress: bool, progress: Progress
) -> None:
    if disk.problem:
        raise ImageError(f"{disk.target} cannot be exported: {disk.problem}")
    await convert(
        disk.path, target, source_format=disk.format, format="qcow2",
        compress=compress, progress=progress, trust_backing=spec.trust_backing,
    )  # fmt: skip


class _Watched(Struct, kw_only=False):
    """A file to read from that can be called off."""

    file: IO[bytes]
    tick: Tick

    def read(self, size: int) -> bytes:
        self.tick()
        return self.file.read(size)


def _pack(
    name: str, folder: Path, target: Path, progress: Progress, tick: Tick
) -> None:
    entries = [
        _File(
            path.relative_to(folder).as_posix(),
            path.stat().st_size,
            sha256_of(path, tick),
        )
        for path in sorted(folder.rglob("*"), key=_first_the_spec)
        if path.is_file()
    ]
    about = {
        "format": _FORMAT,
        "name": name,
        "files": [asdict(entry) for entry in entries],
    }
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with (
        os.fdopen(fd, "wb") as out,
        tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        text = json.dumps(about, indent=1).encode() + b"\n"
        listed = tarfile.TarInfo(_LIST)
        listed.size = len(text)
        tar.addfile(listed, io.BytesIO(text))
        total = sum(entry.size for entry in entries)
        for entry in entries:
            progress(tar.offset * WHOLE // (total or 1), WHOLE)
            member = tarfile.TarInfo(entry.name)
            member.size, member.mode = entry.size, 0o600
            with (folder / entry.name).open("rb") as file:
                tar.addfile(member, cast(IO[bytes], _Watched(file, tick)))


def _first_the_spec(path: Path) -> tuple[bool, Path]:
    return path.name != _SPEC, path


async def import_(
    source: Path,
    *,
    name: str | None = None,
    trust: bool = False,
    progress: Progress = silent,
) -> str:
    """Makes a VM of a file that `export` wrote; gives its name.

    ``trust`` takes a spec that leads outside of the VM: to files of the host,
    or with arguments for QEMU. Raises ImageError for a file that is damaged or
    no archive, SpecError, NameInUse. The VM is there whole or not at all, and on the
    disk.
    """
    async with importing(source, name=name, trust=trust, progress=progress) as fresh:
        pass
    return fresh.run.name


@contextlib.asynccontextmanager
async def importing(
    source: Path,
    *,
    name: str | None = None,
    trust: bool = False,
    progress: Progress = silent,
) -> AsyncIterator[VmPaths]:
    """As `import_`, with a block in which all of the VM is on the disk, in a folder
    out of sight: it is there once the block has ended well."""
    try:
        with _readable(source) as file, tars.opened(file) as tar:
            members = _members(tar, _about(tar, source), source)
            spec = _spec(tar, members, name, source, trust=trust)
            with creating(spec) as fresh:
                await in_thread(
                    partial(_unpack, tar, members, fresh.state, source, progress)
                )
                if name is not None:  # a second one, perhaps beside the first
                    another_instance(fresh)
                for disk in fresh.disks.glob("*"):
                    await asyncio.to_thread(_check_disk, disk, source)
                there = resolve_paths(spec, fresh.state)
                await in_thread(lambda _: make_seed(there, fresh, image_of(there)))
                await in_thread(partial(sync_tree, fresh.state))
                yield fresh
    except (tarfile.TarError, EOFError) as error:
        raise ImageError(
            f"not an archive of a VM, or damaged: {source}: {error}"
        ) from error


def _readable(source: Path) -> BinaryIO:
    if source.is_fifo():  # to open it would be to wait
        raise ImageError(f"not a file: {source}")
    check_readable(source, "the archive")
    return source.open("rb")


def _check_disk(path: Path, source: Path) -> None:
    try:
        check_format(path, "qcow2")
        layers = chain(path, "qcow2")
    except ImageError as error:
        reason = error.message.replace(str(path), path.name)
        raise ImageError(
            f"a disk in the archive cannot be used: {source}: {reason}"
        ) from error
    if len(layers) > 1:
        raise ImageError(
            f"a disk in the archive names another file: {source}: {path.name}"
        )


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo, source: Path) -> bytes:
    file = tar.extractfile(member) if member.isreg() else None
    if file is None or member.size > _LARGEST_TEXT:
        raise _damaged(source, f"{member.name} is not a small file")
    return file.read()


def _damaged(source: Path, reason: str) -> ImageError:
    return ImageError(f"the archive is damaged: {source}: {reason}")


def _about(tar: tarfile.TarFile, source: Path) -> dict[str, _File]:
    """The files that there should be, by name."""
    first = next(tars.members(tar), None)
    if first is None or first.name != _LIST:
        raise ImageError(f"not an archive of a VM: {source}")
    try:
        about = json.loads(_text(tar, first, source))
        if about["format"] != _FORMAT:
            raise ImageError(
                f"written by a later version of qemuctl: {source}",
                hint="a newer qemuctl reads it",
            )
        files = [_File(**entry) for entry in about["files"]]
        if not all(isinstance(file.name, str) for file in files):
            raise TypeError
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise _damaged(source, f"{_LIST} makes no sense") from error
    for file in files:
        _check_name(file.name, source)
    return {file.name: file for file in files}


def _check_name(name: str, source: Path) -> None:
    known = name in (_SPEC, *BOOT_FILES, "instance-id") or _DISK.fullmatch(name)
    if not known:
        raise _damaged(source, f"it holds a file that does not belong: {name!r}")


class _Member(Struct, kw_only=False):
    info: tarfile.TarInfo
    file: _File


def _members(
    tar: tarfile.TarFile, about: dict[str, _File], source: Path
) -> dict[str, _Member]:
    members = {}
    for info in tars.members(tar):
        file = about.get(info.name)
        # A sparse one would be of any size, whatever that of the archive.
        plain = info.isreg() and not info.issparse() and info.name not in members
        if file is None or not plain or info.size != file.size:
            raise _damaged(source, f"{info.name!r} is not what the list says")
        members[info.name] = _Member(info, file)
    missing = about.keys() - members.keys()
    if missing or _SPEC not in members:
        raise _damaged(source, f"missing: {', '.join(sorted(missing)) or _SPEC}")
    return members


def _spec(
    tar: tarfile.TarFile,
    members: dict[str, _Member],
    name: str | None,
    source: Path,
    *,
    trust: bool,
) -> Spec:
    member = members[_SPEC]
    text = _text(tar, member.info, source)
    if hashlib.sha256(text).hexdigest() != member.file.sha256:
        raise _damaged(source, "the checksum of vm.yaml is wrong")
    spec = parse_spec(text, source=f"{source}: vm.yaml", name=name)
    if not trust:
        check_inside(spec, set(members), source)
    # Under a name of its own it is a copy, perhaps beside the first.
    return spec if name is None else without_macs(spec)


def _unpack(
    tar: tarfile.TarFile,
    members: dict[str, _Member],
    folder: Path,
    source: Path,
    progress: Progress,
    tick: Tick,
) -> None:
    total = sum(member.file.size for member in members.values())
    done = 0
    (folder / "disks").mkdir(mode=0o700, exist_ok=True)
    for name, member in members.items():
        if name == _SPEC:
            continue  # it is there already, with the name that it is to have
        content = tar.extractfile(member.info)
        assert content is not None
        digest = hashlib.sha256()
        try:
            with (folder / name).open("xb") as target:
                for part in _parts(content):
                    tick()
                    digest.update(part)
                    target.write(part)
                    done += len(part)
                    progress(done, total)
        except OSError as error:
            raise ImageError(
                f"cannot unpack {source} to {folder.parent}: {error.strerror}"
            ) from error
        if digest.hexdigest() != member.file.sha256:
            raise _damaged(source, f"the checksum of {name} is wrong")


def _parts(content: IO[bytes]) -> Iterator[bytes]:
    while part := content.read(_PART):
        yield part
