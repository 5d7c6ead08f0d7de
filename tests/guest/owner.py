"""A process that owns a diskless QEMU, for tests that kill it.

    owner.py NAME MODE QEMU [ARGUMENT…]

It prints the pids of QEMU and its shepherd as JSON, and then waits for its
input to end. MODE may hold the words `detach`, and `bury` to have an
undertaker.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from qemuctl.paths import VmPaths, private_dir
from qemuctl.process import bury, spawn, take


def argv(qemu: str, extra: list[str], sockets: dict[Path, int]) -> list[str]:
    line = [qemu, "-M", "none", "-S", "-nodefaults", "-display", "none"]
    for number, fd in enumerate(sockets.values()):
        line += ["-chardev", f"socket,id=c{number},fd={fd},server=on,wait=off"]
        line += ["-mon", f"chardev=c{number},mode=control"]
    return line + extra


async def own(
    paths: VmPaths, mode: str, keep_open: list[int], qemu: str, extra: list[str]
) -> None:
    child = await spawn(
        paths,
        [paths.owner_socket, paths.tools_socket],
        lambda sockets: argv(qemu, extra, sockets),
        keep_open=keep_open,
    )
    os.close(keep_open[0])
    if "detach" in mode:
        child.detach()
    print(json.dumps([child.qemu.pid, child.shepherd.pid]), flush=True)
    await asyncio.to_thread(sys.stdin.read)


def prepared(paths: VmPaths, mode: str) -> list[int]:
    """What QEMU shall inherit. Opened before anything else, so that it has the
    lowest descriptors there are."""
    private_dir(paths.state)
    lock = take(paths.lock)
    assert lock == 3
    if "bury" not in mode:
        return [lock]
    undertaker = bury(paths.state, paths.run)
    undertaker.made()
    return [lock, undertaker.pipe]


if __name__ == "__main__":
    _, name, mode, qemu, *extra = sys.argv
    paths = VmPaths.of(name)
    asyncio.run(own(paths, mode, prepared(paths, mode), qemu, extra))
