"""Images for the store, made in no time; commands that end themselves."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from qemuctl.image import model, qemu_img, store
from qemuctl.image.manifest import Manifest
from qemuctl.paths import VmPaths
from qemuctl.registry import vms
from qemuctl.registry.disks.disk_files import make_disks
from qemuctl.registry.disks.resolve import image_of
from qemuctl.spec import Spec, parse_spec
from tests.unit.disk_images import MIB, qcow2

T = TypeVar("T")
PATTERN = bytes(range(256)) * 256  # 64 KiB, a cluster


def add_image(
    name: str, data: bytes = PATTERN, size: int = MIB, *, kernel: str = "", **known: Any
) -> model.Image:
    """A qcow2 image that begins with ``data``; with a kernel of this content."""
    with store.fresh(name) as folder:
        raw = folder / "raw"
        with raw.open("wb") as file:
            file.write(data)
            file.truncate(size)
        qemu_img.run("convert", "-f", "raw", "-O", "qcow2", raw, folder / "disk.qcow2")
        raw.unlink()
        if kernel:
            (folder / "kernel").write_text(kernel)
            (folder / "initrd").write_text(f"{kernel}'s initrd")
            known = {"cmdline": "console=ttyS0"} | known
        manifest = Manifest(format="qcow2", virtual_size=size, **known)
        store.describe(folder, manifest)
    return store.find(name)


def with_data_file(path: Path) -> Path:
    """A qcow2 image whose data is in another file beside it."""
    data = path.with_name("data.raw")
    qemu_img.run(
        "create", "-q", "-f", "qcow2", "-o", "data_file_raw=on",
        "-o", f"data_file={str(data).replace(',', ',,')}", qemu_img.file(path), "1M",
    )  # fmt: skip
    data.write_bytes(PATTERN.ljust(MIB, b"\0"))
    return path


def leading_elsewhere(folder: Path) -> Path:
    """An overlay whose backing file has a name that is not a file's."""
    base = qcow2(folder / "base.qcow2", PATTERN.ljust(MIB, b"\0"))
    name = {"driver": "qcow2", "file": {"driver": "file", "filename": str(base)}}
    top = folder / "top.qcow2"
    qemu_img.run(
        "create", "-q", "-f", "qcow2", "-b", f"json:{json.dumps(name)}", "-F", "qcow2",
        qemu_img.file(top),
    )  # fmt: skip
    return top


def add_vm(name: str, text: str = "", **fields: Any) -> VmPaths:
    """A VM as `create` makes it: with its disks, its spec perhaps as ``text``."""
    spec = parse_spec(text) if text else Spec(name=name, **fields)
    with vms.creating(spec, text or None) as fresh:
        in_a_loop(make_disks(spec, fresh, image_of(spec)))
    return VmPaths.of(name)


def in_a_loop(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, also inside of a test that is one itself."""
    with ThreadPoolExecutor(1) as other:
        return other.submit(asyncio.run, work).result()


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a few lines in a process of their own, in the same home."""
    argv = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


def everything(folder: Path) -> list[Path]:
    """What there is below a folder, without the store's lock files."""
    return sorted(path for path in folder.rglob("*") if not path.name.endswith("lock"))
