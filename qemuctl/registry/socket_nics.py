"""Unix sockets that cards of type socket listen on.

QEMU removes whatever is at the path, a file of its user's too, before it listens
there, and the socket of another process is then out of anybody's reach.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qemuctl.errors import SpecError, StateError
from qemuctl.spec import Nic

_SOCKETS = Path("/proc/net/unix")


def check_wires(nics: Iterable[Nic]) -> None:
    """Raises SpecError where something that would be lost is at the path of a card
    that listens; a socket that nobody listens on any more is not."""
    for nic in nics:
        if nic.listen is None:
            continue
        path = Path(nic.listen).absolute()
        if path.exists() and not path.is_socket():
            raise SpecError(
                f"something else than a socket is there: {path}",
                key="listen",
                hint="QEMU would remove it; choose another path",
            )
        if path.is_socket() and _is_served(path):
            raise SpecError(
                f"another process listens there: {path}",
                key="listen",
                hint=f"plug into it with: connect: {path}",
            )


def check_far_end(name: str, nic: Nic) -> None:
    """Raises StateError where nobody listens at the far end of a card's wire: QEMU
    takes the card all the same, and never tries again."""
    if nic.connect is None:
        return
    path = Path(nic.connect).absolute()
    if not path.is_socket() or not _is_served(path):
        raise StateError(
            f"add a card to {name}", "running", f"nobody listens at {path}",
            hint="first start the VM that does, or add its card",
        )  # fmt: skip


def _is_served(path: Path) -> bool:
    """Whether a socket that was bound to the path is still open."""
    try:
        lines = _SOCKETS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    # The path is all that follows the inode.
    return any(line.split(None, 7)[7:] == [str(path)] for line in lines)
