"""What tells the user that something takes a while."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qemuctl.cli.output import (
    note,
    print_fields,
    print_json,
    print_table,
    report,
    working,
)
from qemuctl.cli.streaming import print_line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_what_is_waited_for_and_how_long(
    monkeypatch: pytest.MonkeyPatch, until: Callable[..., Any]
) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    with working("waiting for [web]", say_after=0) as change:
        until(lambda: "waiting for [web]" in shown.getvalue())
        change("nearly")
        until(lambda: "nearly" in shown.getvalue())
        until(lambda: "nearly … 1 s" in shown.getvalue())
    assert shown.getvalue().endswith("\r")


def test_a_pipe_hears_of_a_long_wait_once(
    capsys: pytest.CaptureFixture[str], until: Callable[..., Any]
) -> None:
    said = ""

    def heard() -> bool:
        nonlocal said
        said += capsys.readouterr().err
        return bool(said)

    with working("waiting for web", say_after=0.01):
        until(heard)
    assert said == "waiting for web …\n"
    assert capsys.readouterr().err == ""


def test_a_pipe_hears_nothing_of_a_short_wait_or_where_nobody_wants_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with working("short", say_after=30):
        pass
    with working("quiet") as change:
        change("quiet still")
        time.sleep(0.2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("bar", ["output.working('x')", "progress.percent('x')"])
def test_what_is_printed_meanwhile_goes_where_it_was_to_go(bar: str) -> None:
    terminal, theirs = os.openpty()
    code = f"""
from qemuctl.cli import output, progress
with {bar}:
    print("data")
"""
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=theirs, check=True)
    os.close(theirs)
    os.close(terminal)
    assert done.stdout == b"data\n"


def test_a_terminal_is_told_what_takes_long_and_nothing_of_it_stays() -> None:
    terminal, theirs = os.openpty()
    code = """
import sys
from qemuctl.cli.output import note, working
with working("starting web") as change:
    sys.stdin.readline()
    note("above")
    change("booting web")
    sys.stdin.readline()
assert "rich" not in sys.modules
"""
    argv = [sys.executable, "-c", code]
    heard = b""

    def hear(words: bytes) -> None:
        nonlocal heard
        while words not in heard:
            heard += os.read(terminal, 1000)

    with subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        assert process.stdin is not None
        process.stdin.flush()
        hear(b"starting web")
        process.stdin.write(b"\n")
        process.stdin.flush()
        hear(b"booting web")
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.wait() == 0
    with contextlib.suppress(OSError):
        while data := os.read(terminal, 1000):
            heard += data
    os.close(terminal)
    assert shown(heard.decode()) == ["above", ""]


def shown(text: str) -> list[str]:
    """The lines of a terminal that knows carriage returns."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        cells: list[str] = []
        place = 0
        for char in line:
            if char == "\r":
                place = 0
            else:
                cells[place : place + 1] = [char]
                place += 1
        lines.append("".join(cells).rstrip())
    return lines


EVIL = "a\x1b]0;x\x07b\x9b31mc\rd\u202ee\x7ff\u2028g\x00\udcffh"
SEEN = r"a\x1b]0;x\x07b\x9b31mc\x0dd\u202ee\x7ff\u2028g\x00\udcffh"


def test_what_others_have_written_cannot_drive_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    note(f"{EVIL}\n\tend\r\n")
    report(EVIL, f"hint {EVIL}\nmore")
    print_table(("NAME",), [(EVIL,)])
    print_fields({"name": f"{EVIL}\n{EVIL}"})
    out, err = capsys.readouterr()
    assert out.count(SEEN) == 3
    assert err.count(SEEN) == 3
    assert {c for c in out + err if not c.isprintable()} == {"\n", "\t"}


def test_json_holds_the_same_and_nothing_that_drives_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for show in (print_json, print_line):
        show({EVIL: [EVIL, "é", "\u00a0"]})
        out = capsys.readouterr().out
        assert json.loads(out) == {EVIL: [EVIL, "é", "\u00a0"]}
        assert "é" in out
        assert not {"\x9b", "\x7f", "\u202e", "\x1b"} & set(out)


@pytest.mark.parametrize("words", [["help"], ["--help"], ["ls"], ["spec", "example"]])
def test_output_that_nobody_reads_ends_a_command_as_sigpipe_would(
    home: Path, words: list[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    argv = [sys.executable, "-m", "qemuctl", *words]
    done = subprocess.run(argv, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
