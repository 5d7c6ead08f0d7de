"""A program whose command a server runs: nobody can tell but by the time it takes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pexpect
import psutil
import pytest

import qemuctl
from qemuctl.command_server import wire
from qemuctl.errors import HostError
from tests.conftest import wait_until
from tests.served import HASTY, ON, PATIENCE, SERVE, WHO, Served, served
from tests.unproven import Need, in_small_mounts, unproven

HELLO = wire.RECORD.pack(wire.HELLO, 0)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as made:
        yield made


@pytest.fixture
def alone() -> Iterator[Served]:
    """A server that the test may end or stop."""
    with served() as made:
        yield made


def worker_of(server: Served) -> psutil.Process:
    """The worker of the only command that runs."""
    pid = server.running()
    assert pid is not None

    def found() -> psutil.Process | None:
        with contextlib.suppress(psutil.Error, ValueError):
            (parent,) = psutil.Process(pid).children()
            (worker,) = parent.children()
            return worker
        return None

    process = wait_until(found)
    assert isinstance(process, psutil.Process)
    return process


@pytest.mark.parametrize("code", ["", "raise SystemExit(7)", "1 / 0",
    *(f"import os; os.kill(os.getpid(), {n})" for n in (2, 9, 15))])  # fmt: skip
def test_the_status_is_the_commands(server: Served, code: str) -> None:
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)\n" + WHO + code
    quiet = {"stderr": subprocess.DEVNULL}
    said, status = server.run(code, **quiet)
    assert said == "served\n"
    cold = server.run(code, env={"QEMUCTL_SERVER": "no"}, **quiet)
    assert cold == ("cold\n", status)


ALL = """
import json, os, resource, signal, sys
def folder():
    try: return os.getcwd()
    except OSError as error: return error.strerror
def inherited(fd):
    try: return os.get_inheritable(fd)
    except OSError: return False
umask = os.umask(0)
left = {"QEMUCTL_SERVER", "LC_CTYPE"}
signals = signal.valid_signals()
told = json.dumps({
    "argv": sys.argv,
    "env": {k: v for k, v in os.environ.items() if k not in left},
    "folder": folder(), "umask": umask,
    "limits": [resource.getrlimit(n) for n in range(16)],
    "nice": os.getpriority(os.PRIO_PROCESS, 0),
    "processors": sorted(os.sched_getaffinity(0)),
    "score": open("/proc/self/oom_score_adj").read(),
    "ignored": [int(s) for s in signals if signal.getsignal(s) == signal.SIG_IGN],
    "fds": [(n, os.stat(n).st_ino if n > 2 else 0) for n in range(30) if inherited(n)],
    "streams": [(s.encoding, s.errors, s.write_through, s.isatty()) if s else None
                for s in (sys.stdin, sys.stdout, sys.stderr)],
})
with open(sys.argv[2], "w") as file:
    file.write(told)
with open(sys.argv[2] + ".who", "w") as file:
    file.write("served" if "qemuctl.command_server.worker" in sys.modules else "cold")
"""


@pytest.mark.parametrize(
    "before",
    [
        "",
        "umask 027; cd /",
        "mkdir gone; cd gone; rmdir ../gone",
        "exec <&-",
        "exec >&-",
        "exec <&- >&- 2>&-",
        "exec 7</etc/passwd 9<.",
        "trap '' HUP INT QUIT USR1",
        "ulimit -n 100; ulimit -S -f 1000; ulimit -c 0",
        "renice -n 5 $$ >/dev/null; echo 500 >/proc/$$/oom_score_adj",
        "taskset -p 1 $$ >/dev/null",
        "export BAD=$(printf 'a\\377b') EMPTY= NEW='1\n2'",
        "set -- \"$@\" '' \"$(printf '\\377')\" 'a b'",
        'set -- "$@" $(seq 20000)',
        'export BIG=$(head -c 120000 /dev/zero | tr "\\0" x)',
        "export LC_ALL=POSIX",
        "export PYTHONIOENCODING=latin1",
    ],
)
def test_a_command_has_what_it_would_have(
    server: Served, tmp_path: Path, before: str
) -> None:
    found = []
    for who in ("served", "cold"):
        env = server.env | ({"QEMUCTL_SERVER": "no"} if who == "cold" else {})
        path = tmp_path / "told"
        script = f'cd "$WHERE"; {before}\nexec "$@"'
        subprocess.run(
            ["sh", "-c", script, "sh", *server.argv(ALL, str(path))],
            env=env | {"WHERE": str(tmp_path)}, check=True, stdin=subprocess.DEVNULL,
            timeout=PATIENCE,
        )  # fmt: skip
        # What Python itself makes of these when it starts, a server cannot.
        expected = "cold" if re.search("PYTHON|LC_ALL", before) else who
        assert (tmp_path / "told.who").read_text() == expected
        found.append(json.loads(path.read_text()))
    assert found[0] == found[1]


def test_without_a_server_a_command_runs_by_itself(alone: Served) -> None:
    assert alone.run(WHO) == ("served\n", 0)
    assert alone.run(WHO, env={"QEMUCTL_SERVER": "no"}) == ("cold\n", 0)
    os.kill(alone.running() or 0, signal.SIGKILL)
    wait_until(lambda: alone.running() is None)
    assert alone.socket.exists()
    assert alone.run(WHO) == ("cold\n", 0)
    alone.start()
    assert alone.run(WHO) == ("served\n", 0)
    assert alone.stop()
    assert not alone.socket.exists()
    assert alone.run(WHO) == ("cold\n", 0)
    assert not alone.stop()


def test_one_that_is_stopped_is_left_and_never_runs_what_it_was_asked(
    alone: Served, tmp_path: Path
) -> None:
    pid = alone.running()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    code = WHO + "open(sys.argv[2], 'a').write(who)"
    path = tmp_path / "ran"
    assert alone.run(code, str(path), env=HASTY) == ("cold\n", 0)
    assert not alone.answers()
    os.kill(pid, signal.SIGCONT)
    # It accepts in the order of the calls.
    assert alone.run(WHO) == ("served\n", 0)
    assert path.read_text() == "cold"


@pytest.mark.parametrize("end", ["kill", "stop", "suspend"])
def test_a_command_that_runs_does_not_depend_on_the_server(
    alone: Served, end: str
) -> None:
    code = WHO + "sys.stdin.read(); print('end'); raise SystemExit(5)"
    with alone.popen(code, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "served\n"
        pid = alone.running()
        assert pid is not None
        if end == "stop":
            alone.stop()
        else:
            os.kill(pid, signal.SIGKILL if end == "kill" else signal.SIGSTOP)
        said, _ = process.communicate("", timeout=PATIENCE)
    assert (said, process.returncode) == ("end\n", 5)


@pytest.mark.parametrize("whom", ["client", "worker", "parent"])
def test_whichever_is_killed_all_are(alone: Served, whom: str) -> None:
    with alone.popen(ON) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "served\n"
        worker = worker_of(alone)
        parent = worker.parent()
        assert parent is not None
        client = psutil.Process(process.pid)
        {"client": client, "worker": worker, "parent": parent}[whom].kill()
        assert process.wait(PATIENCE) == -signal.SIGKILL
        psutil.wait_procs([worker, parent], PATIENCE)
        assert not worker.is_running()
        assert not parent.is_running()


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "QUIT", "USR1", "WINCH"])
def test_a_signal_reaches_the_command(server: Served, name: str) -> None:
    number = getattr(signal, f"SIG{name}")
    code = f"""
import signal, sys
def end(number, frame):
    print(number); sys.exit(3)
signal.signal({int(number)}, end)
{ON}
"""
    with server.popen(code) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "served\n"
        process.send_signal(number)
        said, _ = process.communicate(timeout=PATIENCE)
    assert (said, process.returncode) == (f"{int(number)}\n", 3)


@pytest.mark.parametrize("name", ["TERM", "HUP", "QUIT"])
def test_a_signal_that_ends_the_command_ends_the_client(
    server: Served, name: str
) -> None:
    number = getattr(signal, f"SIG{name}")
    with server.popen(ON) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "served\n"
        process.send_signal(number)
        assert process.wait(PATIENCE) == -number


def test_a_terminal_stops_continues_and_interrupts_it(alone: Served) -> None:
    shell = pexpect.spawn(
        "bash", ["--norc", "-i"], env=alone.env | {"PS1": "$ "}, timeout=PATIENCE,
        encoding="utf-8", echo=False,
    )  # fmt: skip
    code = WHO + "import os; print('tty', os.isatty(0))\nwhile True: print(input())"
    argv = alone.argv("import os; exec(os.environ['CODE'])")
    shell.sendline("run() { \"$PYTHON\" -c \"$CLIENT\" 'import os; exec(os.environ"
                   "[\"CODE\"])'; }")  # fmt: skip
    shell.sendline(f"PYTHON='{argv[0]}'")
    try:
        (Path(alone.env["XDG_RUNTIME_DIR"]) / "client").write_text(argv[2])
        shell.sendline('CLIENT=$(cat "$XDG_RUNTIME_DIR/client")')
        (Path(alone.env["XDG_RUNTIME_DIR"]) / "code").write_text(code)
        shell.sendline('export CODE=$(cat "$XDG_RUNTIME_DIR/code")')
        shell.sendline("run")
        shell.expect("served\r\ntty True\r\n")
        shell.sendline("one")
        shell.expect("one\r\n")
        worker = worker_of(alone)
        shell.send("\x1a")
        shell.expect("Stopped")
        wait_until(lambda: worker.status() == psutil.STATUS_STOPPED)
        shell.sendline("fg")
        wait_until(lambda: worker.status() != psutil.STATUS_STOPPED)
        shell.sendline("two")
        shell.expect("two\r\n")
        shell.send("\x03")
        shell.expect("KeyboardInterrupt")
        shell.sendline("echo status=$?")
        shell.expect("status=130|status=1\r")
        # In the background it would take what is typed to the shell.
        shell.sendline("(sleep 0.1; exec true); run &")
        shell.expect("cold\r\n")
    finally:
        shell.close(force=True)


def test_a_program_that_takes_its_place_is_the_clients(server: Served) -> None:
    code = (
        "from qemuctl.command_server.become import become\n"
        "become(['sh', '-c', 'echo $$; trap; cat; exit 4'])"
    )
    code = WHO + code
    with server.popen(code, stdin=subprocess.PIPE) as process:
        said, _ = process.communicate("input", timeout=PATIENCE)
    assert said == f"served\n{process.pid}\ninput"
    assert process.returncode == 4
    code = WHO + (
        "from qemuctl.command_server.become import become\n"
        "try: become(['no-such-program'])\n"
        "except FileNotFoundError: print('none')"
    )
    assert server.run(code) == ("served\nnone\n", 0)


def test_many_at_once_run_once_each(server: Served, tmp_path: Path) -> None:
    code = WHO + "open(sys.argv[2], 'a').write('x')"
    paths = [tmp_path / str(number) for number in range(60)]
    with ThreadPoolExecutor(60) as threads:
        done = list(threads.map(lambda path: server.run(code, str(path)), paths))
    assert {status for _, status in done} == {0}
    assert {path.read_text() for path in paths} == {"x"}


@pytest.mark.parametrize(
    "before",
    [
        ["setpriv", "--no-new-privs"],
        ["prlimit", "--as=4000000000"],
        ["chrt", "-b", "0"],
    ],
)
def test_what_a_worker_cannot_be_is_not_served(
    server: Served, before: list[str]
) -> None:
    assert server.run(WHO, before=before) == ("cold\n", 0)


def test_one_in_other_namespaces_is_not_served(server: Served) -> None:
    before = in_small_mounts("that a client in other namespaces runs by itself")
    assert server.run(WHO, before=before) == ("cold\n", 0)


def test_another_users_server_gets_nothing(alone: Served) -> None:
    if os.geteuid() != 0:
        unproven("that another user's server is not asked", Need.USER)
    alone.stop()
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(alone.socket))
        os.seteuid(65534)  # whose listening it is counts
        try:
            listener.listen()
        finally:
            os.seteuid(0)

        def hear() -> None:
            connection, _ = listener.accept()
            with connection:
                heard.append(connection.recv(1000))

        thread = threading.Thread(target=hear)
        thread.start()
        assert alone.run(WHO) == ("cold\n", 0)
        thread.join(PATIENCE)
    alone.socket.unlink()
    assert heard == [b""]


@pytest.mark.parametrize(
    "reply",
    [b"", b"r", b"xxxxx", wire.RECORD.pack(wire.STATUS, 0), HELLO, HELLO + b"r", None],
)
def test_what_is_no_server_is_left(alone: Served, reply: bytes | None) -> None:
    alone.stop()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(alone.socket))
        listener.listen()
        silent = threading.Event()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                if reply is None:  # it hangs
                    silent.wait(PATIENCE)
                else:
                    connection.sendall(reply)
                    connection.recv(1000)

        thread = threading.Thread(target=answer)
        thread.start()
        assert alone.run(WHO, env=HASTY) == ("cold\n", 0)
        silent.set()
        thread.join(PATIENCE)
    alone.socket.unlink()


def test_one_that_does_not_answer_is_told_and_ended(alone: Served) -> None:
    pid = alone.running()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(HostError, match=f"does not answer: process {pid}"):
        alone.start()
    assert alone.stop()
    assert alone.running() is None


def test_one_that_cannot_be_started_says_why(alone: Served) -> None:
    alone.stop()
    with pytest.raises(HostError, match="has ended: ValueError: no"):
        alone.start("raise ValueError('no')")


def test_two_that_start_one_at_once_have_the_same(alone: Served) -> None:
    alone.stop()
    code = (
        "from qemuctl.command_server import control\n"
        f"print(control.start({SERVE!r})[0])"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=alone.env, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    first, second = (process.communicate(timeout=PATIENCE)[0] for process in both)
    assert first == second != b""
    assert alone.run(WHO) == ("served\n", 0)


def test_one_of_another_version_ends(tmp_path: Path) -> None:
    package = tmp_path / "lib" / "qemuctl"
    shutil.copytree(
        Path(qemuctl.__file__).parent, package,
        ignore=shutil.ignore_patterns("__pycache__"),
    )  # fmt: skip
    with served() as made:
        made.env |= {"PYTHONPATH": str(package.parent)}
        # The copy has a socket of its own.
        assert made.run(WHO, cwd=tmp_path) == ("cold\n", 0)
        code = (
            "from qemuctl.command_server import control\n"
            f"print(control.start({SERVE!r})[0])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=made.env,
            capture_output=True, text=True, check=True, cwd=tmp_path,
        )  # fmt: skip
        process = psutil.Process(int(done.stdout))
        assert made.run(WHO, cwd=tmp_path) == ("served\n", 0)
        module = package / "units.py"
        module.write_text(module.read_text() + "\n")
        assert made.run(WHO, cwd=tmp_path) == ("cold\n", 0)
        process.wait(PATIENCE)
