"""Waiting for the end of a process."""

from __future__ import annotations

import os

from qemuctl.descriptors import readable
from qemuctl.process.identity import Identity


async def wait_gone(process: Identity) -> None:
    """Waits for the end of a process, a child or not (pidfd_open(2))."""
    fd = process.open()
    if fd is None:
        return
    try:
        await readable(fd)
    finally:
        os.close(fd)
