"""What a peer may bring whom nothing but `migrate-receive` was allowed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from qemuctl.cmdline.shape import Shape
from qemuctl.errors import SpecError
from qemuctl.migration.checks import check, check_kept_inside
from qemuctl.migration.offer import DiskOffer, Offer, SharedFile
from qemuctl.registry import vms
from qemuctl.spec import parse_spec
from qemuctl.typed.read import read
from tests.unit.test_archive_hostile import archive

DISK = DiskOffer(
    id="disk0", format="qcow2", file="disks/disk0.qcow2", size=1 << 20, used=0
)
SPEC = "name: web\nimage: tiny\ndisks: [{path: disks/disk0.qcow2, id: disk0}]\n"
OFFERED = Offer(
    token="0" * 32, name="web", place="elsewhere:1:2", spec=SPEC, configured=SPEC,
    shape=Shape(machine="pc-q35-7.2", accel="tcg", cpu_model="max", slots={}),
    topology={}, memory_bytes=1 << 20, disks=(DISK,),
)  # fmt: skip
BELOW = {"backing_path": "/etc/hostname", "backing_format": "raw"}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        *(
            ({where: f"name: web\n{text}\n"}, text.partition(":")[0])
            for where in ("spec", "configured")
            for text in (
                "extra_args: [-usbdevice, 'disk:/etc/shadow']",
                "sandbox: false",
                "qemu: /tmp/qemu",
                "cdrom: /etc/hostname",
                "disks: [{path: /etc/hostname, format: raw}]",
                "nics: [{type: tap, ifname: tap0}]",
            )
        ),
        ({"disks": (replace(DISK, **BELOW),)}, "disks"),
        ({"shared": (SharedFile(what="a disk", path="/etc/hostname", size=5),)},
         "shared"),
        ({"forwards": {"nic0": ["0.0.0.0:8080:80"]}}, "forward"),
        ({"tls": "/etc/ssl"}, "tls"),
    ],
)  # fmt: skip
def test_an_offer_that_leads_outside_is_refused_without_trust(
    bare_home: Path, change: dict[str, Any], key: str
) -> None:
    offer = read(Offer, asdict(replace(OFFERED, **change)))
    with pytest.raises(SpecError, match="leads outside of the VM") as caught:
        check(offer, trust=False)
    assert caught.value.key == key
    assert "migrate-receive --trust" in (caught.value.hint or "")


def test_an_offer_that_keeps_to_the_vm_needs_no_trust() -> None:
    offer = replace(OFFERED, forwards={"nic0": ["8080:80"]})
    check_kept_inside(offer, parse_spec(SPEC))


class Peer:
    """The other end of a receiver's pipes."""

    def __init__(self, home: Path) -> None:
        argv = [sys.executable, "-m", "qemuctl", "migrate-receive"]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"QEMUCTL_HOME": str(home)},
        )  # fmt: skip
        self.heard()

    def heard(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        heard: dict[str, Any] = json.loads(self.process.stdout.readline())
        return heard

    def ask(self, do: str, data: bytes = b"", **arguments: object) -> dict[str, Any]:
        assert self.process.stdin is not None
        line = json.dumps({"do": do, "id": 1, **arguments}).encode() + b"\n"
        self.process.stdin.write(line + data)
        self.process.stdin.flush()
        return self.heard()


@pytest.fixture
def peer(bare_home: Path) -> Iterator[Peer]:
    peer = Peer(bare_home)
    with peer.process:  # the end of its input is its end
        yield peer
    assert peer.process.returncode == 0


def test_a_receiver_that_was_not_told_to_trust_lets_nothing_foreign_in(
    peer: Peer, tmp_path: Path
) -> None:
    qemu, ran = tmp_path / "qemu", tmp_path / "ran"
    qemu.write_text(f"#!/bin/sh\ntouch {ran}\n")
    qemu.chmod(0o755)
    hostile = f"name: web\nqemu: {qemu}\n"
    offer = asdict(replace(OFFERED, spec=hostile, shape=None))  # type: ignore[arg-type]
    offer["shape"] = asdict(OFFERED.shape) | {"others": []}
    said = peer.ask("check", offer=offer)
    assert "qemu: leads outside of the VM" in said["error"]
    for text, name, problem in (
        (hostile, "web", "leads outside of the VM"),
        ("name: web\n", "../../web", "not a name"),
    ):
        data = archive({"vm.yaml": text.encode()})
        sum_ = hashlib.sha256(data).hexdigest()
        said = peer.ask(
            "archive", data, name=name, size=len(data), sha256=sum_, same=True
        )
        assert problem in said["error"]
        assert "migrate-receive --trust" in said.get("hint", "") or name != "web"
    assert not ran.exists()
    assert vms.names() == []
