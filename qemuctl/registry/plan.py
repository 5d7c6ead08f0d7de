"""From a spec to all that a start needs: image, disks, host, command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qemuctl import cmdline
from qemuctl import image as images
from qemuctl.cmdline import Machine
from qemuctl.cmdline.boot import boot_indexes
from qemuctl.cmdline.ram import RamFile
from qemuctl.cmdline.shape import Shape
from qemuctl.host import Host, inspect_host
from qemuctl.paths import VmPaths
from qemuctl.registry.disks.disk_files import check_files, make_disks
from qemuctl.registry.disks.resolve import Device, image_of, resolved
from qemuctl.registry.file_users import check_not_written
from qemuctl.registry.host_memory import check_memory
from qemuctl.registry.socket_nics import check_wires
from qemuctl.spec import Spec
from qemuctl.structs import Struct

Stages = Callable[[str], None]


class Plan(Struct, kw_only=False):
    """A resolved spec and the machine that it makes on this host.

    ``usual`` are the boot indexes from the next reset on, where this start
    has others.
    """

    spec: Spec
    paths: VmPaths
    host: Host
    machine: Machine
    usual: dict[str, int] | None = None

    def argv(self, sockets: dict[Path, int] | None = None) -> list[str]:
        """QEMU's arguments; without ``sockets`` the line that can be pasted."""
        return cmdline.argv(self.machine, sockets=sockets, paused=sockets is not None)


def draft(spec: Spec, paths: VmPaths, once: Device | None = None) -> Plan:
    """The plan of a VM without making or changing anything.

    Raises SpecError, HostError or ImageError as a start would.
    """
    host = inspect_host(spec)
    whole = resolved(spec, paths, image_of(spec), once, host.guest_tsc_khz)
    return _plan(whole, paths, host)


async def prepare(
    spec: Spec,
    paths: VmPaths,
    *,
    once: Device | None = None,
    progress: Stages | None = None,
    ram: RamFile | None = None,
    shape: Shape | None = None,
) -> Plan:
    """The plan of a VM, with its image built and its disks made.

    ``once`` is the kind of device that is tried first, until the guest
    reboots; ``ram`` the file that is its memory, ``shape`` that of the machine whose
    state it is to have. Raises SpecError, HostError or ImageError; what was made for
    the VM lies in its own folder.
    """
    image = image_of(spec)
    host = inspect_host(spec)  # before anything slow
    if image is not None and not image.present:
        kernel = Path(spec.boot.kernel) if spec.boot.kernel else None
        image = await images.build_tiny(kernel, progress=progress)
    await make_disks(spec, paths, image)
    whole = resolved(spec, paths, image, once, host.guest_tsc_khz)
    check_memory(whole)
    check_files(whole)
    check_not_written(whole, paths)
    check_wires(whole.nics)
    usual = boot_indexes(resolved(spec, paths, image)) if once else None
    return _plan(whole, paths, host, usual, ram, shape)


def _plan(
    spec: Spec,
    paths: VmPaths,
    host: Host,
    usual: dict[str, int] | None = None,
    ram: RamFile | None = None,
    shape: Shape | None = None,
) -> Plan:
    paths.check_sockets()
    machine = cmdline.build(spec, paths, host, ram, shape)
    return Plan(spec, paths, host, machine, usual)
