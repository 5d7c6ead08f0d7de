"""The command line on one running Linux guest, from look to reboot."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guest.conftest import WEB, Home
from tests.guest.moving import state


@pytest.fixture(scope="module")
def booted(shared: Home) -> str:
    """Not restored: what the console says of the boot is looked at."""
    shared.run("create", "web", "--image", "tiny", *WEB)
    shared.run("start", "web", "--wait")
    return "web"


@pytest.fixture
def web(shared: Home, booted: str) -> str:
    """The guest, running: another test may have stopped it."""
    if state(shared, booted) == "off":
        shared.run("start", booted, "--wait")
    return booted


def test_the_agent_answers_only_when_disks_and_cards_are_there(
    shared: Home, web: str
) -> None:
    script = "cd /sys; cat block/vda/serial; echo; cat block/vda/size; ls class/net"
    out = shared.text("exec", web, "--", "sh", "-c", script)
    assert out.split() == ["data", str(64 * 2048), "eth0", "lo"]


def test_ls_shows_state_size_and_the_port_that_qemu_took(
    shared: Home, web: str
) -> None:
    row = json.loads(shared.text("ls", "--json"))[0]
    assert (row["name"], row["state"], row["cpus"]) == ("web", "running", 1)
    assert row["memory"] == 384 * 1024 * 1024
    address, _, guest = row["forwards"][0].partition("->")
    assert guest == "22"
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), timeout=60):
        pass
    assert shared.text("ls", "-q") == "web\n"
    assert re.search(r"^web +running +1 +384M +tiny", shared.text("ls"), re.MULTILINE)


def test_info_tells_process_accelerator_and_files(shared: Home, web: str) -> None:
    facts = json.loads(shared.text("info", web, "--json"))
    assert facts["state"] == "running"
    assert facts["accel"] in ("tcg", "kvm")
    assert facts["disks"][0].endswith("disk0.qcow2")
    assert re.search(
        r"^accel: .*\((TCG|KVM)\): ", shared.text("info", web), re.MULTILINE
    )
    assert re.search(rf"^pid: +{facts['pid']}$", shared.text("info", web), re.MULTILINE)


def test_pause_and_resume_are_seen_by_qemu_and_told_once(
    shared: Home, web: str
) -> None:
    assert "is paused\n" in shared.words("pause", web)
    assert '"paused"' in shared.text("qmp", web, "query-status")
    assert "paused already" in shared.words("pause", web)
    shared.run("wait", web, "--for", "paused")
    assert "is running\n" in shared.words("resume", web)
    assert "running already" in shared.words("resume", web)
    shared.run("wait", web, "--for", "running")


def test_any_qmp_command_with_plain_or_json_arguments(shared: Home, web: str) -> None:
    plain = shared.text("qmp", web, "qom-get", "path=/machine", "property=type")
    as_json = shared.text(
        "qmp", web, "qom-get", '{"path": "/machine", "property": "type"}'
    )
    assert plain == as_json == '"' + json.loads(plain) + '"\n'


def test_an_unknown_qmp_command_gets_qemus_words_and_the_nearest_name(
    shared: Home, web: str
) -> None:
    words = shared.words("qmp", web, "quary-status", check=1)
    assert "has not been found" in words
    assert "did you mean query-status?" in words


def test_the_log_of_the_console_has_no_escape_codes(shared: Home, web: str) -> None:
    out = shared.run("logs", web).stdout
    assert b"tiny: ready" in out
    assert b"\x1b" not in out


def test_commands_replies_and_events_are_in_one_log(shared: Home, web: str) -> None:
    shared.run("pause", web)
    shared.run("resume", web)
    entries = [json.loads(x) for x in shared.text("logs", web, "--qmp").splitlines()]
    assert entries == sorted(entries, key=lambda entry: float(entry["at"]))
    assert {"stop", "cont"} <= {entry.get("execute") for entry in entries}
    assert {"stop", "cont"} <= {entry.get("reply") for entry in entries}
    assert {"STOP", "RESUME", "VSERPORT_CHANGE"} <= {e.get("event") for e in entries}


def test_wait_finds_what_the_console_said_before(shared: Home, web: str) -> None:
    shared.run("wait", web, "--for", "serial:tiny: r[e]ady", "--timeout", "60")


def test_a_time_out_names_the_stage_and_shows_the_console(
    shared: Home, web: str
) -> None:
    words = shared.words("wait", web, "--for", "event:NEVER", "--timeout", "300ms",
                         check=1)  # fmt: skip
    assert "timed out after 0.3 s: waiting for the event NEVER" in words
    assert "tiny: ready" in words


def test_a_wait_for_nonsense_is_wrong_usage(shared: Home, web: str) -> None:
    for what in ("rain", "serial:", "serial:(", "event"):
        shared.run("wait", web, "--for", what, check=2)


def test_start_of_a_running_one_has_nothing_to_do(shared: Home, web: str) -> None:
    assert "on already: running" in shared.words("start", web)


def test_what_must_be_off_is_refused_while_on(shared: Home, web: str) -> None:
    for command in (("rm", web), ("rename", web, "other")):
        assert "the VM is on" in shared.words(*command, check=1)
    assert shared.text("ls", "-q") == "web\n"


def follows(pid: int) -> bool:
    """Whether a process has begun to follow a file (inotify(7))."""
    with contextlib.suppress(OSError):
        fds = Path(f"/proc/{pid}/fd").iterdir()
        return any("inotify" in str(fd.readlink()) for fd in fds)
    return False


def test_reboot_is_done_when_qemu_says_so(
    shared: Home, web: str, until: Callable[..., object]
) -> None:
    before = shared.text("exec", web, "--", "cat", "/proc/sys/kernel/random/boot_id")
    waiting = shared.popen("wait", web, "--for", "event:RESET", "--timeout", "60")
    until(lambda: follows(waiting.pid), timeout=60)
    assert "asked by its agent" in shared.words("reboot", web)
    assert waiting.wait(90) == 0
    shared.run("wait", web, "--for", "agent", "--timeout", "90", timeout=120)
    after = shared.text("exec", web, "--", "cat", "/proc/sys/kernel/random/boot_id")
    assert before != after


def test_stop_asks_the_guest_and_tells_that_it_went_by_itself(
    shared: Home, web: str
) -> None:
    report = json.loads(shared.text("stop", web, "--json"))
    assert (report["step"], report["status"]) == ("agent", 0)
    assert report["ended"] == "stopped by the guest"
    assert json.loads(shared.text("ls", "--json")) == []
    (row,) = json.loads(shared.text("ls", "-a", "--json"))
    assert (row["state"], row["ended"]) == ("off", "stopped by the guest")
    assert "off already" in shared.words("stop", web)
    assert "the VM is off" in shared.words("exec", web, "--", "true", check=1)
    # A start may leave the guest waiting; such a one has nothing to shut down.
    shared.run("start", web, "--paused")
    assert json.loads(shared.text("stop", web, "--json"))["step"] == "quit"


def test_the_power_button_is_used_when_there_is_no_agent(shared: Home) -> None:
    shared.run("create", "mute", "-f", _mute(shared))
    shared.run("start", "mute")
    shared.run("wait", "mute", "--for", "serial:tiny: ready", "--timeout", "90",
               timeout=120)  # fmt: skip
    report = json.loads(shared.text("stop", "mute", "--json"))
    assert (report["step"], report["ended"]) == ("acpi", "stopped by the guest")
    shared.run("rm", "mute")


def _mute(shared: Home) -> str:
    path = shared.path / "mute.yaml"
    path.write_text("name: mute\nimage: tiny\nagent: false  # a comment\n")
    return str(path)
