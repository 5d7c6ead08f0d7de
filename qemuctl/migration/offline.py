"""A VM that is off moves: its files, as an archive that is taken in there."""

from __future__ import annotations

import asyncio
import time

from qemuctl.errors import MigrationError, QemuctlError
from qemuctl.image.manifest import sha256_of
from qemuctl.image.progress import Progress as Copied
from qemuctl.image.whole import scratch
from qemuctl.migration import link as links
from qemuctl.migration.destination import Destination
from qemuctl.migration.options import Options
from qemuctl.migration.phases import Phase
from qemuctl.migration.place import place
from qemuctl.migration.report import Moved, Progress, Report, silent
from qemuctl.thread import in_thread
from qemuctl.vm import definitions
from qemuctl.vm.archive import export
from qemuctl.vm.disks import disk_files
from qemuctl.vm.moved import note_moved
from qemuctl.vm.resolve import image_of

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
    paths, spec = definitions.find(name), definitions.load(name)
    phase = Phase.CHECK
    report(Progress(phase=phase))
    try:
        folder = paths.run / "move"
        async with links.opened(destination, folder, receiver) as link:
            disks = disk_files(spec, paths, image_of(spec))
            size = sum(layer.used for disk in disks for layer in disk.chain)
            await link.channel.ask(
                "room", timeout=_ANSWER, name=there, place=place(), size=size
            )
            phase = Phase.STORAGE
            with scratch(paths.state) as work:
                archive = work / "archive"
                await export(name, archive, progress=_told(report, phase))
                sum_ = await in_thread(lambda tick: sha256_of(archive, tick))
                size = archive.stat().st_size
                await link.channel.ask(
                    "archive", timeout=_SENDING, file=archive, name=there, size=size,
                    sha256=sum_, same=there == name,
                )  # fmt: skip
            report(Progress(phase=Phase.CLEAN))
            await asyncio.to_thread(_left, name, there, destination, options)
    except QemuctlError as error:
        raise MigrationError(
            f"{name} was not moved ({phase}): {error.message}", str(phase),
            hint=error.hint,
        ) from error  # fmt: skip
    return Moved(
        name=there, destination=destination.text,
        total_seconds=round(time.monotonic() - begun, 3), downtime=None,
        guest_downtime=None, ram_bytes=0, storage_bytes=size, kept=options.keep,
    )  # fmt: skip


def _told(report: Report, phase: Phase) -> Copied:
    def tell(done: int, total: int | None) -> None:
        report(Progress(phase=phase, storage_done=done, storage_total=total or 0))

    return tell


def _left(name: str, there: str, destination: Destination, options: Options) -> None:
    if options.keep:
        note_moved(definitions.find(name), there, destination.text)
    else:
        definitions.remove(name)
