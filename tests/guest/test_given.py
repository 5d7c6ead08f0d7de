"""What people give to `create` and its kin: odd files, pipes, text, large numbers."""

from __future__ import annotations

import gzip
import json
import os
import threading
from pathlib import Path

import pytest
import yaml

from qemuctl.host.resources import cpu_count
from qemuctl.image import seed
from qemuctl.spec import CloudInit
from tests import commands
from tests.guest.conftest import Home


def test_an_image_of_another_format_does_not_become_a_raw_disk(
    here: Home, tmp_path: Path
) -> None:
    vdi = tmp_path / "a.raw"
    vdi.write_bytes((b"\0" * 64 + b"\x7f\x10\xda\xbe").ljust(1 << 20, b"\0"))
    words = here.words("create", "v", "--disk", f"path={vdi}", check=1)
    assert f"not a raw disk, but a VDI image: {vdi}" in words
    assert f"qemuctl image import {vdi} --format vdi" in words
    here.run("create", "v", "--disk", "size=1M")
    assert "VDI" in here.words("disk", "add", "v", "--path", vdi, check=1)
    vdi.write_bytes(b"a guest's own".ljust(1 << 20, b"\0"))
    here.run("disk", "add", "v", "--path", vdi)


SPEC = "# mine\nname: v\nmemory: 64M # little\ndisks: [{path: here.raw}]\nnics: []\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "here.raw").write_bytes(bytes(1024))
    return tmp_path


def piped(path: Path, content: bytes) -> Path:
    """A pipe that holds this, once."""
    os.mkfifo(path)
    threading.Thread(target=path.write_bytes, args=(content,), daemon=True).start()
    return path


def spec_of(home: Home, name: str = "v") -> str:
    return (home.path / f"state/vms/{name}/vm.yaml").read_text()


@pytest.mark.parametrize("way", ["pipe", "stdin", "file on stdin", "descriptor"])
def test_a_spec_may_come_from_anywhere(here: Home, folder: Path, way: str) -> None:
    given = {"stdin": "-", "file on stdin": "-", "descriptor": "/dev/fd/0"}.get(way)
    if way == "pipe":
        here.run("create", "-f", piped(folder / "p", SPEC.encode()), cwd=folder)
    elif way == "file on stdin":
        (folder / "s.yaml").write_text(SPEC)
        with (folder / "s.yaml").open("rb") as file:
            here.run("create", "-f", given, stdin=file, cwd=folder)
    else:
        here.run("create", "-f", given, input=SPEC.encode(), cwd=folder)
    assert f"path: {folder}/here.raw" in spec_of(here)
    assert "64M" in here.text("argv", "v", "--json")
    assert spec_of(here).startswith("# mine\n")


def test_other_commands_read_a_spec_from_standard_input(
    here: Home, folder: Path
) -> None:
    here.run("spec", "check", "-", input=SPEC.encode(), cwd=folder)
    assert "64M" in here.text("argv", "-f", "-", input=SPEC.encode(), cwd=folder)
    words = here.words("spec", "check", "-", input=b"name: v\nx: 1\n", check=1)
    assert "standard input:2: unknown key: x" in words
    # A name that is not in the text, and one over that of the text.
    here.run("create", "w", "-f", "-", input=b"memory: 64M\ncdrom: ''\n")
    here.run("create", "u", "-f", "-", input=SPEC.encode(), cwd=folder)
    here.run("rename", "w", "w2")
    assert "name: u" in spec_of(here, "u")


USER_DATA = "#cloud-config\nruncmd:\n- [echo, 'a: b']\n\n# the end  \n"
KEY = (
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEJRumXZ6nCMC98QofO8lMuzf92oT9j+"
    "9HF2OZUclAIW me@here"
)


def seeded(home: Home, name: str = "v") -> dict[str, bytes]:
    """What the seed of a VM would hold, from its spec."""
    cloud = CloudInit.model_validate(yaml.safe_load(spec_of(home, name))["cloud_init"])
    return seed.seed_files(
        name=name, instance_id="i", cloud_init=cloud, default_user=None, keys=()
    )


def edited(home: Home, editor: str) -> None:
    env = home.env | {"EDITOR": editor, "VISUAL": editor}
    done = commands.server().run("edit", "v", env=env, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("way", ["pipe", "file", "gzip", "stdin"])
def test_user_data_is_copied_when_the_vm_is_made(
    here: Home, folder: Path, boot_sector: Path, way: str
) -> None:
    content = USER_DATA.encode()
    data, key = folder / "data", folder / "id.pub"
    key.write_text(KEY)
    if way == "pipe":
        piped(data, content)
    elif way in ("file", "gzip"):
        data.write_bytes(gzip.compress(content) if way == "gzip" else content)
    where = "-" if way == "stdin" else data
    here.run(
        "create", "v", "--disk", f"path={str(boot_sector).replace(',', ',,')}",
        "--user-data", where, "--nic", "none", "--memory", "64M",
        input=content if way == "stdin" else b"",
    )  # fmt: skip
    data.unlink(missing_ok=True)
    assert seeded(here)["user-data"] == content
    # The spec is newer than the seed now, which is made again.
    here.run("disk", "add", "v", "--size", "1M")
    here.run("start", "v")
    here.run("kill", "v")
    here.run("clone", "v", "w")
    assert seeded(here, "w")["user-data"] == content


def test_all_that_a_spec_names_for_cloud_init_is_copied(
    here: Home, folder: Path
) -> None:
    (folder / "meta").write_text("instance-id: mine")
    (folder / "net").write_text("version: 2")
    (folder / "id.pub").write_text(f"{KEY}\n")
    spec = "name: v\ndisks: [{size: 1M}]\ncloud_init: # mine\n"
    spec += "  meta_data: meta\n  network_config: net\n  ssh_keys: [id.pub]\n"
    (folder / "v.yaml").write_text(spec)
    here.run("create", "-f", folder / "v.yaml")
    for name in ("meta", "net", "id.pub"):
        (folder / name).unlink()
    files = seeded(here)
    assert files["meta-data"] == b"instance-id: mine\n"
    assert files["network-config"] == b"version: 2\n"
    assert KEY.encode() in files["user-data"]
    here.run("export", "v", folder / "v.tar")
    assert "leads outside" not in here.words("import", folder / "v.tar", "--name", "w")
    # What is edited in is copied, too.
    (folder / "user").write_text(USER_DATA)
    changed = (
        f"name: v\ndisks: [{{size: 1M}}]\ncloud_init: {{user_data: {folder}/user}}"
    )
    (folder / "new").write_text(changed)
    edited(here, f"cp {folder}/new")
    (folder / "user").unlink()
    assert seeded(here)["user-data"] == USER_DATA.encode()


def test_user_data_may_be_in_the_spec(here: Home, folder: Path) -> None:
    text = yaml.safe_dump({"cloud_init": {"user_data": USER_DATA}})
    here.run("create", "v", "-f", "-", input=f"disks: [{{size: 1M}}]\n{text}".encode())
    assert seeded(here)["user-data"] == USER_DATA.encode()
    cloud = "cloud_init:\n  user_data: |\n    #cloud-config\n    runcmd: x\n"
    wrong = f"name: w\ncdrom: ''\n{cloud}"
    words = here.words("create", "-f", "-", input=wrong.encode(), check=1)
    assert "cloud_init.user_data: runcmd: not a list" in words


def test_user_data_that_cannot_stay_is_refused_at_once(
    here: Home, folder: Path
) -> None:
    for content, words in (
        (b"#!/bin/sh\n\xff", "no text"), (b"hello\n", "first line"), (b"", "first line")
    ):  # fmt: skip
        data = piped(folder / "data", content)
        create = ("create", "v", "--disk", "size=1M", "--user-data", data)
        assert words in here.words(*create, check=1)
        data.unlink()
        assert here.text("ls", "-aq") == ""
    data.write_bytes(b"#!/bin/sh\n\xff")
    here.run(*create)
    assert f"user_data: {data}" in spec_of(here)


def test_a_saved_vm_with_another_name_goes_on_with_the_address_that_it_had(
    here: Home, boot_sector: Path
) -> None:
    disk = f"path={str(boot_sector).replace(',', ',,')}"
    here.run("create", "v", "--disk", disk, "--memory", "64M")
    here.run("start", "v")
    before = here.text("nic", "ls", "v", "--json")
    here.run("save", "v")
    here.run("rename", "v", "w")
    here.run("start", "w")
    assert here.text("nic", "ls", "w", "--json") == before
    here.run("kill", "w")
    here.run("export", "w", boot_sector.parent / "w.tar")
    here.run("import", boot_sector.parent / "w.tar", "--name", "x")
    (mac,) = (nic["mac"] for nic in json.loads(before))
    assert mac in spec_of(here, "w")
    assert mac not in here.text("argv", "x")


def test_what_the_host_does_not_have_is_told_with_its_numbers(here: Home) -> None:
    cpus = cpu_count()
    words = here.words("create", "v", "--cpus", cpus + 1, "--disk", "size=1M")
    assert f"note: {cpus + 1} processors on a host that has {cpus}" in words
    words = here.words("create", "w", "--memory", "10T", "--disk", "size=1M", check=1)
    assert "10T of memory, which is more than this host has" in words
    assert "-m " not in words
    assert here.text("ls", "-aq") == "v\n"
    # A spec that came by another way, or was edited.
    edited(here, "sed -i -e '$amemory: 10T'")
    words = here.words("start", "v", check=1)
    assert "10T of memory, which is more than this host has" in words
    assert "the command was" not in words


def test_what_a_removed_disk_leaves_is_said_and_listed(here: Home) -> None:
    here.run("create", "v", "--disk", "size=1M", "--disk", "size=2M")
    assert "not removed" not in here.words("gc")
    assert "disk0.qcow2 stays" in here.words("disk", "rm", "v", "disk0")
    left = here.path / "state/vms/v/disks/disk0.qcow2"
    again = f"qemuctl disk add v --path {left}"
    assert again in here.words("disk", "add", "v", "--size", "3M")
    assert f"{left} (of a removed disk)" in here.text("disk", "ls", "v")
    rows = json.loads(here.text("disk", "ls", "v", "--json"))
    assert [row["path"] for row in rows if row["target"] is None] == [str(left)]
    assert again in here.words("gc")
    assert left.exists()
    here.run("disk", "add", "v", "--path", left)
    assert "removed disk" not in here.text("disk", "ls", "v")
    # A linked clone's disk is made from a file beside it, which is not left.
    here.run("clone", "v", "w", "--linked")
    here.run("disk", "rm", "v", "disk3")
    words = here.words("gc")
    assert again in words
    assert "base" not in words


@pytest.mark.parametrize("bad", [("nothere",), ("tiny", "--qemu-arg", "-nonsense")])
def test_what_is_wrong_with_a_throwaway_vm_is_said_once(
    here: Home, bad: tuple[str, ...]
) -> None:
    words = here.words("run", *bad, "--", "true", check=1)
    assert words.count("error: ") == 1
    assert "no fork can be had" not in words
