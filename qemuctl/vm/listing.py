"""All VMs at a glance, quickly: what `ls` prints.

A VM that is off costs a few small files to read; only when one is on are
asyncio and QMP loaded at all, and each of those answers within a second or
counts as unresponsive.
"""

from __future__ import annotations

import time
from dataclasses import field, replace
from typing import Any

from qemuctl.paths import VmPaths
from qemuctl.process import held
from qemuctl.registry.records.migration_journal import on_its_way
from qemuctl.registry.records.owner import THROWAWAY
from qemuctl.registry.records.process_record import Record
from qemuctl.registry.states import State
from qemuctl.registry.vms import find, names
from qemuctl.structs import Struct

# How a VM has ended that goes on from there.
SAVED = "saved"


class Entry(Struct, kw_only=False):
    """One row: sizes in bytes, times in seconds.

    ``uptime`` is set while it is on, ``ended`` tells how it ended when off, ``saved``
    that it goes on from there, and ``problem`` which disk's error has stopped it.
    """

    name: str
    state: State
    image: str | None = None
    cpus: int | None = None
    memory: int | None = None
    accel: str | None = None
    pid: int | None = None
    uptime: float | None = None
    throwaway: bool = False
    forwards: list[str] = field(default_factory=list)
    ended: str | None = None
    saved: bool = False
    problem: str | None = None


def listing(*, include_off: bool) -> list[Entry]:
    """Every VM that is on, and with ``include_off`` every other one, by name."""
    every = [VmPaths.of(name) for name in names()]
    on = [paths.name for paths in every if held(paths.lock)]
    live = {entry.name: entry for entry in _live(on)} if on else {}
    rows = []
    for paths in every:
        entry = live.get(paths.name)
        if entry is None and include_off:
            entry = _off(paths)
        if entry is not None:
            rows.append(entry)
    return rows


def _off(paths: VmPaths) -> Entry:
    from qemuctl.registry.records.outcome import outcome
    from qemuctl.registry.records.saved_marker import is_saved

    written = _written(paths)
    ended = outcome(paths)
    saved = is_saved(paths)
    return Entry(
        name=paths.name,
        state=State.OFF,
        image=written.get("image"),
        cpus=_part(written.get("cpu"), "count", 1),
        memory=_size(_part(written.get("memory"), "size", "512M")),
        throwaway=(paths.state / THROWAWAY).exists(),
        ended=_moved(paths) or (SAVED if saved else ended.text if ended else None),
        saved=saved,
    )


def _moved(paths: VmPaths) -> str | None:
    """Where a VM is going, or has gone."""
    if not paths.moved.exists():
        return on_its_way(paths)
    from qemuctl.registry.records.moved_away import moved_to

    return f"moved to {moved_to(paths)}"


def _written(paths: VmPaths) -> dict[str, Any]:
    """The spec as plain data; validating it would cost more than all the rest."""
    import yaml

    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        data = yaml.load(paths.spec.read_bytes(), Loader=loader)  # noqa: S506 (safe)
    except (OSError, yaml.YAMLError):
        return {}
    return data if isinstance(data, dict) else {}


def _part(value: Any, key: str, default: Any) -> Any:
    """A field of a part that may be written short (``cpu: 2``)."""
    if isinstance(value, dict):
        value = value.get(key)
    return default if value is None else value


def _size(value: Any) -> int | None:
    from qemuctl.units import parse_size

    try:
        return parse_size(value)
    except ValueError:
        return None


def _live(on: list[str]) -> list[Entry]:
    import asyncio

    async def gather() -> list[Entry | None]:
        return await asyncio.gather(*map(_on, on))

    return [entry for entry in asyncio.run(gather()) if entry is not None]


async def _on(name: str) -> Entry | None:
    from qemuctl.connection.monitors import state_of
    from qemuctl.errors import NotFound

    try:
        paths = find(name)
    except NotFound:  # a throwaway one that went in this moment
        return None
    state = await state_of(paths)
    record = Record.read(paths.record)
    if state is State.BUSY:
        return replace(_off(paths), state=state)
    if state is State.OFF or record is None:
        return Entry(name, state) if state is not State.OFF else None
    return Entry(
        name=name,
        state=state,
        image=record.image,
        cpus=record.cpus,
        memory=record.memory,
        accel=record.accel,
        pid=record.qemu.pid,
        uptime=time.time() - record.started_at,
        throwaway=record.attached,
        forwards=record.forwards,
        problem=problem_of(paths, state),
    )


def problem_of(paths: VmPaths, state: State) -> str | None:
    """Why a VM that is on does not go on, where that is known."""
    moving = on_its_way(paths)
    if moving is not None:
        return moving
    if state is not State.IO_ERROR:
        return None
    from qemuctl.registry.records.disk_errors import last_disk_error

    error = last_disk_error(paths.events)
    return str(error) if error is not None else None
