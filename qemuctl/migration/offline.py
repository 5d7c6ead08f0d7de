"""A VM that is off moves: its files, as an archive that is taken in there.

::

    its journal is written ─► the archive goes over; there it is imported, out of sight
    the word is written down, and said ─► there it is in sight; here it is removed

Before the word it is here, whoever dies, and what is there goes with the link. After it
`recover` asks: what is in sight there has arrived, and is removed here.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from dataclasses import dataclass, field, replace

from qemuctl.copies.archive import export_locked
from qemuctl.errors import MigrationError, QemuctlError
from qemuctl.image.manifest import sha256_of
from qemuctl.image.whole import scratch
from qemuctl.migration import link as links
from qemuctl.migration.arrivals import landed
from qemuctl.migration.destination import Destination
from qemuctl.migration.leave import left
from qemuctl.migration.options import Options
from qemuctl.migration.phases import Phase
from qemuctl.migration.place import place
from qemuctl.migration.recovery import settle
from qemuctl.migration.report import Moved, Progress, Report, silent
from qemuctl.paths import VmPaths
from qemuctl.process import Identity
from qemuctl.registry import offline, removal
from qemuctl.registry.disks.disk_files import disk_files
from qemuctl.registry.disks.resolve import image_of
from qemuctl.registry.records.migration_journal import Leaving, check_here, end, moving
from qemuctl.registry.records.moved_away import check_not_moved
from qemuctl.registry.states import Action
from qemuctl.spec import load_spec
from qemuctl.thread import in_full, in_thread

_ANSWER = 30.0
_SENDING = 24 * 3600.0


async def move(
    name: str,
    destination: Destination,
    options: Options,
    *,
    receiver: str = links.RECEIVER,
    report: Report = silent,
) -> Moved:
    """Moves a VM that is off to another home, complete in itself (`export`).

    At every moment one of the two homes has a VM that can be started, at the latest
    after `recover`. Raises NotFound, StateError when it is on, MigrationError with the
    phase: the VM is then still here, and not there, unless the message says that the
    outcome is not known.
    """
    course = _Course(options, options.name or name, destination, receiver, report)
    try:
        # Nobody starts it before it has left.
        with offline.locked(name, Action.EXPORT) as paths:
            check_here(paths, Action.MIGRATE)
            check_not_moved(paths, Action.MIGRATE)
            landed(paths)
            with moving(paths):
                await course.through(paths)
        if course.doubt is not None:
            await in_full(course.settled(paths))
    except QemuctlError as error:
        if isinstance(error, MigrationError):
            raise
        raise MigrationError(
            f"{name} was not moved ({course.phase}): {error.message}",
            str(course.phase), hint=error.hint,
        ) from error  # fmt: skip
    return Moved(
        name=course.there, destination=destination.text,
        total_seconds=round(time.monotonic() - course.begun, 3), downtime=None,
        guest_downtime=None, ram_bytes=0, storage_bytes=course.size, kept=options.keep,
    )  # fmt: skip


@dataclass
class _Course:
    options: Options
    there: str
    destination: Destination
    receiver: str
    report: Report
    phase: Phase = Phase.CHECK
    begun: float = field(default_factory=time.monotonic)
    leaving: Leaving | None = None
    size: int = 0
    doubt: QemuctlError | None = None

    async def through(self, paths: VmPaths) -> None:
        """All of it; where the outcome is in doubt, that is left to `settled`."""
        async with links.opened(
            self.destination, paths.run / "move", self.receiver
        ) as link:
            try:
                async with links.kept_alive(link):
                    self.report(Progress(phase=self.phase))
                    await self._checked(paths, link)
                    await self._sent(paths, link)
            except BaseException:
                # It is not in sight there, and goes with the link.
                end(paths)
                raise
            # What is begun here comes to its end.
            await in_full(self._gone(paths, link))

    async def _checked(self, paths: VmPaths, link: links.Link) -> None:
        spec = load_spec(paths.spec, name=paths.name)
        disks = disk_files(spec, paths, image_of(spec))
        size = sum(layer.used for disk in disks for layer in disk.chain)
        facts = await link.channel.ask("look", timeout=_ANSWER, image=None, sha256=None)
        await link.channel.ask(
            "room", timeout=_ANSWER, name=self.there, place=place(), size=size
        )
        self.leaving = Leaving(
            token=secrets.token_hex(16), destination=self.destination.text,
            name=self.there, receiver=self.receiver,
            controller=Identity.of(os.getpid()), phase=Phase.STORAGE, ran=False,
            keep=self.options.keep, home=str(facts["home"]),
        )  # fmt: skip

    async def _sent(self, paths: VmPaths, link: links.Link) -> None:
        assert self.leaving is not None
        self.phase = Phase.STORAGE
        self.leaving.write(paths)
        with scratch(paths.state) as work:
            archive = work / "archive"
            await export_locked(paths, archive, progress=self._copied)
            sum_ = await in_thread(lambda tick: sha256_of(archive, tick))
            self.size = archive.stat().st_size
            await link.channel.ask(
                "archive", timeout=_SENDING, file=archive, name=self.there,
                size=self.size, sha256=sum_, same=self.there == paths.name,
                token=self.leaving.token,
            )  # fmt: skip

    async def _gone(self, paths: VmPaths, link: links.Link) -> None:
        """The word, after which it is there, and not here."""
        assert self.leaving is not None
        self.phase = Phase.CONFIRM
        self.leaving = replace(self.leaving, phase=str(self.phase), said_go=True)
        self.leaving.write(paths)
        self.report(Progress(phase=self.phase))
        try:
            await link.channel.ask("go", timeout=_ANSWER, running=False)
        except QemuctlError as error:
            self.doubt = error
            return
        self.phase = Phase.CLEAN
        self.report(Progress(phase=self.phase))
        leaving, remove = self.leaving, removal.remove_locked
        await in_thread(lambda _: left(paths, leaving, remove))
        with contextlib.suppress(QemuctlError):  # it is there, all the same
            await link.channel.ask("finish", timeout=_ANSWER, token=self.leaving.token)

    async def settled(self, paths: VmPaths) -> None:
        """Finds out where it is, by another link: the first one's receiver has ended.
        Raises MigrationError unless it is there."""
        assert self.leaving is not None
        assert self.doubt is not None
        try:
            async with links.opened_again(self.destination, self.receiver) as link:
                if await settle(paths, self.leaving, link, None):
                    return
        except QemuctlError as error:
            raise MigrationError(
                f"the outcome of the migration of {paths.name} is not known: "
                f"{error.message}",
                str(self.phase), hint="both sides are asked by: qemuctl "
                f"migrate-recover {paths.name}",
            ) from error  # fmt: skip
        raise self.doubt

    def _copied(self, done: int, total: int | None) -> None:
        self.report(
            Progress(phase=self.phase, storage_done=done, storage_total=total or 0)
        )
