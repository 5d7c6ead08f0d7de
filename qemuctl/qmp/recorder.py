"""The flight recorder: every command and reply of one VM, as JSON lines.

Events are not here: QEMU writes those to a file itself, with or without any
of us. The file is bounded (see `bounded`): the older half of `LIMIT` gives way.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from qemuctl import bounded

LIMIT = 2 * 1024 * 1024
# A longer reply (query-qmp-schema has 200 kB) is noted by its size.
_LONGEST = 16 * 1024
_SECRET = frozenset({"password", "passwd", "secret", "key"})
# Commands of the human monitor are text, which may hold a password anywhere, and some
# of the answers repeat it; what only asks is written down whole.
_HMP, _HMP_LINE = "human-monitor-command", "command-line"
_ASKS = ("info", "help")


def _public(value: Any) -> Any:
    """The same value without what must not be written down."""
    if isinstance(value, list):
        return [_public(item) for item in value]
    if not isinstance(value, dict):
        return value
    hidden = _SECRET | ({"data"} if value.get("qom-type") == "secret" else set())
    return {k: "…" if k in hidden else _public(v) for k, v in value.items()}


class Recorder:
    """Appends to one file; several processes may do so at once (O_APPEND)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._start = b""
        self._asked = False
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)
        self._size = os.fstat(self._fd).st_blocks * 512

    def record(self, **entry: Any) -> None:
        """Writes one line with the time in front. Never fails: a full disk
        must not stop a VM from being driven."""
        try:
            line = json.dumps({"at": round(time.time(), 6), **entry}, default=str)
            if self._size > LIMIT:
                bounded.trim(self._path, LIMIT)
                self._size = LIMIT // 2
            data = self._start + line.encode() + b"\n"
            written = os.write(self._fd, data)
            self._size += written
            # On a full disk a line may be cut short: the next begins afresh.
            self._start = b"" if written == len(data) else b"\n"
        except OSError:
            pass

    def command(self, name: str, arguments: Any) -> None:
        if name == _HMP and isinstance(arguments, dict):
            arguments = {**arguments, _HMP_LINE: self._line(arguments)}
        self.record(execute=name, arguments=_public(arguments))

    def _line(self, arguments: dict[str, Any]) -> str:
        """A line for the human monitor, or only its first word."""
        line = str(arguments.get(_HMP_LINE, "")).strip()
        word, _, rest = line.partition(" ")
        self._asked = word in _ASKS
        return line if self._asked or not rest else f"{word} …"

    def reply(self, name: str, value: Any, seconds: float) -> None:
        text = json.dumps(value, default=str)
        if len(text) > _LONGEST or (name == _HMP and not self._asked and value):
            value = f"… {len(text)} bytes"
        self.record(reply=name, value=_public(value), ms=round(seconds * 1000, 2))

    def failure(self, name: str, error: str) -> None:
        self.record(reply=name, error=error)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
