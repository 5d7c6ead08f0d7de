"""The commands of the manual, run as they are printed there."""

from __future__ import annotations

import os
import shlex
import socketserver
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qemuctl.cli.help import TOPICS
from tests import commands, manual
from tests.conftest import CACHE
from tests.guest.conftest import Home

# A way to the tests' command server: a start of qemuctl would take ten times longer.
CLIENT = """import sys
from pathlib import Path
sys.path.insert(0, {checkout!r})
from tests import worker_client
argv = ["qemuctl", *sys.argv[1:]]
streams = {{0: 0, 1: 1, 2: 2}}
begun = worker_client.start(Path({server!r}), argv, streams=streams, timeout=120)
status = begun.wait()
sys.exit(status if status >= 0 else 128 - status)
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH with qemuctl and pytest."""
    folder = tmp_path_factory.mktemp("bin")
    python = Path(sys.executable)
    script = folder / "client.py"
    script.write_text(
        CLIENT.format(
            checkout=str(Path(__file__).parents[2]),
            server=str(commands.server().path),
        )
    )
    program = folder / "qemuctl"
    begin = shlex.join([str(python), "-IS", str(script)])
    program.write_text(f'#!/bin/sh\nexec {begin} "$@"\n')
    program.chmod(0o755)
    (folder / "pytest").symlink_to(python.with_name("pytest"))
    return os.pathsep.join([str(folder), os.environ["PATH"]])


def run(home: Home, path: str, folder: Path, script: str) -> str:
    """Runs a page's script in a shell that ends at the first failure."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script],
        env=home.env | {"PATH": path},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def web(shared: Home, path: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The guest that the first steps make, which the other pages go on with."""
    run(shared, path, tmp_path_factory.mktemp("first"), manual.shell("first-steps"))
    return "web"


@pytest.mark.parametrize("topic", TOPICS[1:])
def test_the_commands_of_a_page_work(
    shared: Home, path: str, web: str, tmp_path: Path, topic: str
) -> None:
    for name, text in manual.files(topic).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    # Another home of the same user has the same images.
    (tmp_path / "other").mkdir(mode=0o700)
    (tmp_path / "other" / "cache").symlink_to(CACHE)
    run(shared, path, tmp_path, manual.shell(topic))
    assert shared.text("ls", "-a", "-q").split() == [web]


def test_a_guest_reaches_the_loopback_of_its_host_unless_its_card_is_restricted(
    shared: Home, web: str
) -> None:
    """What the page about security says."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Greeting) as server:
        threading.Thread(target=server.serve_forever).start()
        ask = f"echo | nc 10.0.2.2 {server.server_address[1]}"
        try:
            assert said(shared, web, ask) == "from the host"
            shared.run("nic", "rm", web, "nic0", "--live")
            shared.run("nic", "add", web, "user,restrict=on", "--id", "shut", "--live")
            address = "until ifconfig | grep -q 10.0.2.15; do sleep 0.1; done"
            assert said(shared, web, f"{address}; {ask} || echo refused") == "refused"
        finally:
            server.shutdown()


class Greeting(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"from the host")


def said(home: Home, name: str, script: str) -> str:
    return home.text("exec", name, "--", "sh", "-c", script).strip()


def test_the_last_commands_of_the_first_steps_work(
    shared: Home, path: str, web: str, tmp_path: Path
) -> None:
    run(shared, path, tmp_path, manual.shell("first-steps", "sh last"))
    assert shared.text("ls", "-a", "-q") == ""
