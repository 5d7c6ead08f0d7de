"""What the receiver looks at before anything is made: each is a reason to refuse."""

from __future__ import annotations

import contextlib
import re
import socket
from pathlib import Path

from qemuctl.cmdline.shape import exact
from qemuctl.copies.foreign_spec import check_inside, outside
from qemuctl.errors import HostError, ImageError, QemuctlError, SpecError
from qemuctl.host import Host, inspect_host
from qemuctl.host.resources import available_memory, free_space
from qemuctl.image import store
from qemuctl.migration.offer import Offer, PortWanted
from qemuctl.migration.place import host, place
from qemuctl.migration.tls import check_certificates
from qemuctl.paths import VmPaths, vms_dir
from qemuctl.registry.vms import name_in_use
from qemuctl.spec import Forward, Spec, check_name, parse_spec
from qemuctl.units import MIB, format_rounded

# What QEMU itself takes beside its guest's memory, and a folder beside its disks.
_MARGIN = 64 * MIB
# A peer whose key may run no other command is let in, and no further than that.
TRUST = (
    "who may give VMs files and arguments of that host is told there: "
    "qemuctl migrate-receive --trust"
)
_ID = re.compile(r"[a-z][a-z0-9-]{0,19}")
# What a source sends beside the disks.
_SENT = {"kernel", "initrd", "seed.iso", "instance-id", "known_hosts"}


def has_image(name: str, sha256: str | None) -> bool:
    """Whether the very image is here."""
    with contextlib.suppress(ImageError):
        image = store.find(name)
        return image.present and image.manifest.sha256 == sha256
    return False


def check(offer: Offer, *, trust: bool) -> None:
    """Raises QemuctlError with the first reason why the VM cannot come here; SpecError
    for what leads outside of it, unless ``trust``."""
    _check_name(offer.name, offer.place)
    VmPaths.of(offer.name).check_sockets()
    spec = parse_spec(offer.spec, source="the spec of what runs")
    configured = parse_spec(offer.configured, source="the spec")
    if not trust:  # before the QEMU that it names is asked anything
        check_kept_inside(offer, spec, configured)
    _check_qemu(spec, offer)
    _check_room(offer)
    if offer.tls is not None:
        check_certificates(Path(offer.tls), "server")
        if not offer.tls_client:
            raise HostError("the other side does not say which client is to be let in")
    _check_files_named(offer)
    for file in offer.shared:
        _check_seen(file.what, Path(file.path), file.size)
    same_host = offer.place.partition(":")[0] == host()
    for port in offer.ports:
        if not same_host:  # where the VM itself has it until it has come
            _check_port(port)


def check_files(name: str, from_: str, size: int) -> None:
    """As `check`, for a VM that is off; ``size`` is what its files take, in bytes."""
    _check_name(name, from_)
    _check_space(size)


def _check_name(name: str, from_: str) -> None:
    if from_ == place():
        raise QemuctlError("it is there already: this is the home that it comes from")
    check_name(name)
    if VmPaths.of(name).state.exists():
        raise name_in_use(name)


def check_kept_inside(offer: Offer, *specs: Spec) -> None:
    """Raises SpecError for an offer that needs more of this host than its own files."""
    source = f"from {offer.place}"
    names = {disk.file for disk in offer.disks}
    for spec in specs:
        check_inside(spec, names, source, hint=TRUST)
    found = {
        "disks": [disk for disk in offer.disks if disk.backing_format is not None],
        "shared": offer.shared,
        "tls": offer.tls,
        "forward": [
            text
            for forwards in offer.forwards.values()
            for text in forwards
            if Forward.model_validate(text).address != "127.0.0.1"
        ],
    }
    for key, value in found.items():
        if value:
            raise outside(source, key, TRUST)


def _check_files_named(offer: Offer) -> None:
    """Raises SpecError for a file that would lead out of the VM's folder, or would be
    another one there than it says."""
    for disk in offer.disks:
        if not _ID.fullmatch(disk.id) or disk.file != f"disks/{disk.id}.{disk.format}":
            raise SpecError(f"not a disk of a VM: {disk.file!r}", key="disks")
        if disk.size < 0 or disk.used < 0:
            raise SpecError(f"not a size: {disk.size}", key="disks")
    for file in offer.sent:
        if file.name not in _SENT or file.size < 0:
            raise SpecError(f"not a file of a VM: {file.name!r}")


def _check_qemu(spec: Spec, offer: Offer) -> Host:
    """Raises HostError or SpecError where this host cannot make such a machine."""
    found = inspect_host(exact(spec, offer.shape))
    found.binary.machine(offer.shape.machine)
    if found.accel.kind != offer.shape.accel:
        raise HostError(
            f"it runs by {offer.shape.accel}, which is not to be had here: "
            f"{found.accel.reason}"
        )
    if offer.shape.cpu_model is not None:
        found.binary.require_cpu_model(offer.shape.cpu_model, "cpu.model")
    return found


def _check_room(offer: Offer) -> None:
    memory = available_memory()
    if memory < offer.memory_bytes + _MARGIN:
        raise HostError(
            f"too little memory: {format_rounded(memory)} is available, its guest has "
            f"{format_rounded(offer.memory_bytes)}"
        )
    needed = sum(disk.used for disk in offer.disks) + sum(f.size for f in offer.sent)
    _check_space(needed)


def _check_space(needed: int) -> None:
    free = free_space(vms_dir())
    if free < needed + _MARGIN:
        raise HostError(
            f"too little room for its disks in {vms_dir()}: {format_rounded(free)} is "
            f"free, they take {format_rounded(needed)}"
        )


def _check_seen(what: str, path: Path, size: int) -> None:
    try:
        there = path.stat().st_size
    except OSError as error:
        raise SpecError(f"{what} is not to be had there: {path}: {error.strerror}",
                        hint=f"copy it there first: {path}") from error  # fmt: skip
    if there != size:
        raise SpecError(f"{what} is another file there: {path}")


def _check_port(port: PortWanted) -> None:
    kind = socket.SOCK_STREAM if port.protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((port.address, port.port))
        except OSError as error:
            raise HostError(
                f"the {port.protocol} port {port.port} of {port.address} is not free "
                f"there: {error.strerror}"
            ) from error
