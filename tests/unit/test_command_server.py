"""Commands in forked workers: all that a process of one's own would have."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from qemuctl.command_server import wire
from tests import worker_client as client

# Serves small Python programs: the command is the text of its first argument.
SERVE = """
import sys
from pathlib import Path
from qemuctl.command_server.server import Server
from qemuctl.command_server.worker import Program

def command():
    exec(sys.argv[1], {"__name__": "command"})

Server(Path(sys.argv[1]), Program(command), lifeline=0).serve()
"""
PATIENCE = 60.0


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    with serving(tmp_path_factory.mktemp("server") / "socket") as process:
        yield process


@contextlib.contextmanager
def serving(path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    argv = [sys.executable, "-c", SERVE, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as process:
        while not path.exists():
            assert process.poll() is None
        yield path, process
        assert process.stdin is not None
        process.stdin.close()


class Started:
    """A command, the ends of its pipes, and what it wrote."""

    def __init__(self, path: Path, code: str, *words: str, **options: Any) -> None:
        into, self.stdin = os.pipe()
        self.stdout, out = os.pipe()
        streams = {0: into, 1: out, 2: out}
        streams = options.pop("streams", streams)
        self.command = client.start(
            path, ["p", code, *words], streams=streams, **options
        )
        os.close(into)
        os.close(out)

    def read(self) -> str:
        return os.read(self.stdout, 100_000).decode()

    def wait(self) -> int:
        return self.command.wait(PATIENCE)

    def close(self) -> None:
        self.command.close()
        for fd in (self.stdin, self.stdout):
            with contextlib.suppress(OSError):
                os.close(fd)


Start = Callable[..., Started]


@pytest.fixture
def start(server: tuple[Path, Any]) -> Iterator[Start]:
    """Starts a Python program in a worker."""
    begun: list[Started] = []

    def starts(code: str, *words: str, **options: Any) -> Started:
        begun.append(Started(server[0], code, *words, **options))
        return begun[-1]

    yield starts
    for one in begun:
        one.close()


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("raise SystemExit", 0),
        ("raise SystemExit(7)", 7),
        ("raise SystemExit(256 + 3)", 3),
        ("raise SystemExit('no')", 1),
        ("1 / 0", 1),
        ("import os; os._exit(9)", 9),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    ],
)
def test_the_status_is_the_commands_own(start: Start, code: str, status: int) -> None:
    assert start(code).wait() == status


def test_arguments_and_environment_are_the_clients(start: Start) -> None:
    code = "import json, os, sys; print(json.dumps([sys.argv[2:], dict(os.environ)]))"
    words = ["a b", "", "\udcff", "x" * 100_000]
    env = {"ONLY": "this", "BAD": "\udc80"}
    told = start(code, *words, env=env)
    text = ""
    while not text.endswith("\n"):
        text += told.read()
    assert json.loads(text) == [words, env]


def test_folder_and_umask_are_the_clients(start: Start, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        told = start("import os; print(os.getcwd(), os.umask(0))", folder=tmp_path)
    finally:
        os.umask(before)
    assert told.read() == f"{tmp_path} {0o027}\n"


def test_a_folder_that_was_removed_is_the_working_directory(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    told = start("import os\ntry: os.getcwd()\nexcept OSError as e: print(e.strerror)")
    assert told.read() == "No such file or directory\n"


def test_standard_streams_are_the_clients(start: Start) -> None:
    echo = start("import sys; sys.stdout.write(sys.stdin.read())")
    os.write(echo.stdin, "ü\n".encode())
    os.close(echo.stdin)
    assert echo.wait() == 0
    assert echo.read() == "ü\n"


def test_a_closed_stream_is_closed(start: Start, tmp_path: Path) -> None:
    code = "import sys; open(sys.argv[2], 'w').write(repr((sys.stdin, sys.stdout)))"
    with (tmp_path / "err").open("w") as err:
        told = start(code, str(tmp_path / "said"), streams={2: err.fileno()})
        assert told.wait() == 0, (tmp_path / "err").read_text()
    assert (tmp_path / "said").read_text() == "(None, None)"


def test_no_other_descriptor_is_open(start: Start) -> None:
    # Two more commands at the same time, whose descriptors the server has.
    others = [start("import sys; sys.stdin.read()") for _ in range(2)]
    told = start("import os; print(len(os.listdir('/proc/self/fd')))")
    # The standard streams, the way to the client, and the one that lists them.
    assert told.read() == "5\n"
    for other in others:
        os.close(other.stdin)
        assert other.wait() == 0


def test_signals_are_as_at_a_start(start: Start) -> None:
    code = """
import signal
for name in ("INT", "TERM", "HUP", "PIPE", "CHLD"):
    print(name, getattr(signal.getsignal(getattr(signal, "SIG" + name)), "name", "-"))
print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        told = start(code)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert told.wait() == 0
    assert told.read() == (
        "INT -\nTERM SIG_DFL\nHUP SIG_IGN\nPIPE SIG_IGN\nCHLD SIG_DFL\nset()\n"
    )


def test_a_signal_goes_to_the_worker(start: Start) -> None:
    told = start("print('on', flush=True); import signal; signal.pause()")
    assert told.read() == "on\n"
    os.kill(told.command.pid, signal.SIGTERM)
    assert told.wait() == -signal.SIGTERM


def test_threads_and_exit_functions_end_before_it(start: Start) -> None:
    code = """
import atexit, threading
atexit.register(print, "at exit")
event = threading.Event()
threading.Thread(target=lambda: (event.wait(), print("thread"))).start()
event.set()
"""
    told = start(code)
    assert told.wait() == 0
    assert told.read() == "thread\nat exit\n"


def test_a_reader_that_has_gone_is_an_error_of_the_commands_own(start: Start) -> None:
    told = start("print('x')")
    os.close(told.stdout)
    assert told.wait() in (0, 120)  # it may have been quicker


def test_a_command_dies_with_its_client(start: Start) -> None:
    told = start("print('on', flush=True); import signal; signal.pause()")
    assert told.read() == "on\n"
    process = psutil.Process(told.command.pid)
    told.command.close()
    process.wait(PATIENCE)


def test_one_does_not_change_what_the_next_one_finds(start: Start) -> None:
    change = "import os, sys; os.environ['X'] = 'x'; os.chdir('/'); sys.path.clear()"
    assert start(change).wait() == 0
    ask = "import os, sys; print(os.environ.get('X'), os.getcwd(), bool(sys.path))"
    assert start(ask).read() == f"None {Path.cwd()} True\n"


def test_many_at_once_are_served(start: Start) -> None:
    begun = [start("import sys; sys.stdin.read()") for _ in range(50)]
    for number, one in enumerate(begun):
        os.write(one.stdin, str(number).encode())
        os.close(one.stdin)
    assert [one.wait() for one in begun] == [0] * 50


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\xff" * 100,
        *(wire.LENGTH.pack(len(x)) + x for x in (b"{}", b"\0" * 9, b"a\0b\0c\0d\0e")),
    ],
)
def test_what_is_no_client_holds_nothing_up(
    server: tuple[Path, Any], start: Start, sent: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as odd:
        odd.connect(os.fspath(server[0]))
        odd.sendall(sent)
        assert start("pass").wait() == 0
    assert start("pass").wait() == 0


def test_workers_die_with_their_server(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as (path, process):
        told = Started(path, "print('on', flush=True); import signal; signal.pause()")
        assert told.read() == "on\n"
        worker = psutil.Process(told.command.pid)
        process.kill()
        with pytest.raises(EOFError):
            told.wait()
        worker.wait(PATIENCE)
        told.close()


def test_the_server_ends_with_its_owner_and_nothing_is_left(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as (path, process):
        told = Started(path, "print('on', flush=True); import signal; signal.pause()")
        assert told.read() == "on\n"
        worker = psutil.Process(told.command.pid)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(PATIENCE) == 0
        worker.wait(PATIENCE)
        told.close()
        with pytest.raises(OSError, match="refused"):
            client.start(path, ["p", "pass"], streams={})
