"""`logs`: what a VM has said, also after its end."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

from qemuctl.cli.declare import Option, command
from qemuctl.cli.parameters import Name
from qemuctl.cli.running import run_async

if TYPE_CHECKING:
    from pathlib import Path

    from qemuctl.paths import VmPaths


@command("logs", example="qemuctl logs web -f")
def logs(
    name: Name,
    follow: Annotated[
        bool, Option("--follow", "-f", help="go on until the VM ends")
    ] = False,
    serial: Annotated[
        bool, Option("--serial", help="the serial console, as without a flag")
    ] = False,
    qemu: Annotated[bool, Option("--qemu", help="QEMU's own messages")] = False,
    qmp: Annotated[
        bool, Option("--qmp", help="commands, replies and events, as JSON lines")
    ] = False,
    raw: Annotated[
        bool,
        Option("--raw", help="the guest's bytes as they are, escape codes too"),
    ] = False,
) -> None:
    """Print what a VM has logged, also after its end."""
    from qemuctl.errors import UsageError
    from qemuctl.registry.vms import find

    paths = find(name)
    if serial + qemu + qmp > 1:
        raise UsageError("one log at a time: --serial, --qemu or --qmp")
    if qmp:
        run_async(_qmp_log(paths, follow))
    else:
        run_async(
            _text_log(paths, paths.qemu_log if qemu else paths.serial_log, follow, raw)
        )


async def _text_log(paths: VmPaths, path: Path, following: bool, raw: bool) -> None:
    from qemuctl.follow import follow
    from qemuctl.tail import Plain

    if not path.exists():
        return
    plain = Plain()

    def show(chunk: bytes, *, last: bool = False) -> None:
        text = chunk if raw else plain.feed(chunk, last=last).encode()
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()

    async for chunk in follow(path, until=_end(paths, following)):
        show(chunk)
    show(b"", last=True)


async def _end(paths: VmPaths, following: bool) -> None:
    """Returns when there is nothing more to follow."""
    from qemuctl.process import held, wait_gone
    from qemuctl.registry.records.process_record import Record

    record = Record.read(paths.record) if following and held(paths.lock) else None
    if record is not None:
        await wait_gone(record.shepherd)


async def _qmp_log(paths: VmPaths, following: bool) -> None:
    """Two files, one story: commands and replies are ours, events QEMU's own."""
    import asyncio
    import json

    from qemuctl.bounded import content
    from qemuctl.follow import lines
    from qemuctl.qmp import Event

    def entry(line: bytes) -> dict[str, Any] | None:
        try:
            value = json.loads(line)
        except ValueError:
            return None
        event = Event.parse(value)
        if event is not None:
            return {"at": event.at, "event": event.name, "data": event.data}
        return value if isinstance(value, dict) and "at" in value else None

    if not following:
        files = [file for file in (paths.qmp_log, paths.events) if file.exists()]
        every = [entry(x) for file in files for x in content(file).splitlines()]
        for value in sorted((e for e in every if e), key=lambda e: float(e["at"])):
            print(json.dumps(value))
        return

    async def show(path: Path) -> None:
        async for line in lines(path, until=_end(paths, following)):
            if (value := entry(line)) is not None:
                print(json.dumps(value), flush=True)

    await asyncio.gather(
        *(show(f) for f in (paths.qmp_log, paths.events) if f.exists())
    )
