"""The seed, as the kernel of a guest sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import qemuctl
from qemuctl.image.seed import seed_files, write_seed
from qemuctl.spec.cloud import CloudInit

pytestmark = pytest.mark.usefixtures("home", "qemu")


async def test_a_guest_mounts_the_seed_and_reads_the_exact_bytes(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine").write_bytes(b"#!/bin/sh\n\xff\x00binary\n" * 1000)
    given: dict[str, Any] = {
        "name": "demo", "instance_id": "i-1", "default_user": None, "keys": ["k"],
        "cloud_init": CloudInit(
            user_data=str(tmp_path / "mine"), network={"version": "2"}
        ),
    }  # fmt: skip
    write_seed(tmp_path / "seed.iso", **given)
    disk = {"path": str(tmp_path / "seed.iso"), "format": "raw", "readonly": True}
    spec = qemuctl.Spec.model_validate({"name": "d", "image": "tiny", "disks": [disk]})
    async with qemuctl.launch(spec) as vm:
        await vm.wait_ready()
        script = "modprobe isofs; mount -t iso9660 -o ro /dev/vda /mnt && ls /mnt"
        listed = await vm.agent.run(["sh", "-c", f"mkdir -p /mnt; {script}"])
        assert listed.ok, listed
        files = seed_files(**given)
        assert sorted(listed.text.split()) == sorted(files)
        for name, content in files.items():
            seen = await vm.agent.run(["cat", f"/mnt/{name}"])
            assert seen.stdout == content
        label = await vm.agent.run(
            ["dd", "if=/dev/vda", "bs=1", "skip=32808", "count=6"]
        )
        assert label.stdout == b"cidata"
