"""What cannot be migrated is refused with the reason, before anything has changed."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import qemuctl
from tests.conftest import sweep
from tests.guest.conftest import BOOT_SECTOR, Home, make_home
from tests.guest.moving import Migration, destination, rows, state, tidy

# In the place of ssh: what is to run on the other host runs here.
NEAR = """#!/bin/sh
for last; do :; done
exec sh -c "$last"
"""


@dataclass(frozen=True)
class Here(Home):
    """A home in which `ssh` is another program."""

    ssh: str

    @property
    def env(self) -> dict[str, str]:
        return super().env | {"QEMUCTL_SSH": self.ssh}


@pytest.fixture(scope="module")
def homes(
    tmp_path_factory: pytest.TempPathFactory, qemu: Path
) -> Iterator[tuple[Here, Home]]:
    """Two homes, the first with a disk that has nothing but a boot sector."""
    folder = tmp_path_factory.mktemp("two")
    near = folder / "near"
    near.write_text(NEAR)
    near.chmod(0o755)
    a, b = make_home(folder / "a"), make_home(folder / "b")
    (a.path / "sector.raw").write_bytes(BOOT_SECTOR.ljust(1 << 20, b"\0"))
    try:
        yield Here(a.path, ssh=str(near)), b
    finally:
        empty(a, b)
    sweep(a.path.parent)


def empty(*homes: Home) -> None:
    for home in homes:
        for name in rows(home):
            home.run("rm", "--force", name)


@pytest.fixture
def here(homes: tuple[Here, Home]) -> Iterator[Here]:
    """The first home, in which a guest runs; in it and the other nothing may change.

    After a test that changed something both are made anew.
    """
    here, there = homes
    states = {name: row["state"] for name, row in rows(here).items()}
    if states != {"web": "running"} or rows(there):
        empty(here, there)
        here.run(
            "create", "web", "--image", here.path / "sector.raw", "--disk-mode", "full",
            "--memory", "64M", "--nic", "none",
        )  # fmt: skip
        here.run("start", "web")
        here.run("wait", "web", "--for", "serial:ok")
    before = everything(here, there)
    yield here
    tidy(here, there)
    assert everything(here, there) == before


@pytest.fixture
def there(homes: tuple[Here, Home]) -> Home:
    return homes[1]


def everything(*homes: Home) -> list[object]:
    found: list[object] = []
    for home in homes:
        found += [(name, row["state"], row["pid"]) for name, row in rows(home).items()]
        vms = home.path / "state/vms"
        # The log of QMP tells of questions, too.
        logs = {"qmp.jsonl", "events.out", "changing.lock", "snapshots.json"}
        found += sorted(p for p in vms.rglob("*") if p.name not in logs)
    return found


def refused(home: Home, *arguments: object, status: int = 1) -> str:
    words = home.words("migrate", *arguments, check=status)
    assert words.startswith("error: ")
    assert words.count("error:") == 1
    return words


@pytest.mark.parametrize(
    ("to", "reason"),
    [
        ("nonsense", "not a destination: nonsense"),
        ("local:", "a folder is missing"),
        ("ssh://", "not a destination"),
        ("ssh://-oProxyCommand=x/", "not a destination"),
        ("ssh://host:99999", "not a destination"),
        ("ssh://user:secret@host", "not a destination"),
    ],
)
def test_what_is_no_destination_is_wrong_usage(
    here: Here, to: str, reason: str
) -> None:
    words = refused(here, "web", to, status=2)
    assert reason in words
    assert "hint: local:DIR" in words


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--bandwidth", "fast"), ("--downtime", "soon"), ("--copy-storage", "some"),
        ("--compress", "rar"), ("--name", "../up"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(
    here: Here, there: Home, option: str, value: str
) -> None:
    asked = ["migrate", "web", destination(there), option, value]
    assert value in here.words(*asked, check=1 if option == "--name" else 2)


def test_a_host_that_is_not_there(here: Here) -> None:
    far = Home(here.path)  # by the real ssh
    words = refused(far, "web", "ssh://nowhere.invalid")
    assert "cannot reach ssh://nowhere.invalid" in words
    assert "nowhere.invalid" in words.splitlines()[0]


@pytest.mark.parametrize(
    ("receiver", "reason"),
    [
        ("/no/such/qemuctl", "there is no qemuctl in ssh://far"),
        ("echo '{\"hello\": 0}'; :", "another version"),
        ("echo 'Welcome to far!'; :", "Welcome to far!"),
        ("echo 'No such command migrate-receive' >&2; exit 2; :", "too old"),
        ("sleep 0; :", "ended with status 0"),
        ("kill -9 $$; :", "-9"),
    ],
)
def test_a_qemuctl_there_that_is_none_or_another(
    here: Here, receiver: str, reason: str
) -> None:
    # What a remote shell makes of it: `exec RECEIVER migrate-receive`.
    words = refused(
        here, "web", "ssh://far", "--receiver", f"sh -c {shlex.quote(receiver)}"
    )
    assert reason in words, words


def test_the_same_home_by_whatever_way(here: Here, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(here.path)
    for to in (here.path, link):
        assert "it is there already" in refused(here, "web", f"local:{to}")
    root = Path(qemuctl.__file__).parents[1]
    env = ["env", f"QEMUCTL_HOME={link}", f"PYTHONPATH={root}"]
    receiver = shlex.join([*env, sys.executable, "-m", "qemuctl"])
    words = refused(here, "web", "ssh://far", "--receiver", receiver, "--name", "other")
    assert "it is there already" in words


def test_a_name_that_is_taken_there(here: Here, homes: tuple[Here, Home]) -> None:
    there = homes[1]
    there.run("create", "web", "--memory", "32M", "--cdrom", "")
    words = refused(here, "web", destination(there))
    assert "exists already: web" in words
    there.run("create", "other", "--memory", "32M", "--cdrom", "")
    words = refused(here, "web", destination(there), "--name", "other")
    assert "exists already: other" in words
    there.run("rm", "web", "other")


def test_a_vm_that_is_off_or_is_not_there_at_all(here: Here, there: Home) -> None:
    assert "no such VM: nobody" in refused(here, "nobody", destination(there))
    here.run("create", "off", "--memory", "32M", "--cdrom", "")
    words = refused(here, "off", destination(there))
    assert "--offline" in words
    here.run("rm", "off")


def test_a_vm_that_is_on_is_not_moved_as_files(here: Here, there: Home) -> None:
    words = refused(here, "web", destination(there), "--offline")
    assert "web" in words
    assert state(here, "web") == "running"


@pytest.mark.parametrize("what", ["folder", "socket"])
def test_what_belongs_to_this_host_stays_with_the_reason(
    here: Here, there: Home, tmp_path: Path, what: str
) -> None:
    folder = f"local,path={tmp_path},mount_tag=t,security_model=none"
    options = {
        "folder": ["--qemu-arg=-virtfs", f"--qemu-arg={folder}"],
        "socket": ["--nic", "socket,listen=127.0.0.1:0"],
    }
    here.run("create", "bound", "--memory", "32M", *options[what])
    here.run("start", "bound")
    try:
        assert what in refused(here, "bound", destination(there))
        assert rows(there) == {}
    finally:
        for home in (here, there):
            home.run("kill", "bound", check=None)
            home.run("rm", "bound", check=None)


def test_a_disk_with_snapshots_and_one_in_its_own_folder(
    here: Here, there: Home
) -> None:
    here.run("snapshot", "create", "web", "first")
    words = refused(here, "web", destination(there))
    here.run("snapshot", "rm", "web", "first")
    assert "snapshots" in words
    words = refused(here, "web", destination(there), "--copy-storage", "none")
    assert "own folder" in words


def test_there_is_one_migration_at_a_time(here: Here, there: Home) -> None:
    first = Migration(here, "web", destination(there), "--bandwidth", "10k")
    try:
        first.until("ram")
        words = refused(here, "web", destination(there), "--name", "second")
        assert "another command is migrating it" in words
        assert "migrate-status web" in words
        for command in (
            ["snapshot", "create", "web", "s"],
            ["disk", "add", "web", "--size", "1M"],
            ["stop", "web"],
        ):
            said = here.words(*command, check=1)
            assert "migrat" in said, (command, said)
            assert state(here, "web") == "running"
    finally:
        first.interrupt()
        status, _ = first.end()
    assert status != 0


def test_a_folder_that_cannot_be_a_home(here: Here, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    words = refused(here, "web", f"local:{tmp_path}/file")
    assert str(tmp_path / "file") in words


def test_json_says_nothing_on_standard_output_but_lines(
    here: Here, there: Home
) -> None:
    done = here.run("migrate", "web", f"local:{here.path}", "--json", check=1)
    for line in done.stdout.splitlines():
        assert json.loads(line)["phase"] == "check"
