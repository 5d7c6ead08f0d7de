"""The VMs that exist, as folders."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qemuctl import paths as every_path
from qemuctl.connection.monitors import state_of
from qemuctl.errors import NameInUse, NotFound, SpecError, StateError, UsageError
from qemuctl.paths import VmPaths, kept_dir, private_dir, run_home, vms_dir
from qemuctl.process import Identity, take
from qemuctl.process.working import making
from qemuctl.registry import offline, removal, rename, vms
from qemuctl.registry.mac_addresses import with_macs
from qemuctl.registry.records.owner import own
from qemuctl.registry.records.process_record import Record
from qemuctl.registry.states import Action, State
from qemuctl.spec import Spec, load_spec, parse_spec
from qemuctl.vm.attach import attach

pytestmark = pytest.mark.usefixtures("bare_home")

HOSTILE = ["../x", "x/../../y", "/etc", ".", "..", "", ".new-web-1", "a/b", "x" * 300]
TEXT = "# mine\nname: web   # the one\nmemory: 64M\n"


@pytest.fixture
def web() -> VmPaths:
    return vms.create(Spec(name="web"), TEXT)


@pytest.fixture
def locked(web: VmPaths) -> Iterator[VmPaths]:
    """A VM whose lock somebody holds: it is on."""
    fd = take(web.lock)
    assert fd is not None
    yield web
    os.close(fd)


def folders() -> list[str]:
    return sorted(path.name for path in vms_dir().iterdir())


def record(run: Path) -> Record:
    me = Identity.of(os.getpid())
    assert me is not None
    return Record(
        qemu=me,
        shepherd=me,
        owner=None,
        attached=False,
        run=str(run),
        started_at=0.0,
        argv=[],
        accel="tcg",
        accel_reason="",
        version="7.2.0",
        machine="q35",
        cpus=1,
        memory=1,
    )


def test_there_are_none_at_first() -> None:
    assert vms.names() == []
    assert removal.leftovers() == []


def test_a_created_vm_is_found_and_keeps_its_text(web: VmPaths) -> None:
    assert vms.names() == ["web"]
    assert vms.find("web") == web
    assert web.spec.read_text() == TEXT
    assert vms.load("web").memory.size == 64 << 20


def test_its_folder_is_private(web: VmPaths) -> None:
    assert web.state.stat().st_mode & 0o777 == 0o700
    assert web.lock.stat().st_mode & 0o777 == 0o600


def test_a_vm_without_a_text_is_written_out() -> None:
    vms.create(Spec(name="db"))
    assert vms.load("db") == Spec(name="db")


def test_names_are_sorted_and_hide_what_is_not_whole(web: VmPaths) -> None:
    vms.create(Spec(name="db"))
    (vms_dir() / ".new-half-1").mkdir()
    (vms_dir() / "stray file").touch()
    assert vms.names() == ["db", "web"]


def test_a_name_in_use_changes_nothing(web: VmPaths) -> None:
    with pytest.raises(NameInUse) as caught:
        vms.create(Spec(name="web"), "name: web\n")
    assert caught.value.name == "web"
    assert "qemuctl rm web" in (caught.value.hint or "")
    assert web.spec.read_text() == TEXT
    assert folders() == ["web"]


def test_what_a_crash_left_does_not_bar_a_name() -> None:
    private_dir(vms_dir())
    half = vms_dir() / f".new-web-{os.getpid()}"
    half.mkdir()
    (half / "vm.yaml").write_text("half")
    vms.create(Spec(name="web"), TEXT)
    assert vms.find("web").spec.read_text() == TEXT


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_finds_nothing(web: VmPaths, name: str) -> None:
    # Were the name joined to a path, these would be there to be found.
    for folder in (vms_dir(), vms_dir().parent, vms_dir().parent / "x"):
        folder.mkdir(exist_ok=True)
        (folder / "vm.yaml").write_text(TEXT)
    for call in (vms.find, vms.load, removal.remove):
        with pytest.raises(NotFound):
            call(name)
    with pytest.raises(NotFound):
        vms.replace(name, "name: x\n")
    with pytest.raises(NotFound):
        rename.rename(name, "new")


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_can_be_renamed_to_a_hostile_name(web: VmPaths, name: str) -> None:
    with pytest.raises(SpecError):
        rename.rename("web", name)
    assert folders() == ["web"]


def test_a_near_name_is_suggested(web: VmPaths) -> None:
    with pytest.raises(NotFound) as caught:
        vms.find("wed")
    assert caught.value.hint == "did you mean web?"
    assert str(caught.value) == "no such VM: wed"


def test_a_folder_without_a_spec_is_no_vm() -> None:
    private_dir(vms_dir() / "web")
    with pytest.raises(NotFound):
        vms.find("web")


def test_replace_puts_a_whole_new_text(web: VmPaths) -> None:
    vms.replace("web", "name: web\n")
    assert web.spec.read_text() == "name: web\n"
    assert sorted(p.name for p in web.state.iterdir()) == ["lock", "vm.yaml"]


def test_replace_does_not_undo_what_another_has_changed(web: VmPaths) -> None:
    before = web.spec.read_text()
    vms.replace("web", "memory: 1G\n", expected=before)
    with pytest.raises(StateError, match="another command has changed it"):
        vms.replace("web", "memory: 2G\n", expected=before)
    assert web.spec.read_text() == "memory: 1G\n"


async def test_a_vm_that_is_worked_on_is_busy_and_not_on(web: VmPaths) -> None:
    before = sorted(web.state.iterdir())
    with offline.locked("web", Action.CLONE):
        assert await state_of(web) is State.BUSY
        # Nothing has to be written for that: the disk may be full.
        assert sorted(web.state.iterdir()) == before
        for action in (Action.CLONE, Action.RENAME):
            with (
                pytest.raises(StateError, match="another command is working on it"),
                offline.locked("web", action),
            ):
                pass
        with pytest.raises(StateError, match="another command is working on it"):
            await attach("web")
    assert await state_of(web) is State.OFF


def test_a_removal_cut_short_still_keeps_the_disks(
    web: VmPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.disks.mkdir()
    (web.disks / "disk0.raw").write_text("mine")

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(removal, "_clear", killed)
        with pytest.raises(KeyboardInterrupt):
            removal.remove("web", keep_disks=True)
    (doomed,) = (path for path in vms_dir().iterdir() if path.name.startswith("."))
    assert removal.leftovers() == [doomed]
    kept = removal.clear(doomed)
    assert kept == kept_dir() / "web"
    assert (kept / "disk0.raw").read_text() == "mine"
    assert not doomed.exists()


def test_rename_keeps_comments_and_files(web: VmPaths) -> None:
    private_dir(web.disks)
    web.disk(0, "qcow2").write_bytes(b"disk")
    rename.rename("web", "site")
    new = vms.find("site")
    named = TEXT.replace("name: web", "name: site")
    assert new.spec.read_text().startswith(named)
    assert new.disk(0, "qcow2").read_bytes() == b"disk"
    assert folders() == ["site"]


def addresses(name: str) -> list[str | None]:
    return [nic.mac for nic in with_macs(vms.load(name), name).nics]


def test_a_renamed_vm_keeps_its_addresses_and_whoever_has_its_old_name_gets_others(
    web: VmPaths,
) -> None:
    before = addresses("web")
    rename.rename("web", "www")
    rename.rename("www", "site")
    assert addresses("site") == before
    for text in (None, TEXT):
        vms.create(parse_spec(TEXT), text)
        assert not set(addresses("web")) & set(before)
        assert "#" in vms.find("web").spec.read_text() or text is None
        removal.remove("web")
    removal.remove("site")
    vms.create(parse_spec(TEXT))
    assert addresses("web") == before


def test_rename_to_a_name_in_use_changes_nothing(web: VmPaths) -> None:
    vms.create(Spec(name="db"))
    with pytest.raises(NameInUse):
        rename.rename("web", "db")
    assert folders() == ["db", "web"]
    assert web.spec.read_text() == TEXT


def test_rename_to_its_own_name_is_said_to_be_that(web: VmPaths) -> None:
    with pytest.raises(UsageError, match="its name already: web"):
        rename.rename("web", "web")
    with pytest.raises(NotFound):
        rename.rename("db", "db")


def test_rename_lets_go_of_the_lock(web: VmPaths) -> None:
    rename.rename("web", "site")
    rename.rename("site", "web")
    assert vms.find("web").spec.read_text().startswith(TEXT)


def test_rename_of_a_vm_that_ran_before_works(web: VmPaths, tmp_path: Path) -> None:
    record(tmp_path / "elsewhere").write(web.record)
    rename.rename("web", "site")
    assert vms.load("site").name == "site"


@pytest.mark.parametrize("action", ["remove", "rename"])
def test_a_vm_that_is_on_is_neither_removed_nor_renamed(
    locked: VmPaths, action: str
) -> None:
    arguments = ("web", "new") if action == "rename" else ("web",)
    with pytest.raises(StateError, match="the VM is on") as caught:
        getattr({"remove": removal, "rename": rename}[action], action)(*arguments)
    assert caught.value.hint == "stop it first with: qemuctl stop web"
    assert folders() == ["web"]


def test_remove_takes_everything(web: VmPaths) -> None:
    private_dir(web.disks)
    web.disk(0, "raw").touch()
    private_dir(web.run)
    removal.remove("web")
    assert folders() == []
    assert not web.run.exists()
    with pytest.raises(NotFound):
        removal.remove("web")


def test_a_vm_that_somebody_removes_at_the_same_time_is_not_found(
    web: VmPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = take

    def late(path: Path, **options: bool) -> int | None:
        monkeypatch.setattr(offline, "take", real)
        removal.remove("web")
        return real(path, **options)

    monkeypatch.setattr(offline, "take", late)
    with pytest.raises(NotFound):
        removal.remove("web")


def test_a_vm_that_is_on_is_found_where_it_was_started(
    locked: VmPaths, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "another login" / locked.run.parent.name / "web"
    record(elsewhere).write(locked.record)
    assert vms.find("web") == replace(locked, run=elsewhere)


def test_a_run_folder_of_another_home_is_not_believed_of_a_copied_record(
    locked: VmPaths, tmp_path: Path
) -> None:
    record(locked.run.with_name("other") / "web").write(locked.record)
    record(locked.run.parent.with_name("other") / "web").write(locked.record)
    assert vms.find("web") == locked


def test_a_vm_that_is_off_is_found_where_it_would_start(
    web: VmPaths, tmp_path: Path
) -> None:
    record(tmp_path / "another login").write(web.record)
    assert vms.find("web") == web


def test_a_whole_vm_is_no_leftover(locked: VmPaths) -> None:
    vms.create(Spec(name="off"))
    private_dir(locked.run)
    assert removal.leftovers() == []


def test_halves_are_leftovers_once_nobody_is_at_work_there() -> None:
    private_dir(vms_dir())
    # A pid tells nothing: it may be reused, or another namespace's.
    left = [vms_dir() / f".{kind}-a-b-{os.getpid()}" for kind in ("new", "removed")]
    for path in left:
        path.mkdir()
    with making(vms_dir(), ".new-c-") as made:
        assert sorted(removal.leftovers()) == left
        removal.clear(made)
        assert made.exists()
    assert sorted(removal.leftovers()) == left
    for path in left:
        removal.clear(path)
    assert folders() == []


def test_a_throwaway_vm_without_process_and_owner_is_a_leftover(web: VmPaths) -> None:
    first, second = own(web), own(web)  # handed over
    os.close(first)
    assert removal.leftovers() == []
    removal.clear(web.state)
    assert web.spec.exists()
    os.close(second)
    assert removal.leftovers() == [web.state]
    removal.clear(web.state)
    assert folders() == []


def test_a_throwaway_vm_that_is_on_is_no_leftover(locked: VmPaths) -> None:
    os.close(own(locked))
    removal.clear(locked.state)
    assert locked.spec.exists()
    assert removal.leftovers() == []


def test_a_run_folder_that_nobody_uses_is_a_leftover(web: VmPaths) -> None:
    private_dir(web.run)
    private_dir(run_home() / "unknown")
    assert sorted(removal.leftovers()) == [run_home() / "unknown", web.run]


def test_stray_files_are_nobodys_leftovers(web: VmPaths) -> None:
    (vms_dir() / "stray").touch()
    private_dir(run_home())
    (run_home() / "stray").touch()
    assert removal.leftovers() == []


def test_two_homes_know_nothing_of_each_other(
    web: VmPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private_dir(web.run)
    monkeypatch.setenv("QEMUCTL_HOME", str(tmp_path / "other"))
    assert vms.names() == []
    assert removal.leftovers() == []
    with pytest.raises(NotFound):
        vms.find("web")
    assert every_path.run_home() != web.run.parent


def test_a_full_disk_leaves_no_half_vm(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: Any, **_options: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        vms.create(Spec(name="web"), TEXT)
    assert folders() == []


def test_no_change_of_a_spec_is_lost_to_another(web: VmPaths) -> None:
    code = """
import sys
from qemuctl.spec import Disk
from qemuctl.registry.edit import reconfigure
for number in range(20):
    disk = Disk(id=f"{sys.argv[1]}{number}", size=1 << 20)
    reconfigure("web", lambda s: s.model_copy(update={"disks": (*s.disks, disk)}))
"""
    both = [
        subprocess.Popen([sys.executable, "-c", code, which]) for which in ("a", "b")
    ]
    assert [one.wait(60) for one in both] == [0, 0]
    assert len(load_spec(web.spec).disks) == 40
