"""Small files that are replaced as a whole, and names and content that are on the disk.

A power cut may lose what was written and not synced, and may keep a rename without the
content of the file. What qemuctl tells as done survives it: the content of a file is
synced before its name, and the folder that has the name after it (fsync(2)). A file
that makes no sense all the same is refused, never taken for one that is not there.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qemuctl.errors import DamagedFile, HostError
from qemuctl.waiting import lock_for_a_moment


def write(path: Path, text: str, *, durable: bool = True) -> None:
    """Puts a text in the place of a file: whoever reads it gets the old or the new.

    It is on the disk at the end, unless ``durable`` is False: for what is of no use
    once the host has gone down. Raises HostError, with the old file in its place.
    """
    with prepared(path, text, durable=durable) as fresh:
        fresh.rename(path)
        if durable:
            sync(path.parent)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """As `write`, for a JSON document."""
    write(path, json.dumps(value, indent=1) + "\n", durable=durable)


@contextlib.contextmanager
def prepared(path: Path, text: str, *, durable: bool = True) -> Iterator[Path]:
    """A new file beside another one, for the block to put in its place: it is this
    writer's own. What a writer that was killed has left is written over.

    Raises HostError, also for an OSError in the block.
    """
    fresh = _fresh(path)
    try:
        fd = _alone(fresh)
        try:
            os.truncate(fd, 0)
            with os.fdopen(os.dup(fd), "w", encoding="utf-8") as file:
                file.write(text)
            if durable:
                os.fsync(fd)
            yield fresh
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from error


@contextlib.contextmanager
def understood(path: Path, hint: str) -> Iterator[None]:
    """For the block, in which ``path`` is read and its content is made sense of.

    Raises DamagedFile with the hint where that fails, FileNotFoundError where there is
    no such file.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(*error.args) from error
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
        raise DamagedFile(path, problem=problem, hint=hint) from error
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RecursionError,
    ) as error:
        raise DamagedFile(path, hint=hint) from error


def move(source: Path, target: Path) -> None:
    """Renames a file or folder whose content is on the disk; so is its new name then.

    Raises OSError, as rename(2) does.
    """
    source.rename(target)
    sync(target.parent)
    if source.parent != target.parent:
        sync(source.parent)


def remove(path: Path) -> None:
    """Removes a file, if it is there; it does not come back after a power cut."""
    _fresh(path).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        sync(path.parent)


def sync(path: Path) -> None:
    """Has the content of a file, or the names in a folder, be on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(folder: Path, tick: Callable[[], None] = lambda: None) -> None:
    """Has a folder be on the disk, with all files and folders in it.

    With disks in it that takes long where it was not done before; ``tick`` is called
    before each file.
    """
    for where, _, files in os.walk(folder, topdown=False):
        for name in files:
            tick()
            path = Path(where, name)
            # Neither a link nor a socket has content.
            if path.is_file() and not path.is_symlink():
                sync(path)
        sync(Path(where))


def _fresh(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def _alone(fresh: Path) -> int:
    """A descriptor of a new file, which no other writer has."""
    while True:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        lock_for_a_moment(fd, str(fresh))  # for as long as it takes to write a page
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), fresh.stat()):
                return fd
        os.close(fd)  # it has taken the place of the other one meanwhile
