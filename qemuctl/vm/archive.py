"""A VM as one file, to be kept or taken elsewhere.

A tar archive with, in this order::

    qemuctl.json     what is in it: name, and size and SHA-256 of each file
    vm.yaml          the spec, complete in itself: no image is needed
    disks/diskN.qcow2  every disk, flattened
    kernel, initrd   where the VM is booted without a boot loader

Nothing in an archive is believed: names, sizes and checksums are held
against the list, disks may not name other files, and the spec may not lead
outside of the VM unless its user says so.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, cast

from qemuctl.errors import ImageError, SpecError
from qemuctl.image import Image
from qemuctl.image.chain import chain
from qemuctl.image.convert import convert
from qemuctl.image.manifest import sha256_of
from qemuctl.image.overlay import check_format
from qemuctl.image.progress import WHOLE, Progress, silent
from qemuctl.image.whole import whole
from qemuctl.paths import VmPaths
from qemuctl.spec import Spec, dump, load_spec, parse_spec
from qemuctl.thread import Tick, in_thread
from qemuctl.vm.definitions import creating, locked
from qemuctl.vm.disks import DiskFile, disk_files, make_seed
from qemuctl.vm.resolve import image_of, resolved
from qemuctl.vm.states import Action

_LIST = "qemuctl.json"
_FORMAT = 1
_LARGEST_TEXT = 1024 * 1024
_PART = 4 * 1024 * 1024


@dataclass(frozen=True)
class _File:
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
    with locked(name, Action.EXPORT) as paths, whole(target) as fresh:
        spec = load_spec(paths.spec, name=name)
        image = image_of(spec)
        disks = disk_files(spec, paths, image)
        with tempfile.TemporaryDirectory(
            prefix=".qemuctl-", dir=fresh.parent
        ) as scratch:
            folder = Path(scratch)
            (folder / "disks").mkdir()
            for disk in disks:
                await _flatten(disk, folder / _disk_name(disk), compress, progress)
            text = dump(_portable(spec, paths, image, disks))
            (folder / "vm.yaml").write_text(text, encoding="utf-8")
            beside = _boot_files(spec, paths, image)
            if paths.instance.exists():
                beside[paths.instance.name] = paths.instance
            for key, path in beside.items():
                await asyncio.to_thread(shutil.copyfile, path, folder / key)
            await in_thread(partial(_pack, name, folder, fresh, progress))


def _disk_name(disk: DiskFile) -> str:
    return f"disks/{disk.target}.qcow2"


async def _flatten(
    disk: DiskFile, target: Path, compress: bool, progress: Progress
) -> None:
    if disk.problem:
        raise ImageError(
            f"{disk.target} cannot be exported: {disk.problem}: {disk.path}"
        )
    await convert(
        disk.path, target, source_format=disk.format, format="qcow2",
        compress=compress, progress=progress,
    )  # fmt: skip


def _boot_files(spec: Spec, paths: VmPaths, image: Image | None) -> dict[str, Path]:
    """The kernel and initrd that the archive has to bring; tiny's is everywhere."""
    boot = resolved(spec, paths, image).boot
    if image is not None and image.disk is None:
        return {}
    files = {"kernel": boot.kernel, "initrd": boot.initrd}
    return {key: Path(path) for key, path in files.items() if path is not None}


def _portable(
    spec: Spec, paths: VmPaths, image: Image | None, disks: list[DiskFile]
) -> Spec:
    """The spec with every file it needs named inside of the archive."""
    whole_spec = resolved(spec, paths, image)
    own = [
        disk.model_copy(update={"path": _disk_name(file), "format": None})
        for disk, file in zip(whole_spec.disks, disks, strict=False)
    ]
    update: dict[str, object] = {
        "disks": tuple(own),
        "cdrom": "" if spec.cdrom else spec.cdrom,
    }
    files = _boot_files(spec, paths, image)
    if files:
        boot = {"kernel": None, "initrd": None} | {key: key for key in files}
        update["boot"] = whole_spec.boot.model_copy(update=boot)
    if image is None or image.disk is not None:
        update |= {"image": None, "root": type(spec.root)()}
        update["memory"] = whole_spec.memory
    if image is not None and image.manifest.cloud_init and spec.cloud_init is None:
        update["cloud_init"] = _cloud_init(image)
    return spec.model_copy(update=update)


def _cloud_init(image: Image) -> object:
    from qemuctl.spec import CloudInit

    return CloudInit(user=image.manifest.user)


@dataclass(frozen=True)
class _Watched:
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
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    about = {
        "format": _FORMAT,
        "name": name,
        "files": [asdict(entry) for entry in entries],
    }
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
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
    no archive, SpecError, NameInUse. The VM is there whole or not at all.
    """
    try:
        with tarfile.open(source, "r:") as tar:
            members = _members(tar, _about(tar, source), source)
            spec = _spec(tar, members, name, source, trust=trust)
            with creating(spec) as fresh:
                await in_thread(
                    partial(_unpack, tar, members, fresh.state, source, progress)
                )
                if name is not None:  # a second one, perhaps beside the first
                    fresh.instance.unlink(missing_ok=True)
                for disk in fresh.disks.glob("*"):
                    await asyncio.to_thread(_check_disk, disk)
                await asyncio.to_thread(make_seed, spec, fresh, image_of(spec))
    except (tarfile.TarError, EOFError) as error:
        raise ImageError(
            f"not an archive of a VM, or damaged: {source}: {error}"
        ) from error
    except FileNotFoundError as error:
        raise ImageError(f"no such file: {source}") from error
    return spec.name


def _check_disk(path: Path) -> None:
    check_format(path, "qcow2")
    if len(chain(path, "qcow2")) > 1:
        raise ImageError(f"a disk in the archive names another file: {path.name}")


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo, source: Path) -> bytes:
    file = tar.extractfile(member) if member.isreg() else None
    if file is None or member.size > _LARGEST_TEXT:
        raise _damaged(source, f"{member.name} is not a small file")
    return file.read()


def _damaged(source: Path, reason: str) -> ImageError:
    return ImageError(f"the archive is damaged: {source}: {reason}")


def _about(tar: tarfile.TarFile, source: Path) -> dict[str, _File]:
    """The files that there should be, by name."""
    first = tar.next()
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
    except (ValueError, TypeError, LookupError) as error:
        raise _damaged(source, f"{_LIST} makes no sense") from error
    for file in files:
        _check_name(file.name, source)
    return {file.name: file for file in files}


def _check_name(name: str, source: Path) -> None:
    folder, _, last = name.rpartition("/")
    known = name in ("vm.yaml", "kernel", "initrd", "instance-id") or (
        folder == "disks" and last.removesuffix(".qcow2").removeprefix("disk").isdigit()
    )
    if not known:
        raise _damaged(source, f"it holds a file that does not belong: {name!r}")


@dataclass(frozen=True)
class _Member:
    info: tarfile.TarInfo
    file: _File


def _members(
    tar: tarfile.TarFile, about: dict[str, _File], source: Path
) -> dict[str, _Member]:
    members = {}
    for info in _rest(tar):
        file = about.get(info.name)
        if file is None or not info.isreg() or info.size != file.size:
            raise _damaged(source, f"{info.name!r} is not what the list says")
        members[info.name] = _Member(info, file)
    missing = about.keys() - members.keys()
    if missing or "vm.yaml" not in members:
        raise _damaged(source, f"missing: {', '.join(sorted(missing)) or 'vm.yaml'}")
    return members


def _rest(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (info := tar.next()) is not None:
        yield info


def _spec(
    tar: tarfile.TarFile,
    members: dict[str, _Member],
    name: str | None,
    source: Path,
    *,
    trust: bool,
) -> Spec:
    member = members["vm.yaml"]
    text = _text(tar, member.info, source)
    if hashlib.sha256(text).hexdigest() != member.file.sha256:
        raise _damaged(source, "the checksum of vm.yaml is wrong")
    spec = parse_spec(text, source=f"{source}: vm.yaml", name=name)
    if not trust:
        _check_inside(spec, set(members), source)
    return spec


def _check_inside(spec: Spec, names: set[str], source: Path) -> None:
    """Raises SpecError for a spec that has QEMU open more than its own files."""
    outside = {
        "extra_args": spec.extra_args,
        "qemu": spec.qemu,
        "cdrom": spec.cdrom,
        "image": spec.image if spec.image_is_file else None,
        "trust_backing": spec.trust_backing,
        "sandbox": not spec.sandbox,
        "nics": [nic for nic in spec.nics if nic.type in ("tap", "socket")],
        "display.address": spec.display.address,
        "boot": [
            f for f in (spec.boot.kernel, spec.boot.initrd) if f and f not in names
        ],
        "disks": [d for d in spec.disks if d.path is not None and d.path not in names],
    }
    if spec.cloud_init is not None:
        files = ("user_data", "meta_data", "network_config", "ssh_keys")
        found = [name for name in files if getattr(spec.cloud_init, name)]
        outside["cloud_init"] = found
    for key, value in outside.items():
        if value:
            raise SpecError(
                "leads outside of the VM", path=str(source), key=key,
                hint="if you trust where the file comes from, add --trust",
            )  # fmt: skip


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
        if name == "vm.yaml":
            continue  # it is there already, with the name that it is to have
        content = tar.extractfile(member.info)
        assert content is not None
        digest = hashlib.sha256()
        with (folder / name).open("xb") as target:
            for part in _parts(content):
                tick()
                digest.update(part)
                target.write(part)
                done += len(part)
                progress(done, total)
        if digest.hexdigest() != member.file.sha256:
            raise _damaged(source, f"the checksum of {name} is wrong")


def _parts(content: IO[bytes]) -> Iterator[bytes]:
    while part := content.read(_PART):
        yield part
