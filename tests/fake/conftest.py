"""A socket and a client for tests of the agent; a VM whose QEMU is a fake."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fake_qemu import FakeQemu
from fake_qmp import serving

from qemuctl.guest.agent import Agent
from qemuctl.paths import VmPaths
from qemuctl.process import Identity, take
from qemuctl.spec import Spec
from qemuctl.units import MIB
from qemuctl.vm import definitions, disk_config, disk_insert
from qemuctl.vm.record import Record
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
    monkeypatch.setattr(disk_config, "_check_startable", lambda *_: None)
    monkeypatch.setattr(disk_insert, "create_disk", _make)
    definitions.create(Spec(name="web", nics=()))
    paths = VmPaths.of("web")
    paths.run.mkdir(parents=True, mode=0o700)
    lock = take(paths.lock)
    assert lock is not None
    me = Identity.of(os.getpid())
    assert me is not None
    Record(
        qemu=me, shepherd=me, owner=me, attached=True, run=str(paths.run), started_at=0,
        argv=[], accel="tcg", accel_reason="", version="7.2.0", machine="pc-q35-7.2",
        cpus=1, memory=512 * MIB,
    ).write(paths.record)  # fmt: skip
    fake = FakeQemu(paths.events)
    async with serving(paths.tools_socket, fake.script):
        yield fake
    os.close(lock)
    shutil.rmtree(paths.run)


@pytest.fixture
async def vm(qemu: FakeQemu) -> AsyncIterator[Vm]:
    paths = VmPaths.of("web")
    record = Record.read(paths.record)
    assert record is not None
    async with Vm(paths, record) as made:
        yield made


def _make(path: Path, _format: str, size: int) -> None:
    path.write_bytes(bytes(size))
