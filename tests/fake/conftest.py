"""A socket and a client for tests of the agent; a VM whose QEMU is a fake."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fake_qemu import FakeQemu, seems_on
from fake_qmp import serving

from qemuctl.guest.agent import Agent
from qemuctl.hotplug.disks import add, in_spec
from qemuctl.paths import VmPaths
from qemuctl.registry.records.process_record import Record
from qemuctl.spec import Spec
from qemuctl.vm.vm import Vm


@pytest.fixture
def path() -> Iterator[Path]:
    # Not tmp_path, whose length does not leave room for a socket's path.
    folder = Path(tempfile.mkdtemp(prefix="q"))
    yield folder / "agent"
    shutil.rmtree(folder)


@pytest.fixture
async def agent(path: Path) -> AsyncIterator[Agent]:
    made = Agent(path)
    yield made
    made.release()


@pytest.fixture
async def qemu(
    bare_home: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[FakeQemu]:
    """A VM called web that is on, or so it seems."""
    # Whether this host could start it is no question here.
    monkeypatch.setattr(in_spec, "_check_startable", lambda *_: None)
    monkeypatch.setattr(add, "create_disk", _make)
    with seems_on(Spec(name="web", nics=())) as paths:
        fake = FakeQemu(paths.events)
        async with serving(paths.tools_socket, fake.script):
            yield fake


@pytest.fixture
async def vm(qemu: FakeQemu) -> AsyncIterator[Vm]:
    paths = VmPaths.of("web")
    record = Record.read(paths.record)
    assert record is not None
    async with Vm(paths, record) as made:
        yield made


def _make(path: Path, _format: str, size: int) -> None:
    path.write_bytes(bytes(size))
