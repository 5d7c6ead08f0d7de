"""The questions put to a QEMU binary, and what is kept of its answers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qemuctl.host.binary import Binary, MachineType


def _types(implements: str) -> tuple[str, dict[str, Any]]:
    return "qom-list-types", {"implements": implements, "abstract": False}


# By the id of each request. The device types come first: that question makes
# QEMU load its modules, and only then do the later answers include SPICE.
QUESTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "capabilities": ("qmp_capabilities", {}),
    "devices": _types("device"),
    "objects": _types("user-creatable"),
    "accels": _types("accel"),
    "version": ("query-version", {}),
    "machines": ("query-machines", {}),
    "chardevs": ("query-chardev-backends", {}),
    "options": ("query-command-line-options", {}),
    "cpus": ("query-cpu-definitions", {}),
    "schema": ("query-qmp-schema", {}),
    "quit": ("quit", {}),
}


def digest(path: Path, answers: dict[str, Any]) -> Binary:
    """A `Binary` from the ``return`` values by question; a missing one is empty."""
    schema = {entry["name"]: entry for entry in answers.get("schema", ())}
    return Binary(
        path=path,
        version=_version(answers["version"]),
        machines=_machines(answers.get("machines", ())),
        devices=_names(answers.get("devices", ())),
        objects=_names(answers.get("objects", ())),
        accels=frozenset(
            name.removesuffix("-accel")
            for name in _names(answers.get("accels", ()))
            if name.endswith("-accel")
        ),
        chardevs=_names(answers.get("chardevs", ())),
        netdevs=_variants(schema, "netdev_add"),
        blockdevs=_variants(schema, "blockdev-add"),
        cpu_models=_names(answers.get("cpus", ())),
        options=frozenset(entry["option"] for entry in answers.get("options", ())),
        panic_actions=_enum(schema, "set-action", "panic"),
        transports=_transports(schema),
        memory_file=_properties(schema, "memory-backend-file"),
        commands=_kind(schema, "command"),
        events=_kind(schema, "event"),
    )


def _version(answer: dict[str, Any]) -> str:
    numbers = answer["qemu"]
    return f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}"


def _names(entries: Iterable[dict[str, Any]]) -> frozenset[str]:
    return frozenset(entry["name"] for entry in entries)


def _machines(entries: Iterable[dict[str, Any]]) -> dict[str, MachineType]:
    return {
        entry["name"]: MachineType(
            name=entry["name"],
            alias=entry.get("alias"),
            cpu_max=entry.get("cpu-max", 1),
            deprecated=entry.get("deprecated", False),
            hotpluggable_cpus=entry.get("hotpluggable-cpus", False),
        )
        for entry in entries
    }


def _kind(schema: dict[str, Any], meta_type: str) -> frozenset[str]:
    return frozenset(
        name for name, entry in schema.items() if entry["meta-type"] == meta_type
    )


# The schema hides the names of its types, so they are reached from commands.
def _argument(schema: dict[str, Any], command: str) -> dict[str, Any]:
    entry: dict[str, Any] = schema.get(command, {})
    found: dict[str, Any] = schema.get(entry.get("arg-type", ""), {})
    return found


def _variants(schema: dict[str, Any], command: str) -> frozenset[str]:
    """The values of the discriminator of a command's argument."""
    variants = _argument(schema, command).get("variants", ())
    return frozenset(variant["case"] for variant in variants)


def _properties(schema: dict[str, Any], qom_type: str) -> frozenset[str]:
    """What `object-add` takes for one type of object."""
    for variant in _argument(schema, "object-add").get("variants", ()):
        if variant["case"] == qom_type:
            members = schema.get(variant["type"], {}).get("members", ())
            return frozenset(member["name"] for member in members)
    return frozenset()


def _transports(schema: dict[str, Any]) -> frozenset[str]:
    """The kinds of a migration channel's address."""
    channels = _member(_argument(schema, "migrate-incoming"), "channels")
    channel = schema.get(schema.get(channels, {}).get("element-type", ""), {})
    address = schema.get(_member(channel, "addr"), {})
    return frozenset(variant["case"] for variant in address.get("variants", ()))


def _member(entry: dict[str, Any], name: str) -> str:
    """The type of an object's member; empty when there is none."""
    types = (m["type"] for m in entry.get("members", ()) if m["name"] == name)
    return next(types, "")


def _enum(schema: dict[str, Any], command: str, member: str) -> frozenset[str]:
    """The values that one member of a command's argument takes."""
    for entry in _argument(schema, command).get("members", ()):
        if entry["name"] == member:
            enum = schema.get(entry["type"], {})
            # `values` is deprecated, `members` came with QEMU 6.2.
            return frozenset(member["name"] for member in enum.get("members", ()))
    return frozenset()
