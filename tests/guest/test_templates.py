"""Templates: made once, by the way or by name, and gone when nobody needs them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.guest.conftest import Home
from tests.guest.templates import cached, facts, own_cache, sums, throwaways

# The same for all that go on from the same boot: when the kernel said what, in
# microseconds.
BOOT = ("sh", "-c", "dmesg | head -n 60 | md5sum")


@pytest.fixture
def mine(here: Home) -> Home:
    return own_cache(here.path)


def test_a_second_run_goes_on_where_the_first_one_was_frozen(mine: Home) -> None:
    first = mine.text("run", "tiny", "--memory", "200M", "--", *BOOT)
    (key,) = cached(mine)
    # Another name, another port: still the same guest.
    flags = ("--memory", "200M", "--name", "web", "-p", ":22")
    assert mine.text("run", "tiny", *flags, "--", *BOOT) == first
    assert cached(mine) == [key]
    cold = mine.text("run", "tiny", "--memory", "200M", "--cold", "--", *BOOT)
    assert cold != first
    assert mine.text("run", "tiny", "--memory", "208M", "--", *BOOT) != first
    assert len(cached(mine)) == 2
    assert throwaways(mine) == []


def test_of_many_that_want_the_same_at_once_one_makes_it(mine: Home) -> None:
    many = [
        mine.popen("run", "tiny", "--memory", "200M", "--", *BOOT,
                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(4)
    ]  # fmt: skip
    said = {process.communicate(timeout=200)[0] for process in many}
    assert [process.returncode for process in many] == [0] * 4
    assert len(said) == 1
    (key,) = cached(mine)
    folder = mine.path / "cache/templates" / key
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [
        json.loads((folder / "template.json").read_text())["making"]
    ]
    assert throwaways(mine) == []


def test_what_cannot_be_combined_is_booted_and_told(mine: Home, tmp_path: Path) -> None:
    disk = tmp_path / "mine.raw"
    disk.write_bytes(bytes(1 << 20))
    done = mine.run(
        "run", "tiny", "--memory", "200M", "--disk", f"path={disk}", "--", "sh", "-c",
        "echo written | dd of=/dev/vda conv=fsync,notrunc 2>/dev/null; echo done",
    )  # fmt: skip
    assert done.stdout == b"done\n"
    assert b"no fork can be had: disks[0].path: cannot be combined" in done.stderr
    assert disk.read_bytes().startswith(b"written")
    assert cached(mine) == []


def test_a_guest_that_would_begin_with_old_random_numbers_is_booted(
    mine: Home,
) -> None:
    """A microvm has no vmgenid, and the tiny image no perl."""
    flags = ("--machine", "microvm", "--memory", "200M")
    said = []
    for _ in range(2):
        done = mine.run("run", "tiny", *flags, "--", *BOOT)
        assert b"no way to make its random numbers anew" in done.stderr
        said.append(done.stdout)
    assert said[0] != said[1]
    assert len(cached(mine)) == 1  # it is not made for each


def test_bad_wishes_are_explained_and_leave_nothing(here: Home) -> None:
    here.run("create", "web", "--image", "tiny", "--memory", "200M")
    for words, status, flags in (
        ("say what it is made of", 2, ["t"]),
        ("say what it is made of", 2, ["t", "--image", "tiny", "--vm", "web"]),
        ("not a name", 2, ["../t", "--image", "tiny"]),
        ("not a name", 2, ["", "--image", "tiny"]),
        ("name too long", 2, ["t" * 90, "--image", "tiny"]),
        ("not something to wait for: never", 2,
         ["t", "--image", "tiny", "--wait", "never"]),
        ("nosuch", 1, ["t", "--image", "nosuch"]),
        ("no such VM: nosuch", 1, ["t", "--vm", "nosuch"]),
        ("its forks' memory is the template's: -mem-path", 1,
         ["t", "--image", "tiny", "--qemu-arg=-mem-path", "--qemu-arg=/dev/shm"]),
    ):  # fmt: skip
        said = here.words("template", "create", *flags, check=status)
        assert words in said, flags
        assert here.text("template", "ls", "--json") == "[]\n"
    assert throwaways(here) == []
    assert not list((here.path / "data").rglob("ram"))


def test_a_vm_becomes_a_template_with_its_disks_and_stays_as_it_was(
    shared: Home,
) -> None:
    shared.run(
        "create", "web", "--image", "tiny", "--memory", "200M", "--disk",
        "size=32M", "--nic", "user,mac=52:54:00:00:00:77",
    )  # fmt: skip
    shared.run("start", "web", "--wait", timeout=150)
    write = "echo web | dd of=/dev/vda conv=fsync 2>/dev/null; sync"
    shared.run("exec", "web", "--", "sh", "-c", write)
    create = ("template", "create", "web", "--vm", "web")
    assert "the VM is on" in shared.words(*create, check=1)
    shared.run("stop", "web")
    disk = shared.path / "state/vms/web/disks/disk0.raw"
    if not disk.exists():
        disk = disk.with_suffix(".qcow2")
    before = disk.read_bytes(), (shared.path / "state/vms/web/vm.yaml").read_bytes()
    shared.run(*create, timeout=150)
    assert "exists already: web" in shared.words(*create, check=1)
    assert before == (
        disk.read_bytes(),
        (shared.path / "state/vms/web/vm.yaml").read_bytes(),
    )
    kept = sums(shared, "web")
    script = "head -c 3 /dev/vda; echo; cat /sys/class/net/eth0/address"
    found = [
        shared.text("fork", "web", "--", "sh", "-c", f"{script}; {write}")
        for _ in range(2)
    ]
    assert all(text.startswith("web\n") for text in found)
    assert len({*found, "web\n52:54:00:00:00:77\n"}) == 3
    assert sums(shared, "web") == kept
    # A VM whose disk stands on it keeps it.
    shared.run("fork", "web", "--name", "stays")
    shared.run("kill", "stays")
    words = shared.words("template", "rm", "web", check=1)
    assert "disks of VMs stand on the template web: stays" in words
    assert sums(shared, "web") == kept
    # It cannot be made again from a VM that has changed since.
    ram = Path(facts(shared, "web")["folder"]) / "ram"
    ram.write_bytes(ram.read_bytes()[:-4096])
    words = shared.words("fork", "web", check=1)
    assert "the template web cannot be used: its file has another size" in words
    assert "template rm web" in words
    shared.run("rm", "stays")
    shared.run("template", "rm", "web")
    assert not list((shared.path / "data/templates").iterdir())
    assert throwaways(shared) == []
