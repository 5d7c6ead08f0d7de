"""What tests do with a guest, on one that stays: commands, waiting, files, network."""

from __future__ import annotations

import asyncio
import inspect
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qemuctl import Spec
from qemuctl.errors import AgentRefused, StateError, UsageError, WaitTimeout
from qemuctl.testing import CommandFailed, Guest, SyncGuest
from tests.guest.conftest import Home
from tests.guest.verbs import guest_of, told


@pytest.fixture(scope="module")
def vm(shared: Home) -> Iterator[SyncGuest]:
    spec = Spec(name="verbs", image="tiny", display="vnc")
    with guest_of(spec, shared) as guest:
        yield guest


@pytest.fixture
def guest(vm: SyncGuest) -> Guest:
    """The same guest for a test with a loop of its own."""
    return vm._guest


def sleepers(vm: SyncGuest, seconds: int) -> int:
    found = vm.run(f"ps -o args | grep -c '^sleep {seconds}$'")
    return int(found.text)


# -- commands --------------------------------------------------------------


def test_a_string_is_a_script_and_a_list_runs_as_it_is(vm: SyncGuest) -> None:
    result = vm.run("echo $((1 + 1)) 'a  b'; echo e >&2; exit 3")
    assert (result.ok, result.text, result.stderr) == (False, "2 a  b", b"e\n")
    assert result.status == 3
    words = ["a  b", "$HOME", "'", '"', "\\", "-n", "ä\n", ""]
    assert vm.run(["printf", "%s|", *words]).text == "|".join([*words, ""])
    assert vm.run("kill -9 $$").signal == 9
    assert vm.run("nope").status == 127
    with pytest.raises(AgentRefused, match="nope"):
        vm.run(["nope"])
    for wrong in ("a\0b", ["true", "\0"]):
        with pytest.raises(UsageError, match="NUL"):
            vm.run(wrong)
    with pytest.raises(UsageError, match="empty"):
        vm.run([])


def test_input_and_environment_reach_the_command(vm: SyncGuest) -> None:
    assert vm.run("cat", input="häl\nlo").stdout == "häl\nlo".encode()
    assert vm.run(["wc", "-c"], input=bytes(1_000_000)).text == "1000000"
    result = vm.run('echo "$A|$PATH"', env={"A": "b  c='"})
    assert result.text.startswith("b  c='|/")
    for name in ("", "A=B", "-i"):
        with pytest.raises(UsageError, match="variable"):
            vm.run("true", env={name: "x"})


def test_output_is_exact_however_long_or_odd(vm: SyncGuest) -> None:
    assert vm.run("printf '\\000\\377\\n\\n'").stdout == b"\0\xff\n\n"
    result = vm.run("head -c 1000000 /dev/zero; head -c 70000 /dev/zero >&2")
    assert (len(result.stdout), len(result.stderr)) == (1_000_000, 70_000)
    assert not result.truncated


def test_success_and_failure_are_asserted_and_told(vm: SyncGuest) -> None:
    assert vm.succeed("echo a", ["echo", "b"], "printf 'c\\n\\n'") == "a\nb\nc\n"
    assert vm.fail("echo no; false") == "no"
    with pytest.raises(AssertionError) as failure:
        vm.succeed("echo first", "echo out; echo err >&2; exit 5", "touch /never")
    assert isinstance(failure.value, CommandFailed)
    assert failure.value.result.status == 5
    words = told(failure.value)
    assert "failed with status 5: echo out; echo err" in words
    assert "out\nerr" in words
    assert vm.run(["test", "-e", "/never"]).status == 1
    with pytest.raises(CommandFailed, match="ended by signal 15"):
        vm.succeed("kill $$")
    with pytest.raises(CommandFailed, match="did not fail: echo fine") as failure:
        vm.fail("false", "echo fine")
    assert "it wrote:\nfine" in told(failure.value)


def test_a_command_whose_time_is_up_is_ended_with_its_children(vm: SyncGuest) -> None:
    with pytest.raises(WaitTimeout) as late:
        vm.run("echo begun; echo e >&2; (sleep 4001; true) & sleep 4001", timeout=0.5)
    words = told(late.value)
    assert "after 0.5 s: waiting for the end in the guest of: echo begun;" in words
    assert "it was ended in the guest" in words
    assert "begun\ne\n" in words
    assert "tiny: ready" in words
    assert sleepers(vm, 4001) == 0

    stubborn = "trap '' TERM; echo stubborn; while :; do sleep 4002; done"
    with pytest.raises(WaitTimeout) as late:
        vm.run(stubborn, timeout=0.5)
    assert "stubborn" in told(late.value)
    assert sleepers(vm, 4002) == 0


def test_a_process_that_keeps_the_output_open_is_explained(vm: SyncGuest) -> None:
    with pytest.raises(WaitTimeout) as late:
        vm.run("sleep 4003 &", timeout=0.5)
    assert "keeps its output open" in told(late.value)
    assert vm.run("sleep 4003 >/dev/null 2>&1 &", timeout=60).ok
    vm.succeed("pkill sleep || killall sleep")


def test_a_paused_guest_runs_nothing_and_says_so(vm: SyncGuest) -> None:
    assert vm.pause()
    assert not vm.pause()
    with pytest.raises(WaitTimeout) as late:
        vm.run("true", timeout=0.5)
    assert "has not said that it was started" in told(late.value)
    with pytest.raises(WaitTimeout) as late:
        vm.wait_for_file("/", timeout=0.5)
    assert "the guest agent did not answer" in told(late.value)
    assert vm.resume()
    assert not vm.resume()
    assert vm.wait_for_event("STOP").at < vm.wait_for_event("RESUME").at
    assert vm.run("echo on").text == "on"
    with pytest.raises(WaitTimeout, match="the event STOP"):
        vm.wait_for_event("STOP", timeout=0.2)


def test_an_interrupt_ends_the_command_in_the_guest(
    vm: SyncGuest, until: Callable[..., object]
) -> None:
    def interrupt() -> None:
        until(lambda: "4004 is running" in vm.console, 30)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        vm.run("echo 4004 is running >/dev/ttyS0; sleep 4004")
    thread.join(30)
    assert sleepers(vm, 4004) == 0


# -- waiting ---------------------------------------------------------------


def test_a_script_is_tried_until_it_succeeds_or_fails(vm: SyncGuest) -> None:
    count = "echo x >>/tmp/tries; [ $(wc -l </tmp/tries) -ge 4 ]"
    text = vm.wait_until_succeeds(f"echo noise >&2; echo out; echo; {count}")
    assert text == "out"
    assert vm.run(["cat", "/tmp/tries"]).text == "x\nx\nx\nx"
    assert vm.wait_until_fails("echo bye; ! rm /tmp/tries") == "bye"
    with pytest.raises(WaitTimeout) as late:
        vm.wait_until_succeeds("echo 'last words'; sleep 4005; false", timeout=0.5)
    assert "waiting for success in the guest of: echo 'last words'" in told(late.value)
    with pytest.raises(WaitTimeout) as late:
        vm.wait_until_succeeds("echo 'seen so far'; false", timeout=1)
    assert "seen so far" in told(late.value)
    with pytest.raises(WaitTimeout, match="waiting for failure in the guest of: true"):
        vm.wait_until_fails("true", timeout=0.5)
    # The loops have ended, too.
    left = vm.run("ps -o args | grep -c '[l]ook()'")
    assert (left.text, sleepers(vm, 4005)) == ("0", 0)


def test_a_file_is_waited_for_in_the_guest(vm: SyncGuest) -> None:
    vm.succeed("(sleep 0.3; touch '/tmp/a  b') >/dev/null 2>&1 &")
    vm.wait_for_file("/tmp/a  b", timeout=60)
    assert vm.run(["test", "-e", "/tmp/a  b"]).ok
    with pytest.raises(WaitTimeout, match="the file /tmp/nowhere in the guest"):
        vm.wait_for_file("/tmp/nowhere", timeout=0.3)


def test_a_port_is_waited_for_and_led_to_the_host(
    vm: SyncGuest, tmp_path: Path
) -> None:
    with pytest.raises(WaitTimeout, match=r"port 8080 of 127\.0\.0\.1 in"):
        vm.wait_for_port(8080, timeout=0.3)
    vm.succeed("mkdir -p /tmp/www; echo hello >/tmp/www/page")
    vm.succeed("(sleep 0.3; httpd -p 8080 -h /tmp/www) >/dev/null 2>&1 &")
    vm.wait_for_port(8080, timeout=60)
    vm.succeed("httpd -p 127.0.0.2:8081 -h /tmp/www")
    vm.wait_for_port(8081, "127.0.0.2", timeout=60)
    with pytest.raises(WaitTimeout):
        vm.wait_for_port(8081, "127.0.0.3", timeout=0.3)
    for wrong in (0, 65536):
        with pytest.raises(UsageError, match="not a port"):
            vm.wait_for_port(wrong)
        with pytest.raises(UsageError, match="not a port"):
            vm.forward(wrong)
    port = vm.forward(8080)
    assert vm.forward(8080) == port != vm.forward(8081)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"GET /page HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.endswith(b"hello\n")


def test_the_console_is_waited_for_with_its_past(vm: SyncGuest) -> None:
    assert vm.wait_for_console("tiny: rea.y") == "tiny: ready"
    assert "tiny: ready" in vm.console
    vm.run("(sleep 0.3; echo 'from  inside' >/dev/ttyS0) >/dev/null 2>&1 &")
    assert vm.wait_for_console(r"from +inside", timeout=60) == "from  inside"
    with pytest.raises(WaitTimeout, match="/never said/ on the console") as late:
        vm.wait_for_console("never said", timeout=0.2)
    assert "from  inside" in told(late.value)


def test_a_unit_is_not_waited_for_without_systemd(vm: SyncGuest) -> None:
    with pytest.raises(CommandFailed, match=r"not active: web\.service") as failure:
        vm.wait_for_unit("web.service")
    assert "not found" in told(failure.value)


# -- the rest --------------------------------------------------------------


def test_files_and_folders_go_in_and_out(vm: SyncGuest, tmp_path: Path) -> None:
    folder = tmp_path / "some folder"
    folder.mkdir()
    (folder / "one").write_bytes(b"\0\xff" * 50_000)
    inside = vm.copy_in(folder, "/tmp/")
    assert inside == "/tmp/some folder"
    assert vm.copy_in(folder / "one", "/tmp/two") == "/tmp/two"
    assert vm.succeed("wc -c <'/tmp/some folder/one'; wc -c </tmp/two") == (
        "100000\n100000"
    )
    back = vm.copy_out(inside, str(tmp_path / "back"))
    assert (back / "one").read_bytes() == (folder / "one").read_bytes()
    assert vm.copy_out("/tmp/two", tmp_path / "two").read_bytes()[:2] == b"\0\xff"


def test_the_screen_is_seen_and_keys_reach_the_guest(
    vm: SyncGuest, tmp_path: Path
) -> None:
    assert vm.screenshot(tmp_path / "shot.png") == tmp_path / "shot.png"
    assert (tmp_path / "shot.png").read_bytes().startswith(b"\x89PNG")
    events = "cat /dev/input/event* >/tmp/keys"
    vm.succeed(f"({events}) >/dev/null 2>&1 &")
    vm.wait_for_file("/tmp/keys")
    vm.send_keys("ctrl-a", "ret")
    vm.type("hi\n")
    vm.wait_until_succeeds("[ -s /tmp/keys ]", timeout=60)
    vm.run("killall cat")
    with pytest.raises(UsageError):
        vm.send_keys("no-such-key")


def test_cables_are_pulled_out_and_the_guest_sees_it(vm: SyncGuest) -> None:
    carrier = "cat /sys/class/net/eth0/carrier"
    for _ in range(2):
        vm.block_network()
        assert vm.succeed(carrier) == "0"
    vm.unblock_network()
    assert vm.succeed(carrier) == "1"


def test_all_else_is_done_in_the_vms_own_loop(vm: SyncGuest) -> None:
    async def state(one: object) -> tuple[str, str]:
        assert one is vm.vm
        return threading.current_thread().name, await vm.vm.state()

    assert vm.do(state) == ("qemuctl", "running")
    assert vm.name == vm.vm.name
    assert (vm.booted_from, vm.spec.image) == ("fork", "tiny")

    async def refuse(_: object) -> None:
        raise StateError("x", "running", "of a reason", hint="a hint")

    with pytest.raises(StateError) as refused:
        vm.do(refuse)
    assert told(refused.value) == "cannot x: of a reason\na hint"


async def test_the_verbs_are_awaited_from_any_loop(guest: Guest) -> None:
    assert asyncio.get_running_loop() is not guest.loop
    assert inspect.iscoroutinefunction(guest.run)
    texts = await asyncio.gather(*(guest.succeed(f"echo {n}") for n in range(20)))
    assert texts == [str(n) for n in range(20)]
    slow = asyncio.create_task(guest.wait_for_file("/tmp/later"))
    await guest.succeed("touch /tmp/later")
    await slow
    with pytest.raises(CommandFailed):
        await guest.succeed("false")


async def test_a_cancelled_verb_ends_its_command_in_the_guest(guest: Guest) -> None:
    await guest.run("rm -f /tmp/running")
    task = asyncio.create_task(guest.run("touch /tmp/running; sleep 4006"))
    await guest.wait_for_file("/tmp/running")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await guest.run("ps -o args | grep -c '^sleep 4006$'")).text == "0"
