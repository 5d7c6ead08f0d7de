"""Who has how much of the host: guests of several processes, side by side.

Before a guest starts, its memory and its processors are claimed in a file that
all test processes of one home share. A guest that does not fit waits for its
turn, first come first served, rather than making the host swap.

The file is only changed under a lock (flock(2)) that is held for a moment, and
is replaced as a whole. What a process claimed counts for as long as the process
lives: nothing has to be cleaned up after one that was killed. A VM that is kept
when its test is over has its room for as long as its QEMU lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from asyncinotify import Inotify, Mask

from qemuctl import durable
from qemuctl.errors import HostError
from qemuctl.follow import SCARCE
from qemuctl.host.resources import available_memory, cpu_count
from qemuctl.paths import private_dir
from qemuctl.process import Identity, wait_gone
from qemuctl.structs import Struct
from qemuctl.units import format_rounded
from qemuctl.waiting import lock_for_a_moment

# Seconds of waiting after which the user is told who has the room.
SAY_AFTER = 1.0
# Without inotify instances there is no event of a change: seconds between looks.
_LOOK_EVERY = 1.0
_HINT = (
    "give the guest less, or say what the host can bear: the ini options "
    "vm_budget_memory and vm_budget_cpus, or QEMUCTL_BUDGET_MEMORY and "
    "QEMUCTL_BUDGET_CPUS"
)


class Limits(Struct, kw_only=False):
    """What all guests together may have: ``memory`` in bytes, and processors."""

    memory: int
    cpus: int

    @classmethod
    def of_host(cls) -> Limits:
        """Most of the memory that is free now; processors are shared, so each of
        the host's counts as four."""
        return cls(available_memory() * 7 // 8, max(8, 4 * cpu_count()))


class Claim(Struct):
    """What one guest needs; ``what`` is it for, in the words of its owner.

    ``inside`` tells that it has what it needs; else it waits. ``kept`` is the name of
    a VM that outlives its test, and is then its own owner.
    """

    owner: Identity
    what: str
    memory: int
    cpus: int
    inside: bool = False
    kept: str | None = None
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def needs(self) -> str:
        return _amount(self.memory, self.cpus)

    @property
    def story(self) -> str:
        verb = "has" if self.inside else "waits for"
        who = f"process {self.owner.pid}"
        if self.kept is not None:
            who = f"kept, to be removed by: qemuctl kill {self.kept}"
        return f"  {self.what} {verb} {self.needs} ({who})"


class Ledger(Struct, kw_only=False):
    """The file's content: the claims in the order in which they came."""

    limits: Limits
    claims: tuple[Claim, ...] = ()

    def settled(self) -> Ledger:
        """The claims of living processes, everyone let in whose turn has come."""
        claims = [claim for claim in self.claims if claim.owner.alive()]
        for index, claim in enumerate(claims):
            if claim.inside:
                continue
            next_one: int | None = index
            fits = _fits(claim, claims, self.limits)
            if not fits:  # nobody overtakes, or a large guest would never start
                next_one = _stuck(claims)
            if next_one is not None:
                claims[next_one] = replace(claims[next_one], inside=True)
            if not fits:
                break
        return replace(self, claims=tuple(claims))

    def holds(self, id: str) -> bool:
        """Whether the claim is let in."""
        return any(claim.inside for claim in self.claims if claim.id == id)

    def story(self, id: str) -> str:
        """Who has what of all that there is, for whoever waits."""
        own = next(claim for claim in self.claims if claim.id == id)
        others = [claim for claim in self.claims if claim.id != id]
        all_ = _amount(self.limits.memory, self.limits.cpus)
        lines = [f"{own.what} waits for room: it needs {own.needs} of {all_}"]
        return "\n".join([*lines, *(claim.story for claim in others)])

    def in_the_way(self, id: str) -> list[str]:
        """The kept VMs because of which the claim can never be let in: they have the
        room, nobody else does, and they do not leave by themselves."""
        own = next(claim for claim in self.claims if claim.id == id)
        kept = [claim.kept for claim in self.claims if claim.inside]
        if None in kept or _fits(own, self.claims, self.limits):
            return []
        return [name for name in kept if name is not None]


def _amount(memory: int, cpus: int) -> str:
    return f"{format_rounded(memory)}, {cpus} cpu{'s' if cpus != 1 else ''}"


def _fits(claim: Claim, claims: Iterable[Claim], limits: Limits) -> bool:
    inside = [other for other in claims if other.inside]
    return (
        claim.memory + sum(other.memory for other in inside) <= limits.memory
        and claim.cpus + sum(other.cpus for other in inside) <= limits.cpus
    )


def _stuck(claims: Sequence[Claim]) -> int | None:
    """The place of the claim to let in although it does not fit, where otherwise
    nobody would ever leave: each process that has a guest waits for one more, as
    tests with several guests do."""
    holding = {claim.owner for claim in claims if claim.inside and not claim.kept}
    waiting = {claim.owner for claim in claims if not claim.inside}
    if not holding <= waiting:
        return None
    among = (i for i, c in enumerate(claims) if not c.inside and c.owner in holding)
    return next(among, None)


class Budget:
    """The budget of all test processes that share the folder.

    ``memory`` (bytes) and ``cpus`` are the limits that this process sets; None
    takes those of the processes that are there already, and else what the host
    has when the first one comes.
    """

    def __init__(
        self, folder: Path, *, memory: int | None = None, cpus: int | None = None
    ) -> None:
        self._folder = folder
        self._file = folder / ".budget"
        self._memory, self._cpus = memory, cpus

    @contextlib.asynccontextmanager
    async def room(
        self, what: str, memory: int, cpus: int, say: Callable[[str], None]
    ) -> AsyncIterator[Callable[[Identity, str], None]]:
        """Room for a guest of ``memory`` bytes, for as long as the block takes, or
        longer: the block gets what leaves the room to a VM that is kept, by its
        process and its name.

        Waits for it; ``say`` is told after a second who has it. Raises HostError
        for a guest that would not fit into all of it, or for which kept VMs leave no
        room, and when the file cannot be written.
        """
        owner = Identity.of(os.getpid())
        assert owner is not None
        claim = Claim(owner=owner, what=what, memory=memory, cpus=cpus)
        ledger = self._change(lambda claims: (*claims, claim))
        try:
            _check(claim, ledger.limits)
            if not ledger.holds(claim.id):
                await self._turn(claim, say)
            yield partial(self._leave, claim)
        finally:
            self._change(
                lambda claims: tuple(c for c in claims if c.id != claim.id or c.kept)
            )

    def _leave(self, claim: Claim, heir: Identity, name: str) -> None:
        left = replace(claim, owner=heir, kept=name, inside=True)
        self._change(
            lambda claims: tuple(left if c.id == claim.id else c for c in claims)
        )

    async def _turn(self, claim: Claim, say: Callable[[str], None]) -> None:
        """Waits until the claim is let in, by whoever leaves or by our own look."""
        with _renewals(self._folder, self._file.name) as renewal:
            saying = asyncio.create_task(self._say_who(claim, say))
            try:
                while True:
                    ledger = self._change(lambda claims: claims)
                    if ledger.holds(claim.id):
                        return
                    _check_ways(ledger.in_the_way(claim.id))
                    await _first_of(renewal(), *map(wait_gone, _owners(ledger)))
            finally:
                await _cancelled(saying)

    async def _say_who(self, claim: Claim, say: Callable[[str], None]) -> None:
        await asyncio.sleep(SAY_AFTER)  # nothing happens: that is what is told
        say(self._read().story(claim.id))

    def _change(
        self, change: Callable[[tuple[Claim, ...]], tuple[Claim, ...]]
    ) -> Ledger:
        """Changes the claims under the lock; the ledger as it is then."""
        try:
            with self._locked():
                before = self._read()
                kept = tuple(c for c in before.claims if c.owner.alive())
                limits = self._limits(before.limits if kept else Limits.of_host())
                ledger = Ledger(limits, change(kept)).settled()
                if ledger != before:
                    self._write(ledger)
        except OSError as error:
            raise HostError(
                f"cannot keep the budget of guests: {self._file}: {error.strerror}"
            ) from error
        return ledger

    def _limits(self, others: Limits) -> Limits:
        return Limits(
            others.memory if self._memory is None else self._memory,
            others.cpus if self._cpus is None else self._cpus,
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        # A file of its own, never removed: the other one is replaced.
        lock = private_dir(self._folder) / f"{self._file.name}.lock"
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            lock_for_a_moment(fd, str(lock))
            yield
        finally:
            os.close(fd)

    def _read(self) -> Ledger:
        try:
            data = json.loads(self._file.read_text())
            return Ledger(Limits(**data["limits"]), tuple(map(_claim, data["claims"])))
        except (OSError, ValueError, TypeError, KeyError):
            return Ledger(Limits(0, 0))  # there is none yet, or it makes no sense

    def _write(self, ledger: Ledger) -> None:
        durable.write_json(self._file, asdict(ledger), durable=False)


def _claim(data: dict[str, Any]) -> Claim:
    return Claim(**{**data, "owner": Identity(**data["owner"])})


def _check(claim: Claim, limits: Limits) -> None:
    if claim.memory > limits.memory:
        raise HostError(
            f"the guest needs {format_rounded(claim.memory)} of memory, which is more "
            f"than all guests together may have: {format_rounded(limits.memory)}",
            hint=_HINT,
        )
    if claim.cpus > limits.cpus:
        raise HostError(
            f"the guest needs {claim.cpus} processors, which is more than all guests "
            f"together may have: {limits.cpus}",
            hint=_HINT,
        )


def _check_ways(kept: list[str]) -> None:
    if kept:
        commands = "".join(f"\n  qemuctl kill {name}" for name in kept)
        raise HostError(
            "no room for the guest: VMs that were kept have it",
            hint=f"remove them, when you have seen enough of them:{commands}",
        )


def _owners(ledger: Ledger) -> set[Identity]:
    """The other processes: the end of one of them gives room, and writes nothing."""
    return {c.owner for c in ledger.claims if c.owner.pid != os.getpid()}


@contextlib.contextmanager
def _renewals(folder: Path, name: str) -> Iterator[Callable[[], Any]]:
    """A function that waits for the next time that the file is replaced, counted
    from the beginning of the block."""
    with contextlib.ExitStack() as stack:
        try:
            inotify = stack.enter_context(Inotify())
            inotify.add_watch(folder, Mask.MOVED_TO)
        except OSError as error:
            if error.errno not in SCARCE:
                raise
            yield lambda: asyncio.sleep(_LOOK_EVERY)
            return

        async def renewal() -> None:
            while (await inotify.get()).name != Path(name):
                pass

        yield renewal


async def _first_of(*waits: Any) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _cancelled(*tasks)


async def _cancelled(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
