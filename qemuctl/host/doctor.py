"""Looks the host over: each check says what is there and what to do about it.

Nothing is changed and no check takes long; the slowest asks QEMU once.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from qemuctl import paths
from qemuctl.errors import HostError
from qemuctl.host.accel import choose_accel
from qemuctl.host.binary import Binary
from qemuctl.host.discovery import find_qemu, probe
from qemuctl.host.resources import (
    available_memory,
    cpu_count,
    free_space,
    memory_limit,
)
from qemuctl.spec.model import Spec
from qemuctl.structs import Struct
from qemuctl.units import GIB, MIB

MEMORY_WARN = 1 * GIB
MEMORY_FAIL = 256 * MIB
SPACE_WARN = 2 * GIB
SPACE_FAIL = 128 * MIB
OPEN_FILES_WARN = 256
INOTIFY_INSTANCES_WARN = 64

Status = Literal["ok", "warn", "fail"]


class Check(Struct, kw_only=False):
    """One finding; ``advice`` is what to do, None when all is well."""

    name: str
    status: Status
    detail: str
    advice: str | None = None


def checks() -> Iterator[Check]:
    """All checks, one after the other; never raises."""
    yield _python()
    yield from _qemu()
    yield _tool("qemu-img", "fail", "sudo apt-get install qemu-utils")
    yield _memory()
    yield Check("processors", "ok", f"{cpu_count()} for this process")
    yield _space("state folder", paths.state_home())
    yield _space("image store", paths.images_dir())
    yield _space("cache folder", paths.cache_home())
    yield _sockets()
    yield _open_files()
    yield _inotify()
    for tool in ("ssh", "ssh-keygen"):
        yield _tool(
            tool,
            "warn",
            "needed for ssh into guests: sudo apt-get install openssh-client",
        )
    for tool in ("apt-get", "dpkg-deb"):
        yield _tool(
            tool, "warn", "needed to build the tiny guest; or use qemuctl run --kernel"
        )
    yield _tool(
        "mmdebstrap",
        "warn",
        "needed for qemuctl image build debian: sudo apt-get install mmdebstrap uidmap",
    )


def _python() -> Check:
    # The package does not install on a Python that is too old.
    return Check("Python", "ok", f"{platform.python_version()}, {sys.executable}")


def _qemu() -> Iterator[Check]:
    """The binary, and what follows from its features."""
    spec = Spec(name="doctor")
    try:
        binary = probe(find_qemu(spec))
    except HostError as error:
        yield Check("QEMU", "fail", error.message, error.hint)
        return
    yield Check("QEMU", "ok", f"version {binary.version}, {binary.path}")
    yield _accel(binary)
    yield _sandbox(binary)
    yield _user_network(binary)


def _accel(binary: Binary) -> Check:
    try:
        accel = choose_accel("auto", binary)
    except HostError as error:
        return Check("accelerator", "fail", error.message, error.hint)
    if accel.kind == "kvm":
        return Check("accelerator", "ok", accel.reason)
    advice = "guests run, but slowly; KVM needs a host with hardware virtualisation"
    device = Path("/dev/kvm")
    if device.exists() and not os.access(device, os.R_OK | os.W_OK):
        advice = "sudo usermod -aG kvm $USER, then log in again"
    return Check("accelerator", "warn", accel.reason, advice)


def _sandbox(binary: Binary) -> Check:
    if "sandbox" in binary.options:
        return Check("sandbox", "ok", "this QEMU confines itself (-sandbox)")
    return Check(
        "sandbox",
        "warn",
        "this QEMU was built without -sandbox",
        "set sandbox: false in each spec, or use a QEMU with seccomp",
    )


def _user_network(binary: Binary) -> Check:
    if "user" in binary.netdevs:
        return Check("user network", "ok", "this QEMU has it")
    return Check(
        "user network",
        "warn",
        "this QEMU was built without it (libslirp)",
        "use another QEMU, or set nics: [] or a tap interface in each spec",
    )


def _tool(name: str, missing: Status, advice: str) -> Check:
    found = shutil.which(name)
    if found is None:
        return Check(name, missing, "not on PATH", advice)
    return Check(name, "ok", found)


def _memory() -> Check:
    def grade(free: int) -> Check:
        limit = memory_limit()
        of = "" if limit is None else f" of a control group's limit of {_human(limit)}"
        if free >= MEMORY_WARN:
            return Check("memory", "ok", f"{_human(free)} available{of}")
        status: Status = "fail" if free < MEMORY_FAIL else "warn"
        return Check(
            "memory",
            status,
            f"only {_human(free)} available{of}",
            "stop what is not needed, or give the guests less memory",
        )

    return _asked("memory", available_memory, grade)


def _space(name: str, folder: Path) -> Check:
    def grade(free: int) -> Check:
        detail = f"{_human(free)} free, {folder}"
        if not _writable(folder):
            return Check(
                name,
                "fail",
                f"may not be written: {folder}",
                paths.blocking_folder(folder) or "set QEMUCTL_HOME to another folder",
            )
        if free >= SPACE_WARN:
            return Check(name, "ok", detail)
        return Check(
            name,
            "fail" if free < SPACE_FAIL else "warn",
            f"only {detail}",
            "make room, or set QEMUCTL_HOME to a folder on another disk",
        )

    return _asked(name, lambda: free_space(folder), grade)


def _asked(name: str, ask: Callable[[], int], grade: Callable[[int], Check]) -> Check:
    try:
        return grade(ask())
    except HostError as error:
        return Check(name, "fail", error.message, error.hint)


def _writable(folder: Path) -> bool:
    """Whether the folder, or the nearest one above it that exists, takes files."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _sockets() -> Check:
    """Sockets live in the run folder, and their paths are short (unix(7))."""
    name, folder = "run folder", paths.run_home()
    if not _writable(folder):
        return Check(
            name,
            "fail",
            f"may not be written: {folder}",
            "set XDG_RUNTIME_DIR to a folder of your own",
        )
    if folder.exists() and folder.lstat().st_uid != os.getuid():
        return Check(
            name,
            "fail",
            f"belongs to somebody else: {folder}",
            "set XDG_RUNTIME_DIR to a folder of your own",
        )
    room = _name_room(folder)
    if room < 16:
        return Check(
            name,
            "fail" if room < 1 else "warn",
            f"leaves {max(room, 0)} bytes for the name of a VM: {folder}",
            "set XDG_RUNTIME_DIR to a shorter path",
        )
    return Check(name, "ok", f"{folder}, names of VMs up to {min(room, 64)} bytes")


def _name_room(folder: Path) -> int:
    """How long a VM's name may be for its sockets' paths to fit."""
    vm = paths.VmPaths(state=folder / "x", run=folder / "x")
    sockets = (vm.owner_socket, vm.agent_socket, vm.serial_socket, vm.spice_socket)
    longest = max(len(os.fsencode(path)) for path in sockets)
    return paths.SOCKET_PATH_MAX - longest + 1


def _open_files() -> Check:
    name = "open files"
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES_WARN:
        return Check(name, "warn", f"limit is {soft}", "ulimit -n 1024")
    limit = "no limit" if soft == resource.RLIM_INFINITY else f"limit is {soft}"
    return Check(name, "ok", limit)


def _inotify() -> Check:
    name = "inotify instances"
    try:
        limit = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    except (OSError, ValueError):
        return Check(
            name, "warn", "the kernel does not tell", "following logs may not work"
        )
    if limit < INOTIFY_INSTANCES_WARN:
        return Check(
            name,
            "warn",
            f"limit is {limit}",
            "sudo sysctl fs.inotify.max_user_instances=128",
        )
    return Check(name, "ok", f"limit is {limit}")


def _human(size: int) -> str:
    """A size that need not be exact: ``3.1 GiB``."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size // MIB} MiB"
