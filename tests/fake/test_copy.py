"""Copies with guests that lie, stop in the middle, or send a hostile tar."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from fake_agent import EXITED, FakeGuest, as_agent, encoded
from fake_qmp import serving

from qemuctl import waiting
from qemuctl.errors import AgentError, HostError, WaitTimeout
from qemuctl.guest import conversation
from qemuctl.guest.agent import Agent
from qemuctl.guest.conversation import CopyError
from qemuctl.guest.copy import get_file, put_file
from qemuctl.guest.port import Way, through_agent
from qemuctl.guest.tree import get_tree, put_tree
from qemuctl.waiting import heard_by


class FakePort:
    """The guest's side of the port, played by a test."""

    def __init__(
        self,
        guest: FakeGuest,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._guest, self.reader, self._writer = guest, reader, writer
        self.over = False

    async def started(self) -> list[str]:
        """Waits for the script's start; its arguments, the token first."""
        while True:
            execs = [a for name, a in self._guest.seen if name == "guest-exec"]
            if execs:
                return [str(word) for word in execs[-1]["arg"][3:]]
            await asyncio.sleep(0.005)

    async def token(self) -> bytes:
        return (await self.started())[0].encode()

    async def say(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def end(self, status: int = 0, words: bytes = b"") -> None:
        """The script ends."""
        self.over = True
        self._guest.answers["guest-exec-status"] = [
            EXITED | {"exitcode": status, "err-data": encoded(words)}
        ]


Script = Callable[[FakePort], Awaitable[None]]


@contextlib.asynccontextmanager
async def guest_that(script: Script, path: Path, agent: Agent) -> AsyncIterator[Way]:
    """The way into a guest whose side of the port is ``script``."""
    guest = FakeGuest(
        {"guest-exec": [{"pid": 1}], "guest-exec-status": [{"exited": False}]}
    )
    failures: list[BaseException] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            port = FakePort(guest, reader, writer)
            await script(port)
            await reader.read()
            if not port.over:
                port.end(1)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except Exception as error:  # noqa: BLE001 (told below)
            failures.append(error)
        finally:
            writer.close()

    socket = path.with_name("copy.sock")
    server = await asyncio.start_unix_server(serve, socket)
    async with server, serving(path, as_agent(guest)):
        yield through_agent(agent, socket)
        agent.release()
    assert not failures, failures


async def sent_file(port: FakePort, data: bytes, *, size: int | None = None) -> bytes:
    """Plays the sending of a file; gives what the host says to it."""
    token = await port.token()
    said = len(data) if size is None else size
    await port.say(token + f" {said} 644\n".encode() + data + token)
    return await port.reader.readline()


async def test_bytes_of_an_earlier_copy_are_skipped(
    path: Path, agent: Agent, tmp_path: Path
) -> None:
    async def script(port: FakePort) -> None:
        await port.say(b"stale " * 100_000)
        assert await sent_file(port, b"fresh") == b"ok\n"
        port.end(words=b"\n" + hashlib.md5(b"fresh").hexdigest().encode() + b"\n")

    async with guest_that(script, path, agent) as way:
        got = await get_file(way, "/x/name", tmp_path)
    assert got == tmp_path / "name"
    assert got.read_bytes() == b"fresh"


async def test_a_guest_that_never_begins_keeps_no_other_copy_waiting_for_ever(
    path: Path, agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "_FIRST_WORD", 0.3)
    monkeypatch.setattr(waiting, "SAY_AFTER", 0.1)
    told: list[str] = []
    heard_by(told.append)

    async def script(port: FakePort) -> None:
        await port.started()

    async def copy() -> None:
        # The other one's script has ended by then, as this guest tells it.
        with pytest.raises((WaitTimeout, CopyError), match=r"begin the copy|status 1"):
            await get_file(way, "/x/name", tmp_path)

    async with guest_that(script, path, agent) as way:
        await asyncio.gather(copy(), copy())
    heard_by(lambda _: None)
    assert set(told) == {
        "waiting for the guest to begin the copy …",
        "waiting for another copy from or to this guest …",
    }


async def test_the_host_sends_nothing_before_the_guest_has_spoken(
    path: Path, agent: Agent, tmp_path: Path
) -> None:
    heard = b""

    async def script(port: FakePort) -> None:
        nonlocal heard
        token = await port.token()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await port.reader.read(1)
        await port.say(b"noise" + token + b" ready\n")
        heard = await port.reader.readexactly(4 + 33)
        port.end(words=b"0+1 records in\n\n/x\n")

    (tmp_path / "s").write_bytes(b"data")
    async with guest_that(script, path, agent) as way:
        assert await put_file(way, tmp_path / "s", "/x") == "/x"
    assert heard == b"data" + hashlib.md5(b"data").hexdigest().encode() + b"\n"


@pytest.mark.parametrize("chunk", [1, 7, 31, 32, 33])
async def test_a_token_in_pieces_is_still_the_token(
    path: Path, agent: Agent, tmp_path: Path, chunk: int
) -> None:
    data = os.urandom(100)

    async def script(port: FakePort) -> None:
        token = await port.token()
        whole = token + b" 100 600\n" + data + token
        for start in range(0, len(whole), chunk):
            await port.say(whole[start : start + chunk])
            await asyncio.sleep(0)
        port.end(words=b"-\n")

    async with guest_that(script, path, agent) as way:
        assert (await get_file(way, "/x", tmp_path / "x")).read_bytes() == data


@pytest.mark.parametrize(
    ("size", "words"),
    [(4, "changed its size"), (6, "only 5 of 6 bytes"), (1 << 40, "only 5 of")],
)
async def test_a_guest_that_lies_about_the_size_is_found_out(
    path: Path, agent: Agent, tmp_path: Path, size: int, words: str
) -> None:
    async def script(port: FakePort) -> None:
        await sent_file(port, b"hello", size=size)
        port.end(1)

    async with guest_that(script, path, agent) as way:
        with pytest.raises(CopyError, match=words):
            await get_file(way, "/x", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


async def test_another_sum_is_an_error_and_the_target_stays(
    path: Path, agent: Agent, tmp_path: Path
) -> None:
    async def script(port: FakePort) -> None:
        await sent_file(port, b"hello")
        port.end(words=b"0" * 32)

    (tmp_path / "x").write_text("old")
    async with guest_that(script, path, agent) as way:
        with pytest.raises(CopyError, match="changed while it was copied"):
            await get_file(way, "/x", tmp_path / "x")
    assert (tmp_path / "x").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "head",
    [
        b" x 644\n",
        b" 5\n",
        b"\n",
        b" 5 999\n",
        b" -5 644\n",
        b" -1 \xff\n",
        b"x" * 5000,
    ],
)
async def test_a_head_that_makes_no_sense_is_an_error(
    path: Path, agent: Agent, tmp_path: Path, head: bytes
) -> None:
    async def script(port: FakePort) -> None:
        await port.say(await port.token() + head)

    async with guest_that(script, path, agent) as way:
        with pytest.raises(AgentError, match="makes no sense"):
            async with asyncio.timeout(60):
                await get_file(way, "/x", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


async def test_a_script_that_ends_too_soon_is_told_in_its_own_words(
    path: Path, agent: Agent, tmp_path: Path
) -> None:
    told = asyncio.Event()

    async def script(port: FakePort) -> None:
        await port.say(await port.token() + b" ready\n")
        await port.reader.read(10)
        port.end(1, b"dd: \x1b[2JNo space left\n1+0 records in\n0+0 records out\n")
        await told.wait()  # it does not read on: the host has to notice

    (tmp_path / "s").write_bytes(bytes(50_000_000))
    async with guest_that(script, path, agent) as way:
        with pytest.raises(CopyError, match=r"cannot copy: dd: No space left$"):
            await put_file(way, tmp_path / "s", "/x")
        told.set()


async def test_a_port_that_closes_in_the_middle_is_an_error(
    path: Path, agent: Agent, tmp_path: Path
) -> None:
    async def script(port: FakePort) -> None:
        await port.say(await port.token() + b" 100 644\nhello")
        port.end(1)
        raise ConnectionResetError

    async with guest_that(script, path, agent) as way:
        with pytest.raises((AgentError, CopyError)):
            await get_file(way, "/x", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


async def test_more_than_four_gigabytes_are_counted_right(
    path: Path, agent: Agent, tmp_path: Path
) -> None:
    asked: list[str] = []

    async def script(port: FakePort) -> None:
        asked.extend(await port.started())
        port.end(1, b"too large for me\n")

    with (tmp_path / "s").open("wb") as file:
        file.truncate(5 * 1024**3 + 1)
    async with guest_that(script, path, agent) as way:
        with pytest.raises(CopyError, match="too large for me"):
            await put_file(way, tmp_path / "s", "/x")
        assert asked[2] == str(5 * 1024**3 + 1)


def tar_of(*members: tarfile.TarInfo) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return data.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o6755
    info.size = 3 if kind == tarfile.REGTYPE else 0
    return info


async def sent_tree(port: FakePort, data: bytes, sums: bytes = b"") -> None:
    token = await port.token()
    await port.say(token + b" tree\n" + data + token)
    if await port.reader.readline():
        await port.say(sums + token)
        await port.reader.readline()
    port.end()


HOSTILE = {
    "a name outside": [member("../evil")],
    "a link outside": [member("l", tarfile.SYMTYPE, "../.."), member("l/evil")],
    "an absolute link": [member("l", tarfile.SYMTYPE, "/tmp"), member("l/evil")],
    "a hard link outside": [member("l", tarfile.LNKTYPE, "../secret")],
    "a device": [member("d", tarfile.CHRTYPE)],
    "a pipe": [member("p", tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE)
async def test_a_hostile_tar_is_refused_and_leaves_nothing(
    path: Path, agent: Agent, tmp_path: Path, members: list[tarfile.TarInfo]
) -> None:
    (tmp_path / "secret").write_text("secret")

    async def script(port: FakePort) -> None:
        await sent_tree(port, tar_of(*members))

    async with guest_that(script, path, agent) as way:
        with pytest.raises(CopyError, match="holds what is not copied"):
            await get_tree(way, "/x", tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]


@pytest.mark.parametrize("data", [b"no tar" * 1000, b"\x1f\x8b" + bytes(1000)])
async def test_what_is_no_tar_is_refused(
    path: Path, agent: Agent, tmp_path: Path, data: bytes
) -> None:
    async def script(port: FakePort) -> None:
        await sent_tree(port, data)

    async with guest_that(script, path, agent) as way:
        with pytest.raises(CopyError, match="holds what is not copied"):
            await get_tree(way, "/x", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


async def test_a_tar_loses_set_user_id(
    path: Path, agent: Agent, tmp_path: Path
) -> None:
    async def script(port: FakePort) -> None:
        await sent_tree(port, tar_of(member("a"), member("./b")))

    async with guest_that(script, path, agent) as way:
        got = await get_tree(way, "/x", tmp_path / "out")
    assert sorted(entry.name for entry in got.iterdir()) == ["a", "b"]
    assert (got / "a").stat().st_mode & 0o7777 == 0o755


async def test_sums_of_a_folders_files_are_compared(
    path: Path, agent: Agent, tmp_path: Path
) -> None:
    wrong = b"%s  ./a\n" % (b"0" * 32)

    async def script(port: FakePort) -> None:
        await sent_tree(port, tar_of(member("./a")), b"nonsense\n" + wrong)

    async with guest_that(script, path, agent) as way:
        with pytest.raises(CopyError, match="changed while it was copied"):
            await get_tree(way, "/x", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


async def test_a_folder_is_not_joined_to_a_link_that_is_there(
    path: Path, agent: Agent, tmp_path: Path
) -> None:
    async def script(port: FakePort) -> None:
        await sent_tree(port, tar_of(member("d", tarfile.DIRTYPE), member("d/a")))

    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "x").mkdir()
    (tmp_path / "x/d").symlink_to("../elsewhere")
    async with guest_that(script, path, agent) as way:
        with pytest.raises(HostError, match="not a folder"):
            await get_tree(way, "/x", tmp_path)
    assert list((tmp_path / "elsewhere").iterdir()) == []


async def test_the_tar_that_goes_in_is_one_that_tarfile_reads(
    path: Path, agent: Agent, tmp_path: Path
) -> None:
    source = tmp_path / "s"
    (source / "d").mkdir(parents=True)
    (source / "d/f").write_bytes(b"f" * 700)
    (source / "d/new\nline").write_bytes(b"n")
    (source / "d/f").chmod(0o4640)
    got = b""

    async def script(port: FakePort) -> None:
        nonlocal got
        token, _, size, *_ = await port.started()
        await port.say(token.encode() + b" ready\n")
        got = await port.reader.readexactly(int(size))
        length = int(await port.reader.readline())
        sums = await port.reader.readexactly(length)
        assert sums == hashlib.md5(b"f" * 700).hexdigest().encode() + b"  ./d/f\n"
        port.end(words=b"/x\n")

    async with guest_that(script, path, agent) as way:
        assert await put_tree(way, source, "/x") == "/x"
    with tarfile.open(fileobj=io.BytesIO(got)) as tar:
        names = tar.getnames()
        assert names == [".", "./d", "./d/f", "./d/new\nline"]
        assert (tar.getmember("./d/f").mode, tar.getmember("./d/f").uid) == (0o640, 0)
