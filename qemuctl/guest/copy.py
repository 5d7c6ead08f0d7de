"""Copying a file into the guest or out of it.

A script runs in the guest, and the bytes go to it or come from it on the way
that is given (`qemuctl.guest.port`, or ssh).
A file is written under another name and renamed when it is whole, on either
side. Both sides compute its MD5 sum: the quickest of the sums that busybox
and coreutils share (in an emulated guest md5sum does 80 MB/s, sha512sum 70,
sha256sum 50, sha1sum 45), and against accidents it is good enough. A guest
without md5sum is held to the size alone.

Names without a leading slash count from the home folder of the user in
the guest, and so do those that begin with ``~/``.
A folder as the target takes the file in, under the file's own name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from qemuctl.errors import AgentError, HostError, ImageError
from qemuctl.guest.conversation import CHUNK, Conversation, CopyError, Ended
from qemuctl.guest.port import Way
from qemuctl.image.progress import Progress, silent
from qemuctl.image.whole import scratch

# A read from the port gives a page at most (virtio_console's buffers), so
# blocks are gathered: dd with blocks of 32 KiB to 1 MiB reads 70 to 80 MB/s
# under emulation, blocks of 4 KiB 60, `head -c` 20.
RECEIVE = """
receive() {
  blocks=$((size / 65536)) rest=$((size % 65536))
  { [ $blocks = 0 ] || dd bs=65536 count=$blocks iflag=fullblock; } &&
  { [ $rest = 0 ] || dd bs=$rest count=1 iflag=fullblock; }
}
"""

# Where a target is meant to be: `target`, its folder `dir`, and `part` there.
PLACE = """
place() {
  named "$1"
  target=$named name=$2
  if [ -d "$target" ]; then
    [ -z "$name" ] || target=${target%/}/$name
  else
    case $target in */) [ "$3" = tree ] || die "the folder $target is missing" ;; esac
    target=${target%/}
  fi
  [ ! -L "$target" ] || target=$(readlink -f "$target") || die "a broken link: $target"
  dir=${target%/*}/
  [ -d "$dir" ] || die "the folder $dir is missing"
  [ -w "$dir" ] || die "$(id -un) may not write to $dir"
  part=$dir.qemuctl-$token
}
"""

_PUT = """
size=$1 mode=$2
place "$3" "$4" file
[ ! -d "$target" ] || die "a folder is there: $target"
[ ! -e "$target" ] || [ -f "$target" ] || die "not an ordinary file: $target"
trap 'rm -f "$part"' EXIT
trap 'exit 143' TERM HUP INT
: >"$part" || exit 1
echo "$token ready" >&4
receive <&3 >"$part" || exit 1
got=$(stat -c %s "$part")
[ "$got" = "$size" ] || die "only $got of $size bytes arrived"
read -r wanted <&3 || exit 1
if command -v md5sum >/dev/null; then
  sum=$(md5sum <"$part")
  [ "${sum%% *}" = "$wanted" ] || die "the file arrived changed: $target"
fi
chmod "$mode" "$part" && mv -f "$part" "$target" || exit 1
say "$target"
"""

_GET = """
named "$1"
source=$named
[ -e "$source" ] || die "no such file: $1"
[ ! -d "$source" ] || die "a folder, which needs -r: $1"
[ -f "$source" ] || die "not an ordinary file: $1"
[ -r "$source" ] || die "$(id -un) may not read it: $1"
exec 5<"$source"
echo "$token $(stat -L -c '%s %a' "$source")" >&4
{ cat <&5; printf %s "$token"; } >&4 &
if read -r heard <&3; then
  sum=-
  command -v md5sum >/dev/null && sum=$(md5sum <"$source")
  say "${sum%% *}"
else
  [ "$via" = pipe ] || others KILL
  exit 1
fi
"""


async def put_file(
    way: Way,
    source: Path,
    target: str,
    *,
    progress: Progress = silent,
) -> str:
    """Copies a file into the guest; gives its path there.

    The mode is kept but for set-user-ID and its like, the owner is the
    user in the guest. Waits its turn when another copy is on. Raises HostError for
    a source that cannot be read or that changes, CopyError with the guest's
    words, AgentError when the way breaks; the target is then as it was.
    """
    with opened(source) as file:
        status = os.fstat(file.fileno())
        mode = f"{status.st_mode & 0o777:o}"
        arguments = [str(status.st_size), mode, target, source.name]
        script = RECEIVE + PLACE + _PUT
        async with way(script, arguments) as talk:
            await _send(talk, file, source, status.st_size, progress)
            return (await talk.ended()).result


async def _send(
    talk: Conversation, file: BinaryIO, source: Path, size: int, progress: Progress
) -> None:
    sum_ = md5()
    progress(0, size)
    for done, chunk in exactly(file, source, size):
        sum_.update(chunk)
        await talk.send(chunk)
        progress(done, size)
    await talk.send(f"{sum_.hexdigest()}\n".encode())


async def get_file(
    way: Way,
    source: str,
    target: Path,
    *,
    progress: Progress = silent,
) -> Path:
    """Copies a file out of the guest; gives its path here.

    The mode is kept but for what the umask takes away. Raises HostError for a
    target that cannot be written, CopyError with the guest's words, also for
    a file that changes meanwhile, AgentError when the way breaks; the target is
    then as it was.
    """
    place = placed(target, Path(source).name)
    if place.is_dir():
        raise HostError(f"a folder is there: {place}")
    with _replacing(place) as file:
        async with way(_GET, [source]) as talk:
            size, mode = _size_and_mode(talk)
            sum_ = await receive(talk, file, place, size or None, progress)
            await talk.send(b"ok\n")
            compare(await talk.ended(), sum_ if size else "", source)
        os.fchmod(file.fileno(), within_umask(mode))
    return place


def _size_and_mode(talk: Conversation) -> tuple[int, int]:
    try:
        size, mode = int(talk.head[0]), int(talk.head[1], 8)
        if size < 0:
            raise ValueError(size)
        return size, mode & 0o777
    except (LookupError, ValueError) as error:
        raise AgentError("the guest's side of the copy makes no sense") from error


async def receive(
    talk: Conversation,
    file: BinaryIO,
    place: Path,
    size: int | None,
    progress: Progress,
) -> str:
    """Writes what comes into ``file``; gives its sum.

    ``place`` is what it will become, for errors. Raises HostError, and CopyError
    unless ``size`` bytes come. Files of /proc say that they have none, and of
    folders nobody knows: then any number will do.
    """
    sum_, done = md5(), 0
    progress(0, size)
    async with contextlib.aclosing(talk.chunks()) as chunks:
        async for chunk in chunks:
            done += len(chunk)
            if size is not None and done > size:
                break
            sum_.update(chunk)
            with told(place):
                file.write(chunk)
            progress(done, size)
    if size is not None and done != size:
        raise CopyError(
            "the file changed its size in the guest while it was copied"
            if done > size
            else f"only {done} of {size} bytes came from the guest"
        )
    return sum_.hexdigest()


def compare(ended: Ended, sum_: str, source: str) -> None:
    """Raises CopyError when the guest has another sum; "-" is none."""
    if sum_ and ended.result not in ("-", sum_):
        raise CopyError(f"it changed while it was copied: {source}")


def within_umask(mode: int) -> int:
    """The mode of a new file that is to have ``mode`` where it comes from, less what
    the user's umask takes away, and without set-user-ID and its like."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Umask":  # os.umask() could only tell by changing it
            return mode & 0o777 & ~int(value, 8)
    return mode & 0o755


def md5() -> hashlib._Hash:
    """A sum against accidents; a host's policy may refuse it for more."""
    return hashlib.md5(usedforsecurity=False)


@contextlib.contextmanager
def opened(source: Path) -> Iterator[BinaryIO]:
    """A file to be read, which must be an ordinary one. Raises HostError."""
    with told(source):
        # A pipe would keep open() waiting, and a device may do worse.
        fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _check_ordinary(source, os.fstat(fd).st_mode)
        except BaseException:
            os.close(fd)
            raise
        with os.fdopen(fd, "rb", buffering=0) as file:
            yield file


def _check_ordinary(source: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise HostError(f"a folder, which needs -r: {source}")
    if not stat.S_ISREG(mode):
        raise HostError(f"not an ordinary file: {source}")


def exactly(file: BinaryIO, source: Path, size: int) -> Iterator[tuple[int, bytes]]:
    """The file's ``size`` bytes in parts, each with how many there were so far.

    Raises HostError when it has fewer by now, or more.
    """
    done = 0
    while done < size and (chunk := file.read(min(CHUNK, size - done))):
        done += len(chunk)
        yield done, chunk
    if done < size or os.fstat(file.fileno()).st_size != size:
        raise HostError(f"it changed while it was copied: {source}")


def placed(target: Path, name: str) -> Path:
    """Where a copy called ``name`` goes: into a folder, else to ``target`` itself.

    Raises HostError for what cannot be a target.
    """
    place = target / name if target.is_dir() else target
    place = place.resolve()
    if not place.parent.is_dir():
        raise HostError(f"no such folder: {place.parent}")
    if place.exists() and not (place.is_file() or place.is_dir()):
        raise HostError(f"not an ordinary file: {place}")
    return place


@contextlib.contextmanager
def beside(place: Path) -> Iterator[Path]:
    """A folder beside ``place`` that nobody else may enter, gone after the block.

    Raises HostError, also for an OSError of the block.
    """
    try:
        with told(place), scratch(place.parent) as work:
            yield work
    except ImageError as error:
        raise HostError(error.message, hint=error.hint) from error


@contextlib.contextmanager
def _replacing(place: Path) -> Iterator[BinaryIO]:
    """A file that becomes ``place`` at the end of the block, or is gone."""
    with beside(place) as work:
        fresh = work / "file"
        with fresh.open("xb") as file:
            yield file
            file.flush()
        fresh.replace(place)


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Raises HostError for an OSError about a file of this host."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise HostError(f"cannot copy {path}: {reason}") from error
