"""Is an image sound: `qemu-img check`."""

from __future__ import annotations

import json
from pathlib import Path

from qemuctl.errors import UsageError
from qemuctl.image import qemu_img
from qemuctl.image.chain import refuse_data_file
from qemuctl.image.limits import LOOK
from qemuctl.structs import Struct


class Check(Struct, kw_only=False):
    """What a check found, and what was repaired of it, in clusters.

    ``leaks`` waste room and harm nothing; ``corruptions`` are or will be wrong
    data; ``errors`` is what could not be checked. They count what is left.
    """

    leaks: int
    corruptions: int
    errors: int
    leaks_fixed: int
    corruptions_fixed: int

    @property
    def clean(self) -> bool:
        """Whether nothing is left to complain of."""
        return not (self.leaks or self.corruptions or self.errors)


async def check(path: Path, format: str, *, repair: bool = False) -> Check:
    """Checks the reference counts of an image, and with ``repair`` puts them right.

    Repairing writes to the file, and a wrong fix can hide damage. Opens no
    backing file. Raises UsageError for a raw image, which has nothing to check;
    ImageInUse while a VM runs on it; ImageError when it cannot be opened at all,
    or when a damaged one takes too long to check.
    """
    if format != "qcow2":
        raise UsageError(
            f"a {format} image has nothing that could be checked: {path}",
            hint="only qcow2 keeps tables of its own",
        )
    refuse_data_file(path)
    text = await qemu_img.job(
        "check", "--output=json", *(["-r", "all"] if repair else []),
        qemu_img.alone(path, format),
        limits=None if repair else LOOK, accept=(0, 2, 3), writes=path,
    )  # fmt: skip
    found = json.loads(text)
    return Check(
        leaks=found.get("leaks", 0),
        corruptions=found.get("corruptions", 0),
        errors=found.get("check-errors", 0),
        leaks_fixed=found.get("leaks-fixed", 0),
        corruptions_fixed=found.get("corruptions-fixed", 0),
    )
