"""Streams by TCP, encrypted and with both sides known by certificates (tls-creds-x509).

The folder is as QEMU wants it: ``ca-cert.pem``, and ``server-cert.pem`` with
``server-key.pem`` there, ``client-cert.pem`` with ``client-key.pem`` here.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any, Literal

from qemuctl.errors import CommandError, HostError
from qemuctl.qmp import Session
from qemuctl.qmp.migration import Getfd
from qemuctl.qmp.nbd import NbdServerStart
from qemuctl.qmp.plug import ObjectDel

CREDS = "tls-move"
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
    with contextlib.suppress(CommandError):
        await session.execute(ObjectDel(id=CREDS))


async def serve_disks(session: Session) -> int:
    """Serves disks by TCP on a port that the kernel chooses, and gives that
    (nbd-server-start, with a socket that listens already)."""
    with socket.create_server(("", 0)) as listener:
        await session.send_fd(listener.fileno())
        await session.execute(Getfd(fdname=_NBD))
        await session.execute(
            NbdServerStart(addr={"type": "fd", "data": {"str": _NBD}}, tls_creds=CREDS)
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
