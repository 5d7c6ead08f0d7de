"""What people give to `create` and its kin: odd files, pipes, text, large numbers."""

from __future__ import annotations

from pathlib import Path

from tests.guest.conftest import Home


def test_an_image_of_another_format_does_not_become_a_raw_disk(
    here: Home, tmp_path: Path
) -> None:
    vdi = tmp_path / "a.raw"
    vdi.write_bytes((b"\0" * 64 + b"\x7f\x10\xda\xbe").ljust(1 << 20, b"\0"))
    words = here.words("create", "v", "--disk", f"path={vdi}", check=1)
    assert f"not a raw disk, but a VDI image: {vdi}" in words
    assert f"qemuctl image import {vdi} --format vdi" in words
    here.run("create", "v", "--disk", "size=1M")
    assert "VDI" in here.words("disk", "add", "v", "--path", vdi, check=1)
    vdi.write_bytes(b"a guest's own".ljust(1 << 20, b"\0"))
    here.run("disk", "add", "v", "--path", vdi)
