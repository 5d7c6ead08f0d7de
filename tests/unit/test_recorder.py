"""The flight recorder: bounded, discreet, and never in the way."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from qemuctl import bounded, follow
from qemuctl.qmp import Recorder, recorder

SECRET = "hunter2"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "qmp.jsonl"


@pytest.fixture
def recording(path: Path) -> Iterator[Recorder]:
    made = Recorder(path)
    yield made
    made.close()


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_commands_and_replies_are_lines_with_the_time(
    path: Path, recording: Recorder
) -> None:
    recording.command("block_resize", {"size": 1})
    recording.reply("block_resize", {}, 0.0123)
    recording.failure("stop", "QEMU refused stop: no")
    command, reply, failure = entries(path)
    assert all(isinstance(entry.pop("at"), float) for entry in (command, reply))
    assert command == {"execute": "block_resize", "arguments": {"size": 1}}
    assert reply == {"reply": "block_resize", "value": {}, "ms": 12.3}
    assert failure["error"] == "QEMU refused stop: no"


def test_only_its_owner_may_read_it(path: Path, recording: Recorder) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "line", [f"set_password vnc {SECRET}", f"  change vnc password {SECRET}",
             f"object_add secret,id=s,data={SECRET}", f"{SECRET}x {SECRET}"[7:]],
)  # fmt: skip
def test_what_the_human_monitor_is_told_is_not_written_down(
    path: Path, recording: Recorder, line: str
) -> None:
    recording.command("human-monitor-command", {"command-line": line})
    recording.reply("human-monitor-command", f"bad: {line}", 0.0)
    command, reply = entries(path)
    assert SECRET not in path.read_text()
    assert command["arguments"]["command-line"].split()[0] == line.split()[0]
    assert "bytes" in reply["value"]
    recording.command("human-monitor-command", {"command-line": "info usernet"})
    recording.reply("human-monitor-command", "VLAN -1", 0.0)
    assert "info usernet" in path.read_text()
    assert "VLAN -1" in path.read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        {"protocol": "vnc", "password": SECRET},
        {"qom-type": "secret", "id": "s", "data": SECRET},
        {"outer": {"passwd": SECRET}},
        {"options": [{"driver": "ssh", "password": SECRET}]},
        {"actions": [{"type": "x", "data": {"nested": [{"secret": SECRET}]}}]},
    ],
)
def test_secrets_are_not_written_down(
    path: Path, recording: Recorder, arguments: dict[str, Any]
) -> None:
    recording.command("anything", arguments)
    recording.reply("anything", arguments, 0.0)
    recording.reply("anything", [arguments], 0.0)
    assert len(entries(path)) == 3
    assert SECRET not in path.read_text()


def test_data_that_is_no_secret_is_written_down(
    path: Path, recording: Recorder
) -> None:
    recording.command("send-key", {"keys": [{"type": "qcode", "data": "ctrl"}]})
    assert entries(path)[0]["arguments"]["keys"] == [{"type": "qcode", "data": "ctrl"}]


def test_a_huge_reply_is_noted_by_its_size(path: Path, recording: Recorder) -> None:
    recording.reply("query-qmp-schema", ["x" * 100_000], 0.0)
    assert entries(path)[0]["value"] == "… 100004 bytes"
    assert path.stat().st_size < 1000


def test_the_file_is_bounded_and_keeps_the_newest(
    path: Path, recording: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "LIMIT", 64 * 1024)
    second = Recorder(path)
    for number in range(1000):
        recording.command("first", {"number": number, "x": "x" * 100})
        second.command("second", {"number": number, "x": "x" * 100})
    second.close()
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_size > 200_000
    assert path.stat().st_blocks * 512 < 200_000
    # The first line may have lost its beginning.
    lines = bounded.content(path).splitlines()[1:]
    numbers = [json.loads(line)["arguments"]["number"] for line in lines]
    assert numbers[-2:] == [999, 999]
    assert sorted(set(numbers)) == list(range(numbers[0], 1000))


async def test_a_reader_keeps_its_place_in_it(
    path: Path, recording: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "LIMIT", 64 * 1024)
    recording.command("none", {"number": 0})
    async with aclosing(follow.lines(path)) as lines, asyncio.timeout(60):
        for number in range(1000):
            recording.command("query-status", {"number": number, "x": "x" * 200})
            if number % 10 == 0:  # it reads well behind, and not all that is there
                await anext(lines)
        recording.command("last", {})
        read = []
        async for line in lines:
            read.append(line)
            if b'"last"' in line:
                break
    assert b"\0" not in b"".join(read)
    # All that is left comes; the first line of it may have lost its beginning.
    numbers = [json.loads(line)["arguments"]["number"] for line in read[-100:-1]]
    assert numbers == list(range(901, 1000))


def test_a_full_disk_stops_nothing(path: Path, recording: Recorder) -> None:
    recording.command("stop", None)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), hard))
    try:
        recording.command("cont", None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    recording.command("cont", None)
    assert [entry["execute"] for entry in entries(path)] == ["stop", "cont"]


def test_a_line_that_was_cut_short_does_not_spoil_the_next(
    path: Path, recording: Recorder
) -> None:
    recording.command("stop", None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
    try:
        recording.command("cont", None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    recording.command("quit", None)
    assert json.loads(path.read_text().splitlines()[-1])["execute"] == "quit"


def test_a_recorder_that_cannot_write_stops_nothing(
    path: Path, recording: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.touch()
    readonly = os.open(path, os.O_RDONLY)
    monkeypatch.setattr(recording, "_fd", readonly)
    recording.command("stop", None)
    assert path.read_bytes() == b""
    os.close(readonly)
    recording.command("stop", None)


def test_it_can_be_closed_twice(path: Path) -> None:
    recording = Recorder(path)
    recording.close()
    recording.close()
    recording.command("stop", None)
    assert path.read_bytes() == b""


def test_what_json_does_not_know_is_written_as_text(
    path: Path, recording: Recorder
) -> None:
    recording.command("x", {"path": Path("/a b")})
    assert entries(path)[0]["arguments"] == {"path": "/a b"}


def test_two_processes_may_append_at_once(path: Path) -> None:
    code = """
import sys
from pathlib import Path
from qemuctl.qmp import Recorder
made = Recorder(Path(sys.argv[1]))
input()
for number in range(300):
    made.command(sys.argv[2], {"number": number, "text": "x" * 500})
made.close()
"""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, path, name], stdin=subprocess.PIPE
        )
        for name in ("one", "two")
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    written = entries(path)
    for name in ("one", "two"):
        mine = [e["arguments"]["number"] for e in written if e["execute"] == name]
        assert mine == list(range(300))
