"""Guests that are booted once for all tests of a run, and restored for each of them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.guest.conftest import Home


class Boots:
    """The folders of VMs whose guests were saved, which all workers share.

    ``folder`` is theirs; ``make_home`` makes an empty home at a path.
    """

    def __init__(self, folder: Path, make_home: Callable[[Path], Home]) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._make_home = make_home

    def copy(self, name: str, arguments: tuple[str, ...], to: Path) -> None:
        """Puts the VM that `create NAME ARGUMENTS` makes at the folder ``to``, with its
        guest saved when its agent answered."""
        digest = hashlib.sha256(json.dumps([name, *arguments]).encode()).hexdigest()
        home = self._folder / digest[:12]
        with (self._folder / f"{digest[:12]}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            saved = home / "state/vms" / name
            if not (saved / "saved.state").exists():
                shutil.rmtree(home, ignore_errors=True)  # of a test that failed
                here = self._make_home(home)
                here.run("create", name, "--image", "tiny", *arguments)
                here.run("start", name, "--wait")
                here.run("save", name)
        shutil.copytree(saved, to, symlinks=True, copy_function=_copy)


def _copy(source: str, target: str) -> None:
    """The state is never written to, and removed when the guest goes on."""
    if Path(source).name == "saved.state":
        os.link(source, target)
    else:
        shutil.copy2(source, target)
