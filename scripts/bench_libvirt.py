"""A libvirt to compare with: the one that runs here, or one for the benchmark alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

INSTALL = "apt-get install libvirt-daemon-system libvirt-clients"
PATIENCE = 60.0  # seconds
PORTS = 6
# As ours are: emulated, with a PCIe port for what is plugged in.
DOMAIN = """<domain type='qemu'>
<name>{name}</name><memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type><kernel>{kernel}</kernel>
<initrd>{initrd}</initrd><cmdline>{append}</cmdline></os>
<features><acpi/></features>{label}
<devices><controller type='pci' index='0' model='pcie-root'/>{ports}
<interface type='user'><model type='virtio'/></interface>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
<serial type='pty'/><memballoon model='virtio'/>
<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
</devices></domain>
"""
# Root's QEMU may read what only root may, and nothing is given to another user.
LABEL = (
    "<seclabel type='static' model='dac' relabel='no'><label>+0:+0</label></seclabel>"
)


@dataclass(frozen=True)
class Libvirt:
    """``virsh`` is the beginning of each command line; ``version`` libvirt's."""

    virsh: tuple[str, ...]
    version: str
    folder: Path

    def domain(self, name: str, argv: Sequence[str], memory: int) -> Path:
        """A file that defines a guest as QEMU's command line ``argv`` does, with
        ``memory`` MiB."""
        boot = {
            key: escape(argv[argv.index(f"-{key}") + 1])
            for key in ("kernel", "initrd", "append")
        }
        file = self.folder / f"{name}.xml"
        file.write_text(
            DOMAIN.format(
                name=name, memory=memory, **boot,
                label=LABEL if os.geteuid() == 0 else "",
                ports="<controller type='pci' model='pcie-root-port'/>" * PORTS,
            )
        )  # fmt: skip
        return file

    def run(self, *arguments: str, check: bool = True) -> bool:
        line = [*self.virsh, *arguments]
        done = subprocess.run(line, check=check, capture_output=True)
        return done.returncode == 0

    def wait_agent(self, name: str) -> None:
        """Waits until the guest's agent answers, of which virsh has no event."""
        end = time.monotonic() + PATIENCE
        ping = ("qemu-agent-command", name, '{"execute":"guest-ping"}')
        while not self.run(*ping, check=False):
            if time.monotonic() > end:
                raise RuntimeError(f"the agent of {name} does not answer libvirt")
            time.sleep(0.2)

    def forget(self, *names: str) -> None:
        for name in names:
            self.run("destroy", name, check=False)
            self.run("undefine", name, check=False)


@contextmanager
def libvirt(folder: Path) -> Iterator[Libvirt | None]:
    """None where it is not installed; ``folder`` is for files."""
    if not all(map(shutil.which, ("virsh", "libvirtd", "virtlogd"))):
        print(f"virsh is not measured, for there is no libvirt: {INSTALL}")
        yield None
        return
    mode = "system" if os.geteuid() == 0 else "session"
    virsh = ("virsh", "-q", "-c", f"qemu:///{mode}")
    with ExitStack() as stack:
        # A user's own is started by virsh itself.
        if mode == "system" and not _answers(virsh):
            for program in ("virtlogd", "libvirtd"):
                stack.enter_context(_daemon(program))
            end = time.monotonic() + PATIENCE
            while not _answers(virsh) and time.monotonic() < end:
                time.sleep(0.1)
        if not _answers(virsh):
            print("virsh is not measured, for libvirtd does not answer")
            yield None
            return
        version = subprocess.run(
            ["virsh", "--version"], check=True, capture_output=True, text=True
        ).stdout.strip()
        yield Libvirt(virsh, version, folder)


def _answers(virsh: Sequence[str]) -> bool:
    done = subprocess.run([*virsh, "version"], check=False, capture_output=True)
    return done.returncode == 0


@contextmanager
def _daemon(program: str) -> Iterator[None]:
    process = subprocess.Popen(
        [program], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
