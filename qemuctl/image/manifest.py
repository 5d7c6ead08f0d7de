"""What an image is: the file ``image.yaml`` in its folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import yaml

from qemuctl import spec
from qemuctl.errors import ImageError, SpecError
from qemuctl.spec.base import Model
from qemuctl.spec.document import read_document
from qemuctl.spec.scalars import Argument, Size, Text
from qemuctl.thread import Tick
from qemuctl.typed.faults import Wrong
from qemuctl.typed.marks import setting

FILE = "image.yaml"
STEP = 1024 * 1024
Format = Literal["qcow2", "raw"]


class Manifest(Model):
    """All that is known of an image beside its files; sizes in bytes.

    ``format`` is that of its disk; an image without a disk, only a kernel and
    an initrd, has none. ``sha256`` is that of the disk's file, ``files`` has
    those of the files beside it, ``recipe`` is the hash of what it was built from.
    """

    source: Text | None = setting(default=None, description="where it came from")
    created: Text | None = setting(default=None, description="UTC, ISO 8601")
    arch: Literal["x86_64"] = "x86_64"
    format: Format | None = None
    virtual_size: Size | None = None
    sha256: Text | None = None
    source_sha256: Text | None = setting(
        default=None, description="that of what was downloaded, where it was converted"
    )
    files: dict[Text, Text] = setting(
        default_factory=dict, description="SHA-256 by a file's name"
    )
    user: Text | None = setting(
        default=None, description="whom cloud-init makes at first boot"
    )
    cloud_init: bool = False
    cmdline: Argument | None = None
    cmdline_microvm: Argument | None = None
    memory: Size | None = setting(
        default=None, description="the least that it boots with"
    )
    recipe: Text | None = None


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file. Raises ImageError, with what is wrong and where."""
    try:
        document = read_document(path.read_bytes(), str(path))
        try:
            return Manifest.model_read(document.data)
        except Wrong as wrong:
            raise spec.spec_error(
                wrong, document.data, source=str(path), lines=document.lines
            ) from wrong
    except OSError as error:
        raise ImageError(
            f"the image's description cannot be read: {path}: {error.strerror}"
        ) from error
    except SpecError as error:
        raise ImageError(
            f"the image's description is damaged: {error.message}"
        ) from error


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes the manifest where there is none yet."""
    data = manifest.model_dump(exclude_defaults=True)
    with path.open("x", encoding="ascii") as file:
        # PyYAML leaves U+0085 as it is, if it is let, and reads it as a newline.
        yaml.safe_dump(data, file, sort_keys=False, allow_unicode=False)


def sums_beside(disk: Path, tick: Tick = lambda: None) -> dict[str, str]:
    """The SHA-256 of each file beside an image's disk, by its name."""
    return {
        path.name: sha256_of(path, tick)
        for path in sorted(disk.parent.iterdir())
        if path.is_file() and path.name not in (disk.name, FILE)
    }


def sha256_of(
    path: Path, tick: Tick = lambda: None, *, algorithm: str = "sha256"
) -> str:
    """The SHA-256 of a file, in hexadecimal, or another of hashlib's digests.

    ``tick`` is called after each `STEP` bytes.
    """
    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while part := file.read(STEP):
            digest.update(part)
            tick()
    return digest.hexdigest()
