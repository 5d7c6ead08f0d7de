"""The one gateway to qemu-img."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from qemuctl.errors import HostError, ImageError, ImageInUse
from qemuctl.image.limits import LOOK, Limits
from qemuctl.image.progress import WHOLE, Progress, silent
from qemuctl.paths import blocking_folder
from qemuctl.tail import plain

_TIMEOUT = 60.0
_KILL_AFTER = 2.0

_OUTPUT = 64 << 20
_IN_USE = re.compile(r"Is another process using the image \[(.*)\]\?", re.DOTALL)
_DONE = re.compile(rb"\s*\((\d+(?:\.\d+)?)/100%\)\s*\r?")


def run(
    *arguments: str | Path,
    limits: Limits | None = None,
    accept: Collection[int] = (0,),
    writes: Path | None = None,
    timeout: float = _TIMEOUT,
) -> str:
    """Runs qemu-img and gives its standard output.

    ``limits``: what it may take, for a file that may be hostile. ``accept``: the
    exit statuses that are no failure. ``writes``: the file that is written, to say
    where there is no room. ``timeout`` in seconds.

    Raises HostError when there is no qemu-img, ImageInUse when another process
    has the image open, ImageError with its command line and its own words when it
    fails.
    """
    argv = [*_behind(limits), _find("qemu-img"), *map(str, arguments)]
    with _memory_file() as stdout, _memory_file() as stderr:
        with subprocess.Popen(
            argv, stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL,
            env=_environment(limits),
        ) as process:  # fmt: skip
            try:
                if not _ends(process.pid, timeout):
                    raise _too_slow(argv, arguments[0], timeout)
            except BaseException:
                process.kill()
                raise
        stderr.seek(0)
        if process.returncode not in accept:
            words = _text(stderr.read(_LONGEST_WORDS))
            raise _failure(
                argv, arguments[0], process.returncode, words, limits, writes
            )
        stdout.seek(0)
        return _text(stdout.read())


def _ends(pid: int, timeout: float) -> bool:
    """Whether a process of ours ends in time; `Popen.wait` with a time-out looks
    now and then, and would double what making an overlay takes."""
    fd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(timeout * 1000))
    finally:
        os.close(fd)


def _memory_file() -> BinaryIO:
    """Where qemu-img writes to: files are what the kernel can limit, and one in
    memory does not mind a full disk."""
    return os.fdopen(os.memfd_create("qemu-img"), "w+b")


async def job(
    *arguments: str | Path,
    progress: Progress = silent,
    limits: Limits | None = None,
    accept: Collection[int] = (0,),
    writes: Path | None = None,
    timeout: float | None = None,
) -> str:
    """Runs qemu-img for something that takes long, and gives its standard output.

    ``progress`` gets hundredths of a percent; ``-p`` is given where the subcommand
    has it. When the task is cancelled qemu-img is ended and waited for, and it
    dies with this process, whatever kills that. Other arguments and errors are
    those of `run`.
    """
    verb, *rest = map(str, arguments)
    shown = ["-p"] if verb in _SHOW_PROGRESS else []
    qemu_img = [_find("qemu-img"), verb, *shown, *rest]
    argv = [*_behind(limits), *qemu_img]
    process = await _spawn(argv, limits)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(timeout), asyncio.TaskGroup() as tasks:
            out = tasks.create_task(_watch(process.stdout, progress))
            words = tasks.create_task(_beginning(process.stderr))
            returncode = await process.wait()
    except TimeoutError as error:
        raise _too_slow(argv, verb, timeout or 0.0) from error
    except ExceptionGroup as group:
        raise group.exceptions[0] from group
    finally:
        await asyncio.shield(_end(process))
    if returncode not in accept:
        raise _failure(argv, verb, returncode, words.result(), limits, writes)
    return out.result()


_SHOW_PROGRESS = frozenset({"convert", "rebase", "commit", "amend", "compare"})
_LONGEST_WORDS = 64 << 10


async def _spawn(
    argv: Sequence[str], limits: Limits | None
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        # setpriv(1) from util-linux: PR_SET_PDEATHSIG without a fork of our own.
        _find("setpriv"), "--pdeathsig", "KILL", "--", *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=_environment(limits),
        start_new_session=True,
    )  # fmt: skip


async def _watch(stream: asyncio.StreamReader, progress: Progress) -> str:
    """Tells how far it is; gives the rest of what is written, which is bounded."""
    kept = bytearray()
    while part := await stream.read(65536):
        kept += part
        found = list(_DONE.finditer(kept))
        if found:
            progress(min(WHOLE, round(float(found[-1][1]) * 100)), WHOLE)
            kept = bytearray(_DONE.sub(b"", kept))
        if len(kept) > _OUTPUT:
            raise ImageError(f"qemu-img wrote more than {_OUTPUT >> 20} MiB of output")
    return _text(bytes(kept))


async def _beginning(stream: asyncio.StreamReader) -> str:
    """The first words of a stream, which is read to its end."""
    kept = b""
    while part := await stream.read(65536):
        kept += part[: _LONGEST_WORDS - len(kept)]
    return _text(kept)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ends a process that may have ended, and reaps it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KILL_AFTER):
                await process.wait()


def _find(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        package = "qemu-utils" if program == "qemu-img" else "util-linux"
        raise HostError(
            f"{program} is not installed", hint=f"sudo apt-get install {package}"
        )
    return found


def _behind(limits: Limits | None) -> list[str]:
    return [] if limits is None else limits.command(_find("prlimit"))


def _environment(limits: Limits | None) -> dict[str, str] | None:
    # glibc reserves 64 MiB of addresses for each thread that asks for memory, which
    # would count as memory used.
    return {**os.environ, "MALLOC_ARENA_MAX": "2"} if limits else None


def _too_slow(argv: Sequence[str], verb: str | Path, seconds: float) -> ImageError:
    return ImageError(f"qemu-img {verb} took longer than {seconds:g} s", argv=argv)


def _failure(
    argv: Sequence[str],
    verb: str | Path,
    returncode: int,
    stderr: str,
    limits: Limits | None,
    writes: Path | None,
) -> ImageError:
    in_use = _IN_USE.search(stderr)
    if in_use:
        return ImageInUse(Path(in_use[1]), returncode=returncode, stderr=stderr)
    # They may quote what a file says.
    words = plain(_unmarked(stderr, argv)).strip().removeprefix("qemu-img: ")
    hint = None
    if "No space left on device" in words and writes is not None:
        message = f"no room left to write {writes.name}: {writes.absolute().parent}"
        return ImageError(message, returncode=returncode, stderr=stderr)
    limit = limits.hit(returncode, words) if limits else None
    if limit is not None:
        words = f"it needed more than {limit}"
        hint = "the image may be damaged, or made to do harm"
    elif returncode < 0:
        words = words or f"ended by signal {signal.Signals(-returncode).name}"
    return ImageError(
        f"qemu-img {verb} failed: {words}",
        argv=argv,
        returncode=returncode,
        stderr=stderr,
        hint=hint,
    )


# A name that QEMU found in a file or made itself is marked as those that we make.
_MARK = re.compile(r"(?<![^\s'\"])file:(?=/)")


# A name that QEMU found in a file or made itself is marked as those that we make.
_MARK = re.compile(r"(?<![^\s'\"])file:(?=/)")


def _unmarked(words: str, argv: Sequence[str]) -> str:
    """QEMU's words with the names of files as their user knows them."""
    for argument in argv:
        with contextlib.suppress(ValueError, LookupError, TypeError):
            words = words.replace(argument, _name(argument))
    return _MARK.sub("", words)


def _name(argument: str) -> str:
    """The path in what `options` or `alone` made of it, or else the argument."""
    if argument.startswith("json:{"):
        return str(json.loads(argument.removeprefix("json:"))["file"]["filename"])
    if argument.startswith("driver="):
        return argument.partition("file.filename=")[2].replace(",,", ",")
    return argument.removeprefix("file:")


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def file(path: Path) -> str:
    """A file's name for qemu-img, which takes ``a:b`` for a protocol, and what
    begins with a dash for an option, unless it is marked."""
    return f"file:{path.absolute()}"


def options(path: Path, format: str) -> str:
    """The same for a subcommand that takes a format only with ``--image-opts``."""
    # keyval.c: a comma in a value is written twice.
    name = str(path.absolute()).replace(",", ",,")
    return f"driver={format},file.driver=file,file.filename={name}"


def alone(path: Path, format: str) -> str:
    """The same for one file without its backing file, for what only looks at the
    tables in it. Such a name says its format itself."""
    # Most paths are UTF-8; of one that is not, QEMU says so itself.
    node = {"driver": "file", "filename": str(path.absolute())}
    whole = {"driver": format, "backing": None, "file": node}
    return f"json:{json.dumps(whole, ensure_ascii=False)}"


def create(path: Path, format: str, size: int) -> None:
    """Makes an empty image of ``size`` bytes; never over an existing file.

    Raises ImageError when the path exists, as `run` does otherwise.
    """
    if path.exists():
        raise ImageError(f"there is a file already: {path}")
    run("create", "-q", "-f", format, file(path), str(size), writes=path)


def info(path: Path, format: str) -> dict[str, Any]:
    """What qemu-img knows of one image, read as the format that is named.

    Opens no backing file. Raises ImageError: also when the file is not of that
    format.
    """
    text = run(
        "info", "--output=json", "--force-share", "-f", format, file(path), limits=LOOK
    )
    return dict(json.loads(text))


def check_readable(path: Path, what: str) -> None:
    """Raises ImageError, naming what bars the way, unless a file can be read."""
    try:
        with path.open("rb") as opened:
            opened.read(1)
    except FileNotFoundError as error:
        raise ImageError(
            f"{what} does not exist: {path}", hint=blocking_folder(path)
        ) from error
    except OSError as error:
        raise ImageError(
            f"cannot read {what}: {path}: {error.strerror}",
            hint=blocking_folder(path),
        ) from error
