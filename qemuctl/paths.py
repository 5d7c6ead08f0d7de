"""Every path of qemuctl and of one VM; nothing here touches a VM's content.

A VM has two folders. The state folder outlives its runs and holds all there
is to know about it; the run folder holds sockets, lives on a short path, and
goes with the process. ``QEMUCTL_HOME`` moves everything below one folder,
so that two homes on a host know nothing of each other.
"""

from __future__ import annotations

import os
import pwd
import zlib
from pathlib import Path

from qemuctl.errors import HostError
from qemuctl.folders import blocking_folder as blocking_folder
from qemuctl.folders import private_dir as private_dir
from qemuctl.home_id import run_name
from qemuctl.run_base import run_base, tmp_base
from qemuctl.structs import Struct

# struct sockaddr_un holds 108 bytes, the closing NUL among them.
SOCKET_PATH_MAX = 107


def _xdg(variable: str, default: str) -> Path:
    value = os.environ.get(variable, "")
    # The XDG specification tells us to ignore relative paths.
    return Path(value) if value.startswith("/") else user_home() / default


def user_home() -> Path:
    """The user's home folder.

    A user id without an entry in passwd, as in a container, may have none that can be
    written to: then it is a folder below ``/tmp``, made here. Raises HostError when
    that is somebody else's.
    """
    try:
        home = Path.home()
        if os.access(home, os.W_OK) or has_name():
            return home
    except RuntimeError:  # no HOME, and no entry
        pass
    return private_dir(Path(tmp_base()) / "user")


def has_name() -> bool:
    """Whether the user has an entry in passwd, without which ssh refuses to work."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True


def _under_home(kind: str) -> Path | None:
    home = os.environ.get("QEMUCTL_HOME")
    return Path(home).absolute() / kind if home else None


def state_home() -> Path:
    """Where VMs are kept: ``$XDG_STATE_HOME/qemuctl``."""
    return _under_home("state") or _xdg("XDG_STATE_HOME", ".local/state") / "qemuctl"


def data_home() -> Path:
    """What cannot be made again, images and keys: ``$XDG_DATA_HOME/qemuctl``."""
    return _under_home("data") or _xdg("XDG_DATA_HOME", ".local/share") / "qemuctl"


def images_dir() -> Path:
    """The image store: a folder for each image."""
    return data_home() / "images"


def templates_dir() -> Path:
    """Templates that somebody gave a name: a folder for each."""
    return data_home() / "templates"


def cached_templates_dir() -> Path:
    """Templates that were made by the way, each named by all that it depends on."""
    return cache_home() / "templates"


def cache_home() -> Path:
    """What can be made again: ``$XDG_CACHE_HOME/qemuctl``, by its real path.

    Templates know what is in it by path: homes that link to one share them.
    """
    named = _under_home("cache") or _xdg("XDG_CACHE_HOME", ".cache") / "qemuctl"
    return named.resolve()


def config_home() -> Path:
    """What its user writes for all VMs: ``$XDG_CONFIG_HOME/qemuctl``."""
    return _under_home("config") or _xdg("XDG_CONFIG_HOME", ".config") / "qemuctl"


def run_home() -> Path:
    """Where sockets are: a folder in `run_base`.

    Each state folder has a run folder of its own, also where several
    have the same path, in containers that share ``/tmp``: `run_name`. Nothing may be
    made in it before there is a state folder.
    """
    state = state_home()
    name = run_name(state) or f"new-{zlib.crc32(os.fsencode(state)):08x}"
    return Path(run_base()) / name


def made_run_home() -> Path:
    """`run_home`, which exists then. Raises HostError where it cannot be made."""
    private_dir(state_home())
    return private_dir(run_home())


class VmPaths(Struct, kw_only=False):
    """Every path of one VM, from its two folders.

    ``state`` is ``…/vms/NAME``, ``run`` is ``…/NAME`` below `run_home`.
    """

    state: Path
    run: Path

    @classmethod
    def of(cls, name: str) -> VmPaths:
        """The paths of the VM called ``name`` in the current home."""
        return cls(state=vms_dir() / name, run=run_home() / name)

    def ran_in(self, run: Path) -> VmPaths:
        """The paths of a VM whose record names this run folder: another login may
        have another ``XDG_RUNTIME_DIR``. A folder that is not this home's, as the
        record of a copied home names it, is another VM's, and left aside."""
        return (
            VmPaths(self.state, run)
            if run.parent.name == self.run.parent.name
            else self
        )

    @property
    def name(self) -> str:
        return self.state.name

    @property
    def spec(self) -> Path:
        """The spec, as its user wrote it."""
        return self.state / "vm.yaml"

    @property
    def rejected(self) -> Path:
        """The text of the last edit that was not taken, in a folder of its own."""
        return self.state / "rejected"

    @property
    def lock(self) -> Path:
        """Locked by QEMU's own process tree for as long as it lives."""
        return self.state / "lock"

    @property
    def record(self) -> Path:
        """Who the process is: pid, start time, argument list, sockets."""
        return self.state / "process.json"

    @property
    def exit(self) -> Path:
        """How the last process ended, written by its shepherd."""
        return self.state / "exit"

    @property
    def qemu_log(self) -> Path:
        """What QEMU wrote to its standard output and error."""
        return self.state / "qemu.log"

    @property
    def serial_log(self) -> Path:
        """All that the guest wrote to its serial console."""
        return self.state / "serial.log"

    @property
    def qmp_log(self) -> Path:
        """Commands and replies, JSON lines, bounded."""
        return self.state / "qmp.jsonl"

    @property
    def events_stem(self) -> Path:
        """QEMU's pipe chardev reads STEM.in and writes STEM.out."""
        return self.state / "events"

    @property
    def events_in(self) -> Path:
        """What QEMU reads on its event monitor: one qmp_capabilities."""
        return self.state / "events.in"

    @property
    def events(self) -> Path:
        """Every event, JSON lines, written by QEMU itself."""
        return self.state / "events.out"

    @property
    def disks(self) -> Path:
        """Disks that qemuctl made for this VM."""
        return self.state / "disks"

    @property
    def seed(self) -> Path:
        """The small disk that tells the guest's cloud-init what to do."""
        return self.state / "seed.iso"

    @property
    def instance(self) -> Path:
        """The identity by which cloud-init knows a first boot from a later one."""
        return self.state / "instance-id"

    @property
    def known_hosts(self) -> Path:
        """The guest's ssh host keys, learned at the first connection."""
        return self.state / "known_hosts"

    @property
    def made(self) -> Path:
        """The names of the disks that were made, a line for each: one of these is
        never made a second time."""
        return self.state / "made"

    @property
    def journal(self) -> Path:
        """Devices on their way in or out of the VM that runs."""
        return self.state / "journal.json"

    @property
    def plugged(self) -> Path:
        """What disks and cards are that were plugged in since the start."""
        return self.state / "plugged.json"

    @property
    def saved(self) -> Path:
        """The state that the VM goes on from at its next start."""
        return self.state / "saved.state"

    @property
    def saves(self) -> Path:
        """The checksums of the files that the VM was saved to, a line for each."""
        return self.state / "saves"

    @property
    def moved(self) -> Path:
        """Where the VM has gone, if it has."""
        return self.state / "moved.json"

    @property
    def arriving(self) -> Path:
        """What is still to be done for a VM that has come from another home."""
        return self.state / "arriving.json"

    @property
    def landed(self) -> Path:
        """Under which token a VM has come that was off, until its source knows."""
        return self.state / "landed.json"

    @property
    def migration(self) -> Path:
        """How far a migration has come, from here or to here."""
        return self.state / "migration.json"

    @property
    def snapshots(self) -> Path:
        """What the disks themselves do not tell of their snapshots."""
        return self.state / "snapshots.json"

    @property
    def snapshotting(self) -> Path:
        """There while a snapshot is made, loaded or removed: which one, and how."""
        return self.state / "snapshotting.json"

    @property
    def started(self) -> Path:
        """The spec that the VM was started with, as it was written then."""
        return self.state / "started.yaml"

    @property
    def ballooned(self) -> Path:
        """How much the balloon was last asked to hold, in bytes: QEMU does not tell."""
        return self.state / "ballooned"

    @property
    def changing(self) -> Path:
        """The lock of whoever plugs things in or out."""
        return self.state / "changing.lock"

    @property
    def booted(self) -> Path:
        """There once the VM has been started for the first time."""
        return self.state / "booted"

    @property
    def sampled(self) -> Path:
        """The last samples of the VM that runs, for the rates since then."""
        return self.run / "sampled.json"

    @property
    def owner_socket(self) -> Path:
        """The QMP monitor of whoever owns the VM."""
        return self.run / "owner.qmp"

    @property
    def tools_socket(self) -> Path:
        """The QMP monitor of passing commands, one at a time."""
        return self.run / "tools.qmp"

    @property
    def agent_socket(self) -> Path:
        return self.run / "agent.sock"

    @property
    def copy_socket(self) -> Path:
        """Raw bytes of files on their way in or out, one copy at a time."""
        return self.run / "copy.sock"

    @property
    def serial_socket(self) -> Path:
        return self.run / "serial.sock"

    @property
    def vnc_socket(self) -> Path:
        return self.run / "vnc.sock"

    @property
    def spice_socket(self) -> Path:
        return self.run / "spice.sock"

    def disk(self, index: int, suffix: str) -> Path:
        """The file of the disk that is number ``index`` and has no id of its own."""
        return self.disk_file(f"disk{index}", suffix)

    def disk_file(self, id: str, suffix: str) -> Path:
        """The file of a disk that qemuctl makes, by the disk's id."""
        return self.disks / f"{id}.{suffix}"

    def check_sockets(self) -> None:
        """Raises HostError when a socket's path would not fit (unix(7))."""
        longest = max(
            (self.owner_socket, self.agent_socket, self.serial_socket),
            key=lambda path: len(os.fsencode(path)),
        )
        size = len(os.fsencode(longest))
        if size > SOCKET_PATH_MAX:
            raise HostError(
                f"the path of a socket is too long: {longest} "
                f"({size} bytes, {SOCKET_PATH_MAX} at most)",
                hint="choose a shorter name, or set XDG_RUNTIME_DIR to a shorter path",
            )


class PoolPaths(Struct, kw_only=False):
    """Every path of the shared pool of a template."""

    name: str

    @property
    def lock(self) -> Path:
        """Locked by the pool's process for as long as it lives; says who it is."""
        return pools_dir() / f"{self.name}.lock"

    @property
    def log(self) -> Path:
        """What the pool's process had to say."""
        return pools_dir() / f"{self.name}.log"

    @property
    def socket(self) -> Path:
        """Where forks are handed out. No VM's name begins with a dot."""
        return run_home() / f".{self.name}.pool"


def pools_dir() -> Path:
    """The locks and logs of shared pools."""
    return state_home() / "pools"


def vms_dir() -> Path:
    """The folder that holds a folder for each VM."""
    return state_home() / "vms"


def kept_dir() -> Path:
    """Disks of VMs that were removed without them, a folder for each VM."""
    return state_home() / "kept"
