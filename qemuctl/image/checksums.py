"""Checksums: as a user writes one, and in the files that distributions publish."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from qemuctl.errors import ImageError
from qemuctl.image.fetch import fetch_text, shown
from qemuctl.units import MIB

Algorithm = Literal["sha256", "sha512"]
_BY_LENGTH: dict[int, Algorithm] = {64: "sha256", 128: "sha512"}
_SIZE_MAX = 4 * MIB
_HEX = re.compile(r"[0-9a-fA-F]+")
# Fedora, Rocky, the BSDs: SHA256 (NAME) = HEX
_BSD = re.compile(r"SHA(?:256|512) ?\((?P<name>.+)\) ?= ?(?P<digest>[0-9a-fA-F]+)")
# coreutils: HEX, a space, a space or an asterisk (binary mode), NAME
_COREUTILS = re.compile(r"(?P<digest>[0-9a-fA-F]{64,128})[ \t]+\*?(?P<name>\S.*)")


@dataclass(frozen=True)
class Checksum:
    """A digest in lower-case hexadecimal digits."""

    algorithm: Algorithm
    digest: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digest}"


def parse_checksum(text: str) -> Checksum:
    """The checksum that is written ``sha256:HEX``, ``sha512:HEX`` or only ``HEX``.

    Raises ValueError with a message for the user.
    """
    named, colon, digest = text.strip().rpartition(":")
    algorithm = _BY_LENGTH.get(len(digest))
    if named.lower() not in ("", *_BY_LENGTH.values()) or (colon and not named):
        raise ValueError(f"unknown kind of checksum: {named!r} (sha256 or sha512)")
    if not _HEX.fullmatch(digest):
        raise ValueError(f"not a checksum: {text[:80]!r} (write sha256:HEX)")
    if algorithm is None or (named and named.lower() != algorithm):
        raise ValueError(
            f"a checksum of {len(digest)} digits: sha256 has 64, sha512 has 128"
        )
    return Checksum(algorithm, digest.lower())


def find_checksum(text: str, filename: str, *, only: bool = False) -> Checksum:
    """The checksum of ``filename`` in a checksum file's ``text``.

    Reads what coreutils' sha256sum and sha512sum write, the BSD form, and a
    digest that stands alone; around them may be comments and PGP's armour
    (which is not verified). The stronger of two kinds is taken. With ``only``
    the file is known to be about this one, whatever name it has there.

    Raises ImageError when it is not there or has two digests of one kind.
    """
    entries = list(_entries(text))
    found = {entry for name, entry in entries if name == filename}
    alone = [name for name, _ in entries] == [None]
    if not found and (only or alone):
        found = {entry for _, entry in entries}
    for algorithm in ("sha512", "sha256"):
        fitting = [entry for entry in found if entry.algorithm == algorithm]
        if len(fitting) > 1:
            raise ImageError(f"several {algorithm} checksums of one file: {filename}")
        if fitting:
            return fitting[0]
    names = sorted({name for name, _ in entries if name})
    raise ImageError(
        f"no sha256 or sha512 checksum of {filename}",
        hint=f"there are some of: {', '.join(names[:8])}" if names else None,
    )


def _entries(text: str) -> Iterator[tuple[str | None, Checksum]]:
    """Each checksum with the last part of its file's name, if it has one."""
    for line in text.splitlines():
        line = line.strip().removeprefix("\ufeff")
        if line.startswith("-----BEGIN PGP SIGNATURE"):
            return
        line = line.removeprefix("- ")  # RFC 4880, 7.1: dash-escaped
        match = _BSD.fullmatch(line) or _COREUTILS.fullmatch(line)
        name = match["name"].rpartition("/")[2] if match else None
        digest = match["digest"] if match else line
        if _HEX.fullmatch(digest) and len(digest) in _BY_LENGTH:
            yield name, Checksum(_BY_LENGTH[len(digest)], digest.lower())


async def fetch_checksum(url: str, filename: str) -> Checksum:
    """The checksum of ``filename`` in the checksum file at ``url``.

    A file that is named after it, as ``NAME.sha256``, may call it otherwise:
    openSUSE and Arch write the name with the build's number there.

    Raises ImageError, as `find_checksum` and when the file cannot be had.
    """
    text = await fetch_text(url, limit=_SIZE_MAX)
    only = url.rpartition("/")[2].startswith(f"{filename}.")
    try:
        return find_checksum(text, filename, only=only)
    except ImageError as error:
        raise ImageError(f"{error}: {shown(url)}", hint=error.hint) from error
