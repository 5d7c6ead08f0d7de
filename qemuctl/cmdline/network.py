"""Network cards and what they are plugged into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qemuctl.cmdline.devices import Nic
from qemuctl.cmdline.layout import Layout, Place
from qemuctl.cmdline.mac import default_mac
from qemuctl.cmdline.machine import Element
from qemuctl.cmdline.netdev import (
    Netdev,
    StreamNetdev,
    String,
    TapNetdev,
    UnixAddress,
    UserNetdev,
)
from qemuctl.errors import SpecError
from qemuctl.spec import network as written
from qemuctl.spec.model import Spec

if TYPE_CHECKING:  # a device can be made without looking at the host
    from qemuctl.host import Host


def netdev(id_: str, nic: written.Nic) -> Netdev:
    """The back end of ``nic``, which is not of type none."""
    if nic.type == "tap":
        return TapNetdev(id=id_, ifname=nic.ifname or "")
    if nic.type == "socket":
        path = Path(nic.listen or nic.connect or "")
        return StreamNetdev(
            id=id_, server=nic.listen is not None, addr=UnixAddress(path=path)
        )
    return UserNetdev(
        id=id_,
        restrict=True if nic.restrict else None,
        hostfwd=tuple(String(str=hostfwd(item)) for item in nic.forward) or None,
    )


def hostfwd(forward: written.Forward) -> str:
    """QEMU's notation of one forward; host port 0 lets the kernel choose."""
    ports = f"{forward.host_port}-:{forward.guest_port}"
    return f"{forward.protocol}:{forward.address}:{ports}"


def network(
    spec: Spec, name: str, host: Host, layout: Layout, boot: Mapping[str, int]
) -> Iterator[Element]:
    """Back end and card of each entry of ``nics``; one of type none is no card.

    Raises SpecError for a card that the machine cannot take, HostError for a
    card or back end that the binary does not have.
    """
    for index, (id_, nic) in enumerate(
        zip(written.nic_ids(spec.nics), spec.nics, strict=True)
    ):
        if nic.type == "none":
            continue
        backend = netdev(backend_of(id_), nic)
        host.binary.require_netdev(backend.type, f"nics[{index}].type")
        yield backend
        place = layout.plug(f"nics[{index}].model")
        mac = nic.mac or default_mac(name, index)
        yield card(id_, nic, mac, host, layout, place, boot.get(id_), index=index)


def backend_of(id_: str) -> str:
    """The back end's id of a card: ``net0`` of ``nic0``."""
    return id_.replace("nic", "net", 1) if id_.startswith("nic") else f"net-{id_}"


def card(
    id_: str,
    nic: written.Nic,
    mac: str,
    host: Host,
    layout: Layout,
    place: Place,
    bootindex: int | None = None,
    *,
    index: int = 0,
) -> Nic:
    """The front end of a card at a place; ``index`` is its own in the spec.

    Raises SpecError for one that the machine cannot take, HostError for one
    that the binary does not have.
    """
    key = f"nics[{index}].model"
    if layout.chipset == "microvm" and not nic.model.startswith("virtio"):
        raise SpecError("microvm has no PCI bus: use model: virtio", key=key)
    driver = layout.virtio("net") if nic.model == "virtio" else nic.model
    host.binary.require_device(driver, key)
    # Loading a network boot ROM that nobody asked for costs time at boot.
    has_rom = layout.chipset != "microvm"
    return Nic(
        driver=driver,
        id=id_,
        bus=place.bus,
        addr=place.addr,
        netdev=backend_of(id_),
        mac=mac,
        bootindex=bootindex,
        romfile="" if has_rom and bootindex is None else None,
    )
