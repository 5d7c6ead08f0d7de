"""Unpacking a tar that a stranger made.

Nothing of it may lie outside its folder, or lead there. Every name is walked
folder by folder and never through a link; nothing is replaced; links come last,
so that nothing can be written through one, and point only to what is inside.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import IO, BinaryIO, Self

from qemuctl import tars
from qemuctl.guest.conversation import CHUNK, CopyError
from qemuctl.guest.copy import md5, within_umask
from qemuctl.tars import refused
from qemuctl.thread import Tick

Parts = tuple[str, ...]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Whoever goes through the tree afterwards does so by paths, and recursively.
_PATH_MAX = 4096
_DEEPEST = 256


def unpack(archive: BinaryIO, folder: Path, tick: Tick) -> dict[str, str]:
    """Unpacks a tar as ``folder``, which is made; gives each file's MD5 sum by name.

    Modes (but set-user-ID and its like) and times are kept; hard links stay so.
    ``tick`` is called often. Raises CopyError for what is no tar, for one that
    is cut off, and for members that are not files, folders or links, reach or
    lead outside, come twice or before their folder; OSError of the host's.
    """
    folder.mkdir(mode=0o700)
    root = os.open(folder, _FOLDER)
    try:
        with tars.opened(archive) as tar:
            tree = _Tree(root, len(os.fsencode(folder)))
            for head in tars.members(tar):
                tick()
                tree.add(tar, head, tick)
            # tarfile takes a damaged head for the end.
            archive.seek(tar.offset)
            if archive.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("its tar is cut off or damaged")
        tree.finish(tick)
        return tree.sums
    except (tarfile.TarError, ValueError, ArithmeticError, RecursionError) as error:
        raise CopyError(f"{_NOT_COPIED}: {error}") from error
    finally:
        os.close(root)


@dataclass(frozen=True, slots=True)
class _Later:
    """What is kept of a head that has its turn at the end. ``name`` is in its
    shortest form, and empty for the folder itself."""

    name: str
    linkname: str
    mode: int
    mtime: float

    @classmethod
    def of(cls, parts: Parts, head: tarfile.TarInfo) -> Self:
        return cls("/".join(parts), head.linkname, head.mode, head.mtime)

    @property
    def parts(self) -> Parts:
        return tuple(_steps(self.name))


_Head = tarfile.TarInfo | _Later


@dataclass
class _Tree:
    """What is there by now, and what is made at the end."""

    root: int
    prefix: int
    sums: dict[str, str] = field(default_factory=dict)
    folders: list[_Later] = field(default_factory=list)
    links: list[_Later] = field(default_factory=list)

    def add(self, tar: tarfile.TarFile, head: tarfile.TarInfo, tick: Tick) -> None:
        parts = self._parts(head.name)
        if head.issym():
            if not _inside(parts, head.linkname):
                raise refused(head.name, f"a link to outside: {head.linkname!r}")
            self.links.append(_Later.of(parts, head))
        elif head.isdir():
            self.folders.append(_Later.of(parts, head))
            if parts:
                with self._folder_of(parts, head) as at:
                    os.mkdir(parts[-1], 0o700, dir_fd=at)
        elif head.islnk() and parts:
            self._hard_link(parts, head)
        elif head.isreg() and parts and not head.issparse():
            source = tar.extractfile(head)
            assert source is not None
            with source, self._folder_of(parts, head) as at:
                self.sums["/".join(parts)] = _write(at, parts[-1], head, source, tick)
        else:
            raise refused(head.name, "neither a file, a folder nor a link")

    def finish(self, tick: Tick) -> None:
        """Makes the links; then the folders' own modes, the innermost first."""
        for link in self.links:
            tick()
            parts = link.parts
            with self._folder_of(parts, link) as at:
                os.symlink(link.linkname, parts[-1], dir_fd=at)
                times = (link.mtime, link.mtime)
                os.utime(parts[-1], times, dir_fd=at, follow_symlinks=False)
        self.folders.sort(key=lambda one: -len(one.name))
        for folder in self.folders:
            tick()
            with self._opened(folder.parts) as at:
                _settle(at, folder)

    def _hard_link(self, parts: Parts, head: tarfile.TarInfo) -> None:
        first = self._parts(head.linkname)
        if "/".join(first) not in self.sums:
            raise refused(head.name, f"a link to what is not there: {head.linkname!r}")
        with self._opened(first[:-1]) as there, self._folder_of(parts, head) as at:
            os.link(
                first[-1], parts[-1],
                src_dir_fd=there, dst_dir_fd=at, follow_symlinks=False,
            )  # fmt: skip
        self.sums["/".join(parts)] = self.sums["/".join(first)]

    def _parts(self, name: str) -> Parts:
        parts = tuple(_steps(name))
        if name.startswith("/") or ".." in parts:
            raise refused(name, "it lies outside")
        long = self.prefix + 1 + len(os.fsencode(name)) >= _PATH_MAX
        if long or len(parts) > _DEEPEST:
            raise refused(f"{name[:60]}…", "the name is too long")
        return parts

    @contextlib.contextmanager
    def _folder_of(self, parts: Parts, head: _Head) -> Iterator[int]:
        """The folder to make a member in. Raises CopyError, also when it is there."""
        try:
            with self._opened(parts[:-1]) as at:
                yield at
        except FileExistsError as error:
            raise refused(head.name, "it is there twice") from error
        except (FileNotFoundError, NotADirectoryError) as error:
            raise refused(head.name, "it is in no folder") from error

    @contextlib.contextmanager
    def _opened(self, parts: Sequence[str]) -> Iterator[int]:
        """A folder of the tree, reached through folders alone."""
        at = os.dup(self.root)
        try:
            for part in parts:
                below = os.open(part, _FOLDER, dir_fd=at)
                os.close(at)
                at = below
            yield at
        finally:
            os.close(at)


def _write(
    at: int, name: str, head: tarfile.TarInfo, source: IO[bytes], tick: Tick
) -> str:
    """Makes one file; gives its sum."""
    sum_ = md5()
    with os.fdopen(os.open(name, _NEW_FILE, 0o600, dir_fd=at), "wb") as file:
        while chunk := source.read(CHUNK):
            tick()
            file.write(chunk)
            sum_.update(chunk)
        file.flush()
        _settle(file.fileno(), head)
    return sum_.hexdigest()


def _settle(fd: int, head: _Head) -> None:
    os.utime(fd, (head.mtime, head.mtime))
    os.fchmod(fd, within_umask(head.mode))


def _inside(parts: Parts, target: str) -> bool:
    """Whether a link leads to the inside, also by way of other such links.

    ``..`` may only be at its start: there it leaves a folder, not a link.
    """
    steps = _steps(target)
    up = len(list(takewhile("..".__eq__, steps)))
    is_relative = target != "" and not target.startswith("/")
    return is_relative and up < len(parts) and ".." not in steps[up:]


def _steps(path: str) -> list[str]:
    return [step for step in path.split("/") if step not in ("", ".")]


_NOT_COPIED = "the guest's folder holds what is not copied"
