"""A real QEMU, its shepherd and its undertaker, when their owner goes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qemuctl.errors import HostError
from qemuctl.paths import VmPaths, private_dir
from qemuctl.process import Child, Identity, bury, held, read_exit, spawn, take
from qemuctl.qmp import Session
from qemuctl.qmp.commands import QueryStatus, Quit
from qemuctl.registry.records.outcome import outcome

OWNER = Path(__file__).with_name("owner.py")
# Seconds in which an owner's QEMU goes, on a host that has much else to do.
SOON = 60.0

Start = Callable[..., "Owned"]


class Owned:
    """A QEMU, its shepherd, and the process that started both."""

    def __init__(self, owner: subprocess.Popen[bytes], paths: VmPaths) -> None:
        self.owner, self.paths = owner, paths
        assert owner.stdout is not None
        line = owner.stdout.readline()
        assert line, "the owner did not start it"
        pids = json.loads(line)
        # None for one that has ended already.
        self.qemu, self.shepherd = map(Identity.of, pids)

    def answers(self) -> None:
        """Waits until QEMU is up: before its main loop answers a command, it knows
        no signal (the greeting comes from a thread of its own)."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect(str(self.paths.tools_socket))
            with client.makefile("rw") as stream:
                assert "QMP" in stream.readline()
                stream.write('{"execute": "qmp_capabilities"}')
                stream.flush()
                assert "return" in stream.readline()

    def kill_owner(self) -> None:
        self.owner.kill()
        self.owner.wait()

    def kill(self, who: Identity | None, number: signal.Signals) -> None:
        assert who is not None
        assert who.signal(number)


@pytest.fixture
def start(
    home: Path, qemu: Path, processes: list[subprocess.Popen[Any]]
) -> Iterator[Start]:
    """`start(mode, *arguments)`: QEMU below an owner of its own."""
    everyone: list[Identity] = []

    def begin(mode: str, *arguments: str) -> Owned:
        name = f"vm{len(processes)}"
        owner = subprocess.Popen(
            [sys.executable, OWNER, name, mode, qemu, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        processes.append(owner)
        owned = Owned(owner, VmPaths.of(name))
        everyone.extend(p for p in (owned.qemu, owned.shepherd) if p is not None)
        return owned

    yield begin
    for process in processes:
        process.kill()
    for one in everyone:
        one.signal(signal.SIGKILL)


@pytest.fixture
def paths(home: Path) -> VmPaths:
    paths = VmPaths.of("vm")
    private_dir(paths.state)
    return paths


def diskless(qemu: Path, *extra: str) -> Callable[[dict[Path, int]], list[str]]:
    def argv(sockets: dict[Path, int]) -> list[str]:
        line = [str(qemu), "-M", "none", "-S", "-nodefaults", "-display", "none"]
        for number, fd in enumerate(sockets.values()):
            line += ["-chardev", f"socket,id=c{number},fd={fd},server=on,wait=off"]
            line += ["-mon", f"chardev=c{number},mode=control"]
        return [*line, *extra]

    return argv


async def ended(child: Child) -> None:
    child.disown()
    await child.reaped()


def alive(who: Identity | None) -> bool:
    return who is not None and who.alive()


async def test_a_qemu_greets_on_the_sockets_that_it_was_given(
    paths: VmPaths, qemu: Path
) -> None:
    both = [paths.owner_socket, paths.tools_socket]
    child = await spawn(paths, both, diskless(qemu))
    try:
        for path in both:
            session = await Session.connect(path, timeout=60)
            assert (await session.execute(QueryStatus())).status == "prelaunch"
            await session.close()
    finally:
        await ended(child)
    assert not child.qemu.alive()
    assert read_exit(paths.exit).status == -9


async def test_sockets_and_folders_are_only_for_their_owner(
    paths: VmPaths, qemu: Path
) -> None:
    before = os.umask(0)
    try:
        child = await spawn(paths, [paths.owner_socket], diskless(qemu))
    finally:
        os.umask(before)
    try:
        assert paths.run.stat().st_mode & 0o777 == 0o700
        assert paths.owner_socket.stat().st_mode & 0o777 == 0o600
    finally:
        await ended(child)


async def test_the_end_is_complete_when_the_shepherd_is_reaped(
    paths: VmPaths, qemu: Path
) -> None:
    child = await spawn(paths, [paths.owner_socket], diskless(qemu))
    session = await Session.connect(paths.owner_socket, timeout=60)
    started = time.time()
    await session.execute(Quit())
    await session.close()
    await child.reaped()
    exited = read_exit(paths.exit)
    assert exited.status == 0
    assert exited.at == pytest.approx(started, abs=60)
    assert not paths.run.exists()
    child.disown()


async def test_a_bad_argument_gives_status_1_and_qemus_words(
    paths: VmPaths, qemu: Path
) -> None:
    child = await spawn(paths, [paths.owner_socket], diskless(qemu, "-nonsense"))
    await child.reaped()
    child.disown()
    assert read_exit(paths.exit).status == 1
    assert "-nonsense: invalid option" in paths.qemu_log.read_text()
    found = outcome(paths)
    assert found is not None
    assert found.text.startswith("failed with status 1: ")


async def test_a_program_that_does_not_exist_gives_the_shells_words(
    paths: VmPaths,
) -> None:
    child = await spawn(paths, [], lambda _sockets: ["/nonexistent/qemu"])
    await child.reaped()
    child.disown()
    assert read_exit(paths.exit).status == 127
    assert "/nonexistent/qemu" in paths.qemu_log.read_text()


async def test_arguments_arrive_as_they_are(paths: VmPaths, tmp_path: Path) -> None:
    odd = ["", " ", "a b", "'", '"', "$HOME", "`id`", "\\", "*", "new\nline", "ü", "-x"]
    code = "import json, sys; json.dump(sys.argv[2:], open(sys.argv[1], 'w'))"
    out = tmp_path / "argv.json"
    line = [sys.executable, "-c", code, str(out), *odd]
    child = await spawn(paths, [], lambda _sockets: line)
    await child.reaped()
    child.disown()
    assert json.loads(out.read_text()) == odd


async def test_qemu_inherits_only_what_it_was_given(
    paths: VmPaths, tmp_path: Path
) -> None:
    code = """
import json, os, sys
fds = {n: os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
       if os.path.exists(f"/proc/self/fd/{n}")}
json.dump(fds, open(sys.argv[1], "w"))
"""
    out = tmp_path / "fds.json"
    kept = os.open(tmp_path / "kept", os.O_CREAT | os.O_RDWR)
    line = [sys.executable, "-c", code, str(out)]
    child = await spawn(paths, [], lambda _sockets: line, keep_open=[kept])
    os.close(kept)
    await child.reaped()
    child.disown()
    fds = json.loads(out.read_text())
    assert fds["0"] == "/dev/null"
    assert fds["1"] == fds["2"] == str(paths.qemu_log)
    rest = [target for number, target in fds.items() if number not in "012"]
    assert [t for t in rest if "/proc/" not in t] == [str(tmp_path / "kept")]


async def test_a_socket_that_cannot_be_made_leaves_no_process(
    paths: VmPaths, qemu: Path
) -> None:
    missing = paths.run / "no" / "socket"
    with pytest.raises(HostError, match=f"cannot listen on {missing}"):
        await spawn(paths, [paths.owner_socket, missing], diskless(qemu))
    assert not paths.qemu_log.exists()


def test_a_killed_owner_takes_its_qemu_along(start: Start, until: Any) -> None:
    owned = start("")
    assert alive(owned.qemu)
    owned.kill_owner()
    until(lambda: not alive(owned.qemu), SOON)
    until(lambda: not alive(owned.shepherd))
    assert read_exit(owned.paths.exit).status == -9
    assert not owned.paths.run.exists()
    assert not held(owned.paths.lock)


def test_an_owner_that_exits_takes_its_qemu_along(start: Start, until: Any) -> None:
    owned = start("")
    owned.owner.communicate(timeout=60)
    assert owned.owner.returncode == 0
    until(lambda: not alive(owned.qemu), SOON)


def test_a_stopped_qemu_dies_with_its_owner_too(start: Start, until: Any) -> None:
    owned = start("")
    owned.kill(owned.qemu, signal.SIGSTOP)
    owned.kill_owner()
    until(lambda: not alive(owned.qemu), SOON)
    until(lambda: not alive(owned.shepherd))
    assert read_exit(owned.paths.exit).status == -9


def test_a_qemu_without_shepherd_dies_with_its_owner_too(
    start: Start, until: Any
) -> None:
    owned = start("")
    owned.kill(owned.shepherd, signal.SIGKILL)
    until(lambda: not alive(owned.shepherd))
    assert alive(owned.qemu)
    owned.kill_owner()
    until(lambda: not alive(owned.qemu), SOON)


def test_the_undertaker_removes_every_file_after_a_kill(
    start: Start, until: Any
) -> None:
    owned = start("bury")
    private_dir(owned.paths.disks)
    owned.paths.disk(0, "qcow2").write_bytes(b"overlay")
    assert owned.paths.run.exists()
    owned.kill_owner()
    until(lambda: not alive(owned.qemu), SOON)
    until(lambda: not owned.paths.state.exists() and not owned.paths.run.exists())


def test_the_undertaker_waits_for_a_qemu_that_lost_its_shepherd(
    start: Start, until: Any
) -> None:
    owned = start("bury")
    owned.kill(owned.shepherd, signal.SIGKILL)
    until(lambda: not alive(owned.shepherd))
    assert owned.paths.state.exists()
    owned.kill_owner()
    until(lambda: not alive(owned.qemu), SOON)
    until(lambda: not owned.paths.state.exists() and not owned.paths.run.exists())


async def test_the_undertaker_is_done_when_the_files_are_gone(tmp_path: Path) -> None:
    folders = [tmp_path / "a b", tmp_path / "-rf", tmp_path / "missing"]
    undertaker = bury(*folders)
    for folder in folders[:2]:
        (folder / "deep").mkdir(parents=True)
    undertaker.made()
    assert all(folder.exists() for folder in folders[:2])
    await undertaker.done()
    assert list(tmp_path.iterdir()) == []


def test_a_detached_qemu_outlives_its_owner(start: Start, until: Any) -> None:
    owned = start("detach")
    owned.kill_owner()
    owned.answers()
    # Had the pipe's end meant anything, it would have come before this.
    owned.kill(owned.qemu, signal.SIGTERM)
    until(lambda: not alive(owned.shepherd))
    assert read_exit(owned.paths.exit).status == 0


def test_a_detached_qemu_outlives_its_terminal(start: Start, until: Any) -> None:
    owned = start("detach")
    owned.kill_owner()
    owned.answers()
    assert owned.shepherd is not None
    owned.kill(owned.shepherd, signal.SIGHUP)
    owned.kill(owned.shepherd, signal.SIGINT)
    assert os.getsid(owned.shepherd.pid) != os.getsid(0)
    owned.kill(owned.shepherd, signal.SIGTERM)  # this one is passed on
    until(lambda: not alive(owned.shepherd))
    assert read_exit(owned.paths.exit).status == 0


def test_signal_9_is_recorded_when_every_python_is_gone(
    start: Start, until: Any
) -> None:
    owned = start("detach")
    owned.kill_owner()
    owned.kill(owned.qemu, signal.SIGKILL)
    until(lambda: not alive(owned.shepherd))
    assert owned.paths.exit.read_text() == "137\n"
    assert read_exit(owned.paths.exit).status == -9
    assert not owned.paths.run.exists()


async def test_quit_is_recorded_when_every_python_is_gone(
    start: Start, until: Any
) -> None:
    owned = start("detach")
    owned.kill_owner()
    session = await Session.connect(owned.paths.tools_socket, timeout=60)
    await session.execute(Quit())
    await session.close()
    until(lambda: not alive(owned.shepherd))
    assert read_exit(owned.paths.exit).status == 0


def test_a_failure_is_recorded_and_its_words_are_kept(start: Start, until: Any) -> None:
    owned = start("detach", "-nonsense")
    owned.kill_owner()
    until(lambda: not alive(owned.shepherd))
    assert read_exit(owned.paths.exit).status == 1
    assert "-nonsense: invalid option" in owned.paths.qemu_log.read_text()


def test_the_lock_is_held_for_as_long_as_qemu_lives(start: Start, until: Any) -> None:
    owned = start("detach")
    owned.kill_owner()
    assert held(owned.paths.lock)
    owned.kill(owned.shepherd, signal.SIGKILL)
    until(lambda: not alive(owned.shepherd))
    assert alive(owned.qemu)
    assert held(owned.paths.lock)
    assert take(owned.paths.lock) is None
    owned.kill(owned.qemu, signal.SIGKILL)
    until(lambda: not alive(owned.qemu))
    until(lambda: not held(owned.paths.lock))


def test_a_lock_is_let_go_only_after_the_exit_was_written(
    start: Start, until: Any
) -> None:
    owned = start("detach")
    owned.kill_owner()
    owned.kill(owned.qemu, signal.SIGKILL)
    until(lambda: not held(owned.paths.lock))
    assert read_exit(owned.paths.exit).status == -9


def test_a_detached_child_leaves_no_zombie_to_its_owner(
    start: Start, until: Any
) -> None:
    owned = start("detach")
    owned.kill(owned.qemu, signal.SIGKILL)
    until(lambda: not alive(owned.shepherd))
    children = Path(f"/proc/{owned.owner.pid}/task/{owned.owner.pid}/children")
    until(lambda: children.read_text() == "")
    assert owned.owner.poll() is None
