"""A template's description: what was written is read, and nothing else is believed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuctl.errors import SpecError, TemplateError
from qemuctl.image.digests import Stamp
from qemuctl.paths import cached_templates_dir, private_dir, templates_dir, vms_dir
from qemuctl.process.identity import boot_id
from qemuctl.registry import template as module
from qemuctl.registry.file_users import needing
from qemuctl.registry.template import FILE, Guest, Template, kept_files, read_template
from qemuctl.registry.template_lock import alone_now, lock_of
from qemuctl.templates import catalog
from tests.hostile import fuzzed
from tests.unit.disk_images import overlay
from tests.unit.stores import add_image

pytestmark = pytest.mark.usefixtures("bare_home")


def make(name: str = "db", where: Callable[[], Path] = templates_dir) -> Template:
    """A template that nobody booted, as far as its files tell."""
    folder = private_dir(where() / name)
    content = private_dir(folder / "0123abcd")
    (content / "ram").write_bytes(b"memory" * 1000)
    (content / "state").write_bytes(b"state")
    private_dir(content / "disks")
    (content / "disks/disk0.qcow2").write_bytes(b"disk")
    template = Template(
        folder=folder, making="0123abcd", key="k", text="name: db\n", source="a spec",
        furnished=False, wait="boot", run=None, made_at=1.0, qemu="/q",
        version="7.2.0", machine="pc-q35-7.2", accel="tcg",
        guest=Guest(macs=("52:54:00:00:00:01",), readdress=True, reseed=None,
                    fine_clock=False),
        boot_seconds=1.0, freeze_seconds=0.1, boot=boot_id(),
        files=kept_files(content),
    )  # fmt: skip
    template.write()
    return template


@pytest.fixture
def made() -> Template:
    return make()


def test_what_was_written_is_read(made: Template) -> None:
    assert read_template(made.folder) == made
    assert made.problem() is made.damage() is None
    assert made.confirmed() is made
    assert list(made.files) == ["disks/disk0.qcow2", "ram", "state"]
    assert catalog.find("db") == made


def test_a_folder_without_a_description_is_no_template(tmp_path: Path) -> None:
    assert read_template(tmp_path) is None
    assert read_template(tmp_path / "nowhere") is None
    (tmp_path / "file").touch()
    assert read_template(tmp_path / "file") is None


def changed(made: Template, **values: Any) -> str:
    value = json.loads((made.folder / FILE).read_text())
    for key, item in values.items():
        value[key] = item
    return json.dumps(value)


HOSTILE: dict[str, Callable[[Template], str]] = {
    "empty": lambda _: "",
    "no JSON": lambda _: "nonsense",
    "a list": lambda _: "[]",
    "nothing": lambda _: "null",
    "deep": lambda _: "[" * 100_000,
    "another format": lambda made: changed(made, format=2),
    "no format": lambda made: changed(made, format=None),
    "a path": lambda made: changed(made, making="../other"),
    "the folder itself": lambda made: changed(made, making="."),
    "an absolute path": lambda made: changed(made, making="/etc"),
    "no name": lambda made: changed(made, making=""),
    "a file outside": lambda made: changed(
        made, files={"ram": _FILE, "state": _FILE, "../../x": _FILE}
    ),
    "an absolute file": lambda made: changed(
        made, files={"ram": _FILE, "state": _FILE, "/etc/passwd": _FILE}
    ),
    "no files": lambda made: changed(made, files={}),
    "files of another kind": lambda made: changed(made, files={"ram": 1, "state": 2}),
    "a number": lambda made: changed(made, made_at="long ago"),
    "no guest": lambda made: changed(made, guest=None),
    "another guest": lambda made: changed(made, guest={"macs": 1}),
    "a spec that is none": lambda made: changed(made, text="memory: [much]"),
    "a text that is none": lambda made: changed(made, text=5),
}
_FILE = {"stamp": {"size": 1, "inode": 1, "ctime_ns": 1}, "digest": "x"}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_makes_no_sense_is_damaged_and_can_be_removed(
    made: Template, tmp_path: Path, what: str
) -> None:
    other = make("other")
    (made.folder / FILE).write_text(HOSTILE[what](made))
    with pytest.raises(TemplateError, match="its description is damaged") as caught:
        catalog.find("db")
    assert "template rm db" in str(caught.value.hint)
    assert catalog.named() == [other]
    assert other.damage() is None


async def test_one_that_was_brought_here_names_no_files_and_runs_nothing(
    made: Template, tmp_path: Path
) -> None:
    qemu, ran = tmp_path / "qemu", tmp_path / "ran"
    qemu.write_text(f"#!/bin/sh\ntouch {ran}\n")
    qemu.chmod(0o755)
    hostile = f"name: db\nqemu: {qemu}\n"
    (made.folder / FILE).write_text(changed(made, text=hostile))
    shutil.copytree(made.folder, templates_dir() / "copy", symlinks=True)
    copy = catalog.find("copy")
    assert (made.made_here, copy.made_here) == (True, False)
    with pytest.raises(SpecError, match="qemu: leads outside of the VM") as caught:
        await catalog.current(copy)
    assert "template rm copy" in str(caught.value.hint)
    assert not ran.exists()


async def test_removing_a_damaged_one_takes_nothing_else(made: Template) -> None:
    other = make("other")
    (made.folder / FILE).write_text(changed(made, making="../other/0123abcd"))
    await catalog.remove("db")
    assert catalog.named() == [other]
    assert other.damage() is None
    assert [entry.name for entry in templates_dir().iterdir()] == ["other"]


@fuzzed(60)
@given(data=st.data())
def test_a_description_that_was_cut_is_never_half_believed(
    made: Template, data: st.DataObject
) -> None:
    text = json.dumps(json.loads((made.folder / FILE).read_text()))
    end = data.draw(st.integers(0, len(text) - 1))
    folder = private_dir(made.folder.parent / "cut")
    (folder / FILE).write_text(text[:end])
    with pytest.raises(TemplateError):
        read_template(folder)


@pytest.mark.parametrize("name", ["", ".", "..", "../db", "/", ".hidden", "a" * 400])
async def test_what_is_no_name_finds_and_removes_nothing(
    made: Template, name: str
) -> None:
    with pytest.raises(TemplateError, match="no such template"):
        catalog.find(name)
    with pytest.raises(TemplateError, match="no such template"):
        await catalog.remove(name)
    assert made.damage() is None


def test_an_unknown_name_is_told_with_the_nearest(made: Template) -> None:
    with pytest.raises(TemplateError) as caught:
        catalog.find("dbb")
    assert caught.value.hint == "did you mean db?"


async def test_one_that_was_never_finished_is_told_so_and_can_be_removed(
    made: Template,
) -> None:
    (made.folder / FILE).unlink()
    with pytest.raises(TemplateError, match="it was never finished: db"):
        catalog.find("db")
    await catalog.remove("db")
    assert list(templates_dir().iterdir()) == []


@pytest.mark.parametrize("name", ["ram", "state", "disks/disk0.qcow2"])
def test_each_file_that_is_not_as_made_is_seen_at_a_glance(
    made: Template, name: str
) -> None:
    path = made.content / name
    before = path.read_bytes()
    path.write_bytes(b"X" + before[1:])
    assert "was changed since it was made" in str(made.problem())
    with pytest.raises(TemplateError, match="its file is damaged"):
        made.confirmed()
    path.write_bytes(before[:-1])
    assert "has another size" in str(made.problem())
    with pytest.raises(TemplateError, match="has another size"):
        made.confirmed()
    path.unlink()
    assert "its file is missing" in str(made.problem())
    with pytest.raises(TemplateError, match="cannot be read"):
        made.confirmed()


def test_a_copy_with_the_same_content_is_as_good(made: Template) -> None:
    shutil.copyfile(made.ram, made.ram.with_name("copy"))
    made.ram.with_name("copy").replace(made.ram)
    assert made.problem() is not None
    fresh = made.confirmed()
    assert fresh.problem() is None
    assert read_template(made.folder) == fresh


def test_after_the_host_has_booted_the_files_are_read_once(
    made: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace(made, boot="another").write()
    old = read_template(made.folder)
    assert old is not None
    read = []
    real = module.compute
    monkeypatch.setattr(
        module, "compute", lambda path, tick: read.append(path) or real(path, tick)
    )
    assert old.confirmed() == made
    assert len(read) == 3
    again = read_template(made.folder)
    assert again is not None
    assert again.confirmed() is again
    assert len(read) == 3


def test_what_cannot_be_noted_is_used_all_the_same(
    made: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Template) -> None:
        raise OSError

    monkeypatch.setattr(Template, "write", full)
    assert replace(made, boot="another").confirmed() == made


def test_tidying_takes_the_unused_and_the_unfinished_alone() -> None:
    names = ("old", "used", "unfinished", "damaged", "in-use")
    folders = {name: make(name, cached_templates_dir).folder for name in names}
    for name in ("old", "in-use"):
        (folders[name] / "used").touch()
        os.utime(folders[name] / "used", (1, 1))
    (folders["used"] / "used").touch()
    (folders["unfinished"] / FILE).unlink()
    (folders["damaged"] / FILE).write_text("{")
    with alone_now(folders["in-use"]) as taken:
        assert taken
        catalog._tidy(cached_templates_dir(), 1000.0)
    left = {name for name, folder in folders.items() if folder.exists()}
    assert left == {"used", "damaged", "in-use"}
    assert not lock_of(folders["old"]).exists()
    catalog._tidy(cached_templates_dir(), 1000.0)
    assert not folders["in-use"].exists()


def test_an_image_that_a_template_stands_on_is_needed() -> None:
    image = add_image("base")
    assert image.disk is not None
    assert needing(image.folder) == []
    on_disk = make("on-disk")
    overlay(on_disk.disks / "disk1.qcow2", image.disk, "qcow2")
    replace(make("by-name"), text="name: db\nimage: base\n").write()
    replace(make("other"), text="name: db\nimage: other\n").write()
    (make("damaged").folder / FILE).write_text("{")
    assert needing(image.folder) == ["the template by-name", "the template on-disk"]
    assert needing(on_disk.folder) == []
    assert needing(on_disk.content) == []


def test_what_was_made_by_the_way_keeps_no_image() -> None:
    image = add_image("base")
    template = make("key", cached_templates_dir)
    replace(template, text="name: db\nimage: base\n").write()
    assert needing(image.folder) == []


def test_a_description_of_another_making_is_not_written_over(made: Template) -> None:
    other = replace(made, making="ffffffff")
    private_dir(other.content)
    other.write()
    made.update()
    assert json.loads((made.folder / FILE).read_text())["making"] == "ffffffff"
    assert [path.name for path in made.folder.glob("*.new")] == []


def test_damage_that_verify_found_is_seen_by_whoever_uses_it_next(
    made: Template,
) -> None:
    status = made.ram.stat()
    data = bytearray(made.ram.read_bytes())
    data[0] ^= 1
    made.ram.write_bytes(bytes(data))
    os.utime(made.ram, ns=(status.st_atime_ns, status.st_mtime_ns))
    files = made.files | {"ram": replace(made.files["ram"], stamp=Stamp.of(made.ram))}
    rotten = replace(made, files=files)
    rotten.write()
    assert rotten.confirmed() is rotten  # a glance sees nothing
    rotten.distrust()
    found = read_template(made.folder)
    assert found is not None
    with pytest.raises(TemplateError, match="damaged: ram"):
        found.confirmed()


def test_a_template_needs_the_kernel_that_it_boots_with(made: Template) -> None:
    vm = private_dir(vms_dir() / "web")
    (vm / "kernel").touch()
    text = f"name: db\nboot:\n  kernel: {vm / 'kernel'}\n"
    replace(made, text=text).write()
    assert needing(vm) == ["the template db"]


def test_what_is_no_template_any_more_is_listed(made: Template) -> None:
    (private_dir(templates_dir() / "broken") / FILE).write_text("nonsense")
    assert [template.name for template in catalog.named()] == ["db"]
    assert catalog.damaged() == ["broken"]
