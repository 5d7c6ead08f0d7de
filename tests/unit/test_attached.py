"""A throwaway VM's folder: its own, or nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from qemuctl.boot.throwaway import begin
from qemuctl.errors import NameInUse
from qemuctl.paths import VmPaths, private_dir
from qemuctl.process import bury
from qemuctl.spec import Spec
from tests.conftest import wait_until

pytestmark = pytest.mark.usefixtures("bare_home")


async def test_a_name_that_is_taken_costs_nobody_anything() -> None:
    paths = VmPaths.of("web-123456")
    private_dir(paths.state)
    private_dir(paths.run)
    (paths.state / "disk").write_text("somebody's")
    with pytest.raises(NameInUse):
        await begin(Spec(name="web"), "web-123456")
    assert (paths.state / "disk").read_text() == "somebody's"
    assert paths.run.is_dir()


async def test_an_undertaker_that_is_dismissed_removes_nothing() -> None:
    paths = VmPaths.of("web-123456")
    private_dir(paths.state)
    undertaker = bury(paths.state)
    undertaker.made()
    await undertaker.dismiss()
    assert paths.state.is_dir()
    undertaker = bury(paths.state)
    undertaker.made()
    await undertaker.done()
    assert not paths.state.exists()


async def test_an_owner_killed_before_it_made_the_folder_costs_nobody_anything() -> (
    None
):
    taken, empty = VmPaths.of("taken").state, VmPaths.of("empty").state
    private_dir(taken)
    private_dir(empty)
    (taken / "disk").write_text("somebody's")
    await bury(taken).done()
    await bury(empty).done()
    assert (taken / "disk").read_text() == "somebody's"
    assert not empty.exists()


async def test_what_is_still_written_there_goes_too() -> None:
    """A qemu-img, say, whose owner was killed."""
    folder = VmPaths.of("web-123456").state
    undertaker = bury(folder)
    private_dir(folder)
    undertaker.made()
    for number in range(50):
        (folder / str(number)).touch()
    writes = 'for i in $(seq 300); do : >"$0/x$i" || exit; done'
    writer = subprocess.Popen(["sh", "-c", writes, folder], stderr=subprocess.DEVNULL)
    try:
        await undertaker.done()
        assert not folder.exists()
    finally:
        writer.kill()
        writer.wait()


async def test_a_folder_that_another_has_made_since_stays() -> None:
    folder = VmPaths.of("web-123456").state
    undertaker = bury(folder)
    private_dir(folder)
    undertaker.made()
    wait_until(lambda: str(folder) in _open_folders(undertaker.process.pid))
    folder.rename(folder.with_name("old"))
    private_dir(folder)
    await undertaker.done()
    assert folder.exists()


def _open_folders(pid: int) -> list[str]:
    return [str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()]
