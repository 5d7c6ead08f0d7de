"""The memory limits of the control groups that this process is in, version 1 and 2.

A group's limit holds for all groups below it, and the kernel ends a process of a group
that wants more, however much the host has. See cgroups(7), the kernel's
admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from qemuctl.structs import Struct


class Limit(Struct, kw_only=False):
    """One group's limit, and how much of it is left, in bytes."""

    bytes: int
    left: int


class _Files(Struct, kw_only=False):
    """What the files of a version are called; a page cache that the kernel gives back
    is counted as used, and told in the statistics."""

    limits: tuple[str, ...]
    used: str
    cache: str


_V1 = _Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files(("memory.max", "memory.high"), "memory.current", "inactive_file")
# Version 1 says "no limit" with a number: the largest multiple of a page.
_UNLIMITED = 2**62


def memory_limits(proc: Path = Path("/proc/self")) -> Iterator[Limit]:
    """The limits in force, the innermost group's first; none where nothing is told."""
    for files, folder, top in _groups(proc):
        while folder.is_relative_to(top):
            yield from _limits(folder, files)
            folder = folder.parent


def _limits(folder: Path, files: _Files) -> Iterator[Limit]:
    for name in files.limits:
        with contextlib.suppress(
            OSError, ValueError
        ):  # "max", or there is no such file
            limit = int((folder / name).read_text())
            if limit < _UNLIMITED:
                used = int((folder / files.used).read_text()) - _cache(folder, files)
                yield Limit(limit, max(0, limit - used))


def _cache(folder: Path, files: _Files) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == files.cache:
                return int(value)
    return 0


def _groups(proc: Path) -> Iterator[tuple[_Files, Path, Path]]:
    """This process' group in each hierarchy with memory limits, and the top of that."""
    try:
        groups = (proc / "cgroup").read_text().splitlines()
        mounts = (proc / "mountinfo").read_text().splitlines()
    except (OSError, ValueError):
        return
    for mount in mounts:
        # proc(5): … root, mount point, options, …, "-", type, source, super options.
        fields, _, more = (part.split() for part in mount.partition(" - "))
        if more[:1] == ["cgroup2"]:
            files, wanted = _V2, ""
        elif more[:1] == ["cgroup"] and "memory" in more[-1].split(","):
            files, wanted = _V1, "memory"
        else:
            continue
        for group in groups:
            _, controllers, path = group.split(":", 2)
            if wanted in controllers.split(","):
                top = Path(fields[4])
                yield files, top / _below(path, fields[3]), top


def _below(path: str, root: str) -> str:
    """A group's path from the mount's root; that is the group itself where the path
    leads elsewhere, as in a container that sees the host's paths."""
    with contextlib.suppress(ValueError):
        below = Path(path).relative_to(root)
        return "" if ".." in below.parts else str(below)
    return ""
