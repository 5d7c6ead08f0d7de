"""How the host reaches the VM: monitors, the serial console, the agent."""

from __future__ import annotations

from collections.abc import Iterator

from qemuctl.cmdline.chardev import PipeChardev, SocketChardev
from qemuctl.cmdline.devices import Device, VirtSerialPort
from qemuctl.cmdline.keyval import Plain
from qemuctl.cmdline.layout import Layout
from qemuctl.cmdline.machine import Element
from qemuctl.cmdline.options import Mon
from qemuctl.host import Host
from qemuctl.paths import VmPaths
from qemuctl.spec.model import Spec

AGENT_PORT = "org.qemu.guest_agent.0"
COPY_PORT = "qemuctl.copy"


def monitors(paths: VmPaths) -> Iterator[Element]:
    """Two QMP monitors: one serves one client, a second would wait unanswered."""
    for id_, path in (("owner", paths.owner_socket), ("tools", paths.tools_socket)):
        yield SocketChardev(id=id_, path=path)
        yield Mon(chardev=id_)


def recorder(paths: VmPaths) -> Iterator[Element]:
    """A third monitor, through which QEMU itself writes each event to a file.

    The pipe chardev opens PATH.in and PATH.out, which the launcher makes as
    regular files: PATH.in holds the one command that leaves negotiation mode,
    and at its end QEMU keeps writing. So how a VM ended is known even when
    nobody was connected, and no reader can hold QEMU up.
    """
    yield PipeChardev(id="events", path=paths.events_stem)
    yield Mon(chardev="events")


def serial(spec: Spec, paths: VmPaths) -> Iterator[Element]:
    """The first serial port; its log is complete with or without a client."""
    if spec.serial:
        yield SocketChardev(
            id="serial",
            path=paths.serial_socket,
            logfile=paths.serial_log,
            logappend=True,
        )
        yield Plain(option="-serial", value="chardev:serial")


def agent(spec: Spec, paths: VmPaths, host: Host, layout: Layout) -> Iterator[Element]:
    """The guest agent's channel, and one beside it for the bytes of files.

    The port's id is what VSERPORT_CHANGE names when the agent comes or goes.
    The agent's own replies are JSON and base64, which an emulated guest makes
    at a megabyte a second; the second port carries bytes as they are.
    """
    if not spec.agent:
        return
    driver = layout.virtio("serial")
    host.binary.require_device(driver, "agent")
    place = layout.fixed("vserial")
    yield Device(driver=driver, id="vserial", bus=place.bus, addr=place.addr)
    yield SocketChardev(id="agent", path=paths.agent_socket)
    yield VirtSerialPort(id="agent", bus="vserial.0", chardev="agent", name=AGENT_PORT)
    yield SocketChardev(id="copy", path=paths.copy_socket)
    yield VirtSerialPort(id="copy", bus="vserial.0", chardev="copy", name=COPY_PORT)
