"""The pytest plugin as its users have it: an inner pytest, real guests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from qemuctl import paths
from qemuctl.host import choose_accel, find_qemu, probe
from qemuctl.qmp import eventlog
from qemuctl.spec import Spec
from qemuctl.templates.catalog import find
from tests.conftest import Cli
from tests.guest.conftest import Home
from tests.guest.inner_pytest import LEAN, left, project, running


@dataclass(frozen=True)
class Ran:
    """A pytest that has ended."""

    status: int
    text: str
    junit: Path

    @property
    def cases(self) -> dict[str, ET.Element]:
        root = ET.parse(self.junit).getroot()
        return {str(case.get("name")): case for case in root.iter("testcase")}

    def properties(self, test: str) -> list[tuple[str, str]]:
        found = self.cases[test].iter("property")
        return [(str(one.get("name")), str(one.get("value"))) for one in found]

    def section(self, test: str, title: str) -> str:
        """What a section of the report of a failed test says."""
        _, _, report = self.text.partition(f"_ {test} _")
        report = report.partition("\n____")[0]
        _, found, rest = report.partition(f"- {title} -")
        assert found, f"{title!r} is not in the report of {test}:\n{report}"
        lines = rest.partition("\n")[2].splitlines()
        ends = (i for i, line in enumerate(lines) if line.startswith(("-----", "====")))
        return "\n".join(lines[: next(ends, len(lines))])


Inner = Callable[..., Ran]


@pytest.fixture
def inner(home: Path, qemu: Path, tmp_path: Path) -> Inner:
    """`inner(tests, *arguments)`: runs a test file in a project of its own."""

    def run(tests: str, *arguments: object, **env: str) -> Ran:
        folder = project(tmp_path / "project", tests)
        junit = folder / "junit.xml"
        with running(folder, f"--junitxml={junit}", *arguments, env=env) as process:
            text, _ = process.communicate(timeout=200)
        return Ran(process.returncode, text, junit)

    return run


FIXTURES = """
pytestmark = pytest.mark.vm(memory="300M", spec={"hotplug_ports": 1})

def memory(result):
    return int(result.text.split()[1]) // 1024

def test_plain(vm):
    result = vm.run("uname -s")
    assert result.ok and result.text == "Linux"
    # A fork has said that when it was not yet one.
    assert vm.wait_for_console("tiny: ready", timeout=60)

@pytest.fixture
def warm(vm):
    vm.plain.succeed("touch /tmp/warm")

@pytest.mark.vm(cpus=2, disks=["size=8M,serial=data"])
async def test_async(vm, warm):
    assert (await vm.awaitable.run("ls /tmp/warm")).ok
    assert (await vm.run("nproc")).text == "2"
    assert (await vm.run("cat /sys/block/vda/serial")).text == "data"
    # The marks of the module count too.
    assert 200 < memory(await vm.run(["grep", "MemTotal", "/proc/meminfo"])) < 300

@pytest.fixture
async def prepared(vm_factory):
    guest = await vm_factory.awaitable(name="web")
    await guest.succeed("touch /tmp/prepared")
    return guest

@pytest.fixture
def data(vm_factory):
    return vm_factory.plain(memory="200M")

async def test_several(vm_factory, prepared, data):
    other = data.awaitable
    assert other.name.startswith("test-several-")
    assert prepared.name.startswith("web-")
    assert (await prepared.run("ls /tmp/prepared")).ok
    assert not (await other.run("ls /tmp/prepared")).ok
    assert memory(await other.run("grep MemTotal /proc/meminfo")) < 200

@pytest.fixture(scope="session")
def marked(vm_session):
    vm_session.succeed("touch /tmp/marked")
    return vm_session

@pytest.fixture
async def seen(vm_session):
    return await vm_session.awaitable.succeed("ls /tmp/marked")

def test_shared(marked, seen, vm_session):
    assert seen == "/tmp/marked"
    assert vm_session.run("ls /tmp/marked").ok

async def test_shared_async(vm_session):
    assert (await vm_session.run("ls /tmp/marked")).ok
"""


def test_fixtures_give_guests_as_marks_and_calls_describe_them(inner: Inner) -> None:
    ran = inner(FIXTURES, "-p", "no:xdist")
    assert ran.status == 0, ran.text
    assert "5 passed" in ran.text
    for test in ("test_plain", "test_async", "test_shared"):
        properties = ran.properties(test)
        assert len(properties) == 2, properties
        (_, boot), (_, seconds) = properties
        assert boot in ("fork", "cold")
        assert 0 < float(seconds) < 120
    assert len(ran.properties("test_several")) == 4
    assert ran.properties("test_shared_async") == [("vm_boot", "shared")]
    assert left() == []


FAILURES = """
import os, signal, unittest

def test_assertion(vm_factory):
    vm = vm_factory(spec={"display": "vnc"})
    vm.run("echo on the console >/dev/ttyS0")
    assert vm.run("exit 3").ok

def test_panic(vm):
    vm.run("echo c >/proc/sysrq-trigger")

def test_crash(vm):
    os.kill(vm.vm.record.qemu.pid, signal.SIGSEGV)
    vm.run("sleep 60")

def test_off(vm):
    vm.run("poweroff -f; sleep 60")

@pytest.mark.vm(memory="160M")
def test_memory(vm):
    vm.succeed(["awk", 'BEGIN { s = "x"; while (1) s = s s }'])

class TestOld(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def guest(self, vm):
        self.vm = vm

    def test_time(self):
        self.vm.wait_until_succeeds("false", timeout=0.5)

@pytest.mark.vm(spec={
    "boot": {"cmdline": "console=ttyS0 rdinit=/none panic=-1"},
    "on_guest_reboot": "shutdown",
})
def test_boot(vm):
    pass

@pytest.mark.vm(spec={"extra_args": ["-bogus"]})
def test_launch(vm):
    pass
"""


def test_a_failure_is_reported_with_all_that_is_known_of_the_guest(
    inner: Inner, tmp_path: Path
) -> None:
    ran = inner(FAILURES, "-n", 2, "--vm-artifacts=found", "-vv")
    assert ran.status == 1, ran.text
    assert "6 failed, 2 errors" in ran.text, ran.text

    def verdict(test: str) -> str:
        return ran.section(test, "vm: verdict")

    assert "nothing is known to be wrong" in verdict("test_assertion")
    assert "on the console" in ran.section("test_assertion", "vm: console")
    assert '"execute": "cont"' in ran.section("test_assertion", "vm: QMP trace")
    assert "\n  -nodefaults \\\n" in ran.section("test_assertion", "vm: argv")
    assert "guest panic: Kernel panic - not syncing: sysrq" in verdict("test_panic")
    assert "QEMU crashed: killed by signal 11 (SIGSEGV)" in verdict("test_crash")
    assert "the guest went off: it shut down by itself" in verdict("test_off")
    assert "out of memory in the guest: " in verdict("test_memory")
    old = "TestOld.test_time"
    assert "time-out: timed out after 0.5 s: waiting for" in verdict(old)
    assert "no picture: the guest has no display" in ran.section(old, "vm: files")
    assert "no picture" not in ran.section("test_assertion", "vm: files")
    boot = "ERROR at setup of test_boot"
    assert "guest panic: Kernel panic - not syncing: " in verdict(boot)
    assert "Kernel Offset: " in ran.section(boot, "vm: console")
    assert "\n  -nodefaults \\\n" in ran.section(boot, "vm: argv")
    launch = "ERROR at setup of test_launch"
    assert "-bogus: invalid option" in verdict(launch)
    assert "-bogus" in ran.section(launch, "vm: argv")

    found = tmp_path / "project/found"
    folder = found / "test_inner.py.test_assertion/vm"
    assert (folder / "screen.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in folder.iterdir()} == {
        "argv.sh", "console.log", "events.jsonl", "qmp.jsonl", "screen.png",
        "verdict.txt", "vm.yaml",
    }  # fmt: skip
    assert b"on the console" in (folder / "console.log").read_bytes()
    panic = found / "test_inner.py.test_panic/vm"
    assert any(
        e.name == "GUEST_PANICKED" for e in eventlog.past(panic / "events.jsonl")
    )
    assert "guest panic" in (panic / "verdict.txt").read_text()
    assert len(list(found.iterdir())) == 7  # what never was has left nothing
    kind, _, said = ran.properties("test_off")
    assert (kind, said) == (("vm_boot", "fork"), ("vm_verdict", verdict("test_off")))
    assert left() == []


SHORT = """
def test_own_mistake(vm):
    assert vm.run("echo 3").text == "4"

def test_guest(vm):
    vm.succeed("for i in $(seq 30); do echo line $i; done >/dev/ttyS0")
    vm.wait_until_succeeds("false", timeout=0.5)
"""


def test_a_report_is_short_and_tells_where_the_rest_is(
    inner: Inner, tmp_path: Path
) -> None:
    ran = inner(SHORT, "-n", 0, f"--basetemp={tmp_path}/base")
    assert "2 failed" in ran.text, ran.text
    own, guest = (ran.section(test, "vm: files") for test in
                  ("test_own_mistake", "test_guest"))  # fmt: skip
    assert "it runs" in ran.section("test_own_mistake", "vm: verdict")
    (line, *_) = own.splitlines()
    folder, _, names = line.partition(": ")
    assert folder.startswith(f"{tmp_path}/base/")
    assert "argv.sh, console.log, events.jsonl, qmp.jsonl" in names
    assert len((Path(folder) / "argv.sh").read_text().splitlines()) > 10
    assert "line 30" in ran.section("test_guest", "vm: console")
    assert "test_guest/vm: argv.sh" in guest
    assert ran.text.count(" vm: console ") == 1
    assert "-nodefaults" not in ran.text
    assert "qmp_capabilities" not in ran.text


WORDS = """
@pytest.mark.vm(imgae="tiny")
def test_unknown(vm): pass

@pytest.mark.vm("tiny")
def test_bare(vm): pass

@pytest.mark.vm(memory="12Q")
def test_value(vm): pass

@pytest.mark.vm(spec="none.yaml")
def test_file(vm): pass

@pytest.mark.vm(kvm="required")
def test_kvm(vm_factory): pass

def test_large(vm): pass

def test_called(vm_factory):
    vm_factory(imgae="tiny")

def test_called_for_kvm(vm_factory):
    vm_factory(kvm="required")

async def test_awaited_for_kvm(vm_factory):
    await vm_factory(kvm="required")

@pytest.mark.skip
@pytest.mark.vm(template="none")
def test_skipped(vm): pass

@pytest.mark.vm(of="another plugin")
def test_mark(): pass
"""


def test_what_makes_no_sense_is_said_before_a_guest_is_started(inner: Inner) -> None:
    ran = inner(WORDS, "-rs", QEMUCTL_BUDGET_MEMORY="100M")
    binary = probe(find_qemu(Spec(name="any")))
    accel = choose_accel("auto", binary)
    skips = accel.kind != "kvm"
    kvm = ["test_kvm", "test_called_for_kvm", "test_awaited_for_kvm"]
    skipped = [
        name for name, case in ran.cases.items() if case.find("skipped") is not None
    ]
    assert skipped == [*(kvm if skips else []), "test_skipped"]
    assert f"{1 if skips else 2} passed" in ran.text, ran.text
    assert f"{1 if skips else 3} failed" in ran.text, ran.text
    assert "5 errors" in ran.text, ran.text
    assert "unknown keyword of vm: imgae" in ran.text
    assert ran.text.count("hint: did you mean image?") == 2
    assert "the mark vm takes keywords only: 'tiny'" in ran.text
    assert "memory: not a size: '12Q'" in ran.text
    assert "none.yaml" in ran.text
    assert "more than all guests together may have: 100M" in " ".join(ran.text.split())
    assert "Traceback" not in ran.text
    if skips:
        assert f"KVM is required, but {accel.reason}" in " ".join(ran.text.split())
    unknown = inner("def test_a(vm): pass", "--vm-image=nosuch")
    assert "no such image: nosuch" in unknown.text
    assert left() == []


def test_help_marks_and_fixtures_are_explained(inner: Inner) -> None:
    text = inner("def test_a(vm): pass", "--help").text
    for option in ("--vm-image", "--vm-keep", "--vm-cold", "--vm-artifacts=DIR"):
        assert option in text
    for option in ("vm_image", "vm_timeout", "vm_budget_memory", "vm_budget_cpus"):
        assert f"  {option} (string):" in text
    assert "@pytest.mark.vm(image, memory, " in inner("", "--markers").text
    fixtures = inner("", "--fixtures").text
    for fixture in ("vm", "vm_factory", "vm_session [session scope]"):
        assert f"\n{fixture} -- " in fixtures
    assert "test_inner.py::test_a" in inner("def test_a(vm): pass", "--co", "-q").text
    wrong = inner("def test_a(): pass", "-o", "vm_timeout=soon")
    assert wrong.status == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: vm_timeout: not a duration: 'soon'" in wrong.text


def test_a_kept_vm_outlives_pytest_and_can_be_entered_and_removed(
    inner: Inner, home: Path, until: Callable[..., object]
) -> None:
    here = Home(home)
    ran = inner(
        """
        def test_fails(vm):
            vm.succeed("echo kept >/tmp/kept")
            assert False
        """,
        "--vm-keep", "-p", "no:xdist", *LEAN,
    )  # fmt: skip
    assert ran.status == 1
    (entry,) = json.loads(here.text("ls", "--json"))
    name = entry["name"]
    (claim,) = json.loads((paths.run_home() / ".budget").read_text())["claims"]
    assert claim["kept"] == name
    said = ran.section("test_fails", "vm: kept")
    assert f"qemuctl console {name}\n" in said
    assert f"QEMUCTL_HOME={home} qemuctl kill {name}" in said
    assert here.text("exec", name, "--", "cat", "/tmp/kept") == "kept\n"
    here.run("kill", name)
    until(lambda: left() == [])


def test_guests_of_several_workers_share_the_host(inner: Inner) -> None:
    tests = """
    import time
    from pathlib import Path

    @pytest.mark.parametrize("number", range(3))
    def test_alone(vm, number):
        begun = time.time()
        # Longer than others wait without a word.
        assert vm.run("sleep 4").ok
        Path(f"times-{number}").write_text(f"{begun} {time.time()}")
    """
    ran = inner(tests, "-n", 2, QEMUCTL_BUDGET_CPUS="1")
    assert ran.status == 0, ran.text
    spans = sorted(
        tuple(map(float, path.read_text().split()))
        for path in ran.junit.parent.glob("times-*")
    )
    assert [end <= begin for (_, end), (begin, _) in pairwise(spans)] == [True] * 2
    assert "] waits for room: it needs " in ran.text
    assert ", 1 cpu (process " in ran.text
    assert left() == []


ENDLESS = """
import sys, threading, time

def test_passes(vm_session):
    pass

def test_endless(vm, vm_session):
    print("waiting", file=sys.__stderr__, flush=True)
    vm.run("sleep 1000", timeout=None)

def test_next(vm_session):
    assert vm_session.run("true").ok
"""


# Of the test alone: booting takes as long as it does.
LIMIT = ("--timeout=4", "-o", "timeout_func_only=true")


def begun(process: subprocess.Popen[str]) -> None:
    """Waits until the endless test has its guests."""
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert any("waiting" in line for line in lines)


def test_ctrl_c_ends_the_guests_and_pytest(home: Path, tmp_path: Path) -> None:
    with running(project(tmp_path / "project", ENDLESS), "-s") as process:
        begun(process)
        assert len(left()) == 4
        os.killpg(process.pid, signal.SIGINT)
        text, _ = process.communicate(timeout=60)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, text
    assert "KeyboardInterrupt" in text
    assert "INTERNALERROR" not in text
    assert left() == []


def test_a_time_limit_by_signal_fails_the_test_and_the_next_one_runs(
    inner: Inner,
) -> None:
    ran = inner(ENDLESS, *LIMIT, "--timeout-method=signal")
    assert "1 failed, 2 passed" in ran.text, ran.text
    assert "time-out: Timeout (>4.0s)" in ran.section("test_endless", "vm: verdict")
    assert ran.section("test_endless", "vm_session: verdict")
    assert left() == []


def test_a_time_limit_by_a_thread_leaves_nothing(
    inner: Inner, until: Callable[..., object]
) -> None:
    ran = inner(ENDLESS, *LIMIT, "--timeout-method=thread", "-k", "endless")
    assert "Timeout" in ran.text
    until(lambda: left() == [])


def test_loading_the_plugin_loads_nothing_else() -> None:
    program = (
        "import sys, pytest; before = set(sys.modules); import qemuctl.pytest_plugin;"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert [
        name for name in done.stdout.split() if name.partition(".")[0] != "qemuctl"
    ] == []
    assert len(done.stdout.split()) < 8, done.stdout


TEMPLATE = """
@pytest.mark.vm(template="ready")
def test_is_a_fork_of_it(vm):
    assert vm.run("cat /made").text == "by hand"
    assert vm.run("nproc").text == "2"
    vm.succeed("echo mine > /made")

@pytest.mark.vm(template="ready", cpus=2, nics=[{"forward": [":7"]}])
def test_gets_another_one_with_a_port(vm):
    assert vm.run("cat /made").text == "by hand"
    assert vm.vm.record.forwards

@pytest.mark.vm(template="ready", memory="1G")
def test_cannot_have_more(vm):
    pass

@pytest.mark.vm(template="raedy")
def test_is_misspelt(vm):
    pass
"""


def test_a_named_template_is_what_a_mark_asks_for(
    home: Path, inner: Inner, cli: Cli
) -> None:
    making = ["--image", "tiny", "--memory", "256M", "--cpus", "2"]
    done = cli("template", "create", "ready", *making, "--run", "echo by hand >/made")
    assert done.returncode == 0, done.stderr
    ram = find("ready").ram
    os.truncate(ram, ram.stat().st_size // 2)
    ran = inner(TEMPLATE, "-v")
    told = "_of_it: making the template ready again: its file has another size"
    assert ran.text.count(told) == 1, ran.text
    assert "2 passed" in ran.text, ran.text
    assert "the template ready has 256M, and so have its forks: 1G" in ran.text
    assert "no such template: raedy" in ran.text
    assert "did you mean ready?" in ran.text
    said = dict(ran.properties("test_is_a_fork_of_it"))
    assert said["vm_boot"] == "fork"
    assert "vm_not_forked" not in said
