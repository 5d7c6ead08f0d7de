"""The side that a VM leaves: it walks through the phases, and undoes what fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qemuctl.errors import (
    MigrationError,
    QemuctlError,
    QmpError,
    StateError,
    UnexpectedExit,
    WaitTimeout,
)
from qemuctl.migration import link as links
from qemuctl.migration import tls
from qemuctl.migration.arrivals import landed
from qemuctl.migration.channel import ChannelLost
from qemuctl.migration.clocks import behind, guest_lag
from qemuctl.migration.destination import Destination
from qemuctl.migration.following import followed
from qemuctl.migration.leave import leave
from qemuctl.migration.memory import POSTCOPY, SWITCHING, Memory
from qemuctl.migration.offer import Facts
from qemuctl.migration.options import Options
from qemuctl.migration.packing import Packed, Seen, packed, seen, wish
from qemuctl.migration.phases import Phase
from qemuctl.migration.report import Moved, Progress, Report, progress_of, silent
from qemuctl.migration.storage import Storage, served_at
from qemuctl.migration.undo import undo
from qemuctl.migration.virtio_mem import check_virtio_mem
from qemuctl.process import Identity
from qemuctl.qmp.commands import QueryStatus
from qemuctl.qmp.migration import (
    MigrateContinue,
    Migration,
    MigrationInfo,
    QueryMigrate,
    failure,
    reached,
)
from qemuctl.qmp.session import Session, Subscription
from qemuctl.registry.records.migration_journal import Leaving, attended, moving
from qemuctl.registry.states import Action, State
from qemuctl.savestate.save import check_movable
from qemuctl.thread import beside, in_full
from qemuctl.typed.write import written

if TYPE_CHECKING:
    from qemuctl.vm.vm import Vm

# Seconds for an answer that needs nothing but a look, a start, or a file.
_ANSWER = 30.0
_START = 300.0
_SENDING = 3600.0


async def migrate(
    vm: Vm,
    destination: Destination,
    options: Options = Options(),  # noqa: B008 (frozen)
    *,
    receiver: str = links.RECEIVER,
    report: Report = silent,
) -> Moved:
    """Moves a running VM, or a paused one, to another home.

    ``receiver`` is the command of qemuctl on another host. At every moment one copy
    runs, or can be let run. Raises MigrationError with the phase: the VM is then here
    as it was, unless the message says that the outcome is not known. Raises StateError
    for a VM that cannot move, with the reason.
    """
    check_movable(vm, Action.MIGRATE)
    before = Leaving.read(vm.paths)
    if before is not None and attended(vm.paths):
        raise StateError(
            f"migrate {vm.name}", "running", "another command is migrating it already",
            hint=f"how far it is: qemuctl migrate-status {vm.name}",
        )  # fmt: skip
    if before is not None:
        raise StateError(
            f"migrate {vm.name}", "unknown", "an earlier migration was cut short",
            hint=f"first: qemuctl migrate-recover {vm.name}",
        )  # fmt: skip
    landed(vm.paths)
    async with vm.bus.changing(Action.MIGRATE):
        # Another one may have been at it until now.
        if Leaving.read(vm.paths) is not None:
            raise StateError(
                f"migrate {vm.name}", "unknown", "an earlier migration was cut short",
                hint=f"first: qemuctl migrate-recover {vm.name}",
            )  # fmt: skip
        await check_virtio_mem(vm)
        move = _Move(vm, destination, options, receiver, report)
        return await move.carry_out()


@dataclass
class _Move:
    """One migration, on the source's side."""

    vm: Vm
    destination: Destination
    options: Options
    receiver: str
    report: Report
    phase: Phase = Phase.CHECK
    begun: float = field(default_factory=time.monotonic)
    state: State = State.RUNNING
    leaving: Leaving | None = None
    storage_bytes: int = 0
    stood_still: float = 0.0
    lag: float | None = None
    gone: bool = False
    home: str = ""
    info: MigrationInfo | None = None

    async def carry_out(self) -> Moved:
        with self._phased(), moving(self.vm.paths):
            folder = self.vm.paths.run / "move"
            opened = links.opened(self.destination, folder, self.receiver)
            # The other side's start takes longer than all that is to be asked here.
            async with beside(self._looked()) as looking, opened as link:
                return await self._through(link, looking)

    @contextlib.contextmanager
    def _phased(self) -> Iterator[None]:
        """Says in which phase it was that something went wrong."""
        try:
            yield
        except MigrationError:
            raise
        except QemuctlError as error:
            raise self._failed(error) from error

    def _failed(self, error: QemuctlError) -> MigrationError:
        if self.gone:
            return MigrationError(
                f"{self.vm.name} runs in {self.destination.text} now, but not all of "
                f"it is cleared up here: {error.message}",
                str(self.phase), hint=error.hint,
            )  # fmt: skip
        # The console of a guest whose QEMU has ended says nothing about its move.
        hint = None if isinstance(error, UnexpectedExit) else error.hint
        own = f"cannot {Action.MIGRATE} {self.vm.name}: "
        return MigrationError(
            f"{self.vm.name} was not migrated ({self.phase}): "
            f"{error.message.removeprefix(own)}",
            str(self.phase), hint=hint,
        )  # fmt: skip

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        if self.leaving is not None:
            self.leaving = replace(self.leaving, phase=str(phase))
            self.leaving.note_phase(self.vm.paths)
        self.report(Progress(phase=phase))

    def _note(self, leaving: Leaving) -> None:
        leaving.write(self.vm.paths)
        leaving.note_phase(self.vm.paths)
        self.leaving = leaving

    async def _looked(self) -> Seen:
        """What QEMU tells of the VM, and its guest of its clock."""
        async with beside(self._lag()) as lagging:
            found = await seen(self.vm)
            self.lag = await lagging
        return found

    async def _lag(self) -> float | None:
        runs = await self.vm.state() is State.RUNNING
        return await guest_lag(self.vm) if runs else None

    # -- the phases --------------------------------------------------------

    async def _through(self, link: links.Link, looking: Awaitable[Seen]) -> Moved:
        self._enter(Phase.CHECK)
        self.state = await self.vm.state()
        session = await self.vm.monitor()
        if (await session.execute(QueryStatus())).status == "postmigrate":
            raise StateError(
                f"migrate {self.vm.name}", "paused",
                "its guest stands still since an earlier migration, or a save",
                hint=f"first: qemuctl resume {self.vm.name}",
            )  # fmt: skip
        pack = await self._checked(link, looking)
        self._note(
            Leaving(
                token=pack.offer.token, destination=self.destination.text,
                name=pack.offer.name, receiver=self.receiver,
                controller=Identity.of(os.getpid()), phase=str(self.phase),
                ran=self.state is State.RUNNING, keep=self.options.keep,
                home=self.home,
            )
        )  # fmt: skip
        try:
            async with links.kept_alive(link):
                work = self._transferred(link, pack, session)
                await self.vm.unless_ended(work)
        except BaseException as error:
            assert self.leaving is not None
            await in_full(undo(self.vm, self.leaving, link, error))
            raise
        return await self._cleaned(link, pack)

    async def _checked(self, link: links.Link, looking: Awaitable[Seen]) -> Packed:
        name = self.options.name or self.vm.name
        wanted = wish(self.vm, name)
        told = await link.channel.ask("look", timeout=_ANSWER, **asdict(wanted))
        try:
            facts = Facts(**told)
        except TypeError as error:
            raise QemuctlError(
                "the other side makes no sense",
                hint="both sides need the same version of qemuctl",
            ) from error
        self.home = facts.home
        pack = await packed(self.vm, self.options, facts, await looking)
        offer = written(pack.offer)
        await link.channel.ask("check", timeout=_ANSWER, offer=offer)
        return pack

    async def _transferred(
        self, link: links.Link, pack: Packed, session: Session
    ) -> None:
        """All of the VM, up to the other side's word that it goes on."""
        self._enter(Phase.PREPARE)
        host = await link.host() if self.options.tls is not None else None
        pauses = bool(pack.offer.disks) or self.options.postcopy
        memory = Memory(session, self.options, pauses, host)
        async with beside(memory.prepare()) as preparing:
            addresses = await self._prepared(link, pack)
            await preparing
        disks, ram = await self._ways(link, session, addresses, host)
        storage = Storage(session, pack.offer.disks, disks)
        self._enter(Phase.STORAGE)
        await storage.begin(self.options.bandwidth)
        async with self._told(storage):
            await storage.ready()
        self.vm.agent.release()
        self._enter(Phase.RAM)
        with session.listen(Migration.NAME) as events:
            await memory.begin(ram)
            status = await memory.copied(events, lambda i: self._look(i, storage))
            self._enter(Phase.SWITCH)
            self.stood_still = memory.stood_still()
            await self._switched(
                link, session, storage, events, status, postcopy=memory.postcopy
            )

    async def _ways(
        self,
        link: links.Link,
        session: Session,
        addresses: dict[str, Any],
        host: str | None,
    ) -> tuple[dict[str, Any], str]:
        """Where the disks are served, and where the memory goes: by TLS to the
        ``host``, if there is one."""
        nbd, ram = addresses.get("nbd"), addresses["ram"]
        if host is not None and self.options.tls is not None:
            await tls.add_credentials(session, self.options.tls, "client")
            disks = tls.disks_at(host, int(nbd)) if nbd else {}
            return disks, tls.memory_at(host, int(ram))
        disks = served_at(await link.socket(str(nbd), "nbd")) if nbd else {}
        return disks, f"unix:{await link.socket(str(ram), 'ram')}"

    async def _prepared(self, link: links.Link, pack: Packed) -> dict[str, Any]:
        def say(text: str) -> None:
            self.report(Progress(phase=self.phase, note=text))

        for file in pack.offer.sent:
            path = pack.files[file.name]
            await link.channel.ask("file", timeout=_SENDING, file=path, name=file.name)
        addresses: dict[str, Any] = await link.channel.ask(
            "prepare", timeout=_START, say=say
        )
        return addresses

    async def _switched(
        self, link: links.Link, session: Session, storage: Storage,
        events: Subscription, status: str, *, postcopy: bool,
    ) -> None:  # fmt: skip
        """The guest stands still here: what is left goes over, and then the word."""
        if status == SWITCHING:
            done, _ = await storage.progress()
            await storage.finish()
            self.storage_bytes = done
            await link.channel.ask("released", timeout=_ANSWER)
            if postcopy:
                # From its first step there on, neither side has all of it.
                await in_full(self._say_go(postcopy=True))
                await link.channel.ask("arm", timeout=_ANSWER)
            await session.execute(MigrateContinue(state=SWITCHING))
            status = await reached(events, {POSTCOPY})
        if status not in ("completed", POSTCOPY):
            raise await failure(session, status)
        if status == POSTCOPY:
            await in_full(self._go(link, postcopy=True))
            await followed(session, events)
            return
        await link.channel.ask("arrived", timeout=_START)
        await in_full(self._go(link, postcopy=False))

    async def _say_go(self, *, postcopy: bool) -> None:
        assert self.leaving is not None
        self.phase = Phase.CONFIRM
        confirm = replace(
            self.leaving, phase=str(self.phase), said_go=True, postcopy=postcopy
        )
        self._note(confirm)
        self.report(Progress(phase=self.phase))

    async def _go(self, link: links.Link, *, postcopy: bool) -> None:
        await self._say_go(postcopy=postcopy)
        if (await self.vm.execute(QueryStatus())).running:
            raise QemuctlError("its guest was let run here in that moment")
        running = self.state is State.RUNNING
        await link.channel.ask("go", timeout=_ANSWER, running=running)
        self.gone = True

    async def _cleaned(self, link: links.Link, pack: Packed) -> Moved:
        self._enter(Phase.CLEAN)
        assert self.leaving is not None
        seconds = time.monotonic() - self.begun
        with contextlib.suppress(QmpError, StateError, WaitTimeout):
            self.info = await self.vm.execute(QueryMigrate())
        await in_full(leave(self.vm, self.leaving))
        notes, after = await self._finished(link, pack.offer.token)
        info = self.info
        ram = info.ram if info is not None else None
        counted = info.downtime if info is not None else None
        return Moved(
            name=pack.offer.name,
            destination=self.destination.text,
            total_seconds=round(seconds, 3),
            downtime=self.stood_still + counted / 1000 if counted is not None else None,
            guest_downtime=behind(self.lag, after),
            ram_bytes=ram.transferred if ram is not None else 0,
            storage_bytes=self.storage_bytes,
            kept=self.options.keep,
            notes=tuple(notes),
        )

    async def _finished(
        self, link: links.Link, token: str
    ) -> tuple[list[str], float | None]:
        """What did not come along, and how far the guest's clock is behind there."""
        try:
            with contextlib.suppress(ChannelLost):
                return await _finish(link, token)
            # The way to it has gone, and perhaps not the other side.
            async with links.opened_again(self.destination, self.receiver) as again:
                return await _finish(again, token)
        except QemuctlError as error:
            return [f"not all of it could be finished there: {error}"], None

    # -- looking on --------------------------------------------------------

    async def _look(self, info: MigrationInfo, storage: Storage) -> None:
        self.info = info
        done, total = await storage.progress()
        self.report(progress_of(self.phase, info, done, total))

    @contextlib.asynccontextmanager
    async def _told(self, storage: Storage) -> AsyncIterator[None]:
        """Tells for the block how much of the disks is copied."""

        async def tell() -> None:
            while storage.disks:
                # QEMU has no event for how far a job is.
                await asyncio.sleep(0.25)
                with contextlib.suppress(QmpError):
                    done, total = await storage.progress()
                    self.report(
                        Progress(
                            phase=self.phase, storage_done=done, storage_total=total
                        )
                    )

        telling = asyncio.create_task(tell())
        try:
            yield
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)


async def _finish(link: links.Link, token: str) -> tuple[list[str], float | None]:
    notes = await link.channel.ask("finish", timeout=_ANSWER, token=token)
    after = await link.channel.ask("lag", timeout=_ANSWER, token=token)
    return [str(note) for note in notes], after
