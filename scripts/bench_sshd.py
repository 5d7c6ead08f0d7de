"""A host to reach by ssh: this one, by an sshd of the benchmark's own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 10.0  # seconds
SSHD = """
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PasswordAuthentication no
AllowStreamLocalForwarding yes
StrictModes no
UsePAM no
PidFile none
"""
SSH = """
Host {name}
HostName 127.0.0.1
Port {port}
User {user}
IdentityFile {folder}/key
IdentitiesOnly yes
UserKnownHostsFile {folder}/known_hosts
LogLevel ERROR
"""


@dataclass(frozen=True)
class Host:
    """What it is called, and the ssh that knows it."""

    name: str
    ssh: tuple[str, ...]


@contextmanager
def sshd(folder: Path) -> Iterator[Host | None]:
    """None where there is no sshd, or it lets this user in for no key."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        yield None
        return
    folder.mkdir()
    port = free_port()
    host = furnish(folder, port)
    process = subprocess.Popen(
        [program, "-D", "-e", "-f", f"{folder}/sshd_config"],
        stdin=subprocess.DEVNULL, stderr=(folder / "log").open("wb"),
    )  # fmt: skip
    try:
        yield host if reached(host) else None
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def furnish(folder: Path, port: int) -> Host:
    for key in ("host_key", "key"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
        subprocess.run(argv, check=True)
    known = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {known}")
    given = {"folder": folder, "port": port, "name": "bench", "user": getpass.getuser()}
    (folder / "sshd_config").write_text(SSHD.format_map(given))
    (folder / "ssh_config").write_text(SSH.format_map(given))
    return Host("bench", ("ssh", "-F", str(folder / "ssh_config")))


def reached(host: Host) -> bool:
    """Whether a command can be run there; sshd needs a moment."""
    deadline = time.monotonic() + PATIENCE
    argv = [*host.ssh, "-o", "BatchMode=yes", host.name, "true"]
    while time.monotonic() < deadline:
        if subprocess.run(argv, check=False, capture_output=True).returncode == 0:
            return True
        time.sleep(0.05)
    return False
