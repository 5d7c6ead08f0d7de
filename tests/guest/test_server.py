"""`server`, and commands that have a worker."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.conftest import survivors
from tests.guest.conftest import Home


def test_it_is_started_once_told_of_and_ended(here: Home, tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir(mode=0o700)
    home = here.by(str(folder / "s"))
    assert "no command server runs" in home.words("server", "status", check=1)
    assert json.loads(home.text("server", "status", "--json", check=1)) is None
    assert "the command server runs" in home.words("server", "start")
    assert "it runs already" in home.words("server", "start")
    told = json.loads(home.text("server", "status", "--json"))
    assert told["answers"] is True
    assert told["socket"] == home.served_by
    assert f"pid:     {told['pid']}\n" in home.text("server", "status")
    assert "ended the command server" in home.words("server", "stop")
    assert "no command server runs" in home.words("server", "stop")
    home.run("server", "status", check=1)
    assert list(folder.iterdir()) == []


def test_it_sleeps_and_is_small(here: Home, command_server: str) -> None:
    home = here.by(command_server)
    told = json.loads(home.text("server", "status", "--json"))
    assert told["memory"] < 60_000_000
    process = psutil.Process(told["pid"])
    assert process.status() == psutil.STATUS_SLEEPING
    assert process.num_threads() == 1


def test_a_command_and_its_guest_go_on_without_it_and_end_with_their_client(
    here: Home, tmp_path: Path
) -> None:
    home = here.by(str(tmp_path / "s"))
    home.run("server", "start")
    server = json.loads(home.text("server", "status", "--json"))["pid"]
    # However busy the machine is, it is waited for.
    patient = (
        "from qemuctl.command_server import client; client._PATIENCE = 60\n"
        "from qemuctl.__main__ import main; main()"
    )
    words = ["run", "tiny", "--", "sh", "-c", "echo on; read line; echo $line; exit 3"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    first, second = (
        subprocess.Popen([sys.executable, "-c", patient, *words], env=home.env, **pipes)
        for _ in range(2)
    )
    for process in (first, second):
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
    workers = psutil.Process(server).children(recursive=True)
    assert len(workers) >= 4
    home.run("server", "stop")
    assert first.communicate(b"yes\n", timeout=60)[0] == b"yes\n"
    assert first.returncode == 3
    second.kill()
    second.communicate()
    assert second.returncode == -signal.SIGKILL
    psutil.wait_procs(workers, 60)
    assert not any(worker.is_running() for worker in workers)


def test_another_home_and_another_run_folder_are_the_commands_own(
    here: Home, tmp_path: Path, command_server: str
) -> None:
    there = Home(tmp_path / "there").by(command_server)
    there.path.mkdir(mode=0o700)
    for home in (here.by(command_server), there):
        with home.popen("create", "a", "--disk", "size=1M") as process:
            assert process.wait(60) == 0
    here.run("rm", "a")
    assert here.text("ls", "-a", "-q") == ""
    assert there.text("ls", "-a", "-q") == "a\n"
    assert survivors(there.path) == []
