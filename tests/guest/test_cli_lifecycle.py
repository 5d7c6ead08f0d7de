"""Named VMs from create to rm, with guests that take no time to boot."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from qemuctl import paths
from qemuctl.process import Identity
from tests.guest.conftest import Home


@pytest.fixture
def vm(here: Home, boot_sector: Path) -> Iterator[str]:
    """A VM that is off, in a home of its own; killed at the end."""
    spec = here.path / "a.yaml"
    spec.write_text(
        "# mine\nname: a\nmemory: 32M\nnics: [none]\n"
        f"disks:\n  - path: {json.dumps(str(boot_sector))}\n"
    )
    here.run("create", "-f", spec)
    yield "a"
    for name in here.text("ls", "-q").split():
        here.run("kill", name)


def facts(here: Home, name: str) -> dict[str, object]:
    return dict(json.loads(here.text("info", name, "--json")))


def test_a_vm_lives_through_all_its_commands(here: Home, vm: str) -> None:
    here.run("start", vm)
    here.run("wait", vm, "--for", "serial:ok", "--timeout", "60")
    assert facts(here, vm)["state"] == "running"
    here.run("pause", vm)
    here.run("resume", vm)
    here.run("reset", vm)
    assert "SIGKILL" in here.words("kill", vm)
    assert facts(here, vm)["ended"] == "killed by signal 9 (SIGKILL)"
    here.run("rename", vm, "b")
    assert here.text("ls", "-aq") == "b\n"
    spec = Path(str(facts(here, "b")["spec"]))
    assert spec.read_text().startswith("# mine\nname: b\n")
    here.run("start", "b")
    here.run("kill", "b")
    here.run("rm", "b")
    assert here.text("ls", "-aq") == ""
    assert list((here.path / "state" / "vms").iterdir()) == []


def test_it_survives_the_command_and_its_terminal(here: Home, vm: str) -> None:
    import pexpect

    argv = here.command("start", vm)
    child = pexpect.spawn(argv[0], argv[1:], env=here.env, timeout=60)
    child.expect(pexpect.EOF)
    child.close(force=True)
    assert child.exitstatus == 0
    assert facts(here, vm)["state"] == "running"


def test_two_starts_at_once_start_it_once(here: Home, vm: str) -> None:
    both = [here.popen("start", vm, stderr=subprocess.PIPE) for _ in range(2)]
    words = [process.communicate(timeout=60)[1].decode() for process in both]
    statuses = sorted(process.returncode for process in both)
    assert sum(f"{vm} is running\n" == text for text in words) == 1, words
    assert statuses[0] == 0
    if statuses[1] != 0:
        assert any("another command is starting it" in text for text in words), words
    else:
        assert any("on already" in text for text in words), words


def test_eight_at_once_start_side_by_side(here: Home, vm: str) -> None:
    names = [f"v{i}" for i in range(8)]
    for name in names:
        here.run("create", name, "--memory", "32M", "-p", ":80", "--cdrom", "")
    all_ = [here.popen("start", name, stderr=subprocess.PIPE) for name in names]
    for process in all_:
        words = process.communicate(timeout=90)[1]
        assert process.returncode == 0, words
    rows = json.loads(here.text("ls", "--json"))
    assert [row["name"] for row in rows] == names
    assert {row["state"] for row in rows} == {"running"}
    assert len({row["forwards"][0] for row in rows}) == 8


def test_a_killed_qemu_is_told_and_can_be_started_again(here: Home, vm: str) -> None:
    here.run("start", vm)
    os.kill(int(str(facts(here, vm)["pid"])), signal.SIGKILL)
    here.run("wait", vm, "--for", "stopped", "--timeout", "60")
    row = json.loads(here.text("ls", "-a", "--json"))[0]
    assert (row["state"], row["ended"]) == ("off", "killed by signal 9 (SIGKILL)")
    here.run("start", vm)
    assert facts(here, vm)["state"] == "running"


def test_a_stopped_qemu_is_unresponsive(here: Home, vm: str) -> None:
    here.run("start", vm)
    pid = int(str(facts(here, vm)["pid"]))
    os.kill(pid, signal.SIGSTOP)
    try:
        rows = json.loads(here.text("ls", "--json"))
        assert rows[0]["state"] == "unresponsive"
        assert "QEMU does not answer" in here.words("pause", vm, check=1)
        report = json.loads(here.text("stop", vm, "--json"))
        assert (report["step"], report["status"]) == ("kill", -9)
    finally:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGCONT)


def test_a_guest_that_ignores_the_power_button_is_ended_by_quit(
    here: Home, vm: str
) -> None:
    here.run("start", vm)
    report = json.loads(here.text("stop", vm, "--timeout", "1", "--json"))
    assert (report["step"], report["ended"]) == ("quit", "stopped")


def test_the_printed_line_works_when_it_is_pasted(here: Home, vm: str) -> None:
    before = sorted(here.path.rglob("*"))
    text = here.text("argv", vm)
    assert sorted(here.path.rglob("*")) == before
    assert len(text.splitlines()) > 20
    assert json.loads(here.text("argv", vm, "--json"))[0].endswith("x86_64")
    shell = subprocess.Popen(["bash", "-c", f"exec {_after_mkdir(text)}"])
    try:
        log = here.path / "state" / "vms" / vm / "serial.log"
        deadline = time.monotonic() + 60
        while not log.exists() or b"ok" not in log.read_bytes():
            assert time.monotonic() < deadline
            assert shell.poll() is None
            time.sleep(0.02)
    finally:
        shell.kill()
        shell.wait()
        shutil.rmtree(paths.run_home(), ignore_errors=True)


def _after_mkdir(text: str) -> str:
    made, _, line = text.partition("&&\n")
    subprocess.run(["bash", "-c", made], check=True)
    return line


def test_an_edit_is_taken_only_when_it_is_right(
    here: Home, vm: str, tmp_path: Path
) -> None:
    def edit(script: str, check: int) -> str:
        editor = tmp_path / "editor.sh"
        editor.write_text(f"#!/bin/sh\n{script}\n")
        editor.chmod(0o755)
        env = here.env | {"EDITOR": str(editor)}
        env.pop("VISUAL", None)
        done = subprocess.run(here.command("edit", vm), env=env, capture_output=True,
                              check=False, stdin=subprocess.DEVNULL)  # fmt: skip
        assert done.returncode == check, done.stderr
        return done.stderr.decode()

    assert edit("true", 0) == "nothing changed\n"
    assert edit('sed -i "s/32M/64M/" "$1"', 0) == "changed a\n"
    assert facts(here, vm)["memory"] == 64 * 1024 * 1024
    words = edit('echo "memroy: 1" >>"$1"', 1)
    assert "a.yaml:" in words
    assert "did you mean memory?" in words
    kept = Path(words.rsplit("your text is kept: ", 1)[1].strip())
    assert "memroy" in kept.read_text()
    assert kept.is_relative_to(here.path)
    assert facts(here, vm)["memory"] == 64 * 1024 * 1024
    assert edit('sed -i "s/64M/32M/" "$1"', 0) == "changed a\n"
    assert not kept.parent.exists()
    # The editor, and the command, killed: its folder is found once both are gone.
    edit("kill -KILL $PPID", -9)
    (left,) = kept.parents[1].glob(".edit-*")
    assert here.text("gc") == f"{left}\n"
    assert not left.exists()
    assert "qemuctl rename" in edit('sed -i "s/^name: a/name: c/" "$1"', 1)


def test_gc_takes_what_crashed_and_nothing_else(here: Home, vm: str) -> None:
    dead = here.path / "state" / "vms" / "run-dead"
    dead.mkdir()
    (dead / "throwaway").write_text("999999999")
    assert here.text("gc", "--dry-run") == f"{dead}\n"
    assert dead.exists()
    here.run("gc")
    assert not dead.exists()
    assert here.text("ls", "-aq") == f"{vm}\n"
    assert "nothing to remove" in here.words("gc")


def test_rm_takes_the_disks_that_were_made_and_no_others(
    here: Home, vm: str, boot_sector: Path
) -> None:
    here.run("create", "d", "--disk", "size=1G", "--disk", "size=8M,format=raw")
    disks = [
        Path(path) for path in json.loads(here.text("info", "d", "--json"))["disks"]
    ]
    assert [disk.name for disk in disks] == ["disk0.qcow2", "disk1.raw"]
    here.run("rm", "d", vm)
    assert not any(disk.exists() for disk in disks)
    assert boot_sector.exists()


def test_a_taken_name_changes_nothing(here: Home, vm: str) -> None:
    before = facts(here, vm)
    words = here.words("create", vm, "--image", "tiny", check=1)
    assert "exists already" in words
    assert facts(here, vm) == before


def test_the_run_folder_is_private_and_its_sockets_too(here: Home, vm: str) -> None:
    here.run("start", vm)
    run = Path(str(facts(here, vm)["sockets"]))
    assert run.stat().st_mode & 0o777 == 0o700
    modes = {path.stat().st_mode & 0o777 for path in run.iterdir() if path.is_socket()}
    assert modes == {0o600}
    pid = int(str(facts(here, vm)["pid"]))
    listening = [
        c for c in psutil.Process(pid).net_connections("inet") if c.status == "LISTEN"
    ]
    assert listening == []


def test_each_start_has_a_console_log_of_its_own(here: Home, vm: str) -> None:
    log = here.path / "state" / "vms" / vm / "serial.log"
    here.run("start", vm)
    here.run("wait", vm, "--for", "serial:ok")
    here.run("kill", vm)
    here.run("start", vm, "--paused")
    words = here.words("wait", vm, "--for", "serial:ok", "--timeout", "200ms", check=1)
    assert "timed out" in words
    assert b"ok" in log.with_name("serial.log.1").read_bytes()


def test_a_busy_monitor_does_not_make_a_vm_look_stuck(here: Home, vm: str) -> None:
    here.run("start", vm)
    path = Path(str(facts(here, vm)["sockets"])) / "tools.qmp"
    with socket.socket(socket.AF_UNIX) as busy:
        busy.connect(str(path))
        assert b"QMP" in busy.recv(4096)
        assert facts(here, vm)["state"] == "running"
        report = json.loads(here.text("stop", vm, "--timeout", "1", "--json"))
        assert (report["step"], report["status"]) == ("quit", 0)


def test_an_edit_cannot_give_a_disks_file_to_another_disk(
    here: Home, tmp_path: Path
) -> None:
    here.run("create", "d", "--disk", "size=1M,serial=one", "--disk", "size=2M")
    editor = tmp_path / "editor.sh"
    editor.write_text('#!/bin/sh\nsed -i "/size: 1M/d; /serial: one/d" "$1"\n')
    editor.chmod(0o755)
    spec = Path(str(facts(here, "d")["spec"]))
    before = spec.read_text()
    env = here.env | {"VISUAL": str(editor)}
    done = subprocess.run(
        here.command("edit", "d"), env=env, capture_output=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 1
    assert spec.read_text() == before


def test_a_start_is_starting_until_it_is_done(here: Home, vm: str) -> None:
    # A QEMU that takes its time, and a record of an earlier run.
    here.run("start", vm)
    here.run("kill", vm)
    slow = here.path / "slow-qemu"
    slow.write_text(
        '#!/bin/sh\ncase "$*" in *guest=*) '
        f"echo >{here.path}/waiting; read _ <{here.path}/go ;; esac\n"
        'exec qemu-system-x86_64 "$@"\n'
    )
    slow.chmod(0o755)
    os.mkfifo(here.path / "go")
    os.mkfifo(here.path / "waiting")
    spec = Path(str(facts(here, vm)["spec"]))
    spec.write_text(spec.read_text() + f"qemu: {slow}\n")
    starting = here.popen("start", vm)
    (here.path / "waiting").read_text()
    assert facts(here, vm)["state"] == "starting"
    assert "another command is starting it" in here.words("start", vm, check=1)
    (here.path / "go").write_text("\n")
    assert starting.wait(30) == 0
    assert facts(here, vm)["state"] == "running"


@pytest.mark.parametrize("content", [None, "{", "null", '{"qemu": null}'])
def test_a_vm_whose_record_is_lost_can_still_be_ended(
    here: Home, vm: str, content: str | None
) -> None:
    here.run("start", vm)
    pid = int(str(facts(here, vm)["pid"]))
    record = here.path / "state" / "vms" / vm / "process.json"
    record.unlink() if content is None else record.write_text(content)
    here.run("rm", "-f", vm)
    assert Identity.of(pid) is None  # a zombie is dead
    assert here.text("ls", "-aq") == ""


def test_a_vm_whose_spec_is_lost_can_still_be_removed(here: Home, vm: str) -> None:
    here.run("start", vm)
    (here.path / "state" / "vms" / vm / "vm.yaml").unlink()
    assert here.text("ls", "-q") == f"{vm}\n"
    here.run("rm", "-f", vm)
    assert here.text("ls", "-aq") == ""


def test_a_start_clears_what_an_earlier_one_left(here: Home, vm: str) -> None:
    here.run("start", vm)
    run = Path(str(facts(here, vm)["sockets"]))
    here.run("kill", vm)
    run.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(run / "owner.qmp"))
    here.run("start", vm)
    assert facts(here, vm)["state"] == "running"


def test_of_several_names_each_gets_its_turn(here: Home, vm: str) -> None:
    here.run("create", "b", "--memory", "32M", "--cdrom", "")
    words = here.words("start", vm, "nobody", "b", check=1)
    assert "no such VM: nobody" in words
    assert here.text("ls", "-q") == f"{vm}\nb\n"
    reports = json.loads(here.text("stop", vm, "b", "--timeout", "0", "--json"))
    assert [report["step"] for report in reports] == ["quit", "quit"]


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&-"])
def test_closed_streams_are_no_reason_to_fail(
    here: Home, vm: str, redirection: str, server: str
) -> None:
    here = here.by(server)
    line = shlex.join(here.command("ls", "-a"))
    done = subprocess.run(
        ["bash", "-c", f"{line} {redirection}"], env=here.env, capture_output=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""


def test_with_json_every_command_tells_objects(here: Home, sector: Path) -> None:
    made = json.loads(here.text("create", "a", "--disk", f"path={sector}", "--json"))
    assert (made["name"], made["state"]) == ("a", "off")
    started = json.loads(here.text("start", "a", "--json"))
    assert (started["state"], started["changed"]) == ("running", True)
    said = json.loads(here.text("wait", "a", "--for", "serial:ok", "--json"))
    assert said == {"name": "a", "for": "serial:ok", "found": "ok"}
    assert json.loads(here.text("ls", "--json", "-q")) == ["a"]
    assert [row["name"] for row in json.loads(here.text("ls", "a", "--json"))] == ["a"]
    assert json.loads(here.text("pause", "a", "--json"))["changed"] is True
    reports = json.loads(here.text("stop", "--all", "--timeout", "0", "--json"))
    assert [(r["name"], r["step"]) for r in reports] == [("a", "quit")]


@pytest.mark.parametrize(
    ("line", "kind", "status"),
    [("start nobody", "NotFound", 1), ("ls nobody", "NotFound", 1),
     ("wait nobody", "NotFound", 1), ("create a", "UsageError", 2),
     ("stop", "UsageError", 2), ("disk add nobody 1G", "NotFound", 1),
     ("stop a --zzz", "UsageError", 2)],
)  # fmt: skip
def test_with_json_errors_are_objects(
    here: Home, line: str, kind: str, status: int
) -> None:
    words = here.words(*line.split(), "--json", check=status)
    error = json.loads(words)
    assert (error["kind"], error["status"]) == (kind, status)
    assert error["error"]


def test_what_is_plain_needs_no_option(here: Home, tmp_path: Path) -> None:
    here.run("create", "a", "--disk", "size=1M,format=qcow2")
    assert "made the snapshot 20" in here.words("snapshot", "create", "a")
    here.run("disk", "add", "a", "2M")
    (tmp_path / "b.raw").write_bytes(bytes(1 << 20))
    here.run("disk", "add", "a", tmp_path / "b.raw")
    here.run("disk", "add", "a", "2M", "--size", "2M", check=2)
    disks = json.loads(here.text("disk", "ls", "a", "--json"))
    assert [Path(disk["path"]).name for disk in disks][2:] == ["b.raw"]


def test_a_word_of_another_tool_is_told_the_nearest_command(here: Home) -> None:
    assert "qemuctl ls" in here.words("list", check=2)
    assert "qemuctl pause" in here.words("pauze", check=2)
    assert "qemuctl --help" in here.words("xyzzy", check=2)


def test_what_changes_a_vm_tells_programs_what_it_did(
    here: Home, tmp_path: Path
) -> None:
    def told(*words: object) -> Any:
        done = here.run(*words, "--json")
        assert done.stderr == b"", done.stderr
        return json.loads(done.stdout)

    here.run("create", "web", "--disk", "size=1M,format=qcow2", "--cdrom", "")
    assert told("rename", "web", "www") == {"name": "www", "before": "web"}
    copied = told("clone", "www", "new")
    assert copied == {"name": "new", "source": "www", "linked": False}
    made = told("snapshot", "create", "www", "one")
    assert (made["name"], made["consistency"]) == ("one", "off")
    assert told("snapshot", "revert", "www", "one")["state"] == "off"
    gone = told("snapshot", "rm", "www", "one")
    assert gone == {"name": "www", "snapshot": "one"}
    archive = tmp_path / "www.tar"
    packed = told("export", "new", archive)
    assert packed["size"] == archive.stat().st_size
    there = told("import", archive, "--name", "third")
    assert there == {"name": "third", "file": str(archive)}
    empty = told("cdrom", "eject", "www")
    assert (empty["medium"], empty["live"], empty["configured"]) == (None, False, True)
    first, second = told("rm", "www", "new")
    assert first == {"name": "www", "disks": None}
    assert second["name"] == "new"
    (kept,) = Path(told("rm", "third", "--keep-disks")["disks"]).iterdir()
    assert kept.name == "disk0.qcow2"
    assert here.text("ls", "-aq", "--json") == "[]\n"
