"""Streams by TCP, encrypted and with both sides known by certificates (tls-creds-x509).

The folder is as QEMU wants it: ``ca-cert.pem``, and ``server-cert.pem`` with
``server-key.pem`` there, ``client-cert.pem`` with ``client-key.pem`` here.

That the authority has signed the client's certificate is not enough: the server lets
in only the one whose common name the source has told by ssh. It listens only at the
address that ssh came to.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any, Literal

from qemuctl.errors import CommandError, HostError
from qemuctl.qmp import Session
from qemuctl.qmp.migration import Getfd
from qemuctl.qmp.nbd import NbdServerStart
from qemuctl.qmp.plug import ObjectDel

CREDS = "tls-move"
AUTHZ = "tls-move-authz"
_NBD = "nbd-listener"
_FILES = {
    "server": ("ca-cert.pem", "server-cert.pem", "server-key.pem"),
    "client": ("ca-cert.pem", "client-cert.pem", "client-key.pem"),
}
Endpoint = Literal["server", "client"]


def check_certificates(folder: Path, endpoint: Endpoint) -> None:
    """Raises HostError where a file of the folder is missing."""
    for name in _FILES[endpoint]:
        if not (folder / name).is_file():
            raise HostError(f"no certificate of the {endpoint}: {folder / name}")


def client_certificate(folder: Path) -> Path:
    """That of this side. Raises HostError where a file of the folder is missing."""
    check_certificates(folder, "client")
    return folder / "client-cert.pem"


async def add_credentials(session: Session, folder: Path, endpoint: Endpoint) -> None:
    """Has QEMU read the certificates (object-add). Raises CommandError."""
    await drop_credentials(session)
    await session.command(
        "object-add",
        {
            "qom-type": "tls-creds-x509",
            "id": CREDS,
            "dir": str(folder),
            "endpoint": endpoint,
            "verify-peer": True,
        },
    )


async def drop_credentials(session: Session) -> None:
    """Forgets those of an earlier migration."""
    for id_ in (CREDS, AUTHZ):
        with contextlib.suppress(CommandError):
            await session.execute(ObjectDel(id=id_))


async def authorize(session: Session, client: str) -> None:
    """Lets in only the client whose certificate has this common name, which
    `common_name` has checked (authz-list). Raises CommandError."""
    name = f"CN={client}"
    # The common name may stand anywhere in the distinguished name; an escaped comma is
    # part of another attribute's value.
    rules = [("deny", "glob", f"*\\,{name}*"), ("allow", "exact", name)]
    rules += [
        ("allow", "glob", glob) for glob in (f"{name},*", f"*,{name}", f"*,{name},*")
    ]
    await session.command(
        "object-add",
        {
            "qom-type": "authz-list",
            "id": AUTHZ,
            "policy": "deny",
            "rules": [
                {"match": match, "format": format_, "policy": policy}
                for policy, format_, match in rules
            ],
        },
    )


def own_address() -> str:
    """The address of this host by which the other side has come: sshd(8) tells it; a
    receiver on the same host was not started by ssh."""
    words = os.environ.get("SSH_CONNECTION", "").split()
    return words[2] if len(words) == 4 else "127.0.0.1"


async def serve_disks(session: Session, address: str) -> int:
    """Serves disks by TCP on a port that the kernel chooses, and gives that
    (nbd-server-start, with a socket that listens already)."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listener:
        await session.send_fd(listener.fileno())
        await session.execute(Getfd(fdname=_NBD))
        await session.execute(
            NbdServerStart(
                addr={"type": "fd", "data": {"str": _NBD}},
                tls_creds=CREDS,
                tls_authz=AUTHZ,
            )
        )
        return int(listener.getsockname()[1])


def disks_at(host: str, port: int) -> dict[str, Any]:
    """The part of a block node that says where they are served."""
    return {
        "server": {"type": "inet", "host": host, "port": str(port)},
        "tls-creds": CREDS,
        "tls-hostname": host,
    }


def memory_at(host: str, port: int) -> str:
    """QEMU's address of a stream."""
    return f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"
