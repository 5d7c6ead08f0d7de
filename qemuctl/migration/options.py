"""What its user wants of a migration."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from qemuctl.structs import Struct

CopyStorage = Literal["all", "top", "none"]

DOWNTIME = 0.3
"""Seconds that a guest may stand still, unless said otherwise: QEMU's own default."""


class Options(Struct):
    """How a VM is to be moved.

    ``name`` is what it is called there. ``bandwidth`` is bytes a second, ``downtime``
    and ``timeout`` (of copying the memory) seconds. ``copy_storage`` is ``all`` of a
    disk, the ``top`` of its chain, or ``none`` where both sides see the same files.
    ``paused_ok`` lets the guest be stopped for as long as it takes, ``postcopy`` lets
    it run there before all of its memory has come. ``tls`` is a folder with
    certificates, on both sides, for streams that go to the host directly, by TCP; only
    the client with the common name of ``client-cert.pem`` is let in there.
    """

    name: str | None = None
    bandwidth: int | None = None
    downtime: float = DOWNTIME
    copy_storage: CopyStorage = "all"
    postcopy: bool = False
    multifd: int | None = None
    compress: Literal["zstd"] | None = None
    auto_converge: bool = True
    timeout: float | None = None
    paused_ok: bool = False
    keep: bool = False
    tls: Path | None = None

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What both QEMUs need, beside what every migration does."""
        found = []
        if self.postcopy:
            found.append("postcopy-ram")
        if self.multifd is not None or self.compress is not None:
            found.append("multifd")
        return tuple(found)
