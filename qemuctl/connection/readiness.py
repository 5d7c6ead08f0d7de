"""What ends the wait for a guest before its time: its console or its ssh server says
that its agent will not come."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

from qemuctl.errors import NotReady
from qemuctl.follow import follow
from qemuctl.guest.ssh_port import PORT, forward_of, until_greets
from qemuctl.tail import plain

T = TypeVar("T")

# Seconds until the ssh server is asked, and for the agent once that answers.
_ASK_AFTER, _AGENT_LATER = 1.0, 10.0
_WINDOW = 16 * 1024
# Nothing tells where the last words end, such as a panic's call trace: a pause of so
# many seconds does, or this long a time in all.
_PAUSE, _REST = 0.5, 3.0
# The last words of firmware, boot sectors, kernels and their first programs.
_FAILED = re.compile(
    r"^(?:\[[ .0-9]+\] )?("
    r"No bootable device|BdsDxe: No bootable option|FATAL: No bootable medium"
    r"|Missing operating system|Operating system not found|No boot device"
    r"|This is not a bootable disk|grub rescue>"
    r"|Kernel panic - not syncing|ALERT!.*Dropping to a shell"
    r"|You are in emergency mode|Entering emergency mode"
    r").*",
    re.MULTILINE | re.IGNORECASE,
)
# What a machine says that was reset since.
_AGAIN = re.compile(r"SeaBIOS \(version|Linux version |BdsDxe: starting|GNU GRUB")


def boot_failure(text: str) -> str | None:
    """The line that tells why what booted last has not come up, if there is one."""
    for failed in _FAILED.finditer(text):
        if not _AGAIN.search(text, failed.end()):
            return failed.group().strip()
    return None


async def unless_hopeless(
    work: Coroutine[Any, Any, T],
    console: Path,
    forwards: list[str] | None = None,
    *,
    past: bool = True,
) -> T:
    """The result of ``work``, unless the ``console``'s log says first that the guest
    does not boot, or, with ``forwards`` as in `Record`, its ssh server has answered
    for a while. Without ``past``, what the log says already does not count. Raises
    NotReady."""
    watching = _console(console, _WINDOW if past else 0)
    tasks: list[asyncio.Future[Any]] = [
        asyncio.ensure_future(work),
        asyncio.ensure_future(watching),
    ]
    if (where := forward_of(forwards or [])) is not None:
        tasks.append(asyncio.ensure_future(_ssh(*where)))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        first = next(task for task in tasks if task.done())
        if first is tasks[1] and first.exception() is not None:
            await _rest(console)
        result: T = first.result()
        return result
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _console(log: Path, past: int) -> None:
    text = b""
    with contextlib.suppress(OSError):  # a VM without a console, or that has gone
        start = max(0, log.stat().st_size - past)
        async with aclosing(follow(log, offset=start)) as chunks:
            async for chunk in chunks:
                text = (text + chunk)[-_WINDOW:]
                if line := boot_failure(plain(text.decode(errors="replace"))):
                    raise NotReady(f"the guest does not boot: {line}")
    await asyncio.Event().wait()


async def _rest(log: Path) -> None:
    """Waits until the console has said all."""
    with contextlib.suppress(OSError, TimeoutError):
        async with (
            asyncio.timeout(_REST),
            aclosing(follow(log, offset=log.stat().st_size)) as chunks,
        ):
            while True:
                await asyncio.wait_for(anext(chunks), _PAUSE)


async def _ssh(address: str, port: int) -> None:
    await asyncio.sleep(_ASK_AFTER)  # most agents answer before
    await until_greets(address, port)
    # In most guests both start at about the same time.
    await asyncio.sleep(_AGENT_LATER)
    raise NotReady(
        f"the guest's agent does not answer, but its ssh server does, at "
        f"{address}:{port} (its port {PORT})",
        by_ssh=True,
    )
