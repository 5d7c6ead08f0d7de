"""Checksums: as a user writes one, and in the files that distributions publish."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from qemuctl.errors import ImageError
from qemuctl.image.fetch import fetch_text, shown
from qemuctl.structs import Struct
from qemuctl.units import MIB

Algorithm = Literal["sha256", "sha512"]
_BY_LENGTH: dict[int, Algorithm] = {64: "sha256", 128: "sha512"}
_SIZE_MAX = 4 * MIB
_LINE_MAX = 4096
_HEX = re.compile(r"[0-9a-fA-F]+")
# Kinds as they are written: those of `_KINDS`, and others that may be as long.
_KIND = (
    r"(?P<kind>SHA-?\d+(?:[-/]\d+)?|SHA3-\d+|BLAKE\d?[BS]?P?(?:-\d+)?|B2|SM3|MD5|"
    r"WHIRLPOOL|RIPEMD-?160|RMD-?160|STREEBOG-?\d+|GOST\S*|SKEIN\S*)"
)
_KINDS: dict[str, Algorithm] = {
    "sha256": "sha256", "sha-256": "sha256", "sha2-256": "sha256",
    "sha512": "sha512", "sha-512": "sha512", "sha2-512": "sha512",
}  # fmt: skip
_DIGEST = r"(?P<digest>[0-9a-fA-F]{64,128})"
# Gentoo: "# SHA512 HASH" above what is of this kind; Debian's Release: "SHA256:".
_HEADING = re.compile(
    rf"[#*=\s-]*{_KIND}(?:\s*(?:hash(?:es)?|(?:check)?sums?))?\s*:?[=\s-]*",
    re.IGNORECASE,
)
_FORMS = [
    re.compile(form, re.IGNORECASE)
    for form in (
        # Fedora, Rocky, the BSDs, openssl: SHA256 (NAME) = HEX
        rf"{_KIND} ?\((?P<name>.+)\) ?= ?{_DIGEST}",
        # coreutils: HEX, a space, a space or an asterisk (binary mode), NAME
        rf"\\?(?:{_KIND}[:=] ?)?{_DIGEST}[ \t]+\*?(?P<name>\S.*)",
        rf"(?:{_KIND}[:=] ?)?{_DIGEST}",
        rf"(?P<name>\S.*?):?[ \t]+(?:{_KIND}[:=]? ?)?{_DIGEST}",
    )
]
# A line of Debian's Release has the file's size between, and begins with a space.
_RELEASE = re.compile(rf"\s+{_DIGEST} +\d+ +(?P<name>\S.*)")
# Gentoo's Manifest: DIST NAME SIZE KIND HEX KIND HEX
_MANIFEST = re.compile(r"DIST (?P<name>\S+) \d+(?P<sums>(?: \S+ [0-9a-fA-F]+)+)")


class Checksum(Struct, kw_only=False):
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

    Reads what coreutils' sha256sum and sha512sum write, the BSD form, Gentoo's and
    Debian's lists with the kind above or between, and a digest that stands alone;
    around them may be comments and PGP's armour (which is not verified). The stronger
    of two kinds is taken, none of a kind that is said to be another. With ``only``
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
    heading = None
    for line in text.splitlines():
        line = line.removeprefix("\ufeff").rstrip()
        if line.startswith("-----BEGIN PGP SIGNATURE"):
            return
        if len(line) > _LINE_MAX:
            continue  # which would keep the expressions busy
        line = line.removeprefix("- ")  # RFC 4880, 7.1: dash-escaped
        if found := _HEADING.fullmatch(line):
            heading = found["kind"]
        elif found := _MANIFEST.fullmatch(line):
            words = found["sums"].split()
            for kind, digest in zip(words[::2], words[1::2], strict=True):
                yield from _entry(found["name"], kind, digest)
        else:
            yield from _sum(line, heading)


def _sum(line: str, heading: str | None) -> Iterator[tuple[str | None, Checksum]]:
    """The checksum in a line of any other form, of which ``heading`` tells the kind
    where it does not itself."""
    found = _RELEASE.fullmatch(line) if heading else None
    if found is None:
        forms = (form.fullmatch(line.strip()) for form in _FORMS)
        found = next(filter(None, forms), None)
    if found is not None:
        parts = found.groupdict()
        kind = parts.get("kind") or heading
        yield from _entry(parts.get("name"), kind, parts["digest"])


def _entry(
    name: str | None, kind: str | None, digest: str
) -> Iterator[tuple[str | None, Checksum]]:
    algorithm = _BY_LENGTH.get(len(digest))
    if algorithm is None or (kind and _KINDS.get(kind.lower()) != algorithm):
        return  # of another kind
    name = name.rpartition("/")[2] if name else None
    yield name, Checksum(algorithm, digest.lower())


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
