"""Is a qcow2 file all there? A look at its tables, not at its data.

What lies behind the end of a file QEMU reads as zeros, so that an image that was cut
short would become a disk with holes, and nobody would be told.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import struct
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from qemuctl.errors import ImageError
from qemuctl.image.check import check
from qemuctl.image.qcow2 import open_image, read_header
from qemuctl.structs import Struct

# The places in the header, docs/interop/qcow2.txt; a file of version 2 has no order
# of reference counts, and 16 bits for each.
_L1, _REFCOUNTS, _ORDER = (36, ">IQ"), (48, ">QI"), (96, ">I")
_ORDER_OF_V2 = 4
_OFFSET = 0x00FF_FFFF_FFFF_FE00  # of a table, without the flags
_CHUNK = 1 << 20
# An image has one block of counts beyond its end, if any; a hostile one has many.
_BLOCKS = 16


async def check_complete(path: Path) -> None:
    """Looks whether a qcow2 file ends before what is in it, as after a copy that was
    cut short; fast also for a large one.

    Less than the last cluster may be missing unseen. Opens no backing file. Raises
    ImageError, also for a file that QEMU has marked as corrupt; ImageInUse while a
    VM runs on it and its tables leave doubts.
    """
    doubtful = await asyncio.to_thread(_look, path)
    # A crash can leave clusters that are counted, and were never written nor used.
    if doubtful and (await check(path, "qcow2")).corruptions:
        raise _cut(path)


def _look(path: Path) -> bool:
    """Whether clusters are counted behind the end; raises ImageError for a table."""
    header = read_header(path)
    if header.corrupt:
        raise ImageError(
            f"the image is marked as corrupt: {path}",
            hint=f"qemuctl image check --repair {path}",
        )
    with open_image(path) as file:
        size = file.seek(0, os.SEEK_END)
        tables = _Tables(path, file, size, header.version, header.cluster_size)
        tables.check_offsets()
        # With the data in another file, this one has no more than tables.
        return header.data_file is None and tables.counts_beyond()


class _Tables(Struct, kw_only=False):
    path: Path
    file: BinaryIO
    size: int
    version: int
    cluster: int

    def check_offsets(self) -> None:
        """Raises ImageError unless all tables that the first ones name are there."""
        for offset in itertools.chain(self._l1(), self._refcounts()):
            if offset and offset + self.cluster > self.size:
                raise _cut(self.path)

    def counts_beyond(self) -> bool:
        """Whether a cluster that begins behind the end of the file is in use."""
        order = self._number(_ORDER)[0] if self.version > 2 else _ORDER_OF_V2
        counted = (self.cluster * 8) >> order  # clusters in a block of counts
        first = -(-self.size // self.cluster)
        begin = first // counted
        blocks = [
            (number, offset)
            for number, offset in enumerate(self._refcounts())
            if number >= begin and offset
        ]
        for number, offset in blocks[:_BLOCKS]:
            before = (first % counted) << order if number == begin else 0
            counts = self._at(offset + before // 8, self.cluster - before // 8)
            # Counts of less than a byte begin at its lowest bit.
            if counts[0] >> before % 8 or any(counts[1:]):
                return True
        return False

    def _l1(self) -> Iterator[int]:
        entries, offset = self._number(_L1)
        return self._entries(offset, entries * 8)

    def _refcounts(self) -> Iterator[int]:
        offset, clusters = self._number(_REFCOUNTS)
        return self._entries(offset, clusters * self.cluster)

    def _number(self, field: tuple[int, str]) -> tuple[int, ...]:
        at, kind = field
        return struct.unpack(kind, self._at(at, struct.calcsize(kind)))

    def _entries(self, offset: int, length: int) -> Iterator[int]:
        for start in range(offset, offset + length, _CHUNK):
            table = array("Q", self._at(start, min(_CHUNK, offset + length - start)))
            if sys.byteorder == "little":
                table.byteswap()
            yield from (entry & _OFFSET for entry in table)

    def _at(self, offset: int, length: int) -> bytes:
        found = b""
        if offset + length <= self.size:
            found = os.pread(self.file.fileno(), length, offset)
        if len(found) < length:
            raise _cut(self.path)
        return found


def _cut(path: Path) -> ImageError:
    return ImageError(
        f"the image is cut short, its file ends before what is in it: {path}",
        hint="copy or download it again",
    )
