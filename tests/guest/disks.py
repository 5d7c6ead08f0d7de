"""What tests of disks ask a VM: its spec, QEMU, its guest."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

import qemuctl
from tests.guest.conftest import Home

# Whatever letter a disk gets, its serial tells which one it is.
FIND = (
    'for d in /sys/block/*; do [ "$(cat $d/serial 2>/dev/null)" = {0} ] && '
    "echo ${{d##*/}}; done; true"
)


def inside(home: Home, vm: str, script: str, **options: Any) -> str:
    return home.text("exec", vm, "--", "sh", "-c", script, **options).strip()


def device(home: Home, vm: str, serial: str) -> str:
    return inside(home, vm, FIND.format(serial))


def spec_of(home: Home, vm: str) -> str:
    return home.path.joinpath(f"state/vms/{vm}/vm.yaml").read_text()


def listed(home: Home, vm: str) -> dict[str, dict[str, Any]]:
    every = json.loads(home.text("disk", "ls", vm, "--json"))
    return {disk["target"]: disk for disk in every}


def asked(home: Home, vm: str, *commands: tuple[str, dict[str, Any]]) -> list[Any]:
    """QEMU's answers, without starting a program for each."""

    async def ask() -> list[Any]:
        async with await qemuctl.attach(vm) as attached:
            return [await attached.command(*command) for command in commands]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QEMUCTL_HOME", str(home.path))
        return asyncio.run(ask())


NODES = ("query-named-block-nodes", {"flat": True})
DEVICES = ("qom-list", {"path": "/machine/peripheral"})


def nodes(home: Home, vm: str) -> set[str]:
    (every,) = asked(home, vm, NODES)
    return {node["node-name"] for node in every}


def everything(home: Home, vm: str) -> Any:
    """All that an attempt that fails must leave as it was."""
    disks = home.path / f"state/vms/{vm}/disks"
    named, devices = asked(home, vm, NODES, DEVICES)
    return (
        spec_of(home, vm),
        {node["node-name"] for node in named},
        {device["name"] for device in devices},
        sorted(disks.glob("*")),
        (disks.parent / "made").read_text(),
        (disks.parent / "journal.json").exists(),
    )


def free_ports(home: Home, vm: str) -> int:
    return int(json.loads(home.text("info", vm, "--json"))["free_ports"])
