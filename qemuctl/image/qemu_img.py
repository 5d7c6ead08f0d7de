"""The one gateway to qemu-img."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from qemuctl.errors import HostError, ImageError
from qemuctl.paths import blocking_folder

_TIMEOUT = 60.0


def run(*arguments: str | Path) -> str:
    """Runs qemu-img and gives its standard output.

    Raises HostError when there is no qemu-img, ImageError with its command
    line and its own words when it fails.
    """
    program = shutil.which("qemu-img")
    if program is None:
        raise HostError(
            "qemu-img is not installed", hint="sudo apt-get install qemu-utils"
        )
    argv = [program, *map(str, arguments)]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT,
            check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ImageError(
            f"qemu-img {arguments[0]} took longer than {_TIMEOUT:g} s", argv=argv
        ) from error
    if done.returncode != 0:
        words = done.stderr.strip().removeprefix("qemu-img: ")
        raise ImageError(
            f"qemu-img {arguments[0]} failed: {words}",
            argv=argv,
            returncode=done.returncode,
            stderr=done.stderr,
        )
    return done.stdout


def create(path: Path, format: str, size: int) -> None:
    """Makes an empty image of ``size`` bytes; never over an existing file.

    Raises ImageError when the path exists, as `run` does otherwise.
    """
    if path.exists():
        raise ImageError(f"there is a file already: {path}")
    # qemu-img parses "a:b" as a protocol unless the path is marked as a file.
    run("create", "-q", "-f", format, f"file:{path}", str(size))


def info(path: Path, format: str) -> dict[str, Any]:
    """What qemu-img knows of one image, read as the format that is named.

    Raises ImageError: also when the file is not of that format.
    """
    text = run("info", "--output=json", "--force-share", "-f", format, f"file:{path}")
    return dict(json.loads(text))


def check_readable(path: Path, what: str) -> None:
    """Raises ImageError, naming what bars the way, unless a file can be read."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except FileNotFoundError as error:
        raise ImageError(
            f"{what} does not exist: {path}", hint=blocking_folder(path)
        ) from error
    except OSError as error:
        raise ImageError(
            f"cannot read {what}: {path}: {error.strerror}",
            hint=blocking_folder(path),
        ) from error
