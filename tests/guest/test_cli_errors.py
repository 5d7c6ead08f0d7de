"""Nonsense in, a clear error out, and nothing changed."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from tests.guest.conftest import Home


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"name: a\nmemroy: 1G\n", "bad.yaml:2: unknown key: memroy"),
        (b"name: a\nmemory: 12Q\n", "bad.yaml:2: memory: not a size: '12Q'"),
        (b"name: a\nmemory: 0\n", "bad.yaml:2: memory: too small"),
        (b"name: a\ncpu: many\n", "bad.yaml:2: cpu: not a whole number"),
        (b"name: a/b\n", "bad.yaml:1: name: not a name: 'a/b'"),
        (b"name: " + b"x" * 300 + b"\n", "name too long: 300 characters"),
        (b"", "bad.yaml: empty"),
        (b"\0\xff\x01", "bad.yaml: a binary file"),
        (b"name: a\nmachine: pc\ndisks: [{size: 1M, bus: nvme}]\n", "disks[0].bus"),
        (b"name: a\ndisks: [{size: 1M, bus: ide}]\n", "ide"),
        (b"name: a\nnics: [{model: ne9000}]\n", "ne9000"),
        (b"name: a\nimage: tinny\n", "did you mean tiny?"),
        (b"name: a\nqemu: /nonexistent/qemu\n", "/nonexistent"),
    ],
)
def test_a_bad_spec_names_its_place(here: Home, text: bytes, expected: str) -> None:
    (here.path / "bad.yaml").write_bytes(text)
    done = here.run("create", "-f", "bad.yaml", check=1, cwd=here.path)
    assert done.stderr.startswith(b"error: ")
    assert expected in done.stderr.decode()
    assert here.text("ls", "-aq") == ""


@pytest.mark.parametrize(
    "command",
    [
        ("start", "nobody"), ("stop", "nobody"), ("exec", "nobody", "--", "true"),
        ("info", "nobody"), ("logs", "nobody"), ("console", "nobody"),
        ("rm", "nobody"), ("qmp", "nobody", "query-status"), ("wait", "nobody"),
        ("start", "../../etc"), ("argv", "nobody"),
    ],
)  # fmt: skip
def test_a_vm_that_is_not_there_is_said_so(
    here: Home, command: tuple[str, ...]
) -> None:
    assert "no such VM" in here.words(*command, check=1)


@pytest.mark.parametrize(
    "command",
    [(), ("frob",), ("run",), ("exec",), ("create",), ("argv",),
     ("run", "tiny", "--zzz"), ("stop", "a", "--timeout", "soon"),
     ("logs", "a", "--qmp", "--qemu")],
)  # fmt: skip
def test_wrong_usage_ends_with_two(here: Home, command: tuple[str, ...]) -> None:
    if command[:1] in (("stop",), ("logs",)):
        here.run("create", "a", "--cdrom", "")
    here.run(*command, check=2)


def test_a_vm_with_nothing_to_boot_is_not_created(here: Home) -> None:
    for given in ((), ("--memory", "1G", "-p", ":22"), ("--nic", "none")):
        assert "--image tiny" in here.words("create", "a", *given, check=2)
    spec = here.path / "a.yaml"
    spec.write_text("name: a\n")
    assert "has nothing to boot" in here.words("create", "-f", spec, check=2)
    assert "has nothing to boot" in here.words("run", "-f", spec, "uname", check=2)
    assert here.text("ls", "-aq") == ""
    for number, given in enumerate((["--boot", "network"], ["--disk", "size=1M"])):
        here.run("create", f"b{number}", *given)


def test_a_missing_image_names_the_folder_that_blocks(here: Home) -> None:
    words = here.words("create", "a", "--disk", "/nonexistent/deep/disk.qcow2", check=1)
    assert "does not exist: /nonexistent/deep/disk.qcow2" in words
    assert "the folder does not exist: /nonexistent" in words


def test_a_taken_host_port_is_said_in_plain_words(here: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        here.run("create", "a", "--cdrom", "", "-p", f"{port}:80")
        words = here.words("start", "a", check=1)
    assert "Could not set up host forwarding rule" in words
    assert "a host port is taken" in words
    assert "the command was:\n" in words
    assert here.text("ls", "-q") == ""


def test_a_bad_extra_argument_gets_qemus_own_words(here: Home) -> None:
    here.run("create", "a", "--qemu-arg=-device", "--qemu-arg=no-such-device")
    words = here.words("start", "a", check=1)
    assert "'no-such-device' is not a valid device model name" in words
    assert "failed with status 1" in here.text("ls", "-a")


def test_no_qemu_says_what_to_install(here: Home) -> None:
    finished = subprocess.run(
        here.command("run", "tiny", "--", "true"),
        env=here.env | {"PATH": str(here.path)}, capture_output=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert finished.returncode == 1
    assert b"QEMU is not installed" in finished.stderr
    assert b"apt-get install qemu-system-x86" in finished.stderr
    assert not any((here.path / "state" / "vms").glob("run-*"))


def test_a_socket_path_past_the_limit_is_refused_before_anything(
    here: Home, tmp_path: Path
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    done = subprocess.run(
        here.command("run", "tiny", "--", "true"),
        env=here.env | {"XDG_RUNTIME_DIR": str(deep)}, capture_output=True,
        check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 1
    assert b"the path of a socket is too long" in done.stderr
    assert list(deep.iterdir()) == []


def test_paths_with_anything_in_them_work(here: Home, boot_sector: Path) -> None:
    odd = here.path / "a,b 'c' \"d\" $e ü;%"
    odd.mkdir()
    disk = odd / "disk, one.raw"
    disk.write_bytes(boot_sector.read_bytes())
    env = here.env | {"QEMUCTL_HOME": str(odd / "home")}

    def run(*arguments: str) -> bytes:
        done = subprocess.run(here.command(*arguments), env=env, capture_output=True,
                              check=False, stdin=subprocess.DEVNULL)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    text = str(disk).replace(",", ",,")
    run("create", "a", "--disk", f"path={text}", "--disk", "size=1M")
    run("start", "a")
    try:
        run("wait", "a", "--for", "serial:ok")
    finally:
        run("kill", "a")
    run("rm", "a")


def test_a_traceback_is_shown_to_those_who_ask(here: Home) -> None:
    done = subprocess.run(
        here.command("info", "nobody"), env=here.env | {"QEMUCTL_DEBUG": "1"},
        capture_output=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert b"Traceback" in done.stderr
