"""`save` and `restore`: a guest that goes on later, or under another name."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from qemuctl.cli.declare import Argument, Option, command
from qemuctl.cli.output import building, tell
from qemuctl.cli.parameters import Json, Name, Timeout, seconds
from qemuctl.cli.progress import percent, transfer
from qemuctl.cli.running import run_async
from qemuctl.errors import UsageError

if TYPE_CHECKING:
    from qemuctl.image.progress import Progress


@command("save", example="qemuctl save web")
def save(
    name: Name,
    file: Annotated[
        Path | None,
        Argument(metavar="[FILE]", help="for `restore`; default: its next start"),
    ] = None,
    compress: Annotated[
        bool, Option("--compress", help="smaller, and slower (zstd)")
    ] = False,
    json: Json = False,
) -> None:
    """Write a guest's RAM and devices into a file, and end its QEMU.

    Its next start goes on from there, once. With FILE, the VM is then off as after
    a power cut, and `restore` goes on; the disks are not in the file, and must be
    as they are. Ctrl-C has the guest go on as before.
    """
    if str(file) == "-":
        raise UsageError("a saved state is a file, it cannot go to standard output")
    begun = time.monotonic()
    with transfer(f"saving {name}") as progress:
        size = run_async(_save(name, file, compress, progress))
    took = time.monotonic() - begun
    again = f"start {name}" if file is None else f"restore {file}"
    facts = {"name": name, "file": str(file) if file else None, "size": size}
    tell(
        facts | {"seconds": round(took, 3)},
        f"saved {name}: {_size(size)} in {took:.1f} s; "
        f"it goes on from there with: qemuctl {again}",
        as_json=json,
    )


def _size(size: int) -> str:
    from qemuctl.units import format_rounded

    return format_rounded(size)


async def _save(
    name: str, file: Path | None, compress: bool, progress: Progress
) -> int:
    """Gives the bytes that the file takes: it may have holes."""
    from qemuctl.registry.states import Action
    from qemuctl.savestate.save import save as saving
    from qemuctl.vm.attach import attach

    async with await attach(name, Action.SAVE) as vm:
        await saving(
            vm, file, compression="zstd" if compress else None, progress=progress
        )
        return (file or vm.paths.saved).stat().st_blocks * 512


@command("restore", example="qemuctl restore web.state --name web2")
def restore(
    file: Annotated[Path, Argument(metavar="FILE", help="what `save` wrote")],
    name: Annotated[
        str | None, Option(help="the VM's name; default: as it was")
    ] = None,
    paused: Annotated[
        bool, Option("--paused", help="do not let the guest run yet")
    ] = False,
    wait: Annotated[bool, Option("--wait", help="until its agent answers")] = False,
    trust: Annotated[
        bool,
        Option("--trust", help="also files of this host and arguments for QEMU"),
    ] = False,
    timeout: Timeout = "120",
    json: Json = False,
) -> None:
    """Have a guest go on that was saved to a file; the file stays.

    It is the VM that was saved, if that is off and its disks are as they were. Under
    a name that no VM has, a new one is made, with copies of the disks that the other
    one owns. A file that no VM here has written may name no other files or arguments
    for QEMU, unless you --trust it; its RAM and devices go into QEMU's sandbox.
    """
    with percent(f"restoring {file.name}") as progress:
        patience = seconds(timeout) if wait and not paused else None
        facts, words = run_async(
            _restore(file, name, paused, trust, patience, progress)
        )
    tell(facts, words, as_json=json)


async def _restore(
    file: Path,
    name: str | None,
    paused: bool,
    trust: bool,
    patience: float | None,
    progress: Progress,
) -> tuple[dict[str, object], str]:
    from qemuctl.cli.notices import gone_on
    from qemuctl.savestate.restore import restore as restoring

    stages = building("building its image, once:")
    vm = await restoring(
        file, name=name, paused=paused, trust=trust, progress=progress, stages=stages
    )
    async with vm:
        if patience is not None:
            await vm.wait_ready(timeout=patience)
        words, record = await gone_on(vm), vm.record
        facts = {"name": vm.name, "state": await vm.state(), "pid": record.qemu.pid,
                 "accel": record.accel, "forwards": record.forwards}  # fmt: skip
        return facts, words
