"""Whether a guest's agent has its port open, as the VM's event file says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from qemuctl import bounded
from qemuctl.paths import VmPaths
from qemuctl.qmp import Event, eventlog
from qemuctl.qmp.events import Resumed, VserportChange
from qemuctl.registry.records.process_record import Record

AGENT_PORT = "agent"


def agent_port_open(paths: VmPaths) -> bool:
    """Whether the guest has the agent's port open, as the VM's event file says."""
    past = list(eventlog.past(paths.events))
    return port_is_open(past, paths, Record.read(paths.record))


def port_is_open(past: Iterable[Event], paths: VmPaths, record: Record | None) -> bool:
    """The same, of the events so far of a VM that has a process."""
    word = last_word(past)
    if word is None:
        # It may have been open where the guest had booted, or what was said
        # about it has been trimmed: asking will tell.
        booted = record is not None and (record.continued or bool(record.template))
        with contextlib.suppress(OSError):
            return booted or bounded.start(paths.events) > 0
    return bool(word)


def boots_first(paths: VmPaths, record: Record) -> bool:
    """Whether all that the console's log says is of a first boot: nothing that was
    loaded since, such as a snapshot, is elsewhere, and no agent has been there yet."""
    if record.continued or record.template:
        return False
    past = list(eventlog.past(paths.events))
    resumed = sum(event.name == Resumed.NAME for event in past)
    return resumed <= 1 and not bounded.start(paths.events) and last_word(past) is None


def last_word(events: Iterable[Event]) -> bool | None:
    """What the last of these events about the agent's port says, if there is one."""
    about = [VserportChange.of(event) for event in events if _about_port(event)]
    return about[-1].open if about else None


def _about_port(event: Event) -> bool:
    return event.name == VserportChange.NAME and event.data.get("id") == AGENT_PORT
