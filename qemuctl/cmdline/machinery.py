"""Turns a spec into a `Machine`: what goes on the line, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qemuctl.cmdline import channels
from qemuctl.cmdline.boot import boot, boot_indexes
from qemuctl.cmdline.compute import compute
from qemuctl.cmdline.devices import Device, VirtioBalloon, VirtioRng
from qemuctl.cmdline.keyval import Plain
from qemuctl.cmdline.layout import Layout
from qemuctl.cmdline.machine import Element, Machine
from qemuctl.cmdline.network import network
from qemuctl.cmdline.objects import RngBuiltin
from qemuctl.cmdline.options import Action, Name, Sandbox
from qemuctl.cmdline.ram import RamFile, memory
from qemuctl.cmdline.screen import screen
from qemuctl.cmdline.shape import Shape, shaped
from qemuctl.cmdline.storage import storage
from qemuctl.host import Host
from qemuctl.paths import VmPaths
from qemuctl.spec.model import Spec


def build(
    spec: Spec,
    paths: VmPaths,
    host: Host,
    ram: RamFile | None = None,
    shape: Shape | None = None,
) -> Machine:
    """The machine that ``spec`` describes, with its files at ``paths``.

    The spec is resolved: paths are absolute, an image's kernel stands in
    `boot`. A disk that has a size and no path is at ``paths.disk``. With ``ram``
    its memory is that file; with ``shape`` it waits for the state of a machine that
    has its devices there. Raises SpecError, naming the field, for what the machine
    cannot do, and HostError for what the binary does not have.
    """
    content: Iterable[Element] = _content(spec, paths, host, ram)
    if shape is not None:
        content = shaped(content, shape)
    return Machine(
        binary=host.binary.path,
        content=tuple(content),
        recorder=tuple(channels.recorder(paths)),
        extra_args=spec.extra_args,
        folders=(paths.run, paths.state),
    )


def _content(
    spec: Spec, paths: VmPaths, host: Host, ram: RamFile | None
) -> Iterator[Element]:
    layout = Layout(spec.chipset, spec.hotplug_ports)
    indexes = boot_indexes(spec)
    # Cards before disks: a new disk must not move a card, whose name in the
    # guest comes from its place. Both take ports, which must come before them.
    cards = list(network(spec, spec.name, host, layout, indexes))
    disks = list(storage(spec, paths, host, layout, indexes))

    yield Name(guest=spec.name)
    yield Plain(option="-nodefaults")
    yield Plain(option="-no-user-config")
    yield from compute(spec, host, in_file=ram is not None)
    if ram is not None:
        yield from memory(spec, host, ram)
    yield from _sandbox(spec, host)
    yield from _actions(spec, host)
    yield from boot(spec)
    yield from channels.monitors(paths)
    yield from channels.serial(spec, paths)
    yield from screen(spec, paths, host, layout)
    yield from layout.ports()
    yield from channels.agent(spec, paths, host, layout)
    yield from _rng(spec, host, layout)
    yield from _balloon(spec, host, layout)
    yield from cards
    yield from disks


def _sandbox(spec: Spec, host: Host) -> Iterator[Element]:
    if spec.sandbox:
        # Never weaker in silence than the spec says.
        host.binary.require_option(
            "sandbox", "sandbox", hint="set sandbox: false to run without it"
        )
        yield Sandbox()


def _actions(spec: Spec, host: Host) -> Iterator[Element]:
    host.binary.require_panic_action(spec.on_panic, "on_panic")
    yield Action(reboot=spec.on_guest_reboot, panic=spec.on_panic)
    # The device by which a guest's kernel tells of its panic, an ISA one.
    if spec.on_panic != "none" and spec.chipset != "microvm":
        host.binary.require_device("pvpanic", "on_panic")
        yield Device(driver="pvpanic", id="pvpanic")


def _rng(spec: Spec, host: Host, layout: Layout) -> Iterator[Element]:
    if not spec.rng:
        return
    driver = layout.virtio("rng")
    host.binary.require_device(driver, "rng")
    host.binary.require_object("rng-builtin", "rng")
    place = layout.fixed("rng")
    yield RngBuiltin(id="rng0")
    yield VirtioRng(driver=driver, id="rng", bus=place.bus, addr=place.addr, rng="rng0")


def _balloon(spec: Spec, host: Host, layout: Layout) -> Iterator[Element]:
    if not spec.balloon:
        return
    driver = layout.virtio("balloon")
    host.binary.require_device(driver, "balloon")
    place = layout.fixed("balloon")
    yield VirtioBalloon(
        driver=driver,
        id="balloon",
        bus=place.bus,
        addr=place.addr,
        free_page_reporting=True,
    )
