"""A VM that is off moves: its files, as an archive that is taken in there."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass

from qemuctl.errors import MigrationError, QemuctlError, StateError
from qemuctl.image.manifest import sha256_of
from qemuctl.image.whole import scratch
from qemuctl.migration import link as links
from qemuctl.migration.channel import ChannelLost
from qemuctl.migration.destination import Destination
from qemuctl.migration.options import Options
from qemuctl.migration.phases import Phase
from qemuctl.migration.place import place
from qemuctl.migration.report import Moved, Progress, Report, silent
from qemuctl.paths import VmPaths
from qemuctl.spec import load_spec
from qemuctl.thread import in_full, in_thread
from qemuctl.vm import definitions
from qemuctl.vm.archive import export_locked
from qemuctl.vm.disks import disk_files
from qemuctl.vm.leaving import check_here
from qemuctl.vm.moved import check_not_moved, note_moved
from qemuctl.vm.resolve import image_of
from qemuctl.vm.states import Action

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

    Raises NotFound, StateError when it is on, MigrationError with the phase; the VM
    is then still here, and not there.
    """
    begun, there = time.monotonic(), options.name or name
    course = _Course(options, there, destination, report)
    try:
        # Nobody starts it before it has left.
        with definitions.locked(name, Action.EXPORT) as paths:
            check_here(paths, Action.MIGRATE)
            check_not_moved(paths, Action.MIGRATE)
            folder = paths.run / "move"
            async with links.opened(destination, folder, receiver) as link:
                async with links.kept_alive(link):
                    size = await course.through(paths, link)
    except QemuctlError as error:
        raise MigrationError(
            f"{name} was not moved ({course.phase}): {error.message}",
            str(course.phase), hint=error.hint,
        ) from error  # fmt: skip
    return Moved(
        name=there, destination=destination.text,
        total_seconds=round(time.monotonic() - begun, 3), downtime=None,
        guest_downtime=None, ram_bytes=0, storage_bytes=size, kept=options.keep,
    )  # fmt: skip


@dataclass
class _Course:
    options: Options
    there: str
    destination: Destination
    report: Report
    phase: Phase = Phase.CHECK

    async def through(self, paths: VmPaths, link: links.Link) -> int:
        """All of it; gives the archive's size in bytes."""
        self.report(Progress(phase=self.phase))
        spec = load_spec(paths.spec, name=paths.name)
        disks = disk_files(spec, paths, image_of(spec))
        size = sum(layer.used for disk in disks for layer in disk.chain)
        await link.channel.ask(
            "room", timeout=_ANSWER, name=self.there, place=place(), size=size
        )
        self.phase = Phase.STORAGE
        with scratch(paths.state) as work:
            archive = work / "archive"
            await export_locked(paths, archive, progress=self._copied)
            sum_ = await in_thread(lambda tick: sha256_of(archive, tick))
            size = archive.stat().st_size
            try:
                await link.channel.ask(
                    "archive", timeout=_SENDING, file=archive, name=self.there,
                    size=size, sha256=sum_, same=self.there == paths.name,
                )  # fmt: skip
            except ChannelLost as error:
                error.hint = (
                    f"it is still here, and may be in {self.destination.text}, too: "
                    "look there before you start it"
                )
                raise
        self.phase = Phase.CLEAN
        self.report(Progress(phase=self.phase))
        await in_full(asyncio.to_thread(self._left, paths))
        return size

    def _copied(self, done: int, total: int | None) -> None:
        self.report(
            Progress(phase=self.phase, storage_done=done, storage_total=total or 0)
        )

    def _left(self, paths: VmPaths) -> None:
        if not self.options.keep:
            with contextlib.suppress(StateError):  # other VMs need its disks
                definitions.remove_locked(paths)
                return
        note_moved(paths, self.there, self.destination.text)
