"""Two hosts on this one: each has processes, a network, mounts and an sshd of its
own, and its qemuctl home lies at the same path as the other's, which it cannot see.

Each is a bash, the first process of its namespaces, that waits for its input to end:
with it, or with the test that started it, everything on its host ends, too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

import qemuctl
from tests import commands
from tests.conftest import CACHE, wait_until
from tests.guest.conftest import Home
from tests.unproven import need_hosts

# The folder that is the other host's is hidden by one's own, mounted over both.
# With the file of passwords goes whatever locks this user out of ssh, and the boot's
# id is what tells two hosts apart.
INIT = """
set -e
mount --bind "$OWN" "$BOTH"
mount --bind "$BOTH/ssh" /etc/ssh
mount --bind "$BOTH/ssh/shadow" /etc/shadow
mount --bind "$BOTH/ssh/boot_id" /proc/sys/kernel/random/boot_id
mount -t tmpfs -o mode=755 run /run
mkdir -m 755 /run/sshd
mkdir -m 700 /run/runtime
ip link set lo up
echo apart
read -r linked
PATH=$PATH:/usr/sbin:/sbin
"$(command -v sshd)" -D -e 2>"$BOTH/ssh/log" &
read -r never
"""
NETWORK = "10.213.77"
SSHD = """
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/key.pub
PasswordAuthentication no
PermitRootLogin yes
AllowStreamLocalForwarding yes
StrictModes no
UsePAM no
PidFile none
SetEnv {environment}
"""
SSH = """
Host {host}
HostName {address}
User root
IdentityFile /etc/ssh/key
GlobalKnownHostsFile /etc/ssh/known_hosts
UserKnownHostsFile /etc/ssh/no-other
"""


@dataclass(frozen=True)
class Host(Home):
    """One of the two: `path` is its home as the test sees it, `inside` as the host
    does, `init` the pid that all on it descend from, `server` the one of its commands.
    """

    name: str
    address: str
    inside: Path
    init: int
    server: commands.Server

    @property
    def env(self) -> dict[str, str]:
        return os.environ | environment(self.inside)

    def enter(self, *argv: object) -> list[str]:
        """The command line that runs another on this host."""
        return [*_enter(self.init), *map(str, argv)]

    def command(self, *arguments: object) -> list[str]:
        return self.enter(*super().command(*arguments))

    def start(
        self, *arguments: object, **options: Any
    ) -> subprocess.CompletedProcess[bytes]:
        return self.server.run(*arguments, env=self.env, cwd="/", **options)

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self.init}/root")

    def processes(self) -> list[psutil.Process]:
        """What runs there; the bash, its sshd and the command server do not count."""
        own = Path(f"/proc/{self.init}/ns/pid").readlink()
        found = []
        for process in psutil.process_iter(["pid", "ppid", "cmdline"]):
            with contextlib.suppress(psutil.Error, OSError):
                if (
                    Path(f"/proc/{process.pid}/ns/pid").readlink() == own
                    and process.status() != psutil.STATUS_ZOMBIE
                    and process.pid != self.init
                    and process.parent() != psutil.Process(self.init)
                    and "tests.serving" not in process.info["cmdline"]
                ):
                    found.append(process)
        return found

    def link(self, *words: str) -> bool:
        """Changes this end of the link as `ip link set eth0 …` does: a link that
        is down swallows what is sent, and no connection hears of it."""
        return _done(*self.enter("ip", "link", "set", "eth0", *words))

    def slow(self, rate: str | None) -> bool:
        """Lets this end send only so much, such as 20mbit; None ends that. False
        where the kernel cannot."""
        how = ["replace", "dev", "eth0", "root", "tbf", "burst", "64k", "latency"]
        change = (
            [*how, "100ms", "rate", rate] if rate else ["del", "dev", "eth0", "root"]
        )
        return _done(*self.enter("tc", "qdisc", *change))


def environment(home: Path) -> dict[str, str]:
    return {
        "QEMUCTL_HOME": str(home),
        # The folder of sockets is named by that of the states, which is the same.
        "XDG_RUNTIME_DIR": "/run/runtime",
        "PYTHONPATH": str(Path(qemuctl.__file__).parents[1]),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
    }


def _done(*argv: str) -> bool:
    done = subprocess.run(argv, capture_output=True, check=False, timeout=60)
    return done.returncode == 0


def _run(*argv: object) -> None:
    subprocess.run(list(map(str, argv)), check=True, capture_output=True, timeout=60)


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Hosts `a` and `b`, which reach each other as `ssh://a` and `ssh://b`."""
    with contextlib.ExitStack() as stack:
        inits = []
        for number, name in enumerate("ab", 1):
            _furnish(folder, name, number)
            inits.append(_begin(stack, folder, name))
        _join(inits)
        a, b = (
            Host(
                path=folder / name / "home",
                name=name,
                address=f"{NETWORK}.{number}",
                inside=folder / "home",
                init=init.pid,
                server=_server(stack, init.pid),
            )
            for number, (name, (_, init)) in enumerate(zip("ab", inits, strict=True), 1)
        )
        yield a, b
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not a.processes() + b.processes(), 60)
        left = [p.info for p in a.processes() + b.processes()]
    assert not left, f"left running: {left}"


def _furnish(folder: Path, name: str, number: int) -> None:
    """Files of a host: the home, the keys of its sshd and of its user, who may
    enter both hosts with the same one."""
    home, ssh = folder / name / "home", folder / name / "ssh"
    CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.mkdir(mode=0o700, parents=True)
    (home / "cache").symlink_to(CACHE)
    ssh.mkdir()
    (ssh / "boot_id").write_text(f"{uuid.uuid4()}\n")
    (ssh / "shadow").touch(mode=0o600)
    (ssh / "shadow").write_text("root:*:19000:0:99999:7:::\n")
    if number == 1:
        for key in ("host_key", "key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", ssh / key)
        known = (ssh / "host_key.pub").read_text()
        (ssh / "known_hosts").write_text(f"{NETWORK}.* {known}")
    else:
        for file in ("host_key", "key", "key.pub", "known_hosts"):
            shutil.copy2(folder / "a/ssh" / file, ssh)
    given = " ".join(f'"{k}={v}"' for k, v in environment(folder / "home").items())
    (ssh / "sshd_config").write_text(SSHD.format(environment=given))
    (ssh / "ssh_config").write_text(
        SSH.format(host="a", address=f"{NETWORK}.1")
        + SSH.format(host="b", address=f"{NETWORK}.2")
    )


def _begin(
    stack: contextlib.ExitStack, folder: Path, name: str
) -> tuple[subprocess.Popen[bytes], psutil.Process]:
    """Starts a host that waits for its network, and its end on the stack."""
    spaces = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    unshare = subprocess.Popen(
        ["unshare", *spaces, "bash", "-c", INIT],
        env=os.environ | {"OWN": str(folder / name), "BOTH": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    stack.callback(_end, unshare)
    assert unshare.stdout is not None
    assert unshare.stdout.readline() == b"apart\n", "no namespaces"
    (init,) = psutil.Process(unshare.pid).children()
    return unshare, init


def _enter(init: int) -> list[str]:
    return ["nsenter", f"--target={init}", "--mount", "--net", "--pid"]


def _server(stack: contextlib.ExitStack, init: int) -> commands.Server:
    server = commands.Server(_enter(init))
    stack.callback(server.close)
    return server


def _end(unshare: subprocess.Popen[bytes]) -> None:
    unshare.kill()
    unshare.communicate()


def _join(hosts: list[tuple[subprocess.Popen[bytes], psutil.Process]]) -> None:
    """Lays a cable between the two and starts their sshd's."""
    (_, a), (_, b) = hosts
    ends = [f"name eth0 netns {a.pid} type veth", f"peer name eth0 netns {b.pid}"]
    _run("ip", "link", "add", *" ".join(ends).split())
    for number, (process, init) in enumerate(hosts, 1):
        inside = ["nsenter", f"--target={init.pid}", "--net", "ip"]
        _run(*inside, "addr", "add", f"{NETWORK}.{number}/30", "dev", "eth0")
        _run(*inside, "link", "set", "eth0", "up")
        assert process.stdin is not None
        process.stdin.write(b"linked\n")
        process.stdin.flush()
    for _, init in hosts:
        listens = [
            "nsenter",
            f"--target={init.pid}",
            "--net",
            "ssh-keyscan",
            "-ted25519",
        ]
        wait_until(lambda argv=listens: _done(*argv, "127.0.0.1"))


@pytest.fixture(scope="module")
def hosts(
    tmp_path_factory: pytest.TempPathFactory, qemu: Path
) -> Iterator[tuple[Host, Host]]:
    """Two hosts of a module; its VMs are killed at the end."""
    need_hosts("what goes on between two hosts")
    with two_hosts(tmp_path_factory.mktemp("hosts")) as pair:
        yield pair
        for host in pair:
            host.link("up")
            for name in host.text("ls", "-q").split():
                host.run("kill", name)
