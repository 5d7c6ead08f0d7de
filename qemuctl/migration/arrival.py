"""A VM that has come, or has not: what its token tells, whoever asks and when.

::

    mark ─► (all of it comes) ─► accept ─► step ─► finish
     │                             │         │
     └── waiting, dies with its    │         └── arrived, of this home
         receiver and QEMU         └── waiting, dies with nobody

A VM that is off comes in a folder out of sight (`arrivals.land`), and is there by that
folder's rename. Before that it may be discarded.

Before `step` it may be discarded; after it its guest has run, and the one that it
comes from never must again. In a postcopy migration it is accepted before it has all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from qemuctl import durable
from qemuctl.cmdline.network import backend_of, hostfwd
from qemuctl.connection.agent_port import agent_port_open
from qemuctl.connection.ssh import login_user
from qemuctl.errors import CommandError, DamagedFile, QemuctlError
from qemuctl.hotplug.nic_state import refresh
from qemuctl.image.keys import own_key
from qemuctl.migration.arrivals import Arrival, landed, landing
from qemuctl.migration.clocks import guest_lag
from qemuctl.migration.place import home_id
from qemuctl.paths import VmPaths, vms_dir
from qemuctl.power.resume_event import let_run
from qemuctl.process import Identity, held, wait_gone
from qemuctl.process.working import idle
from qemuctl.qmp import eventlog
from qemuctl.qmp.commands import QueryStatus
from qemuctl.qmp.events import Resumed
from qemuctl.qmp.migration import MigratePause, MigrateRecover, QueryMigrate
from qemuctl.qmp.net import forward_problem, hostfwd_add
from qemuctl.registry.records.owner import THROWAWAY
from qemuctl.registry.records.process_record import Record
from qemuctl.registry.removal import remove
from qemuctl.registry.vms import load, names
from qemuctl.spec import Forward
from qemuctl.structs import Struct
from qemuctl.vm.attach import attach
from qemuctl.vm.vm import Vm

# Seconds that the agent gets to write a key.
_KEY_PATIENCE = 5.0
# Seconds that a shepherd needs to end what belonged to a receiver.
_DYING = 2.0


class Fate(StrEnum):
    """What has become of a VM that was on its way here."""

    UNKNOWN = "unknown"
    WAITING = "waiting"
    ARRIVED = "arrived"
    LOST = "lost"


class Answer(Struct):
    """``UNKNOWN``: it never came, and never will. ``WAITING``: it has taken no step
    and is there. ``LOST``: it has taken none, and its QEMU has gone. ``ARRIVED``: it
    is a VM of this home. ``accepted`` tells that it can be let go on, ``complete``
    that all of its state is here."""

    fate: Fate
    accepted: bool = False
    complete: bool = False


class Mark(Struct):
    """A note in the folder of a VM that comes: under which ``token``, who removes the
    folder when its QEMU ends, and the ``forwards``, by the cards' ids, that are to be
    made once the other side has let go of the ports."""

    token: str
    undertaker: Identity | None
    forwards: dict[str, list[str]]

    def write(self, paths: VmPaths) -> None:
        durable.write_json(paths.arriving, asdict(self))

    @classmethod
    def read(cls, paths: VmPaths) -> Mark | None:
        """None where there is none. Raises DamagedFile: it may be of any migration."""
        hint = f"if {paths.name} is to stay here: rm {shlex.quote(str(paths.arriving))}"
        hint += f"; else: qemuctl rm --force {paths.name}"
        try:
            with durable.understood(paths.arriving, hint):
                values = json.loads(paths.arriving.read_text())
                if values["undertaker"] is not None:
                    values["undertaker"] = Identity(**values["undertaker"])
                return cls(**values)
        except FileNotFoundError:
            return None


def accept(paths: VmPaths, token: str) -> None:
    """From here on it is a VM of this home, if its guest takes a step."""
    Arrival(token=token, name=paths.name).write()


async def step(vm: Vm, token: str, *, running: bool) -> None:
    """Has the VM be its user's, and its guest run if it is ``running``."""
    paths = vm.paths
    # What comes back after a power cut must not be taken for a throwaway VM.
    durable.remove(paths.state / THROWAWAY)
    record = replace(vm.record, attached=False, owner=None)
    record.write(paths.record)
    vm.record = record
    if running:
        await let_run(vm)
    Arrival(token=token, name=paths.name, stepped=True).write()


async def ask(token: str) -> dict[str, Any]:
    """What has become of the VM of this token, which no receiver has to do with any
    more."""
    await _end_receiver(token)
    answer = await _answer(token)
    return {**asdict(answer), "fate": str(answer.fate), "home": home_id()}


async def _end_receiver(token: str) -> None:
    """Ends an earlier receiver, whose link has gone: what it has not accepted dies
    with it, and what it has accepted does not."""
    paths = _find(token)
    record = Record.read(paths.record) if paths is not None else None
    owner = record.owner if record is not None else None
    if record is None or owner is None or owner.pid == os.getpid():
        return
    if owner.alive():
        owner.signal(signal.SIGKILL)
        await wait_gone(owner)
    if Arrival.read(token) is None:
        with contextlib.suppress(TimeoutError):  # it had just let go of it
            async with asyncio.timeout(_DYING):
                await wait_gone(record.qemu)


async def _answer(token: str) -> Answer:
    arrival = Arrival.read(token)
    paths = _find(token)
    if arrival is not None and arrival.stepped:
        return Answer(fate=Fate.ARRIVED)
    if paths is None:  # its QEMU ended before its first step, and all went with it
        return Answer(fate=Fate.UNKNOWN)
    if landed(paths):
        return Answer(fate=Fate.ARRIVED)
    if any(event.name == Resumed.NAME for event in eventlog.past(paths.events)):
        return Answer(fate=Fate.ARRIVED)
    record = Record.read(paths.record)
    if record is None or not held(paths.lock):
        return Answer(fate=Fate.LOST)
    async with Vm(paths, record) as vm:
        status = (await vm.execute(QueryStatus())).status
        info = await vm.execute(QueryMigrate())
    if status == "running":
        return Answer(fate=Fate.ARRIVED)
    complete, accepted = info.status == "completed", arrival is not None
    return Answer(fate=Fate.WAITING, accepted=accepted, complete=complete)


def _find(token: str) -> VmPaths | None:
    """The VM that comes, or has come, under a token. Raises DamagedFile where one
    that cannot be read may be it."""
    damaged: DamagedFile | None = None
    for name in names():
        paths = VmPaths.of(name)
        try:
            found = Mark.read(paths)
            tokens = (found.token if found is not None else None, landing(paths))
        except DamagedFile as error:
            damaged = error
            continue
        if token in tokens:
            record = Record.read(paths.record)
            return paths.ran_in(Path(record.run)) if record else paths
    if damaged is not None:
        raise damaged
    return None


async def discard(token: str) -> None:
    """Makes sure that the guest never takes a step here. Raises QemuctlError when it
    has."""
    answer = await _answer(token)
    if answer.fate is Fate.ARRIVED:
        raise QemuctlError("it has arrived, and cannot be discarded")
    paths = _find(token)
    _discard_landing(token)
    if paths is not None:
        record = Record.read(paths.record)
        if record is not None and held(paths.lock):
            async with Vm(paths, record) as vm:
                await vm.power.kill()
        with contextlib.suppress(QemuctlError):  # its undertaker was quicker
            remove(paths.name)
    arrival = Arrival.read(token)
    if arrival is not None:
        arrival.forget()


def _discard_landing(token: str) -> None:
    """Removes a VM that has not landed; a receiver that lives cannot have it land."""
    for folder in vms_dir().glob(".new-*"):
        with contextlib.suppress(DamagedFile, FileNotFoundError):
            if landing(VmPaths(folder, folder)) == token:
                doomed = folder.with_name(f".removed-{token}-{secrets.token_hex(4)}")
                with idle(folder):  # `gc` leaves it to us
                    shutil.rmtree(folder.rename(doomed), ignore_errors=True)


async def take(token: str, *, running: bool) -> None:
    """Has a VM that waits and was accepted be one of this home. Raises QemuctlError."""
    answer, paths = await _answer(token), _find(token)
    if answer.fate is Fate.ARRIVED:
        return
    record = Record.read(paths.record) if paths is not None else None
    if not answer.accepted or paths is None or record is None:
        raise QemuctlError(f"it cannot go on here: {answer.fate}")
    async with Vm(paths, record) as vm:
        await _keep(vm)
        await step(vm, token, running=running)


async def _keep(vm: Vm) -> None:
    """Ends the process that would remove its files."""
    found = Mark.read(vm.paths)
    if found is not None and found.undertaker is not None:
        found.undertaker.signal(signal.SIGKILL)
        await wait_gone(found.undertaker)


async def finish(token: str) -> list[str]:
    """Does what could not be done while the VM was on both sides: its forwards are
    made. Gives what did not come along, for people."""
    paths = _find(token)
    if paths is not None and landed(paths):
        durable.remove(paths.landed)
    found = Mark.read(paths) if paths is not None else None
    if paths is None or found is None:
        return []  # done before, or the VM has gone again
    notes = []
    async with await attach(paths.name) as vm:
        for card, forwards in found.forwards.items():
            for text in forwards:
                notes += await _forward(vm, card, text)
        notes += await _own_key(vm)
    if not notes:  # else it is tried once more when somebody asks again
        durable.remove(paths.arriving)
    return notes


async def _forward(vm: Vm, card: str, text: str) -> list[str]:
    forward = Forward.model_validate(text)
    if any(
        each.endswith(f":{forward.host_port}->{forward.guest_port}")
        for each in vm.record.forwards
    ):
        return []
    try:
        session = await vm.monitor()
        rule = hostfwd_add(backend_of(card), hostfwd(forward))
        problem = forward_problem(await session.execute(rule))
        await refresh(vm)
    except QemuctlError as error:
        problem = error.message
    if problem is None:
        return []
    return [f"the forward {text} of {card} could not be made: {problem}"]


async def _own_key(vm: Vm) -> list[str]:
    """Has the guest let in the key of this home, too (guest-ssh-add-authorized-keys),
    where it has a user who lets in that of the other."""
    spec = load(vm.name)
    if not vm.paths.seed.exists() or not agent_port_open(vm.paths):
        return []
    try:
        user = login_user(spec)
        await vm.agent.request(
            "guest-ssh-add-authorized-keys",
            {"username": user, "keys": [own_key().public]},
            timeout=_KEY_PATIENCE,
        )
    except QemuctlError as error:
        return [f"the ssh key of this home could not be given to its guest: {error}"]
    return []


async def lag(token: str) -> float | None:
    """By how many seconds the guest's clock is behind this host's; None where nobody
    can tell."""
    arrived = Arrival.read(token)
    if arrived is None:
        return None
    async with await attach(arrived.name) as vm:
        return await guest_lag(vm)


async def reconnect(token: str) -> dict[str, Any]:
    """Waits on another socket for the rest of a postcopy migration (migrate-pause,
    migrate-recover)."""
    paths = _find(token)
    record = Record.read(paths.record) if paths is not None else None
    if paths is None or record is None:
        raise QemuctlError("it is not here")
    ram = paths.run / "ram2"
    ram.unlink(missing_ok=True)
    async with Vm(paths, record) as vm:
        if (await vm.execute(QueryMigrate())).status != "postcopy-paused":
            with contextlib.suppress(CommandError):
                await vm.execute(MigratePause())
        await vm.execute(MigrateRecover(uri=f"unix:{ram}"))
    return {"ram": str(ram)}
