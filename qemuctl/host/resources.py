"""What is left of the host: memory, processors, disk space."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from qemuctl.errors import HostError
from qemuctl.host.cgroup import memory_limits
from qemuctl.units import KIB


def available_memory(proc: Path = Path("/proc")) -> int:
    """Bytes that can be used without swapping: ``MemAvailable`` of proc(5), or what is
    left of a control group's limit.

    Raises HostError when the kernel does not tell.
    """
    limits = memory_limits(proc / "self")
    free = _memory("MemAvailable", proc / "meminfo")
    return min(free, *(limit.left for limit in limits), free)


def total_memory(proc: Path = Path("/proc")) -> int:
    """Bytes that the host has, or that a control group allows.

    Raises HostError when the kernel does not tell.
    """
    limits = memory_limits(proc / "self")
    every = _memory("MemTotal", proc / "meminfo")
    return min(every, *(limit.bytes for limit in limits), every)


def memory_and_swap(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that the host can hold at all. Raises HostError when it is not told."""
    return _memory("MemTotal", meminfo) + _memory("SwapTotal", meminfo)


def memory_limit(proc: Path = Path("/proc")) -> int | None:
    """The control groups' limit in bytes, where it is less than the host has.

    Raises HostError when the kernel does not tell.
    """
    allowed = total_memory(proc)
    return allowed if allowed < _memory("MemTotal", proc / "meminfo") else None


def _memory(wanted: str, meminfo: Path) -> int:
    try:
        for line in meminfo.read_text(encoding="ascii").splitlines():
            key, _, value = line.partition(":")
            if key == wanted:
                return int(value.split()[0]) * KIB
    except (OSError, ValueError, IndexError) as error:
        raise HostError(f"cannot read free memory: {meminfo}: {error}") from error
    raise HostError(f"cannot read free memory: no {wanted} in {meminfo}")


def cpu_count() -> int:
    """Processors that this process may run on; 1 when unknown."""
    try:
        return len(os.sched_getaffinity(0)) or 1
    except OSError:
        return os.cpu_count() or 1


def free_space(folder: Path) -> int:
    """Bytes that the caller may still write below ``folder``.

    A folder that does not exist yet is on its nearest parent's file system.
    Raises HostError when that cannot be asked.
    """
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise HostError(
            f"cannot read the free space of {folder}: {error.strerror}"
        ) from error


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """The processor's name, as it tells it itself; None where it is not told."""
    with contextlib.suppress(OSError, ValueError):
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return None


def tsc_khz(cpuinfo: Path = Path("/proc/cpuinfo")) -> int | None:
    """The rate of the host's time stamp counter in kHz, to the MHz.

    None where it is not told, as on other processors than x86. "bogomips" is twice
    the rate, by which the kernel times its delays; "cpu MHz" may be how fast the
    processor runs at the moment.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "bogomips":
                return round(float(value) / 2) * 1000 or None
    return None
