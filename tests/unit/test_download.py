"""Downloads from servers that break, lie and stall, and two that share one."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from hostile_server import BODY, MIB, Answer, HostileServer, hostile_server

from qemuctl.errors import ImageError
from qemuctl.image import fetch
from qemuctl.image.checksums import Checksum
from qemuctl.image.download import Downloaded, downloading
from tests.unproven import in_small_mounts

SHA256 = hashlib.sha256(BODY).hexdigest()
SHA512 = hashlib.sha512(BODY).hexdigest()
OLD = "Sun, 22 Nov 2026 12:00:00 GMT"  # a day before the server's own date
NEW = BODY[::-1]
RIGHT = Checksum("sha256", SHA256)

CHILD = """
import asyncio, sys
from pathlib import Path
from qemuctl.errors import ImageError
from qemuctl.image.download import downloading

async def main(url, folder):
    try:
        async with downloading(url, Path(folder)):
            print("done")
    except ImageError as error:
        print(error)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "RETRY_DELAYS", (0.0, 0.0, 0.0))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
async def server() -> AsyncIterator[HostileServer]:
    async with hostile_server() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "downloads"


@dataclass
class Told:
    """What a download told about itself."""

    notes: list[str] = field(default_factory=list)
    steps: list[tuple[int, int | None]] = field(default_factory=list)

    def progress(self, done: int, total: int | None) -> None:
        self.steps.append((done, total))


async def fetched(
    url: str, folder: Path, told: Told | None = None, **options: Any
) -> bytes:
    """The content of a download, which is then moved away."""
    told = told or Told()
    async with downloading(
        url, folder, progress=told.progress, note=told.notes.append, **options
    ) as found:
        assert isinstance(found, Downloaded)
        assert found.path.parent == folder
        content = found.path.read_bytes()
        assert found.size == len(content)
        assert found.sha256 == hashlib.sha256(content).hexdigest()
        found.path.rename(folder.parent / "image")
    assert list(folder.iterdir()) == []
    return content


def parts(folder: Path) -> list[int]:
    """The size of each part that is kept."""
    return [path.stat().st_size for path in folder.glob("*.part")]


async def soon(condition: Callable[[], Any]) -> None:
    """Comes back when the condition, for which there is no event, is true."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_file_comes_whole_and_leaves_nothing(
    server: HostileServer, folder: Path
) -> None:
    told = Told()
    assert await fetched(server.url, folder, told, expected=RIGHT) == BODY
    assert told.steps[0] == (0, len(BODY))
    assert told.steps[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in told.steps] == sorted(done for done, _ in told.steps)
    assert told.notes == []
    assert server.requests[0]["accept-encoding"] == "identity"
    assert folder.stat().st_mode & 0o777 == 0o700


async def test_an_empty_file_is_a_file(server: HostileServer, folder: Path) -> None:
    server.answer(Answer(body=b""))
    assert await fetched(server.url, folder) == b""


async def test_sha512_is_checked_too(server: HostileServer, folder: Path) -> None:
    assert await fetched(server.url, folder, expected=Checksum("sha512", SHA512))
    with pytest.raises(ImageError, match="wrong sha512 checksum"):
        await fetched(server.url, folder, expected=Checksum("sha512", "0" * 128))


async def test_a_break_is_resumed_where_it_was(
    server: HostileServer, folder: Path
) -> None:
    server.answer(Answer(cut=MIB), Answer())
    told = Told()
    assert await fetched(server.url, folder, told, expected=RIGHT) == BODY
    assert server.ranges == [None, f"bytes={MIB}-"]
    assert server.requests[1]["if-range"] == '"one"'
    assert server.sent == len(BODY)
    assert "going on after 1.0 MiB" in told.notes[0]


async def test_a_date_will_do_where_there_is_no_etag(
    server: HostileServer, folder: Path
) -> None:
    server.answer(Answer(cut=MIB, etag=None, modified=OLD), Answer(modified=OLD))
    assert await fetched(server.url, folder) == BODY
    assert server.requests[1]["if-range"] == OLD
    assert server.sent == len(BODY)


@pytest.mark.parametrize(
    "validator",
    [
        {"etag": 'W/"weak"'},
        {"etag": None},
        {"etag": None, "modified": "Mon, 23 Nov 2026 12:00:00 GMT"},
        {"etag": None, "modified": "yesterday"},
    ],
)
async def test_nothing_is_resumed_without_a_strong_validator(
    server: HostileServer, folder: Path, validator: dict[str, str | None]
) -> None:
    server.answer(Answer(cut=MIB, **validator), Answer(**validator))  # type: ignore[arg-type]
    told = Told()
    assert await fetched(server.url, folder, told) == BODY
    assert server.ranges == [None, None]
    assert "starting anew" in told.notes[0]


async def test_a_server_that_always_breaks_is_given_up_and_its_part_kept(
    server: HostileServer, folder: Path
) -> None:
    server.answer(Answer(cut=2 * MIB), Answer(cut=1000))
    with pytest.raises(ImageError, match="failed 4 times") as caught:
        await fetched(server.url, folder)
    assert "2.0 MiB are kept" in (caught.value.hint or "")
    assert parts(folder) == [2 * MIB + 3000]
    server.answer(Answer())
    assert await fetched(server.url, folder, expected=RIGHT) == BODY
    assert server.ranges[-1] == f"bytes={2 * MIB + 3000}-"


async def test_a_line_that_breaks_often_but_gets_on_is_not_given_up(
    server: HostileServer, folder: Path
) -> None:
    server.answer(*[Answer(cut=MIB // 2)] * 6, Answer())
    assert await fetched(server.url, folder, expected=RIGHT) == BODY
    assert len(server.requests) == 7
    assert server.sent == len(BODY)


async def test_a_server_without_ranges_that_breaks_in_the_same_place_is_given_up(
    server: HostileServer, folder: Path
) -> None:
    server.answer(Answer(cut=2 * MIB, ranges=False))
    with pytest.raises(ImageError, match="failed"):
        await fetched(server.url, folder)
    assert len(server.requests) <= 6


async def test_a_server_that_refuses_ranges_gives_all_of_it_again(
    server: HostileServer, folder: Path
) -> None:
    server.answer(Answer(cut=MIB), Answer(ranges=False))
    assert await fetched(server.url, folder, expected=RIGHT) == BODY
    assert server.sent == MIB + len(BODY)


async def test_a_file_that_changed_meanwhile_is_fetched_anew(
    server: HostileServer, folder: Path
) -> None:
    server.answer(Answer(cut=MIB), Answer(body=NEW, etag='"two"'))
    assert await fetched(server.url, folder) == NEW


async def test_a_server_that_ignores_if_range_mixes_nothing(
    server: HostileServer, folder: Path
) -> None:
    lies = Answer(body=NEW, etag='"two"', if_range=False)
    server.answer(Answer(cut=MIB), lies, Answer(body=NEW, etag='"two"'))
    assert await fetched(server.url, folder) == NEW
    assert server.ranges == [None, f"bytes={MIB}-", None]


@pytest.mark.parametrize(
    "content_range",
    [
        f"bytes 0-{len(BODY) - 1}/{len(BODY)}",
        f"bytes {MIB}-{len(BODY)}/{len(BODY) + 1}",
        f"bytes {MIB}-{len(BODY) + 5}/{len(BODY)}",
        f"bytes {MIB}-{MIB}/{len(BODY)}",
        "bytes",
        "lines 1-2/3",
    ],
)
async def test_another_range_than_was_asked_for_is_not_believed(
    server: HostileServer, folder: Path, content_range: str
) -> None:
    server.answer(Answer(cut=MIB), Answer(content_range=content_range), Answer())
    assert await fetched(server.url, folder) == BODY
    assert server.ranges == [None, f"bytes={MIB}-", None]


async def test_416_starts_anew(server: HostileServer, folder: Path) -> None:
    server.answer(Answer(cut=MIB), Answer(status=416), Answer())
    assert await fetched(server.url, folder) == BODY
    assert server.ranges == [None, f"bytes={MIB}-", None]


async def test_a_stall_is_a_break(
    server: HostileServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "STALL_TIMEOUT", 0.1)
    server.answer(Answer(stall=MIB), Answer())
    told = Told()
    assert await fetched(server.url, folder, told, expected=RIGHT) == BODY
    assert told.notes[0].startswith("nothing came for 0.1 s")
    assert server.ranges == [None, f"bytes={MIB}-"]


async def test_a_drip_is_a_break(
    server: HostileServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "STALL_TIMEOUT", 0.3)
    server.answer(Answer(stall=1000, drip=0.01), Answer())
    monkeypatch.setattr(fetch, "SLOWEST", 10_000)
    told = Told()
    assert await fetched(server.url, folder, told, expected=RIGHT) == BODY
    assert re.match(r"only 1\d\d\d bytes came in 0 s: going on after", told.notes[0])
    assert len(server.requests) == 2


async def test_progress_moves_with_what_comes_however_fast(
    server: HostileServer, folder: Path
) -> None:
    gate = asyncio.Event()
    server.answer(Answer(gate=gate))
    told = Told()
    task = asyncio.create_task(fetched(server.url, folder, told, expected=RIGHT))
    await soon(lambda: told.steps and told.steps[-1] == (2 * MIB, 4 * MIB))
    gate.set()
    assert await task == BODY
    assert told.steps[-1] == (4 * MIB, 4 * MIB)


@pytest.mark.parametrize("piece", [1000, 70_000])
async def test_progress_moves_with_each_small_piece(
    server: HostileServer, folder: Path, piece: int
) -> None:
    server.answer(Answer(stall=piece))
    told = Told()
    task = asyncio.create_task(fetched(server.url, folder, told))
    await soon(lambda: told.steps and told.steps[-1] == (piece, 4 * MIB))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("answer", [Answer(stall=MIB), Answer(mute=True)])
async def test_a_silent_server_is_told_of_once(
    server: HostileServer,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
) -> None:
    monkeypatch.setattr(fetch, "SILENT_AFTER", 0.2)
    monkeypatch.setattr(fetch, "STALL_TIMEOUT", 1.0)
    server.answer(answer, Answer())
    told = Told()
    assert await fetched(server.url, folder, told, expected=RIGHT) == BODY
    assert told.notes[0] == "nothing has come for 0.2 s; waiting for the server"
    assert "nothing came for 1 s" in told.notes[1]
    assert len(told.notes) == 2


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_an_error_that_passes_is_waited_out(
    server: HostileServer, folder: Path, status: int
) -> None:
    server.answer(Answer(status=status, headers=("Retry-After: 0",)), Answer())
    told = Told()
    assert await fetched(server.url, folder, told) == BODY
    assert str(status) in told.notes[0]


async def test_an_error_that_stays_is_told(server: HostileServer, folder: Path) -> None:
    server.answer(Answer(status=500))
    with pytest.raises(ImageError, match=r"failed 4 times: .*answers 500"):
        await fetched(server.url, folder)
    assert len(server.requests) == 4
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("status", [401, 403, 404, 410, 304, 204])
async def test_a_refusal_is_told_at_once(
    server: HostileServer, folder: Path, status: int
) -> None:
    server.answer(Answer(status=status))
    with pytest.raises(ImageError, match=rf"answers {status} .*: {server.url}"):
        await fetched(server.url, folder)
    assert len(server.requests) == 1
    assert list(folder.iterdir()) == []


async def test_a_wrong_checksum_names_both_and_keeps_nothing(
    server: HostileServer, folder: Path
) -> None:
    server.answer(Answer(body=NEW))
    with pytest.raises(ImageError) as caught:
        await fetched(server.url, folder, expected=RIGHT)
    assert SHA256 in str(caught.value)
    assert hashlib.sha256(NEW).hexdigest() in str(caught.value)
    assert list(folder.iterdir()) == []


async def test_a_length_that_is_too_long_is_a_clear_error_in_the_end(
    server: HostileServer, folder: Path
) -> None:
    short = Answer(length=len(BODY) + 7, cut=len(BODY))
    server.answer(short, Answer(status=416), short, Answer(status=416), short)
    with pytest.raises(ImageError, match="ended too early") as caught:
        await fetched(server.url, folder)
    assert "failed 4 times" in str(caught.value)


async def test_more_than_was_said_is_an_error_and_not_kept(
    server: HostileServer, folder: Path
) -> None:
    server.answer(Answer(cut=MIB), Answer(chunked=True, excess=b"more"))
    with pytest.raises(ImageError, match="sends more than it said"):
        await fetched(server.url, folder)
    assert list(folder.iterdir()) == []


async def test_a_length_that_is_too_short_is_found_by_the_checksum(
    server: HostileServer, folder: Path
) -> None:
    server.answer(Answer(length=MIB))
    with pytest.raises(ImageError, match="checksum"):
        await fetched(server.url, folder, expected=RIGHT)


async def test_a_chunked_file_has_no_length_beforehand(
    server: HostileServer, folder: Path
) -> None:
    server.answer(Answer(chunked=True, cut=MIB), Answer(chunked=True))
    told = Told()
    assert await fetched(server.url, folder, told) == BODY
    assert told.steps[0] == (0, None)
    assert told.steps[-1] == (len(BODY), len(BODY))
    assert server.sent == len(BODY)


async def test_a_file_that_may_be_cut_unnoticed_needs_a_checksum(
    server: HostileServer, folder: Path
) -> None:
    server.answer(Answer(length=None))
    with pytest.raises(ImageError, match="does not say how long"):
        await fetched(server.url, folder)
    assert await fetched(server.url, folder, expected=RIGHT) == BODY


async def test_a_compressed_transfer_is_refused(
    server: HostileServer, folder: Path
) -> None:
    server.answer(Answer(headers=("Content-Encoding: gzip",)))
    with pytest.raises(ImageError, match=r"compresses .*gzip"):
        await fetched(server.url, folder)
    assert list(folder.iterdir()) == []


async def test_redirects_are_followed_and_the_last_url_is_told(
    server: HostileServer, folder: Path
) -> None:
    server.answer(Answer(status=302, headers=("Location: /mirror",)))
    server.answer(Answer(cut=MIB), Answer(), path="/mirror")
    async with downloading(server.url, folder) as found:
        assert found is not None
        assert found.url.endswith("/mirror")
        assert found.sha256 == SHA256
    assert [each["path"] for each in server.requests] == ["/image", "/mirror"] * 2
    assert server.sent == len(BODY)


async def test_a_loop_of_redirects_ends(server: HostileServer, folder: Path) -> None:
    server.answer(Answer(status=302, headers=("Location: /image",)))
    with pytest.raises(ImageError, match="more than 10 redirects"):
        await fetched(server.url, folder)
    assert len(server.requests) == 11


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
async def test_a_redirect_leads_to_http_only(
    server: HostileServer, folder: Path, to: str
) -> None:
    server.answer(Answer(status=302, headers=(f"Location: {to}",)))
    with pytest.raises(ImageError, match="refused a redirect to"):
        await fetched(server.url, folder)


def test_a_redirect_never_leads_from_https_to_http() -> None:
    secure, plain = httpx.URL("https://a/x"), httpx.URL("http://a/x")
    fetch.check_redirect(secure, secure)
    fetch.check_redirect(plain, secure)
    with pytest.raises(ImageError, match="from https to http: http://a/x"):
        fetch.check_redirect(secure, plain)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://host.invalid/x", "unknown host: host.invalid"),
        ("ftp://127.0.0.1/x", "not an http or https URL: ftp:"),
        ("/a/file", "not an http or https URL: /a/file"),
        ("http://[::1", "not a URL"),
        ("http://me:secret@127.0.0.1:1/x", "refuses the connection: http://127.0"),
        ("http://me:sec/ret@127.0.0.1:1/x", "not a URL: http://127.0.0.1:1/x"),
    ],
)
async def test_where_nothing_can_come_from_is_told_at_once(
    folder: Path, url: str, message: str
) -> None:
    told = Told()
    with pytest.raises(ImageError, match=message):
        await fetched(url, folder, told)
    assert told.notes == []
    assert list(folder.iterdir()) == []


async def test_a_server_without_tls_is_named(
    server: HostileServer, folder: Path
) -> None:
    with pytest.raises(ImageError, match=r"no TLS with 127\.0\.0\.1"):
        await fetched(server.url.replace("http:", "https:"), folder)


async def test_a_file_too_large_for_the_disk_is_refused_before(
    server: HostileServer, folder: Path
) -> None:
    server.answer(Answer(length=1 << 60, cut=0))
    with pytest.raises(ImageError, match=r"no room for \d+ MiB in") as caught:
        await fetched(server.url, folder)
    assert str(folder) in str(caught.value)
    assert list(folder.iterdir()) == []


async def run_child(*prefix: str, url: str, folder: Path) -> asyncio.subprocess.Process:
    argv = [*prefix, sys.executable, "-c", CHILD, url, str(folder)]
    return await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)


async def test_a_disk_that_fills_up_is_named_and_gets_its_space_back(
    server: HostileServer, folder: Path
) -> None:
    server.answer(Answer(body=BODY * 2, chunked=True))
    folder.mkdir(mode=0o700)
    script = (
        'mount -t tmpfs -o size=4m,mode=700 tmpfs "$5" && echo mine >"$5/before" '
        '&& "$@" && ls "$5" && cat "$5/before"'
    )
    mounts = in_small_mounts("a full disk")
    prefix = (*mounts, "sh", "-c", script, "sh")
    child = await run_child(*prefix, url=server.url, folder=folder)
    async with asyncio.timeout(60):
        output, _ = await child.communicate()
    assert output.decode().splitlines() == [
        f"no space left in {folder}",
        "before",
        "mine",
    ]


async def test_two_at_once_share_the_work(server: HostileServer, folder: Path) -> None:
    gate = asyncio.Event()
    server.answer(Answer(gate=gate))
    told = Told()
    store = folder.parent / "stored"

    def note(text: str) -> None:
        told.notes.append(text)
        gate.set()

    async def one(progress: Any, note: Any) -> Downloaded | None:
        async with downloading(
            server.url, folder, ready=store.exists, progress=progress, note=note
        ) as found:
            if found is not None:
                found.path.rename(store)
            return found

    results = await asyncio.gather(
        one(Told().progress, print), *(one(told.progress, note) for _ in range(3))
    )
    assert [result is None for result in results] == [False, True, True, True]
    assert store.read_bytes() == BODY
    assert len(server.requests) == 1
    assert told.notes == ["another command is downloading this; waiting for it"] * 3
    assert told.steps
    assert all(total in (None, len(BODY)) for _, total in told.steps)
    assert list(folder.iterdir()) == []


async def test_what_is_left_in_place_is_taken_over_for_one_byte(
    server: HostileServer, folder: Path
) -> None:
    async with downloading(server.url, folder) as found:
        assert found is not None
    assert await fetched(server.url, folder, expected=RIGHT) == BODY
    assert server.ranges == [None, f"bytes={len(BODY) - 1}-"]
    assert server.sent == len(BODY) + 1


async def test_a_killed_download_is_resumed_by_the_one_that_waits(
    server: HostileServer, folder: Path
) -> None:
    server.answer(Answer(stall=3 * MIB), Answer())
    child = await run_child(url=server.url, folder=folder)
    try:
        await soon(lambda: max(parts(folder), default=0) >= 2 * MIB)
        told = Told()
        task = asyncio.create_task(fetched(server.url, folder, told, expected=RIGHT))
        await soon(lambda: told.steps)
        assert not task.done()
    finally:
        child.send_signal(signal.SIGKILL)
        await child.communicate()
    (there,) = parts(folder)
    assert await task == BODY
    assert 2 * MIB <= there <= 3 * MIB
    assert told.steps[0][1] == len(BODY)
    assert told.notes[0].startswith("another command is downloading this")
    assert server.ranges == [None, f"bytes={there}-"]
    assert server.sent == 3 * MIB + len(BODY) - there


async def test_whoever_waits_goes_on_when_the_first_one_fails(
    server: HostileServer, folder: Path
) -> None:
    gate = asyncio.Event()
    server.answer(Answer(body=NEW, gate=gate), Answer())
    first = asyncio.create_task(fetched(server.url, folder, expected=RIGHT))
    await soon(lambda: server.requests)
    told = Told()
    second = asyncio.create_task(fetched(server.url, folder, told, expected=RIGHT))
    await soon(lambda: told.notes)
    gate.set()
    with pytest.raises(ImageError, match="checksum"):
        await first
    assert await second == BODY


async def test_a_cancelled_download_can_be_resumed(
    server: HostileServer, folder: Path
) -> None:
    server.answer(Answer(stall=2 * MIB), Answer())
    task = asyncio.create_task(fetched(server.url, folder))
    await soon(lambda: server.sent == 2 * MIB and max(parts(folder)) >= MIB)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (there,) = parts(folder)
    assert there >= MIB
    assert await fetched(server.url, folder, expected=RIGHT) == BODY
    assert server.ranges[-1] == f"bytes={there}-"
    assert server.sent == 2 * MIB + len(BODY) - there


async def test_a_block_that_fails_leaves_what_was_downloaded(
    server: HostileServer, folder: Path
) -> None:
    with contextlib.suppress(KeyError):
        async with downloading(server.url, folder):
            raise KeyError
    assert parts(folder) == [len(BODY)]


@pytest.mark.parametrize("change", ["{", "[]", '{"url": 1}', '{"other": 1}', None])
async def test_a_part_whose_origin_is_unknown_is_fetched_anew(
    server: HostileServer, folder: Path, change: str | None
) -> None:
    async with downloading(server.url, folder):
        pass
    record = next(folder.glob("*.json"))
    if change is None:
        record.unlink()
    else:
        record.write_text(change)
    assert await fetched(server.url, folder) == BODY
    assert server.ranges == [None, None]


async def test_a_part_that_is_longer_than_the_file_is_fetched_anew(
    server: HostileServer, folder: Path
) -> None:
    async with downloading(server.url, folder) as found:
        assert found is not None
        os.truncate(found.path, len(BODY) + 1)
    assert await fetched(server.url, folder) == BODY
    assert server.ranges == [None, None]


async def test_a_password_in_the_url_is_neither_stored_nor_told(
    server: HostileServer, folder: Path
) -> None:
    server.answer(Answer(), Answer(status=404))
    url = server.url.replace("http://", "http://me:secret@")
    async with downloading(url, folder) as found:
        assert found is not None
        assert found.url == server.url
    assert "authorization" in server.requests[0]
    assert json.loads(next(folder.glob("*.json")).read_text())["url"] == server.url
    with pytest.raises(ImageError) as caught:
        await fetched(url, folder)
    assert "secret" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://me@h/a@b?c@d", "https://h/a@b?c@d"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
        ("http://h:80/a@b", "http://h:80/a@b"),
        ("http://me:p:w@h:80/a", "http://h:80/a"),
        ("http://me:a/2@h/a", "http://h/a"),
        ("/a:b/c@d", "/a:b/c@d"),
    ],
)
def test_a_url_is_shown_without_its_user(url: str, words: str) -> None:
    assert fetch.shown(url) == words


async def test_nothing_is_written_through_a_link(
    server: HostileServer, folder: Path, tmp_path: Path
) -> None:
    async with downloading(server.url, folder) as found:
        assert found is not None
        name = found.path
    victim = tmp_path / "victim"
    victim.write_text("mine")
    name.unlink()
    name.symlink_to(victim)
    with pytest.raises(ImageError, match="cannot write in"):
        await fetched(server.url, folder)
    assert victim.read_text() == "mine"
