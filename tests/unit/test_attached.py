"""A throwaway VM's folder: its own, or nothing."""

from __future__ import annotations

import pytest

from qemuctl.errors import NameInUse
from qemuctl.paths import VmPaths, private_dir
from qemuctl.process import bury
from qemuctl.spec import Spec
from qemuctl.vm.attached import begin

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
    await undertaker.dismiss()
    assert paths.state.is_dir()
    await bury(paths.state).done()
    assert not paths.state.exists()
