"""Arguments for QEMU of the user's own, and what else is done with their VMs."""

from __future__ import annotations

from pathlib import Path

from tests.guest.conftest import Home
from tests.unit.disk_images import qcow2


def drive(path: Path, more: str = "") -> list[str]:
    return ["--qemu-arg=-drive", f"--qemu-arg=if=virtio,file={path}{more}"]


def test_a_drive_that_qemuctl_does_not_know_is_left_out_of_nothing(
    here: Home, tmp_path: Path
) -> None:
    """Each command gives the same answer, on and off, and has done nothing."""
    vars_ = qcow2(tmp_path / "vars.qcow2", bytes(128 * 1024))
    here.run(
        "create", "web", "--image", "tiny", "--disk", "size=1M,format=qcow2",
        "--memory", "192M", "--nic", "none", *drive(vars_, ",format=qcow2"),
    )  # fmt: skip
    snapshot = [["snapshot", "create", "web", "one"], ["snapshot", "rm", "web", "one"],
                ["snapshot", "revert", "web", "one"]]  # fmt: skip
    off = [["clone", "web", "new"], ["export", "web", tmp_path / "web.tar"]]
    on = [["save", "web", tmp_path / "web.state"],
          ["migrate", "web", f"local:{tmp_path}/there"]]  # fmt: skip
    for commands, state in ((snapshot + off, "off"), (snapshot + on, "paused")):
        if state == "paused":
            here.run("start", "web", "--paused")
        for words in commands:
            said = here.words(*words, check=1)
            assert "its extra_args bring a drive that it writes to" in said, words
            assert f"-drive if=virtio,file={vars_}" in said
            assert "qemuctl edit web" in said
        assert f" {state} " in here.text("ls", "-a")
    here.run("kill", "web")
    assert here.text("ls", "-a", "-q") == "web\n"
    assert not list(tmp_path.glob("web.*"))
    # One that is only read is no obstacle.
    here.run("create", "read", "--disk", "size=1M",
             *drive(vars_, ",format=qcow2,readonly=on"))  # fmt: skip
    here.run("clone", "read", "copy")
