"""`exec` on a running guest: streams, statuses, and what interrupts it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.guest.conftest import Home


def test_the_command_runs_in_the_guest_and_not_here(shared: Home, web: str) -> None:
    assert shared.text("exec", web, "--", "uname", "-n") == "web\n"


def test_ten_megabytes_of_bytes_arrive_unchanged(shared: Home, web: str) -> None:
    script = "head -c 10485760 /dev/urandom | tee /tmp/b; sha256sum </tmp/b >&2"
    done = shared.run("exec", web, "--", "sh", "-c", script)
    assert len(done.stdout) == 10 * 1024 * 1024
    assert hashlib.sha256(done.stdout).hexdigest() == done.stderr.split()[0].decode()


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137),
     ("kill -TERM $$", 143)],
)  # fmt: skip
def test_the_status_is_the_commands_own(
    shared: Home, web: str, script: str, status: int
) -> None:
    done = shared.run("exec", web, "--", "sh", "-c", script, check=status)
    assert done.stdout == b""
    assert done.stderr == b""


def test_output_and_errors_stay_apart(shared: Home, web: str) -> None:
    done = shared.run("exec", web, "--", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")


def test_a_command_that_is_not_there_says_so(shared: Home, web: str) -> None:
    assert (
        b"no-such-command"
        in shared.run("exec", web, "--", "no-such-command", check=127).stderr
    )


def test_arguments_arrive_as_they_were_given(shared: Home, web: str) -> None:
    words = ["a b", "", "'", '"', "$HOME", "*", "ü\n", "-x", "--"]
    out = shared.text("exec", web, "--", "printf", "[%s]", *words)
    assert out == "".join(f"[{word}]" for word in words)


def test_input_of_any_bytes_is_passed_on(shared: Home, web: str) -> None:
    data = os.urandom(700_000)
    done = shared.run("exec", web, "--", "cat", input=data)
    assert done.stdout == data


def test_a_file_as_input_works_too(shared: Home, web: str, tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"one\ntwo\n")
    with path.open("rb") as file:
        assert shared.run("exec", web, "--", "wc", "-l", stdin=file).stdout == b"2\n"


def test_input_that_never_ends_does_not_hold_the_command_up(
    shared: Home, web: str
) -> None:
    reading, writing = os.pipe()
    try:
        done = shared.run("exec", web, "--", "echo", "done", stdin=reading)
    finally:
        os.close(reading)
        os.close(writing)
    assert done.stdout == b"done\n"


def test_a_command_that_does_not_read_its_input_ends_as_it_likes(
    shared: Home, web: str
) -> None:
    done = shared.run("exec", web, "--", "true", input=b"x" * 2_000_000)
    assert done.stdout == b""


def test_output_comes_while_the_command_runs(
    shared: Home, web: str, server: str
) -> None:
    shared = shared.by(server)
    # The command ends only once its input does, which we end after its output.
    process = shared.popen(
        "exec", web, "--", "sh", "-c", "echo first; cat",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"first\n"
    out, _ = process.communicate(b"second\n", timeout=60)
    assert out == b"second\n"
    assert process.returncode == 0


def test_two_at_once_do_not_wait_for_each_other(shared: Home, web: str) -> None:
    slow = shared.popen("exec", web, "--", "sh", "-c", "echo on; sleep 9999",
                        stdout=subprocess.PIPE)  # fmt: skip
    assert slow.stdout is not None
    assert slow.stdout.readline() == b"on\n"
    assert shared.text("exec", web, "--", "echo", "quick") == "quick\n"
    assert slow.poll() is None
    slow.send_signal(signal.SIGINT)
    assert slow.wait(60) == 130
    slow.stdout.close()


def test_an_interrupted_command_ends_in_the_guest(
    shared: Home, web: str, server: str
) -> None:
    shared = shared.by(server)
    process = shared.popen("exec", web, "--", "sh", "-c", "echo on; exec sleep 4242",
                           stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    process.stdout.close()
    deadline = time.monotonic() + 60
    while "sleep 4242" in shared.text("exec", web, "--", "ps"):
        assert time.monotonic() < deadline


def test_whoever_closes_our_output_ends_us_quietly(
    shared: Home, web: str, server: str
) -> None:
    shared = shared.by(server)
    process = shared.popen(
        "exec", web, "--", "sh", "-c", "exec yes",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"y\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 141
    assert "yes" not in shared.text("exec", web, "--", "ps", "-o", "comm").split()


# Ends once no file of a command is there: those of one that lasts are removed, too.
NONE_LEFT = """
looks=0
while ls /tmp/qemuctl.* && [ $((looks += 1)) -lt 600 ]; do usleep 100000; done 2>&1
"""


def none_left(shared: Home, web: str) -> bool:
    told = shared.text("exec", web, "--", "sh", "-c", NONE_LEFT)
    return told.splitlines()[-1:] == ["ls: /tmp/qemuctl.*: No such file or directory"]


def test_nothing_of_it_stays_in_the_guest(shared: Home, web: str) -> None:
    for script in ("true", "echo out; echo err >&2", "seq 20000", "cat; kill -9 $$"):
        shared.run("exec", web, "--", "sh", "-c", script, input=b"x", check=None)
    assert none_left(shared, web)


def test_nothing_stays_of_a_command_whose_caller_was_killed(
    shared: Home, web: str
) -> None:
    process = shared.popen("exec", web, "--", "sh", "-c", "echo on; exec sleep 4243",
                           stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    process.kill()
    process.wait()
    process.stdout.close()
    shared.run("exec", web, "--", "sh", "-c", "kill $(pidof sleep)")
    assert none_left(shared, web)


@pytest.mark.parametrize("pause", ["", "; sleep 1"], ids=["soon", "late"])
@pytest.mark.parametrize("size", [0, 65536, 65537, 1_000_000])
def test_output_of_any_length_is_exact_however_soon_the_command_ends(
    shared: Home, web: str, size: int, pause: str
) -> None:
    def some(byte: str) -> str:
        return f"head -c {size} /dev/zero | tr '\\0' {byte}"

    script = f"{some('o')}; {some('e')} >&2{pause}"
    done = shared.run("exec", web, "--", "sh", "-c", script)
    assert (done.stdout, done.stderr) == (b"o" * size, b"e" * size)


def test_the_command_gets_the_agents_umask_and_no_open_file(
    shared: Home, web: str
) -> None:
    inside = "umask; ls /proc/self/fd | wc -l"
    assert shared.text("exec", web, "--", "sh", "-c", inside) == "0022\n4\n"


def test_a_paused_guest_is_named_as_the_reason(shared: Home, web: str) -> None:
    shared.run("pause", web)
    words = shared.words("exec", web, "--", "true", check=1)
    assert "the VM is paused" in words
    assert f"qemuctl resume {web}" in words
    shared.run("resume", web)


def test_a_guest_that_does_not_answer_does_not_keep_who_interrupts(
    shared: Home, web: str
) -> None:
    words = ("exec", web, "--", "sh", "-c", "echo begun; sleep 1000")
    running = shared.popen(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == b"begun\n"
        shared.run("pause", web)
        try:
            assert b"waiting for the guest agent" in running.stderr.readline()
            running.send_signal(signal.SIGINT)
            # 40 s if each request to the guest took its time.
            status = running.wait(timeout=20)
            # A shell calls both 130.
            assert status in (130, -signal.SIGINT)
            assert running.stderr.read() == b""
        finally:
            shared.run("resume", web)
    # It could not be told.
    shared.run("exec", web, "--", "sh", "-c", "kill $(pidof sleep)")


def test_what_follows_the_commands_name_is_its_own(shared: Home, web: str) -> None:
    assert shared.text("exec", web, "uname", "-n") == "web\n"
    done = shared.text(
        "exec", "--timeout", "9", web, "-n", "sh", "-c", "echo _$0", "-n"
    )
    assert done == "_-n\n"


def test_a_loop_over_lines_keeps_its_input(
    shared: Home, web: str, tmp_path: Path
) -> None:
    lines = tmp_path / "lines"
    lines.write_bytes(b"one\ntwo\n")
    with lines.open("rb") as file:
        assert shared.text("exec", "-n", web, "cat", stdin=file) == ""
        assert file.read() == b"one\ntwo\n"


def test_a_shell_on_a_terminal_is_told_of_the_console_or_reads_lines(
    shared: Home, web: str
) -> None:
    ours, terminal = os.openpty()
    try:
        words = shared.words("exec", web, "sh", stdin=terminal, check=2)
        assert f"qemuctl console {web}" in words
        words = shared.words("exec", "-it", web, "top", check=2)
        assert f"qemuctl ssh {web}" in words
        words = shared.words("run", "tiny", "sh", stdin=terminal, check=2)
        assert "qemuctl run tiny" in words
        os.write(ours, b"echo $((40 + 2))\n\x04")
        assert shared.text("exec", "-i", web, "sh", stdin=terminal) == "42\n"
    finally:
        os.close(ours)
        os.close(terminal)
