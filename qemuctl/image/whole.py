"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from qemuctl.durable import sync
from qemuctl.errors import ImageError, QemuctlError
from qemuctl.paths import blocking_folder
from qemuctl.process.working import idle, try_lock

_PREFIX, _SUFFIX, _LOCK = ".qemuctl-", ".new", ".lock"
_OURS = re.compile(r"\.qemuctl-[0-9a-f]{16}\.lock")
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def whole(path: Path, *, replace: bool = False, durable: bool = True) -> Iterator[Path]:
    """A name to make a file under, which then takes the place of ``path``.

    The name is beside ``path`` and this process's own; nothing has it yet. When
    the block ends with an exception, what was made is removed and ``path`` is as
    it was. A link that is replaced stays a link: the file behind it is replaced,
    with the mode that it had. Unless ``durable`` is False, the content and the
    name are on the disk at the end: a power cut leaves the old or the new.

    Raises ImageError when ``path`` exists, unless ``replace``, when it is something
    else than a file, and when its folder cannot be written to. Of what the block
    raises, a want of room becomes an ImageError, and all errors name ``path``.
    """
    path = Path(os.path.realpath(path)) if replace else path.absolute()
    _check_free(path, replace)
    with _fresh(path.parent, path) as fresh, _removing(fresh), _naming(path, fresh):
        yield fresh
        try:
            if durable:
                sync(fresh)
            _settle(fresh, path, replace)
            if durable:
                sync(path.parent)
        except OSError as error:
            raise _cannot(path, error) from error


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A new folder in another, for what a file is made from; it goes with the block.

    What a killed process left is removed by whoever makes the next file or folder
    there. Raises ImageError when it cannot be made.
    """
    with _fresh(folder, folder) as fresh:
        try:
            fresh.mkdir(mode=0o700)
        except OSError as error:
            raise _cannot(folder, error) from error
        try:
            yield fresh
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


@contextlib.contextmanager
def _fresh(folder: Path, path: Path) -> Iterator[Path]:
    """A name that is nobody's in a folder, for the block; beside it is a file whose
    lock shows to `sweep` that somebody is at work."""
    sweep(folder)
    fd = None
    try:
        while fd is None:  # another may take it for one that was left
            fd = try_lock(lock := _lock_in(folder))
    except OSError as error:
        # On a file system without locks nothing is swept.
        if error.errno not in _NO_LOCKS:
            raise _cannot(path, error) from error
    try:
        yield lock.with_suffix(_SUFFIX)
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
        if fd is not None:
            os.close(fd)


def _lock_in(folder: Path) -> Path:
    return folder / f"{_PREFIX}{os.urandom(8).hex()}{_LOCK}"


@contextlib.contextmanager
def _removing(fresh: Path) -> Iterator[None]:
    try:
        yield
    finally:
        # A folder that vanished or became unwritable hides no other error.
        with contextlib.suppress(OSError):
            fresh.unlink()


@contextlib.contextmanager
def _naming(path: Path, fresh: Path) -> Iterator[None]:
    """Errors name the file that is wanted, not the one that is gone by then."""
    try:
        yield
    except QemuctlError as error:
        error.message = error.message.replace(fresh.name, path.name)
        raise
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise _cannot(path, error) from error
        raise


def _cannot(path: Path, error: OSError) -> ImageError:
    if error.errno in _NO_ROOM:
        return ImageError(f"no room left to write {path.name}: {path.parent}")
    words = error.strerror or str(error)
    return ImageError(f"cannot write {path}: {words[:1].lower()}{words[1:]}")


def _check_free(path: Path, replace: bool) -> None:
    # Not Path.is_dir, which raises where a folder does not let us in.
    if not os.path.isdir(path.parent):  # noqa: PTH112
        raise ImageError(f"no such folder: {path.parent}", hint=blocking_folder(path))
    if os.path.lexists(path):
        if not replace:
            raise _taken(path)
        if not path.is_file():
            raise ImageError(f"not a file, so it is not replaced: {path}")


def _settle(fresh: Path, path: Path, replace: bool) -> None:
    if replace:
        with contextlib.suppress(FileNotFoundError):
            fresh.chmod(path.stat().st_mode & 0o7777)
        fresh.rename(path)
        return
    try:
        # Unlike a rename, a link never takes the place of anything.
        os.link(fresh, path)
    except FileExistsError:
        raise _taken(path) from None
    except OSError:  # not every file system has hard links
        if os.path.lexists(path):
            raise _taken(path) from None
        fresh.rename(path)


def _taken(path: Path) -> ImageError:
    return ImageError(f"there is a file already: {path}")


def sweep(folder: Path) -> None:
    """Removes what processes that have ended had begun in a folder."""
    for lock in folder.glob(f"{_PREFIX}*{_LOCK}"):
        if _OURS.fullmatch(lock.name):
            with idle(lock) as free:
                if free:
                    _remove(lock.with_suffix(_SUFFIX))
                    _remove(lock)


def _remove(stale: Path) -> None:
    if stale.is_dir() and not stale.is_symlink():
        shutil.rmtree(stale, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        stale.unlink()
