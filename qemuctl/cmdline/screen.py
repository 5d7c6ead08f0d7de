"""The graphics card, and the server through which it is seen."""

from __future__ import annotations

from collections.abc import Iterator

from qemuctl.cmdline.compute import screen_model
from qemuctl.cmdline.devices import Device
from qemuctl.cmdline.keyval import Plain
from qemuctl.cmdline.layout import Layout
from qemuctl.cmdline.machine import Element
from qemuctl.cmdline.options import Spice, Vnc
from qemuctl.errors import SpecError
from qemuctl.host import Host
from qemuctl.paths import VmPaths
from qemuctl.spec.model import Spec
from qemuctl.spec.scalars import split_address

_DRIVERS = {"std": "VGA", "virtio": "virtio-vga", "qxl": "qxl-vga"}
_VNC_BASE = 5900  # display N of RFB listens on port 5900 + N


def screen(spec: Spec, paths: VmPaths, host: Host, layout: Layout) -> Iterator[Element]:
    """``-display none`` always; VNC and SPICE are servers beside it.

    Raises SpecError for a machine that has no screen, HostError
    for what the binary does not have.
    """
    yield Plain(option="-display", value="none")
    model = screen_model(spec)
    if spec.chipset == "microvm" and (model or spec.display.type != "none"):
        raise SpecError("microvm has no screen", key="display", hint="use machine: q35")
    if spec.display.type == "vnc":
        host.binary.require_option("vnc", "display.type")
        # Without it at the start, no password can be set later.
        locked = spec.display.locked or None
        yield Vnc(address=_vnc_address(spec, paths), password=locked)
    elif spec.display.type == "spice":
        host.binary.require_option(
            "spice",
            "display.type",
            hint="sudo apt-get install qemu-system-modules-spice, or use type: vnc",
        )
        yield _spice(spec, paths)
    if model is not None:
        driver = _DRIVERS[model]
        host.binary.require_device(driver, "display.vga")
        place = layout.fixed("vga")
        yield Device(driver=driver, id="vga", bus=place.bus, addr=place.addr)
    if spec.display.type != "none":
        yield from _pointer(host, layout)


def _vnc_address(spec: Spec, paths: VmPaths) -> str:
    if spec.display.address is None:
        return f"unix:{paths.vnc_socket}"
    address, port = split_address(spec.display.address)
    return f"{address}:{port - _VNC_BASE}"


def _spice(spec: Spec, paths: VmPaths) -> Spice:
    anybody = None if spec.display.locked else True
    if spec.display.address is None:
        path = str(paths.spice_socket)
        return Spice(unix=True, addr=path, disable_ticketing=anybody)
    address, port = split_address(spec.display.address)
    return Spice(addr=address.strip("[]"), port=port, disable_ticketing=anybody)


def _pointer(host: Host, layout: Layout) -> Iterator[Element]:
    """A tablet: without absolute positions the pointer runs away from its user's."""
    for driver in ("qemu-xhci", "usb-tablet"):
        host.binary.require_device(driver, "display.type")
    place = layout.fixed("usb")
    yield Device(driver="qemu-xhci", id="usb", bus=place.bus, addr=place.addr)
    yield Device(driver="usb-tablet", id="tablet", bus="usb.0")
