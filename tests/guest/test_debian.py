"""A real distribution, built here and booted: what a developer does on day one.

One guest: booting a whole Debian takes half a minute under emulation, so all that
needs one is asked of it. A clone of it is booted by scripts/soak.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from pathlib import Path

import pytest

import qemuctl
from qemuctl.errors import WaitTimeout
from qemuctl.image import store
from qemuctl.image.recipe import recipe_hash
from qemuctl.registry.records.started_spec import started_spec
from qemuctl.testing import CommandFailed, Guest, LoopThread
from tests.conftest import CACHE
from tests.guest.conftest import Home
from tests.unproven import need_debian

pytestmark = pytest.mark.timeout(900)

# What the first boot is told; paths in it count from the file's folder.
SPEC = """
name: web
image: debian
memory: 768M
root: 6G
cpu: 1
disks:
- size: 64M
  serial: extra
cloud_init:
  ssh_keys: [mine.pub]
  run:
  - echo 'as a line' > /first-boot
  - [sh, -c, 'echo "as a list" >> /first-boot']
"""


@pytest.fixture
def home(home: Path) -> Path:
    """A home with the user's own store of what the tests built: 40 s saved."""
    need_debian("Debian as a guest")
    kept = CACHE / "tests" / "data"
    kept.mkdir(mode=0o700, parents=True, exist_ok=True)
    (home / "data").symlink_to(kept)
    if "debian" in store.names():
        known = store.find("debian").manifest
        if known.recipe != recipe_hash("debian"):  # it has changed since
            store.remove("debian")
    return home


def ssh(here: Home, vm: str, *words: str, check: int = 0) -> str:
    done = here.run(
        "ssh", vm, "--timeout", "240", "--", *words, check=check, timeout=300
    )
    return done.stdout.decode()


def facts(here: Home, vm: str) -> dict[str, str]:
    """What tells one machine from another."""
    names = {
        "host": "hostname",
        "machine": "cat /etc/machine-id",
        "key": "cat /etc/ssh/ssh_host_ed25519_key.pub",
        "mac": "cat /sys/class/net/e*/address",
    }
    script = "; ".join(["sudo cloud-init status --wait >/dev/null", *names.values()])
    return dict(zip(names, ssh(here, vm, script).splitlines(), strict=True))


def test_a_real_distribution_from_nothing_to_ssh(here: Home, tmp_path: Path) -> None:
    here.run("image", "build", "debian", timeout=600)
    here.run("image", "verify", "debian", timeout=120)
    key = tmp_path / "mine"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True
    )
    (tmp_path / "web.yaml").write_text(SPEC)
    here.run("create", "-f", tmp_path / "web.yaml")
    here.run("start", "web")

    # The free port is read back, and ssh waits for sshd by itself.
    words = "a  b", "$HOME", "'"
    assert ssh(here, "web", "printf", "%s|", *words) == "a  b|$HOME|'|"
    assert "->22" in here.text("ls")
    ssh(here, "web", "exit 7", check=7)
    web = facts(here, "web")
    assert web["host"] == "web"
    _first_boot(here)
    _units()
    _own_key(here, key)
    _copies(here, tmp_path)
    stanza = here.text("ssh-config", "web")
    (tmp_path / "config").write_text(stanza)
    by_config = ["ssh", "-F", str(tmp_path / "config"), "web", "true"]
    subprocess.run(by_config, check=True, stdin=subprocess.DEVNULL, timeout=60)
    assert "shut down (agent)" in here.words("stop", "web", timeout=150)

    here.run("rm", "web")
    here.run("image", "verify", "debian", timeout=120)  # nobody wrote to it
    assert os.listdir(here.path / "state/vms") == []  # noqa: PTH208


def _first_boot(here: Home) -> None:
    line, item, size, serials, state = ssh(
        here, "web",
        "cat /first-boot; df --output=size -BG / | tail -n1;"
        "for d in /sys/block/vd?; do echo $(cat $d/serial); done | xargs;"
        "systemctl is-system-running",
    ).splitlines()  # fmt: skip
    assert (line, item) == ("as a line", "as a list")
    assert int(size.strip(" G")) >= 5, "the root file system has not grown"
    assert serials.split() == ["disk0", "extra", "cidata"]
    assert state == "running"


def _units() -> None:
    """What systemd makes of a unit is waited for, but not a unit that has failed."""
    thread = LoopThread()
    try:
        thread.call(_wait_for_units(thread))
    finally:
        thread.close()


async def _wait_for_units(thread: LoopThread) -> None:
    async with await qemuctl.attach("web") as vm:
        guest = Guest(vm, started_spec(vm.paths), thread)
        await guest.wait_for_unit("ssh.service")
        await guest.wait_for_port(22, "10.0.2.15")
        await guest.succeed(
            "systemd-run --unit=late --on-active=1 sleep 600",
            "systemd-run --unit=bad sh -c 'echo the reason; false'",
        )
        await guest.wait_for_unit("late.service")
        with pytest.raises(CommandFailed, match="not active: bad") as failure:
            await guest.wait_for_unit("bad")
        assert "the reason" in (failure.value.hint or "")
        with pytest.raises(WaitTimeout, match=r"unit never\.service") as late:
            await guest.wait_for_unit("never.service", timeout=1)
        assert "inactive" in (late.value.hint or "")
        with pytest.raises(WaitTimeout) as late:
            await guest.run("echo begun; sleep 4001 & sleep 4001", timeout=1)
        assert "ended in the guest\nit wrote:\nbegun" in (late.value.hint or "")
        assert await guest.fail("pgrep -x sleep -a | grep 4001") == ""
        await guest.succeed("systemctl stop late.service; systemctl reset-failed")


def _own_key(here: Home, key: Path) -> None:
    """The key of the spec lets its owner in with plain ssh."""
    (forward,) = (w for w in here.text("ls").split() if w.endswith("->22"))
    port = forward.removesuffix("->22").rpartition(":")[2]
    plain = [
        "ssh", "-F", "none", "-i", str(key), "-p", port, "-o", "IdentitiesOnly=yes",
        "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
        "-o", "LogLevel=ERROR", "debian@127.0.0.1", "sudo", "id", "-u",
    ]  # fmt: skip
    done = subprocess.run(
        plain, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=60
    )
    assert done.stdout == b"0\n"


def _copies(here: Home, tmp_path: Path) -> None:
    console = here.path / "state/vms/web/serial.log"
    assert b"login: root (automatic login)" in console.read_bytes()
    words = here.words("cp", tmp_path / "web.yaml", "web:/etc/no", check=1)
    assert "debian may not write to /etc/" in words
    assert "--via agent" in words
    here.run("cp", tmp_path / "web.yaml", "root@web:/etc/yes")
    source = tmp_path / "söurce, file"
    source.write_bytes(os.urandom(5_000_001))
    source.chmod(0o751)
    wanted = hashlib.sha256(source.read_bytes()).hexdigest()
    for way in ("ssh", "agent"):
        remote = f"/tmp/by {way}"
        here.run("cp", "--via", way, source, f"web:{remote}")
        seen = ssh(
            here,
            "web",
            "sudo",
            "sh",
            "-c",
            f"stat -c %a '{remote}'; sha256sum '{remote}'",
        )
        assert seen.split()[:2] == ["751", wanted]
        back = tmp_path / f"back by {way}"
        here.run("cp", "--via", way, f"web:{remote}", back)
        assert hashlib.sha256(back.read_bytes()).hexdigest() == wanted
        assert back.stat().st_mode & 0o777 == 0o751
    begun = time.monotonic()
    words = here.words("cp", tmp_path / "nowhere", "web:", check=1)
    assert "nowhere" in words
    assert time.monotonic() - begun < 10
