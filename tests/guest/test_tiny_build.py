"""The tiny image's recipe on a host that has few programs."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

from qemuctl.image.recipe import recipes

# Of a note by which QEMU knows a kernel that it can start uncompressed.
_PVH = struct.pack("<III", 4, 8, 18) + b"Xen\0" + bytes(8)
_VMLINUX = (b"\x7fELF" + bytes(60) + _PVH).ljust(4096, b"\0")
_VERSION = "6.12.0-test"
_UNPACKERS = ("xz", "unxz", "zstd", "unzstd", "lz4", "gzip", "gunzip", "python3")


def zstd(data: bytes) -> bytes:
    """A frame of one uncompressed block (RFC 8878)."""
    assert len(data) < 1 << 17
    header = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", len(data))
    return header + (len(data) << 3 | 1).to_bytes(3, "little") + data


def bzimage(payload: bytes) -> bytes:
    """A kernel as Linux's boot protocol wants it, with one sector of set-up code."""
    head = bytearray(1024)
    head[497] = 1
    head[514:518] = b"HdrS"
    struct.pack_into("<H", head, 526, 600 - 512)
    struct.pack_into("<II", head, 584, 0, len(payload) + 4)
    head[600 : 600 + len(_VERSION) + 3] = f"{_VERSION} x\0".encode()
    return bytes(head) + payload + struct.pack("<I", len(_VMLINUX))


@pytest.fixture
def few_programs(tmp_path: Path) -> str:
    """A PATH with all programs but those that unpack a kernel."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for found in ("/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"):
        for program in Path(found).glob("*"):
            link = folder / program.name
            if program.name not in _UNPACKERS and not link.is_symlink():
                link.symlink_to(program)
    return str(folder)


def test_a_kernel_packed_with_zstd_is_unpacked_without_the_program(
    tmp_path: Path, few_programs: str
) -> None:
    kernel, modules, out = tmp_path / "vmlinuz", tmp_path / "modules", tmp_path / "out"
    kernel.write_bytes(bzimage(zstd(_VMLINUX)))
    modules.mkdir()
    out.mkdir()
    for name in ("virtio_pci", "virtio_console"):
        (modules / f"{name}.ko.zst").write_bytes(zstd(b"depends=\0"))
    build = recipes() / "tiny" / "build"
    subprocess.run(
        [build, out, "--kernel", kernel, "--modules", modules],
        env=os.environ | {"PATH": few_programs},
        check=True,
        timeout=300,
    )
    assert (out / "kernel").read_bytes() == _VMLINUX
    assert (out / "bzimage").read_bytes() == kernel.read_bytes()
    assert b"depends=\0" in (out / "initrd").read_bytes()
