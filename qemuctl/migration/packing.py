"""Making the offer: the specs as they are to be there, and what goes along."""

from __future__ import annotations

import asyncio
import re
import secrets
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qemuctl.copies.portable_spec import boot_files, is_everywhere, without_image
from qemuctl.errors import QemuctlError, SpecError, StateError
from qemuctl.hotplug.disks.results import LiveDisk
from qemuctl.image import Image
from qemuctl.image.chain import Layer, chain
from qemuctl.image.manifest import sha256_of
from qemuctl.migration.certificate import common_name
from qemuctl.migration.offer import (
    DiskOffer,
    Facts,
    Offer,
    PortWanted,
    SentFile,
    SharedFile,
)
from qemuctl.migration.options import Options
from qemuctl.migration.place import place
from qemuctl.migration.tls import client_certificate
from qemuctl.paths import VmPaths
from qemuctl.registry.disks.resolve import SEED_SERIAL, image_of, placed, seeded
from qemuctl.registry.disks.unknown_drives import check_drives
from qemuctl.registry.edit import pinned
from qemuctl.registry.states import Action, State
from qemuctl.snapshots.disks import of_running
from qemuctl.snapshots.topology import topology
from qemuctl.spec import Disk, Spec, dump, load_spec, parse_spec, renamed, resolve_paths
from qemuctl.structs import Struct
from qemuctl.thread import in_thread
from qemuctl.vm.running_spec import Likeness, likeness

if TYPE_CHECKING:
    from qemuctl.vm.vm import Vm


# Host folders and devices that are passed through, as QEMU's arguments name them.
_OF_THIS_HOST = re.compile(
    r"(?P<folder>virtfs|fsdev|virtio-9p|vhost-user-fs)|vhost|vfio|usb-host|host_device"
)


class Packed(Struct):
    """The offer, and where the files are that it sends."""

    offer: Offer
    files: dict[str, Path]


class Wish(Struct):
    """What is to be known before anything is asked: the image that it wants there."""

    name: str
    image: str | None
    sha256: str | None


def wish(vm: Vm, name: str) -> Wish:
    """What the receiver is asked first. Raises SpecError, ImageError."""
    spec = load_spec(vm.paths.spec, name=vm.name)
    image = image_of(spec)
    if image is None or is_everywhere(spec, image):
        return Wish(name=name, image=None, sha256=None)
    return Wish(name=name, image=image.name, sha256=image.manifest.sha256)


class Seen(Struct):
    """What QEMU tells of the VM, which nobody changes inside of `Bus.changing`."""

    like: Likeness
    topology: dict[str, str]


async def seen(vm: Vm) -> Seen:
    """Asks QEMU. Raises as `likeness` does."""
    like, found = await asyncio.gather(likeness(vm), topology(vm.bus))
    return Seen(like=like, topology=found)


async def packed(vm: Vm, options: Options, facts: Facts, seen: Seen) -> Packed:
    """What the VM is to be there; nothing is changed. Inside of `Bus.changing`.

    Raises StateError for what cannot move, with the reason.
    """
    client = options.tls and common_name(client_certificate(options.tls))
    spec, paths = seen.like.spec, vm.paths
    image = image_of(spec)
    keeps = image is None or is_everywhere(spec, image) or facts.has_image
    _check_own(vm, spec)
    packing = _Packing(vm, options, spec, image if facts.has_image else None)
    await packing.disks(image)
    boot = boot_files(spec, paths, image) if not keeps or spec.boot.kernel else {}
    packing.files |= boot | _small_files(paths, seeded=seeded(spec, image))
    if spec.cdrom:
        packing.shared.append(_shared("its CD", Path(spec.cdrom)))
    name = options.name or vm.name

    def there(one: Spec) -> Spec:
        moved = one if keeps else without_image(one, paths, image)
        return _relocated(moved, name, packing.moved, boot)

    own = resolve_paths(load_spec(paths.spec, name=vm.name), paths.state)
    configured = there(pinned(own, paths) if name != vm.name else own)
    offer = Offer(
        token=secrets.token_hex(16),
        name=name,
        place=place(),
        spec=dump(_without_ports(there(spec))),
        configured=_text(paths, own, configured),
        shape=seen.like.shape,
        topology=seen.topology,
        memory_bytes=spec.memory.size,
        disks=tuple(packing.offers),
        shared=tuple(packing.shared),
        sent=tuple([await _sent(key, path) for key, path in packing.files.items()]),
        ports=_ports(spec),
        forwards={
            str(nic.id): [one.notation for one in nic.forward if one.host_port]
            for nic in spec.nics
        },
        ballooned=_ballooned(paths),
        capabilities=options.capabilities,
        multifd_channels=options.multifd,
        multifd_compression=options.compress,
        tls=str(options.tls) if options.tls is not None else None,
        tls_client=client or None,
    )
    return Packed(offer=offer, files=packing.files)


def _small_files(paths: VmPaths, *, seeded: bool) -> dict[str, Path]:
    """What goes with it beside disks and what it boots, by name."""
    seed = (paths.seed,) if seeded else ()
    known = [each for each in (paths.instance, paths.known_hosts) if each.exists()]
    return {each.name: each for each in (*seed, *known)}


def _check_own(vm: Vm, spec: Spec) -> None:
    """Raises StateError for what is of this host alone."""
    check_drives(spec, Action.MIGRATE, State.RUNNING)
    for argument in spec.extra_args:
        if found := _OF_THIS_HOST.search(argument):
            what = "folder" if found["folder"] else "device"
            raise _cannot(vm, f"it uses a {what} of this host: {argument}")
    for nic in spec.nics:
        if nic.type == "socket":
            raise _cannot(
                vm, f"its card {nic.id} is plugged into a socket of this host"
            )


def _cannot(vm: Vm, reason: str, hint: str | None = None) -> StateError:
    return StateError(f"migrate {vm.name}", "running", reason, hint=hint)


class _Packing:
    """What becomes of each disk."""

    def __init__(
        self, vm: Vm, options: Options, spec: Spec, image: Image | None
    ) -> None:
        self.vm, self.options, self.spec, self.image = vm, options, spec, image
        self.offers: list[DiskOffer] = []
        self.shared: list[SharedFile] = []
        self.files: dict[str, Path] = {}
        self.moved: dict[str, str] = {}

    async def disks(self, image: Image | None) -> None:
        live = {disk.id: disk for disk in await self.vm.disks.list()}
        if self.options.copy_storage != "none":
            await self._check_snapshots()
        ours = {str(d.id): d for d in placed(self.spec, self.vm.paths, image)}
        for id_ in live.keys() - ours.keys() - {SEED_SERIAL}:
            raise _cannot(
                self.vm, f"nothing is known of its disk {id_}, which came over QMP"
            )
        for id_, disk in ours.items():
            if id_ in live:
                self._disk(id_, disk, live[id_])

    async def _check_snapshots(self) -> None:
        for disk in await of_running(self.vm):
            if disk.tags:
                raise _cannot(
                    self.vm, f"its disk {disk.id} has snapshots, which stay behind",
                    f"remove them first: qemuctl snapshot ls {self.vm.name}",
                )  # fmt: skip

    def _disk(self, id_: str, disk: Disk, live: LiveDisk) -> None:
        path = Path(disk.path or "")
        own = path.parent == self.vm.paths.disks
        if live.readonly and not own:
            self.shared.append(_shared(f"its disk {id_}", path))
            return
        if self.options.copy_storage == "none":
            if own:
                raise _cannot(
                    self.vm, f"its disk {id_} lies in its own folder: {path}",
                    "--copy-storage all takes it along",
                )  # fmt: skip
            self.shared.append(_shared(f"its disk {id_}", path))
            return
        layers = chain(path, disk.driver)
        self._offer(id_, disk, live, layers)

    def _offer(self, id_: str, disk: Disk, live: LiveDisk, layers: list[Layer]) -> None:
        file = f"disks/{id_}.{disk.driver}"
        self.moved[id_] = file
        top = self.options.copy_storage == "top" and len(layers) > 1
        offer = DiskOffer(
            id=id_,
            format=disk.driver,
            file=file,
            size=live.size_bytes,
            used=sum(layer.used for layer in (layers[:1] if top else layers)),
        )
        if top:
            offer = replace(offer, **self._below(layers[1]))
        self.offers.append(offer)

    def _below(self, layer: Layer) -> dict[str, Any]:
        kind = {"backing_format": layer.format}
        if self.image is not None and layer.path == self.image.disk:
            return kind | {"backing_image": self.image.name}
        self.shared.append(_shared("what its disk is made from", layer.path))
        return kind | {"backing_path": str(layer.path)}


def _shared(what: str, path: Path) -> SharedFile:
    try:
        return SharedFile(what=what, path=str(path), size=path.stat().st_size)
    except OSError as error:
        raise QemuctlError(
            f"{what} cannot be read: {error.strerror}: {path}"
        ) from error


async def _sent(name: str, path: Path) -> SentFile:
    sum_ = await in_thread(lambda tick: sha256_of(path, tick))
    return SentFile(name=name, size=path.stat().st_size, sha256=sum_)


def _relocated(
    spec: Spec, name: str, moved: dict[str, str], boot: dict[str, Path]
) -> Spec:
    """The spec with the files that come along named inside of the VM's folder."""
    disks = tuple(
        disk.model_copy(
            update={"path": moved[str(disk.id)], "size": None, "format": disk.driver}
        )
        if disk.path is not None and str(disk.id) in moved
        else disk
        for disk in spec.disks
    )
    update: dict[str, Any] = {"name": name, "disks": disks}
    if boot:
        update["boot"] = spec.boot.model_copy(update={key: key for key in boot})
    return spec.model_copy(update=update)


def _text(paths: VmPaths, own: Spec, configured: Spec) -> str:
    """The spec's text as its user wrote it, if that says the same there."""
    text = renamed(paths.spec.read_text(), own, configured.name)
    base = Path("/")
    try:
        same = parse_spec(text, base=base) == resolve_paths(configured, base)
    except SpecError:
        same = False
    return text if same else dump(configured)


def _without_ports(spec: Spec) -> Spec:
    """Without the forwards on ports that the source still has."""
    nics = tuple(
        nic.model_copy(
            update={"forward": tuple(one for one in nic.forward if not one.host_port)}
        )
        for nic in spec.nics
    )
    return spec.model_copy(update={"nics": nics})


def _ports(spec: Spec) -> tuple[PortWanted, ...]:
    return tuple(
        PortWanted(protocol=one.protocol, address=one.address, port=one.host_port)
        for nic in spec.nics
        for one in nic.forward
        if one.host_port
    )


def _ballooned(paths: VmPaths) -> int | None:
    try:
        return int(paths.ballooned.read_text())
    except (OSError, ValueError):
        return None
