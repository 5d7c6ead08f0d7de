"""Downloads that survive breaks, check what they got, and share their work.

The protocol is RFC 9110: Range and If-Range (14.2, 13.1.5), the answers 206
with Content-Range and 416 (15.3.7, 15.5.17), strong validators (8.8).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

from qemuctl.errors import ImageError
from qemuctl.image import fetch
from qemuctl.image.checksums import Checksum
from qemuctl.image.fetch import Break, check_status, explained, opened, shown
from qemuctl.image.part import Origin, Part
from qemuctl.image.progress import Progress, silent
from qemuctl.paths import private_dir
from qemuctl.structs import Struct
from qemuctl.units import MIB

if TYPE_CHECKING:
    import httpx

# So much more than ever before has come: then the count of breaks starts again.
_GAIN = MIB
_TELL_EVERY = 0.1  # seconds
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


class Downloaded(Struct, kw_only=False):
    """A whole file: ``size`` in bytes, ``url`` where it came from in the end."""

    path: Path
    sha256: str
    size: int
    url: str


def _unheard(_text: str) -> None:
    """Tells nobody."""


@contextlib.asynccontextmanager
async def downloading(
    url: str,
    folder: Path,
    *,
    expected: Checksum | None = None,
    ready: Callable[[], bool] | None = None,
    progress: Progress = silent,
    note: Callable[[str], None] = _unheard,
) -> AsyncIterator[Downloaded | None]:
    """The file at an http or https ``url``, whole and checked, inside the block.

    It lies in ``folder``, made private, under a name made of the URL. The block
    moves it away; what is left there is taken over by the next download of this
    URL, for one byte that tells whether the server still has the same. What a
    broken or killed download left is resumed in the same way, if the server
    gives a strong ETag or date.

    Downloads of one URL, in tasks or processes, wait for each other until the
    block ends. Then ``ready`` is asked whether what was wanted is there by now;
    if so, nothing is downloaded and the block gets None.
    ``progress`` gets bytes, while waiting those of the other; ``note`` a line
    for people now and then. Raises ImageError: the server refuses, lies or stays
    away, no space is left, or it is not the ``expected`` file, then removed.
    """
    private_dir(folder)
    part = Part(folder, url, *([expected.algorithm] if expected else []))
    heard = False

    def waiting() -> None:
        nonlocal heard
        if not heard:
            heard = True
            note("another command is downloading this; waiting for it")
        progress(*part.peek())

    async with part.locked(waiting):
        if ready is not None and ready():
            yield None
        else:
            yield await _Download(url, part, expected, progress, note).run()


@dataclass
class _Download:
    url: str
    part: Part
    expected: Checksum | None
    progress: Progress
    note: Callable[[str], None]
    reached: bool = False
    breaks: int = 0
    best: int = 0
    final: str = ""

    async def run(self) -> Downloaded:
        await self.part.reopen()
        self.best = self.part.size
        if self.part.size:
            self.note(f"resuming after {_mib(self.part.size)}")
        async with fetch.new_client() as client:
            while True:
                try:
                    if await self._try(client):
                        break
                except Break as error:
                    await self._recover(error)
        return await self._checked()

    async def _try(self, client: httpx.AsyncClient) -> bool:
        """One request: whether the file is whole after it; if not, ask anew."""
        import httpx

        headers = {}
        if self.part.size and self.part.origin.validator:
            headers["Range"] = f"bytes={self.part.size}-"
            headers["If-Range"] = self.part.origin.validator
        try:
            async with self._told(), opened(client, self.url, headers) as response:
                self.reached = True
                if not await self._accept(response, resuming=bool(headers)):
                    return False
                await self._read(response)
        except Break:
            await self.part.flush()
            raise
        except httpx.TransportError as error:
            if fetch.is_unreachable(error) and not self.reached:
                raise explained(error, self.url) from error
            await self.part.flush()
            raise Break(fetch.reason(error)) from error
        return True

    @contextlib.asynccontextmanager
    async def _told(self) -> AsyncIterator[None]:
        """Tells of progress, and of a server that is silent, during the block."""
        telling = asyncio.create_task(self._tell())
        try:
            yield
        finally:
            telling.cancel()
            await asyncio.wait({telling})

    async def _tell(self) -> None:
        """By the clock: to tell of each chunk would cost as much as to hash it,
        and when none comes, nothing else would wake up."""
        seen, silent_for = self.part.size, 0.0
        while True:
            await asyncio.sleep(_TELL_EVERY)
            if self.part.size != seen:
                seen, silent_for = self.part.size, 0.0
                self.progress(seen, self.part.origin.total)
                continue
            before, silent_for = silent_for, silent_for + _TELL_EVERY
            if before < fetch.SILENT_AFTER <= silent_for:
                self.note(
                    f"nothing has come for {fetch.SILENT_AFTER:g} s; "
                    "waiting for the server"
                )

    async def _accept(self, response: httpx.Response, *, resuming: bool) -> bool:
        """Makes the part ready for the body; False when it has to be asked for
        anew. Raises Break or ImageError for an answer that has none."""
        status = response.status_code
        if resuming and status in (206, 416):
            if status == 206 and self._continues(response):
                self._check_body(response)
                return True
            await self._anew("the server has not the rest of what came before")
            return False
        check_status(response, self.url)
        if status != 200:
            raise ImageError(f"a part of the file, unasked: {shown(self.url)}")
        if resuming:
            self.note("the file has changed, or cannot be resumed: starting anew")
        chunked = "Transfer-Encoding" in response.headers  # RFC 9112, 6.3
        length = None if chunked else response.headers.get("Content-Length")
        total = int(length) if length is not None else None
        await self.part.begin(_origin(response, total))
        self._check_body(response)
        return True

    def _continues(self, response: httpx.Response) -> bool:
        """Whether a 206 is the rest of this very file (RFC 9110, 15.3.7.3)."""
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != self.part.size:
            return False
        total, last = self.part.origin.total, int(match[2])
        if match[3] != "*":
            if total is not None and int(match[3]) != total:
                return False
            total = int(match[3])
        length = response.headers.get("Content-Length")
        whole = length is None or int(length) == last + 1 - self.part.size
        etag = response.headers.get("ETag", self.part.origin.etag)
        same = self.part.origin.etag in (None, etag)
        self.part.expect(total)
        return whole and same and (total is None or last < total)

    def _check_body(self, response: httpx.Response) -> None:
        coding = response.headers.get("Content-Encoding", "identity")
        if coding.lower() != "identity":
            raise ImageError(
                f"the server compresses what it sends, unasked ({coding}): "
                f"{shown(self.url)}",
                hint="download it in another way, then import the file",
            )
        total = self.part.origin.total
        if total is not None:
            self.part.need(total)
        elif not self.expected and "Transfer-Encoding" not in response.headers:
            raise ImageError(
                f"the server does not say how long the file is: {shown(self.url)}",
                hint="only a checksum can tell whether it is whole",
            )

    async def _read(self, response: httpx.Response) -> None:
        part, total = self.part, self.part.origin.total
        self.progress(part.size, total)
        async with fetch.chunks(response) as chunks:
            async for chunk in chunks:
                if total is not None and part.size + len(chunk) > total:
                    part.remove()
                    raise ImageError(
                        f"the server sends more than it said, {total} bytes: "
                        f"{shown(self.url)}"
                    )
                await part.add(chunk)
        await part.flush()
        if total is not None and part.size < total:
            raise Break("the server ended too early")
        self.final = shown(str(response.url))
        self.progress(part.size, total or part.size)

    async def _anew(self, why: str) -> None:
        self.note(f"{why}: starting anew")
        await self.part.drop()

    async def _recover(self, error: Break) -> None:
        """Waits before the next try, or raises ImageError when that was the last."""
        part = self.part
        if part.size >= self.best + _GAIN:
            self.best, self.breaks = part.size, 0
        came = part.size
        resumable = came > 0 and part.origin.validator is not None
        if self.breaks >= len(fetch.RETRY_DELAYS):
            raise ImageError(
                f"the download failed {self.breaks + 1} times: {shown(self.url)}: "
                f"{error.reason}",
                hint=f"{_mib(came)} are kept: try again to go on"
                if resumable
                else None,
            ) from error
        wait = max(fetch.RETRY_DELAYS[self.breaks], error.wait)
        self.breaks += 1
        goal = f"going on after {_mib(came)}" if resumable else "starting anew"
        self.note(f"{error.reason}: {goal} in {wait:g} s")
        if came and not resumable:
            await part.drop()
        await asyncio.sleep(wait)  # a server does not say when it is well again

    async def _checked(self) -> Downloaded:
        part, expected = self.part, self.expected
        if expected is not None:
            found = part.digest(expected.algorithm)
            if found != expected.digest:
                part.remove()
                raise ImageError(
                    f"wrong {expected.algorithm} checksum of {shown(self.url)}: "
                    f"expected {expected.digest}, got {found}",
                    hint="what came was removed; see that the checksum is of this very "
                    "file, then try again",
                )
        await part.finish()
        return Downloaded(part.path, part.digest("sha256"), part.size, self.final)


def _origin(response: httpx.Response, total: int | None) -> Origin:
    etag = response.headers.get("ETag", "")
    modified = response.headers.get("Last-Modified", "")
    return Origin(
        url=shown(str(response.url)),
        etag=etag if etag.startswith('"') else None,  # W/ marks a weak one
        modified=modified if _is_strong(modified, response) else None,
        total=total,
    )


def _is_strong(modified: str, response: httpx.Response) -> bool:
    """Whether the date names one version only: RFC 9110, 8.8.2.2."""
    try:
        then = parsedate_to_datetime(modified)
        now = parsedate_to_datetime(response.headers.get("Date", ""))
        return (now - then).total_seconds() >= 1
    except (ValueError, TypeError):
        return False


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"
