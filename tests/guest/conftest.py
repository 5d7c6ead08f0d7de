"""What tests with a real QEMU share. A missing QEMU fails them all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import commands
from tests.conftest import CACHE, survivors, sweep
from tests.guest.boots import Boots
from tests.guest.eye import eye_disk

# A guest for any accelerator, there within a fraction of a second: writes "ok"
# lines to the first serial port and halts. More than one, because the firmware
# may still be writing there too: `mov dx, 0x3f8; mov cx, 9`, then for each
# character `mov al, c; out dx, al`, then `loop -11; hlt; jmp -3`.
_LINE = b"".join(b"\xb0" + bytes([c]) + b"\xee" for c in b"ok\n")
BOOT_SECTOR = (b"\xba\xf8\x03\xb9\x09\x00" + _LINE + b"\xe2\xf5\xf4\xeb\xfd").ljust(
    510, b"\0"
) + b"\x55\xaa"

# Processors that can be plugged in also under emulation, whatever the kernel.
CPUS = "1,max=2,hypervisor=vmware"

# A guest with a disk that it finds by its serial number, as many tests want one.
WEB = (
    "--memory", "384M", "--cpus", CPUS,
    "--disk", "size=64M,format=qcow2,serial=data", "-p", ":22",
)  # fmt: skip


boots: Boots  # of this run of the tests


@pytest.fixture(scope="session")
def qemu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed QEMU, and the tiny image built: not every test has a network."""
    found = shutil.which("qemu-system-x86_64")
    assert found is not None, "these tests need qemu-system-x86_64 on PATH"
    done = commands.server().run("image", "build", "tiny", env=os.environ, timeout=600)
    assert done.returncode == 0, done.stderr.decode()
    global boots  # Home.boot is no fixture
    base = tmp_path_factory.getbasetemp()
    workers = "PYTEST_XDIST_WORKER" in os.environ
    boots = Boots((base.parent if workers else base) / "booted", make_home)
    return Path(found)


@pytest.fixture
def boot_sector(tmp_path: Path) -> Path:
    """A raw disk whose guest says "ok" on the serial port."""
    path = tmp_path / "sector, with 'odd' näme.raw"
    path.write_bytes(BOOT_SECTOR.ljust(1024 * 1024, b"\0"))
    return path


@dataclass(frozen=True)
class Home:
    """A home of one's own and the command line in it.

    ``served_by`` is the socket of a command server for `popen`; "no" for none.
    """

    path: Path
    served_by: str = field(default="no", kw_only=True)

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "qemuctl", *map(str, arguments)]

    @property
    def env(self) -> dict[str, str]:
        return os.environ | {
            "QEMUCTL_HOME": str(self.path), "QEMUCTL_SERVER": self.served_by,
        }  # fmt: skip

    def by(self, server: str) -> Home:
        """The same home, whose processes are clients of this server."""
        return replace(self, served_by=server)

    def start(
        self, *arguments: object, **options: Any
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs a command to its end, in a worker of the tests' command server."""
        return commands.server().run(*arguments, env=self.env, **options)

    def run(
        self, *arguments: object, check: int | None = 0, **options: Any
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs a command; fails unless it ends with status ``check``."""
        options.setdefault("timeout", 180)
        done = self.start(*arguments, **options)
        words = done.stderr.decode(errors="replace")
        assert "Traceback" not in words, words
        if check is not None:
            assert done.returncode == check, f"{arguments}: {words}"
        return done

    def text(self, *arguments: object, **options: Any) -> str:
        return self.run(*arguments, **options).stdout.decode()

    def words(self, *arguments: object, **options: Any) -> str:
        """What a command says on standard error."""
        return self.run(*arguments, **options).stderr.decode()

    def boot(self, name: str, *arguments: object) -> str:
        """Makes a VM of the tiny image as `create NAME ARGUMENTS` does, with its guest
        running and its agent answering: booted for the first test that asks for
        exactly this, restored for the others. Gives its name."""
        vms = self.path / "state/vms"
        vms.mkdir(mode=0o700, parents=True, exist_ok=True)
        boots.copy(name, tuple(map(str, arguments)), vms / name)
        self.run("start", name)
        return name

    def popen(self, *arguments: object, **options: Any) -> subprocess.Popen[bytes]:
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen(
            self.command(*arguments), env=self.env, start_new_session=True, **options
        )

    @property
    def root(self) -> Path:
        """From where the paths of its files begin."""
        return Path("/")

    def processes(self) -> list[psutil.Process]:
        """What runs with this home."""
        return survivors(self.path)


def make_home(path: Path) -> Home:
    CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.mkdir(mode=0o700)
    (path / "cache").symlink_to(CACHE)
    return Home(path)


@pytest.fixture
def here(home: Path, qemu: Path) -> Home:
    """The home of one test, which must leave no process behind."""
    return Home(home)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, qemu: Path) -> Iterator[Home]:
    """The home of a whole module; its VMs are killed at the end."""
    home = make_home(tmp_path_factory.mktemp("shared") / "home")
    yield home
    try:
        for name in home.text("ls", "-q").split():
            home.run("kill", name)
    finally:
        sweep(home.path)


@pytest.fixture(scope="session")
def command_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The socket of a command server as its user starts it."""
    path = tmp_path_factory.mktemp("server") / "s"
    # Not of the home that the test which happens to be first has.
    env = {k: v for k, v in os.environ.items() if k != "QEMUCTL_HOME"}
    env["QEMUCTL_SERVER"] = str(path)
    for verb in ("start", "stop"):
        subprocess.run(
            [sys.executable, "-m", "qemuctl", "server", verb], env=env, check=True
        )
        if verb == "start":
            yield str(path)


@pytest.fixture(params=["cold", "served"])
def server(request: pytest.FixtureRequest) -> str:
    """For `Home.by`: once no server, and once the user's."""
    if request.param == "cold":
        return "no"
    return str(request.getfixturevalue("command_server"))


@pytest.fixture(scope="module")
def web(shared: Home) -> str:
    """A Linux guest that stays, its agent answering: `shared` has it as web."""
    return shared.boot("web", *WEB)


@pytest.fixture
def sector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return eye_disk(tmp_path_factory.mktemp("sector"))


@pytest.fixture(scope="module")
def eye(shared: Home, tmp_path_factory: pytest.TempPathFactory) -> str:
    disk = eye_disk(tmp_path_factory.mktemp("eye"))
    shared.run(
        "create", "eye", "--disk", f"path={disk}", "--display", "vnc",
        "--memory", "64M", "--nic", "none",
    )  # fmt: skip
    shared.run("start", "eye")
    shared.run("wait", "eye", "--for", "serial:ok")
    return "eye"


@pytest.fixture
def echo(shared: Home, eye: str) -> Callable[[], str]:
    """What the guest has read from its keyboard since the test began."""
    log = shared.path / "state/vms/eye/serial.log"
    start = len(log.read_bytes())
    return lambda: log.read_bytes()[start:].decode(errors="replace")


@pytest.fixture(scope="module")
def counting(shared: Home, web: str) -> str:
    """The same guest, with a process that counts on when it is asked."""
    from tests.guest.disks import inside
    from tests.guest.test_snapshots import COUNTER

    inside(shared, web, COUNTER)
    return web


@pytest.fixture
def goes_on(shared: Home, counting: str) -> Iterator[None]:
    """The guest is never booted again, and nothing is left of what was done."""
    from tests.guest.saves import begun, row, saved
    from tests.guest.test_snapshots import count

    before = count(shared, counting)
    yield
    if row(shared, counting)["state"] == "off":
        shared.run("start", counting)
    assert count(shared, counting) > before
    assert not saved(shared).exists()
    assert begun(saved(shared).parent) == []
