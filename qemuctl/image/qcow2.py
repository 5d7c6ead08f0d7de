"""The header of a qcow2 file, read without QEMU and without opening any other file.

Stands on QEMU's docs/interop/qcow2.txt and on the limits of its block/qcow2.c.
The file may be hostile: every length in it is held against a bound before
anything is read, and at most one cluster (2 MiB) is in memory at a time.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from pathlib import Path
from typing import BinaryIO, NoReturn

from qemuctl.errors import ImageError
from qemuctl.paths import blocking_folder
from qemuctl.structs import Struct

MAGIC = b"QFI\xfb"

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_DIRTY, _CORRUPT, _DATA_FILE, _EXTENDED_L2 = 1 << 0, 1 << 1, 1 << 2, 1 << 4
_KNOWN_FEATURES = (1 << 5) - 1

_END, _BACKING_FORMAT, _DATA_FILE_NAME = 0, 0xE2792ACA, 0x44415441
_LONGEST_NAME = 1023
_LONGEST_FORMAT = 15  # BlockDriverState.backing_format holds 16 bytes

# QEMU ends a name at a NUL, so that two readers would see two names; and nobody
# should have a terminal driven by what a file says.
_UNSEEMLY = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")

_L1_BYTES = 32 << 20  # QCOW_MAX_L1_SIZE
_REFCOUNT_BYTES = 8 << 20  # QCOW_MAX_REFTABLE_SIZE
_SNAPSHOTS = 65536  # QCOW_MAX_SNAPSHOTS
_LARGEST = 2**63 - 1
_CHUNK = 1 << 20


class Header(Struct, kw_only=False):
    """What a qcow2 file says of itself; sizes in bytes.

    ``data_file`` is the name of an external data file, empty when the file
    needs one and does not say which. ``untouched``: its L1 table maps nothing,
    and there are no snapshots, so no data was ever written to it.
    """

    version: int
    virtual_size: int
    cluster_size: int
    backing_file: str | None
    backing_format: str | None
    data_file: str | None
    encrypted: bool
    dirty: bool
    corrupt: bool
    snapshots: int
    untouched: bool


def is_qcow2(path: Path) -> bool:
    """Whether a file begins as qcow2 does. Raises ImageError if it cannot be read."""
    with open_image(path) as file:
        return file.read(len(MAGIC)) == MAGIC


def read_header(path: Path) -> Header:
    """The header of a qcow2 file.

    Raises ImageError when the file cannot be read, is not qcow2, is cut short,
    or says what makes no sense.
    """
    with open_image(path) as file:
        return _Reader(path, file).header()


def open_image(path: Path) -> BinaryIO:
    """Opens a regular file or block device; raises ImageError for anything else.

    A name in a backing chain may be that of a pipe, whose open would wait.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError as error:
        raise ImageError(
            f"the disk image does not exist: {path}", hint=blocking_folder(path)
        ) from error
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or error
        raise ImageError(
            f"cannot read the disk image: {path}: {words}", hint=blocking_folder(path)
        ) from error
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        os.close(fd)
        raise ImageError(f"not a file: {path}")
    return os.fdopen(fd, "rb", buffering=0)


class _Reader(Struct, kw_only=False):
    """One file that is being read; each method raises ImageError."""

    path: Path
    file: BinaryIO

    def header(self) -> Header:
        fixed = self._at(0, _V2.size, "its header")
        (
            magic, version, backing_offset, backing_size, cluster_bits, size, crypt,
            l1_size, l1_offset, refcount_offset, refcount_clusters, snapshots,
            snapshots_offset,
        ) = _V2.unpack(fixed)  # fmt: skip
        if magic != MAGIC:
            raise ImageError(f"not a qcow2 image: {self.path}")
        if version not in (2, 3):
            self._nonsense(f"version {version}")
        if not 9 <= cluster_bits <= 21:
            self._nonsense(f"clusters of 2^{cluster_bits} bytes")
        cluster = 1 << cluster_bits
        features, length = self._features(version, cluster)
        self._check_table("refcount table", refcount_offset, cluster)
        if refcount_clusters * cluster > _REFCOUNT_BYTES:
            self._nonsense(f"a refcount table of {refcount_clusters} clusters")
        self._check_table("snapshot table", snapshots_offset, cluster)
        if snapshots > _SNAPSHOTS:
            self._nonsense(f"{snapshots} snapshots")
        self._check_l1(size, l1_size, cluster_bits, bool(features & _EXTENDED_L2))
        self._check_table("L1 table", l1_offset, cluster)
        names = self._extensions(length, backing_offset, cluster)
        return Header(
            version=version,
            virtual_size=size,
            cluster_size=cluster,
            backing_file=self._backing(backing_offset, backing_size, cluster),
            backing_format=names.get(_BACKING_FORMAT),
            data_file=names.get(_DATA_FILE_NAME, "") if features & _DATA_FILE else None,
            encrypted=crypt != 0,
            dirty=bool(features & _DIRTY),
            corrupt=bool(features & _CORRUPT),
            snapshots=snapshots,
            untouched=self._maps_nothing(l1_offset, l1_size * 8) and snapshots == 0,
        )

    def _features(self, version: int, cluster: int) -> tuple[int, int]:
        """The incompatible features, and how long the fixed header is."""
        if version == 2:
            return 0, _V2.size
        more = self._at(_V2.size, _V3.size, "its header")
        features, _, _, refcount_order, length = _V3.unpack(more)
        if features & ~_KNOWN_FEATURES:
            self._nonsense(f"unknown features: {features & ~_KNOWN_FEATURES:#x}")
        if not _V2.size + _V3.size <= length <= cluster:
            self._nonsense(f"a header of {length} bytes")
        if refcount_order > 6:
            self._nonsense(f"reference counts of 2^{refcount_order} bits")
        return features, length

    def _check_table(self, what: str, offset: int, cluster: int) -> None:
        if offset % cluster or offset > _LARGEST:
            self._nonsense(f"its {what} at {offset}")

    def _check_l1(
        self, size: int, entries: int, cluster_bits: int, extended: bool
    ) -> None:
        if entries * 8 > _L1_BYTES:
            self._nonsense(f"an L1 table of {entries} entries")
        # An L2 table fills one cluster with entries of 8 bytes, or 16 if extended.
        mapped = 2 * cluster_bits - (4 if extended else 3)
        if size > _LARGEST or entries < -(-size >> mapped):
            self._nonsense(f"an L1 table of {entries} entries for {size} bytes")

    def _extensions(self, start: int, backing: int, cluster: int) -> dict[int, str]:
        """The header extensions that are names, by their type."""
        if backing > cluster:
            self._nonsense(f"the name of its backing file at {backing}")
        end = backing or cluster
        # Shorter when the file is; what follows the end then counts as zeros.
        area = self._upto(start, max(0, end - start))
        found: dict[int, str] = {}
        offset = 0
        while start + offset < end:
            head = area[offset : offset + 8].ljust(8, b"\0")
            kind, length = struct.unpack(">II", head)
            offset += 8
            if kind == _END:
                break
            if length > end - start - offset:
                self._nonsense(f"a header extension of {length} bytes")
            if kind in (_BACKING_FORMAT, _DATA_FILE_NAME):
                longest = _LONGEST_FORMAT if kind == _BACKING_FORMAT else _LONGEST_NAME
                if length > longest:
                    self._nonsense(f"a name of {length} bytes")
                found[kind] = self._name(area[offset : offset + length], length)
            offset += (length + 7) & ~7
        return found

    def _backing(self, offset: int, length: int, cluster: int) -> str | None:
        if offset == 0:
            return None
        if length > min(_LONGEST_NAME, cluster - offset):
            self._nonsense(f"the name of its backing file has {length} bytes")
        name = self._at(offset, length, "the name of its backing file")
        return self._name(name, length) or None

    def _name(self, raw: bytes, length: int) -> str:
        """A name that means to QEMU what it means to us, and that can be shown."""
        if len(raw) < length:
            self._cut("a name")
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            # QMP and JSON have no way to name such a file.
            self._nonsense("a name that is not UTF-8")
        if _UNSEEMLY.search(name):
            self._nonsense("a name with control characters in it")
        return name

    def _maps_nothing(self, offset: int, length: int) -> bool:
        while length > 0:
            part = self._at(offset, min(length, _CHUNK), "its L1 table")
            if any(part):
                return False
            offset, length = offset + len(part), length - len(part)
        return True

    def _at(self, offset: int, length: int, what: str) -> bytes:
        found = self._upto(offset, length)
        if len(found) < length:
            self._cut(what)
        return found

    def _upto(self, offset: int, length: int) -> bytes:
        parts = []
        try:
            # Past the largest file that there can be, a seek itself would fail.
            if offset >= self.file.seek(0, os.SEEK_END):
                return b""
            self.file.seek(offset)
            while length > 0 and (part := self.file.read(length)):
                parts.append(part)
                length -= len(part)
        except OSError as error:
            raise ImageError(
                f"cannot read the image: {self.path}: {error.strerror}"
            ) from error
        return b"".join(parts)

    def _cut(self, what: str) -> NoReturn:
        raise ImageError(f"the qcow2 image ends before {what} does: {self.path}")

    def _nonsense(self, what: str) -> NoReturn:
        raise ImageError(f"not a usable qcow2 image, it has {what}: {self.path}")
