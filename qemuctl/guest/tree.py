"""Copying a folder into the guest or out of it: one tar over the port.

Modes (but set-user-ID and its like), times and symbolic links are kept; what
is neither a file, a folder nor a link is refused. The tree is unpacked beside
its target and takes its place, or joins a folder that is there, when all of
it has arrived. A tar that comes from the guest is a stranger's, and unpacked
with care (`qemuctl.guest.unpack`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import stat
import tarfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

from qemuctl.errors import HostError
from qemuctl.guest.conversation import Conversation, CopyError
from qemuctl.guest.copy import (
    PLACE,
    RECEIVE,
    beside,
    exactly,
    md5,
    opened,
    placed,
    receive,
)
from qemuctl.guest.port import Way
from qemuctl.guest.unpack import unpack
from qemuctl.image.progress import Progress, silent
from qemuctl.peers import at_most
from qemuctl.structs import Struct
from qemuctl.thread import in_thread

_BLOCK = tarfile.BLOCKSIZE
_QUOTED = re.compile(rb"[\n\r\\]")
_SUM = 32  # hexadecimal digits of MD5
# The longest list of sums, in bytes: of some hundred thousand files.
_SUMS = 64 * 1024 * 1024

# After the tar comes a list of the files' sums, as `md5sum -c` takes it. (tar's
# own bytes would have to pass through tee, by which busybox does 10 MB/s.)
_PUT = """
size=$1
place "$2" "$3" tree
[ ! -e "$target" ] || [ -d "$target" ] || die "not a folder: $target"
trap 'rm -rf "$part" "$part.sums"' EXIT
trap 'exit 143' TERM HUP INT
mkdir "$part" || exit 1
echo "$token ready" >&4
receive <&3 | tar -x -p -f - -C "$part" || exit 1
read -r size <&3 || exit 1
receive <&3 >"$part.sums" || exit 1
[ "$(stat -c %s "$part.sums")" = "$size" ] || die "only a part of the folder arrived"
if [ "$size" != 0 ] && command -v md5sum >/dev/null; then
  ( cd "$part" && md5sum -c ) <"$part.sums" >/dev/null 2>&1 ||
    die "the folder arrived changed: $target"
fi
if [ -d "$target" ]; then
  tar -c -f - -C "$part" . | tar -x -p -f - -C "$target" || exit 1
else
  mv "$part" "$target" || exit 1
fi
say "$target"
"""

_GET = """
named "$1"
source=$named
[ -e "$source" ] || die "no such file: $1"
[ -d "$source" ] || { say "not a folder: $1"; exit 72; }
gone() { [ "$via" = pipe ] || others KILL; exit 1; }
echo "$token tree" >&4
( tar -c -f - -C "$source" .; status=$?; printf %s "$token"; exit $status ) >&4 &
read -r heard <&3 || gone
wait $! || exit 1
{
  cd "$source" && command -v md5sum >/dev/null && find . -type f -exec md5sum {} +
  printf %s "$token"
} >&4 &
read -r heard <&3 || gone
"""


class _Member(Struct, kw_only=False):
    """One file of a tree: its head in the tar, and where its bytes are."""

    name: bytes
    head: bytes
    source: Path
    size: int

    @property
    def padding(self) -> int:
        return -self.size % _BLOCK


async def put_tree(
    way: Way,
    source: Path,
    target: str,
    *,
    progress: Progress = silent,
) -> str:
    """Copies a folder into the guest; gives its path there.

    A folder as the target takes it in under its own name, and merges it with
    one of that name. Raises as `put_file` does.
    """
    members = await asyncio.to_thread(lambda: list(_members(source)))
    end = bytes(2 * _BLOCK)
    size = len(end) + sum(len(m.head) + m.size + m.padding for m in members)
    arguments = [str(size), target, _own_name(source)]
    script = RECEIVE + PLACE + _PUT
    async with way(script, arguments) as talk:
        await _send(talk, members, end, size, progress)
        return (await talk.ended()).result


def _own_name(source: Path) -> str:
    """The name under which a folder goes into another: that of `.` is unknown."""
    return source.resolve().name


async def _send(
    talk: Conversation,
    members: list[_Member],
    end: bytes,
    size: int,
    progress: Progress,
) -> None:
    sums, done = bytearray(), 0
    progress(0, size)
    for part in _parts(members, end, sums):
        await talk.send(part)
        done += len(part)
        progress(done, size)
    await talk.send(f"{len(sums)}\n".encode())
    await talk.send(bytes(sums))


def _parts(members: list[_Member], end: bytes, sums: bytearray) -> Iterator[bytes]:
    """The tar, small parts gathered; ``sums`` gets the list of its files' sums."""
    gathered = b""
    for member in members:
        gathered += member.head
        if not member.size:
            continue
        sum_ = md5()
        with opened(member.source) as file:
            for _, chunk in exactly(file, member.source, member.size):
                sum_.update(chunk)
                yield gathered + chunk
                gathered = b""
        gathered += bytes(member.padding)
        # How md5sum writes these characters is not the same everywhere.
        if not _QUOTED.search(member.name):
            sums += f"{sum_.hexdigest()}  ".encode() + member.name + b"\n"
    yield gathered + end


def _members(source: Path) -> Iterator[_Member]:
    """All that is in a folder, itself first. Raises HostError."""
    if not source.is_dir():
        raise HostError(f"no such folder: {source}")
    yield _member(source, ".", follow=True)

    def refuse(error: OSError) -> None:
        reason = (error.strerror or str(error)).lower()
        raise HostError(f"cannot copy {error.filename}: {reason}") from error

    for folder, folders, files in os.walk(source, onerror=refuse):
        folders.sort()
        for name in sorted([*folders, *files]):
            path = Path(folder, name)
            yield _member(path, f"./{path.relative_to(source)}", follow=False)


def _member(path: Path, name: str, *, follow: bool) -> _Member:
    try:
        status = path.stat(follow_symlinks=follow)
        info = tarfile.TarInfo(name)
        info.mode, info.mtime = status.st_mode & 0o777, int(status.st_mtime)
        if stat.S_ISREG(status.st_mode):
            info.size = status.st_size
        elif stat.S_ISDIR(status.st_mode):
            info.type = tarfile.DIRTYPE
        elif stat.S_ISLNK(status.st_mode):
            info.type, info.linkname = tarfile.SYMTYPE, str(path.readlink())
        else:
            raise HostError(f"not an ordinary file: {path}")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise HostError(f"cannot copy {path}: {reason}") from error
    # busybox passes over the headers of the newer format.
    head = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    return _Member(os.fsencode(name), head, path, info.size)


async def get_tree(
    way: Way,
    source: str,
    target: Path,
    *,
    progress: Progress = silent,
) -> Path:
    """Copies a folder out of the guest; gives its path here.

    A folder as the target takes it in under its own name, and merges it with
    one of that name. Raises as `get_file` does, and CopyError for a tar that
    would reach outside its folder.
    """
    place = placed(target, _name_of(source))
    with beside(place) as work:
        try:
            await _get_beside(way, source, place, work, progress)
        finally:
            _let_in(work)
    return place


async def _get_beside(
    way: Way, source: str, place: Path, work: Path, progress: Progress
) -> None:
    tree = work / "tree"
    with (work / "tar").open("w+b") as file:
        async with way(_GET, [source]) as talk:
            if place.exists() and not place.is_dir():
                raise HostError(f"not a folder: {place}")
            await receive(talk, file, place, None, progress)
            await talk.send(b"ok\n")
            most = min(_SUMS, 2 * file.tell())  # each has a head in the tar, of 512
            try:
                async with contextlib.aclosing(talk.chunks()) as chunks:
                    sums = await at_most(chunks, most)
            except ValueError as error:
                raise CopyError("the guest sends sums without an end") from error
            await talk.send(b"ok\n")
            await talk.ended()
        file.seek(0)
        found = await in_thread(partial(unpack, file, tree))
    _compare(found, sums)
    await in_thread(lambda _tick: _join(tree, place))


def _name_of(source: str) -> str:
    """The name of a folder in the guest; "" where only the guest knows it."""
    name = PurePosixPath(os.path.normpath(source)).name
    return "" if name in ("~", "..") else name


def _compare(found: Mapping[str, str], sums: bytes) -> None:
    """Raises CopyError for a file that the guest now has another sum of."""
    for line in sums.split(b"\n"):
        # Lines with a backslash before them quote the name, each in its way.
        sum_, _, name = line.partition(b"  ./")
        here = found.get(os.fsdecode(name))
        if here is not None and len(sum_) == _SUM and here.encode() != sum_:
            raise CopyError(f"it changed while it was copied: {os.fsdecode(name)!r}")


def _let_in(work: Path) -> None:
    """Makes what is left of a tree removable: folders may forbid it."""
    for folder, folders, _ in os.walk(work):
        for path in (Path(folder, name) for name in folders):
            if not path.is_symlink():
                path.chmod(0o700)


def _join(tree: Path, place: Path) -> None:
    """Moves a tree to its place, file by file where there is one already."""
    # Moving a folder, or out of it, takes the right to write to it.
    mode = stat.S_IMODE(tree.stat().st_mode)
    tree.chmod(0o700)
    if not os.path.lexists(place):
        tree.replace(place)
        place.chmod(mode)
        return
    for path in sorted(tree.iterdir()):
        target = place / path.name
        if path.is_dir() and not path.is_symlink():
            if target.is_symlink() or (target.exists() and not target.is_dir()):
                raise HostError(f"not a folder: {target}")
            _join(path, target)
        elif target.is_dir() and not target.is_symlink():
            raise HostError(f"a folder is there: {target}")
        else:
            path.replace(target)
