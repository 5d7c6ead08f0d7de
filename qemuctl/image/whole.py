"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from qemuctl.errors import ImageError
from qemuctl.paths import blocking_folder
from qemuctl.process import Identity

_PREFIX, _SUFFIX = ".qemuctl-", ".new"
_numbers = itertools.count()


@contextlib.contextmanager
def whole(path: Path, *, replace: bool = False, durable: bool = True) -> Iterator[Path]:
    """A name to make a file under, which then takes the place of ``path``.

    The name is beside ``path`` and this process's own; nothing has it yet. When
    the block ends with an exception, what was made is removed and ``path`` is as
    it was. A link that is replaced stays a link: the file behind it is replaced,
    with the mode that it had. Unless ``durable`` is False, the content and the
    name are on the disk at the end: a power cut leaves the old or the new.

    Raises ImageError when ``path`` exists, unless ``replace``, and when it is
    something else than a file.
    """
    path = Path(os.path.realpath(path)) if replace else path.absolute()
    _check_free(path, replace)
    _sweep(path.parent)
    fresh = path.with_name(f"{_own_prefix()}{next(_numbers)}{_SUFFIX}")
    try:
        yield fresh
        try:
            if durable:
                _sync(fresh)
            _settle(fresh, path, replace)
            if durable:
                _sync(path.parent)
        except OSError as error:
            raise ImageError(f"cannot write: {path}: {error.strerror}") from error
    finally:
        # A folder that vanished or became unwritable hides no other error.
        with contextlib.suppress(OSError):
            fresh.unlink()


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


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@functools.cache
def _here() -> str:
    """Names this host and its process numbers: in a shared folder, a process of
    another host or container must not be taken for a dead one of ours."""
    namespace = Path("/proc/self/ns/pid")
    known = f"{os.uname().nodename} {namespace.readlink()}"
    return f"{zlib.crc32(known.encode()):08x}"


def _own_prefix() -> str:
    own = Identity.of(os.getpid())
    ticks = own.start_ticks if own else 0
    return f"{_PREFIX}{_here()}-{os.getpid()}-{ticks}-"


def _sweep(folder: Path) -> None:
    """Removes what dead processes of this host had begun in a folder."""
    for stale in folder.glob(f"{_PREFIX}{_here()}-*{_SUFFIX}"):
        pid, ticks, _ = stale.name.removeprefix(_PREFIX).split("-", 1)[1].split("-", 2)
        if not (pid.isdecimal() and ticks.isdecimal()):
            continue
        living = Identity.of(int(pid))
        if living is None or living.start_ticks != int(ticks):
            with contextlib.suppress(OSError):
                stale.unlink()
