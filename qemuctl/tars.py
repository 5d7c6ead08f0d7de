"""Reading the heads of a tar that a stranger made, in bounded memory.

Of tarfile only the reading is used: not every Python 3.11 has its filters, and they
have been got round more than once.
"""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn

from qemuctl.peers import Allowance

# What comes before a member and is read into memory: a long name, or PAX's words.
_WORDS_MAX = 32 * 1024
_WORDS = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip
# Bytes of all names together, and about what is kept of a member beside them.
_NAMES = 192 * 1024 * 1024
_MEMBER = 256


class _Head(tarfile.TarInfo):
    """A head that cannot make tarfile read on for ever, or all into memory."""

    def __setattr__(self, name: str, value: Any) -> None:
        # It comes from the head, or from PAX's words, of which newer Pythons take a
        # negative one for the end of the tar.
        if name == "size" and value < 0:
            raise refused(self.name, "its head makes no sense")
        super().__setattr__(name, value)

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        # Where tarfile has subclasses do so: all heads come by here, in every Python.
        if self.type in _WORDS and self.size > _WORDS_MAX:
            raise refused(self.name, "its head makes no sense")
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise refused(self.name, "a file with holes")
        if self.type == tarfile.XGLTYPE:  # tarfile keeps all of them, in each member
            raise refused(self.name, "words about all files")
        return super()._proc_member(tar)  # type: ignore[misc]

    def _proc_gnusparse_10(self, *_: Any) -> NoReturn:
        # The list of its holes is in the file, and may be of any length.
        raise refused(self.name, "a file with holes")


def opened(file: BinaryIO) -> tarfile.TarFile:
    """A tar to read. Raises tarfile.TarError."""
    with _misled():
        return tarfile.open(
            fileobj=file, mode="r:", tarinfo=_Head,
            encoding="utf-8", errors="surrogateescape",
        )  # fmt: skip


def members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members that come next, of which ``tar`` keeps none.

    Raises tarfile.TarError for what makes no sense, is too much, or is not read here.
    """
    room = Allowance(_NAMES)
    while (head := _next(tar)) is not None:
        tar.members.clear()  # type: ignore[attr-defined]
        try:
            room.take(len(head.name) + len(head.linkname) + _MEMBER)
        except ValueError as error:
            raise refused(head.name, "too many files come before it") from error
        yield head


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    with _misled():
        return tar.next()


@contextlib.contextmanager
def _misled() -> Iterator[None]:
    """Raises tarfile.ReadError for what tarfile does not expect of a head."""
    try:
        yield
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise tarfile.ReadError(str(error)) from error


def refused(name: str, why: str) -> tarfile.ReadError:
    """The error for a member that is not read."""
    return tarfile.ReadError(f"{name[:200]!r}: {why}")
