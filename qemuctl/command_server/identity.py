"""Which code a process would run, so that a server runs only what its client would."""

from __future__ import annotations

import os
import sys
import zlib

from qemuctl.run_base import run_base

VARIABLE = "QEMUCTL_SERVER"
_PACKAGE = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120 (pathlib: 5 ms)


def identity() -> str:
    """The package and the interpreter, with all that was said to it at its start."""
    settings = [f"{k}={v}" for k, v in os.environ.items() if k.startswith("PYTHON")]
    parts: list[object] = [
        _PACKAGE, sys.prefix, sys.version, sys.getfilesystemencoding(),
        sys.flags, sys.warnoptions, sys._xoptions,  # noqa: SLF001 (public in all but name)
        sorted(settings),
    ]  # fmt: skip
    return "\n".join(map(str, parts))


def address() -> str:
    """The path of the socket of the user's server for this installation, or the one
    that ``$QEMUCTL_SERVER`` names."""
    if (named := os.environ.get(VARIABLE, "")).startswith("/"):
        return named
    code = zlib.crc32(os.fsencode(f"{_PACKAGE}\n{sys.prefix}"))
    return f"{run_base()}/server-{code:08x}"


class Code:
    """The files that the server's code is made of, as they are now."""

    def __init__(self) -> None:
        self._files = [
            f"{folder}/{name}"
            for folder, _, names in os.walk(_PACKAGE)
            for name in names
            if name.endswith(".py")
        ]
        # What is installed beside it: pip adds and removes a folder for each.
        self._files += [path for path in sys.path if path.endswith("-packages")]
        self._then = self._now()

    def changed(self) -> bool:
        """Whether one of them is not as it was."""
        try:
            return self._now() != self._then
        except OSError:
            return True

    def _now(self) -> list[tuple[int, int, int]]:
        found = map(os.stat, self._files)
        return [(one.st_mtime_ns, one.st_size, one.st_ino) for one in found]
