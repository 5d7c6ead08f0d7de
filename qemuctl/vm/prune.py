"""What takes room and nobody needs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qemuctl.errors import ImageError
from qemuctl.image import store, tiny
from qemuctl.image.acquire import downloads
from qemuctl.paths import cache_home, images_dir
from qemuctl.vm.users import needing


@dataclass(frozen=True)
class Item:
    """Something to remove; ``used`` is the room it takes, in bytes."""

    path: Path
    used: int


def to_prune(*, unused: bool = False) -> list[Item]:
    """Broken downloads, what crashes left, and tiny images of other recipes.

    With ``unused`` also the images that no VM and no kept disk needs.
    """
    found = [*store.leftovers(), *_downloads(), *_tiny()]
    if unused:
        found += _unused()
    return [Item(path, _used(path)) for path in found]


def prune(items: list[Item]) -> None:
    """Removes what `to_prune` found."""
    for item in items:
        if item.path.is_dir():
            stored = item.path.parent == images_dir()
            if stored and item.path.name in store.names():
                with contextlib.suppress(ImageError):  # somebody else was faster
                    store.remove(item.path.name)
            else:
                shutil.rmtree(item.path, ignore_errors=True)
        else:
            item.path.unlink(missing_ok=True)


def _downloads() -> Iterator[Path]:
    """What downloads have left, but for those that are going on."""
    for lock in sorted(downloads().glob("*.lock")):
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield from sorted(lock.parent.glob(f"{lock.stem}.*"))


def _tiny() -> Iterator[Path]:
    """Tiny images that no VM would boot from now, and halves of them."""
    made = cache_home() / "images"
    current = tiny().folder
    for folder in sorted(made.glob(f"{store.TINY}-*")):
        if folder != current and not needing(folder):
            yield folder
    yield from store.leftovers(made)
    with contextlib.suppress(FileNotFoundError), (made / ".lock").open("rb") as lock:
        with contextlib.suppress(BlockingIOError):  # one is being built
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield from sorted(made.glob(".building-*"))


def _unused() -> Iterator[Path]:
    for name in store.names():
        with contextlib.suppress(ImageError):  # removed in this moment
            folder = store.folder_of(name)
            if not needing(folder):
                yield folder


def _used(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(os.lstat(file).st_blocks for file in files) * 512
