"""Where a VM is to go: another home of this host, or a host that ssh reaches."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from qemuctl.errors import UsageError
from qemuctl.structs import Struct

_HINT = "local:DIR for another QEMUCTL_HOME here, or ssh://[USER@]HOST[:PORT]"
# What ssh would take for one of its own options, or a shell for something else.
_HOST = re.compile(r"[A-Za-z0-9_.:%][A-Za-z0-9_.:%-]*")
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@-]*")


class Destination(Struct):
    """``home`` is the folder of another home of this host; without it, ssh reaches
    ``host``, as ``user`` and at ``port`` if these are given."""

    text: str
    home: Path | None = None
    host: str = ""
    user: str | None = None
    port: int | None = None


def parse_destination(text: str) -> Destination:
    """``local:DIR`` or ``ssh://[user@]host[:port]``. Raises UsageError."""
    if text.startswith("local:"):
        folder = text.removeprefix("local:")
        if not folder:
            raise UsageError("a folder is missing: local:", hint=_HINT)
        home = Path(folder).expanduser().absolute()
        # Whoever recovers it may be in another folder.
        return Destination(text=f"local:{home}", home=home)
    try:
        parts = urlsplit(text)
        host, user, port = parts.hostname or "", parts.username, parts.port
    except ValueError as error:
        raise UsageError(f"not a destination: {text}: {error}", hint=_HINT) from error
    rest = parts.path.strip("/") or parts.query or parts.fragment or parts.password
    if parts.scheme != "ssh" or rest or not _HOST.fullmatch(host):
        raise UsageError(f"not a destination: {text}", hint=_HINT)
    if user is not None and not _USER.fullmatch(user):
        raise UsageError(f"not a user: {user}", hint=_HINT)
    return Destination(text=text, host=host, user=user, port=port)
