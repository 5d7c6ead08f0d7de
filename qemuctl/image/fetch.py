"""HTTP as downloads need it: safe redirects, plain errors, and small texts."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import re
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, cast

from qemuctl.errors import ImageError
from qemuctl.peers import at_most, inflated

if TYPE_CHECKING:
    import httpx  # takes a fifth of a second, so functions import it for themselves

REDIRECTS_MAX = 10
CONNECT_TIMEOUT = 15.0
STALL_TIMEOUT = 30.0
HEAD_TIMEOUT = 60.0
# Bytes a second, on the average of as many seconds, below which a transfer is as good
# as none: a server that drips would otherwise be waited for without an end.
SLOWEST = 512
SILENT_AFTER = 5.0  # then people are told
# Seconds before the second, third, … try after a break.
RETRY_DELAYS: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
RETRY_AFTER_MAX = 30.0
# Answers that a later try may not get: RFC 9110, 15.5.9 and RFC 6585, 4.
_PASSING = frozenset({408, 425, 429})
# A name and password before the host. A / that should have been written %2F makes
# the password look like a port and a path.
_USER = re.compile(r"^(\w+://)(?:[^/?#]*@|[^/?#\[\]@]*:\d*[^/?#\d][^@]*@)")


class Break(Exception):
    """A try ended in a way that another one may not; ``wait`` is in seconds."""

    def __init__(self, reason: str, *, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


@functools.cache
def _authorities() -> ssl.SSLContext:
    """Whom to trust; reading them takes longer than a small request."""
    import httpx

    return httpx.create_ssl_context()


def new_client() -> httpx.AsyncClient:
    """A client for one download; proxies come from the environment."""
    import httpx

    return httpx.AsyncClient(
        # A transfer that was compressed on the way would have another length
        # and another hash than the file.
        headers={"Accept-Encoding": "identity", "User-Agent": "qemuctl"},
        verify=_authorities(),
        timeout=httpx.Timeout(STALL_TIMEOUT, connect=CONNECT_TIMEOUT),
    )


def shown(url: str) -> str:
    """A URL for messages and files: without the password that may be in it."""
    return _USER.sub(r"\1", url)


@contextlib.asynccontextmanager
async def opened(
    client: httpx.AsyncClient, url: str, headers: Mapping[str, str]
) -> AsyncIterator[httpx.Response]:
    """The answer to a GET of ``url``, its body yet to be read.

    Redirects are followed to http and https alone, and never from https to
    http. Raises ImageError for what no other try would change, httpx's own
    TransportError and Break for the rest.
    """
    import httpx

    try:
        request = client.build_request("GET", url, headers=dict(headers))
    except (httpx.InvalidURL, ValueError) as error:
        raise ImageError(f"not a URL: {shown(url)}") from error
    if request.url.scheme not in ("http", "https") or not request.url.host:
        raise ImageError(f"not an http or https URL: {shown(url)}")
    for _ in range(REDIRECTS_MAX + 1):
        try:
            async with asyncio.timeout(HEAD_TIMEOUT):
                response = await client.send(
                    request, stream=True, follow_redirects=False
                )
        except TimeoutError as error:
            raise Break(f"no whole answer came in {HEAD_TIMEOUT:g} s") from error
        if response.next_request is None:
            break
        await response.aclose()
        check_redirect(request.url, response.next_request.url)
        request = response.next_request
    else:
        raise ImageError(f"more than {REDIRECTS_MAX} redirects: {shown(url)}")
    try:
        yield response
    finally:
        await response.aclose()


def check_redirect(origin: httpx.URL, to: httpx.URL) -> None:
    """Raises ImageError for a redirect that is not followed."""
    if origin.scheme == "https" and to.scheme == "http":
        raise ImageError(
            f"refused a redirect from https to http: {shown(str(to))}",
            hint="anyone on the way could have changed what comes from there",
        )
    if to.scheme not in ("http", "https") or not to.host:
        raise ImageError(f"refused a redirect to {to.scheme}: {shown(str(to))}")


def check_status(response: httpx.Response, url: str) -> None:
    """Raises Break for an answer that may pass, ImageError for any other error."""
    status = response.status_code
    words = f"{status} {response.reason_phrase}".strip()
    if status in _PASSING or status >= 500:
        after = response.headers.get("Retry-After", "")
        wait = float(after) if after.isascii() and after.isdigit() else 0.0
        raise Break(f"the server answers {words}", wait=min(wait, RETRY_AFTER_MAX))
    if status not in (200, 206):
        hints = {
            401: "the server wants a name and a password",
            403: "the server lets nobody have it, or not you",
            404: "it may have moved: look in the folder above it",
            410: "it was removed for good: look for a newer one",
        }
        raise ImageError(
            f"the server answers {words}: {shown(url)}", hint=hints.get(status)
        )


@contextlib.asynccontextmanager
async def chunks(response: httpx.Response) -> AsyncIterator[AsyncIterator[bytes]]:
    """The body in pieces, as they come, its content coding not undone. Reading it
    raises Break when it comes too slowly."""
    # An async generator whose reader fails must be closed in this task.
    body = cast("AsyncGenerator[bytes, None]", response.aiter_raw())
    async with contextlib.aclosing(body), contextlib.aclosing(_paced(body)) as paced:
        yield paced


async def _paced(body: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The same pieces, as long as they come at a sensible pace."""
    loop = asyncio.get_running_loop()
    came, begun = 0, loop.time()
    async for piece in body:
        came += len(piece)
        if (seconds := loop.time() - begun) >= STALL_TIMEOUT:
            if came < SLOWEST * seconds:
                raise Break(f"only {came} bytes came in {seconds:.0f} s")
            came, begun = 0, loop.time()
        yield piece


async def fetch_text(url: str, *, limit: int) -> str:
    """The text at ``url``, of at most ``limit`` bytes; tries again after a break.

    Raises ImageError.
    """
    import httpx

    async with new_client() as client:
        for delay in (*RETRY_DELAYS, None):
            try:
                return await _text(client, url, limit)
            except httpx.TransportError as error:
                if delay is None or is_unreachable(error):
                    raise explained(error, url) from error
                wait = delay
            except Break as error:
                if delay is None:
                    raise ImageError(f"{error.reason}: {shown(url)}") from error
                wait = max(delay, error.wait)
            await asyncio.sleep(wait)  # a server does not say when it is well again
    raise AssertionError("unreachable")


async def _text(client: httpx.AsyncClient, url: str, limit: int) -> str:
    async with opened(client, url, {}) as response:
        check_status(response, url)
        coding = response.headers.get("Content-Encoding", "identity").lower()
        try:
            async with chunks(response) as parts:
                data = await at_most(parts, limit)
            # Some servers compress what nobody asked them to.
            if coding in ("gzip", "x-gzip", "deflate"):
                data = inflated(data, limit)
            elif coding != "identity":
                raise ValueError(f"compressed, unasked: {coding}")
        except ValueError as error:
            raise ImageError(f"{error}: {shown(url)}") from error
    return data.decode(errors="replace")


def is_unreachable(error: httpx.TransportError) -> bool:
    """Whether there was no connection at all."""
    import httpx

    none = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)
    return isinstance(error, none)


def explained(error: httpx.TransportError, url: str) -> ImageError:
    """Why there is no connection, in one sentence."""
    import httpx

    host = httpx.URL(url).host
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ImageError(
                f"the certificate of {host} is not valid: {cause.verify_message}",
                hint="is the clock right? SSL_CERT_FILE names other authorities",
            )
        if isinstance(cause, ssl.SSLError):
            return ImageError(
                f"no TLS with {host}: {cause.reason or cause}",
                hint="is it an http server? is there a proxy in between?",
            )
        if isinstance(cause, socket.gaierror):
            return ImageError(
                f"unknown host: {host}",
                hint="is the name right, and is there a network?",
            )
        if isinstance(cause, ConnectionRefusedError):
            return ImageError(
                f"{host} refuses the connection: {shown(url)}",
                hint="is the server up, and the port right?",
            )
        if isinstance(cause, OSError) and cause.errno in _NO_WAY:
            return ImageError(f"no way to {host}", hint="is there a network?")
    if isinstance(error, httpx.ProxyError):
        return ImageError(
            f"the proxy refuses: {error}",
            hint="it is named by HTTPS_PROXY, HTTP_PROXY or ALL_PROXY",
        )
    return ImageError(f"cannot be downloaded: {shown(url)}: {reason(error)}")


_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH)


def reason(error: httpx.TransportError) -> str:
    """What broke, in a few words."""
    import httpx

    if isinstance(error, httpx.ConnectTimeout):
        return f"no answer in {CONNECT_TIMEOUT:g} s"
    if isinstance(error, httpx.TimeoutException):
        return f"nothing came for {STALL_TIMEOUT:g} s"
    if isinstance(error, httpx.RemoteProtocolError):
        return "the server ended too early or spoke no proper HTTP"
    if isinstance(error, httpx.ConnectError):
        return "no connection"
    return "the connection broke"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all that led to it: asyncio tries several addresses."""
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        cause = pending.pop(0)
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        if isinstance(cause, BaseExceptionGroup):
            pending.extend(cause.exceptions)
        pending += [cause.__cause__, cause.__context__]
