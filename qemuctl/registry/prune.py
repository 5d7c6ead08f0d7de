"""What takes room and nobody needs."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from qemuctl.errors import ImageError
from qemuctl.image import part, store, tiny
from qemuctl.image.acquire import downloads
from qemuctl.paths import cache_home
from qemuctl.registry.file_users import needing
from qemuctl.structs import Struct

_DOWNLOAD = "broken download"
_LEFT = "half of an image"
_OLD = "old tiny image"
_UNUSED = "unused image"


class Item(Struct, kw_only=False):
    """Something to remove: ``what`` it is in words, ``used`` the room it takes, in
    bytes. A download has several files; its ``path`` is that of the largest."""

    path: Path
    used: int
    what: str = _LEFT


def to_prune(*, unused: bool = False) -> list[Item]:
    """Broken downloads, what crashes left, and tiny images of other recipes.

    With ``unused`` also the images that no VM and no kept disk needs.
    """
    found = [Item(path, _used(path)) for path in store.leftovers()]
    found += _downloads()
    found += _tiny()
    if unused:
        found += [Item(path, _used(path), _UNUSED) for path in _unneeded()]
    return found


def prune(items: list[Item]) -> list[Item]:
    """Removes what `to_prune` found; gives what was removed, for in the meantime a
    pull may have taken up a broken download."""
    return [item for item in items if _remove(item)]


def _remove(item: Item) -> bool:
    if item.what == _DOWNLOAD:
        return part.discard(item.path.with_suffix(".lock"))
    if item.what == _UNUSED:
        with contextlib.suppress(ImageError):  # somebody else was faster
            store.remove(item.path.name)
    else:
        store.discard(item.path)
    return not item.path.exists()


def _downloads() -> Iterator[Item]:
    """What downloads have left, but for those that are going on."""
    for files in part.broken(downloads()).values():
        largest = max(files, key=_used)
        yield Item(largest, sum(map(_used, files)), _DOWNLOAD)


def _tiny() -> Iterator[Item]:
    """Tiny images that no VM would boot from now, and halves of them."""
    made = cache_home() / "images"
    current = tiny().folder
    for folder in sorted(made.glob(f"{store.TINY}-*")):
        if folder != current and not needing(folder):
            yield Item(folder, _used(folder), _OLD)
    halves = store.leftovers(made)
    with contextlib.suppress(FileNotFoundError), (made / ".lock").open("rb") as lock:
        with contextlib.suppress(BlockingIOError):  # one is being built
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            halves += sorted(made.glob(".building-*"))
    yield from (Item(path, _used(path)) for path in halves)


def _unneeded() -> Iterator[Path]:
    for name in store.names():
        with contextlib.suppress(ImageError):  # removed in this moment
            folder = store.folder_of(name)
            if not needing(folder):
                yield folder


def _used(path: Path) -> int:
    used = 0
    for file in [path] if path.is_file() else path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # gone in this moment
            used += os.lstat(file).st_blocks * 512
    return used
