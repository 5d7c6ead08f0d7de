"""What the source offers: the machine, its disks, and the files that go with it."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from qemuctl.cmdline.shape import Shape
from qemuctl.structs import Struct


class DiskOffer(Struct):
    """A disk that is to be copied to ``file`` of the VM's folder there; ``size`` in
    bytes is what the guest sees, ``used`` what there is to copy at least.

    ``backing`` is what stays below it: the image of this name, where that is there,
    or the file at this path.
    """

    id: str
    format: Literal["qcow2", "raw"]
    file: str
    size: int
    used: int
    backing_image: str | None = None
    backing_path: str | None = None
    backing_format: Literal["qcow2", "raw"] | None = None


class SharedFile(Struct):
    """A file that both sides must see; ``what`` it is for people."""

    what: str
    path: str
    size: int


class SentFile(Struct):
    """A file that is sent as it is, by its name in the VM's folder."""

    name: str
    size: int
    sha256: str


class PortWanted(Struct):
    """A port of the host that leads into the guest."""

    protocol: Literal["tcp", "udp"]
    address: str
    port: int


class Offer(Struct):
    """All of it.

    ``spec`` is the text of what runs, ``configured`` that of the VM's own file there,
    both in terms of its folder there. ``place`` is where it comes from (`place`);
    ``forwards``, by the cards' ids, are those on fixed ports, which must wait until
    the source has let go of them; ``capabilities`` are migration's. With
    ``tls``, a folder there with certificates, the streams come by TCP, from who has the
    certificate with the common name ``tls_client``.
    """

    token: str
    name: str
    place: str
    spec: str
    configured: str
    shape: Shape
    topology: dict[str, str]
    memory_bytes: int
    disks: tuple[DiskOffer, ...] = ()
    shared: tuple[SharedFile, ...] = ()
    sent: tuple[SentFile, ...] = ()
    ports: tuple[PortWanted, ...] = ()
    forwards: dict[str, list[str]] = field(default_factory=dict)
    ballooned: int | None = None
    capabilities: tuple[str, ...] = ()
    multifd_channels: int | None = None
    multifd_compression: str | None = None
    tls: str | None = None
    tls_client: str | None = None


class Facts(Struct):
    """What the receiver tells of itself: its ``place`` now, its ``home`` for good, and
    whether it has the image that was asked for."""

    place: str
    home: str
    has_image: bool
