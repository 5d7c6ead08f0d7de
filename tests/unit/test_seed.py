"""The seed as cloud-init will find it, read back from the ISO."""

from __future__ import annotations

import os
import re
import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any

import pycdlib
import pytest
import yaml

from qemuctl.errors import SpecError
from qemuctl.image.seed import SIZE_MAX, hostname, seed_files, write_seed
from qemuctl.spec.cloud import CloudInit

OWN = (
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEJRumXZ6nCMC98QofO8lMuzf92oT9j+"
    "9HF2OZUclAIW qemuctl"
)
OTHER = OWN.replace("9HF2OZUclAIW qemuctl", "9HF2OZUclAIX other")


def files(cloud: CloudInit | None = None, **options: Any) -> dict[str, bytes]:
    given = {"name": "web", "instance_id": "i-1", "default_user": None, "keys": [OWN]}
    return seed_files(cloud_init=cloud, **(given | options))


def parsed(content: bytes) -> dict[str, Any]:
    return dict(yaml.safe_load(content))


def from_iso(path: Path, way: str) -> dict[str, bytes]:
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    found = {}
    for child in iso.list_children(**{way: "/"}):
        if child.is_dir():
            continue
        if way == "rr_path":
            name = child.rock_ridge.name().decode()
        else:
            name = child.file_identifier().decode("utf-16-be")
        content = BytesIO()
        iso.get_file_from_iso_fp(content, **{way: f"/{name}"})
        found[name] = content.getvalue()
    label = iso.pvd.volume_identifier.decode().strip()
    iso.close()
    assert label == "cidata"
    return found


@pytest.mark.parametrize("way", ["rr_path", "joliet_path"])
def test_the_iso_has_the_label_and_all_files_under_their_names(
    tmp_path: Path, way: str
) -> None:
    path = tmp_path / "seed.iso"
    cloud = CloudInit(network={"version": 2}, user="bob", packages=("vim",))
    options: Any = {
        "name": "web", "instance_id": "i-1", "default_user": "debian", "keys": [OWN],
    }  # fmt: skip
    write_seed(path, cloud_init=cloud, **options)
    assert path.stat().st_mode & 0o777 == 0o600
    assert from_iso(path, way) == seed_files(cloud_init=cloud, **options)
    assert sorted(from_iso(path, way)) == [
        "meta-data", "network-config", "user-data", "vendor-data",
    ]  # fmt: skip


def test_a_seed_is_replaced_as_a_whole_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    options: Any = {"name": "web", "default_user": None, "keys": []}
    write_seed(path, instance_id="i-1", cloud_init=None, **options)
    path.chmod(0o644)
    before = path.read_bytes()
    bad = CloudInit(user_data=str(tmp_path / "nothing"))
    with pytest.raises(SpecError):
        write_seed(path, instance_id="i-2", cloud_init=bad, **options)
    assert path.read_bytes() == before
    write_seed(path, instance_id="i-2", cloud_init=None, **options)
    assert parsed(from_iso(path, "rr_path")["meta-data"])["instance-id"] == "i-2"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["seed.iso"]


def test_without_a_spec_the_default_user_gets_the_key() -> None:
    made = files()
    assert "network-config" not in made
    assert parsed(made["meta-data"]) == {
        "instance-id": "i-1", "local-hostname": "web", "public-keys": [OWN],
    }  # fmt: skip
    assert made["user-data"].startswith(b"#cloud-config\n")
    assert parsed(made["user-data"]) == {
        "hostname": "web", "preserve_hostname": False, "ssh_pwauth": False,
        "ssh_authorized_keys": [OWN],
    }  # fmt: skip


def test_every_field_says_what_it_says() -> None:
    cloud = CloudInit(
        hostname="db.example.org", user="bob", ssh_keys=(OTHER, OWN),
        packages=("vim", "nginx=1.2"), run=("echo a: b", ("touch", "a b")),
    )  # fmt: skip
    config = parsed(files(cloud)["user-data"])
    assert config["hostname"] == "db.example.org"
    assert config["user"] == {
        "name": "bob", "sudo": "ALL=(ALL) NOPASSWD:ALL", "lock_passwd": True,
    }  # fmt: skip
    assert "users" not in config
    assert config["ssh_authorized_keys"] == [OWN, OTHER]
    assert (config["packages"], config["package_update"]) == (
        ["vim", "nginx=1.2"], True,
    )  # fmt: skip
    assert config["runcmd"] == ["echo a: b", ["touch", "a b"]]
    assert b"&id" not in files(cloud)["user-data"]


def test_the_images_own_user_is_left_to_the_image() -> None:
    made = files(CloudInit(user="debian"), default_user="debian")
    assert not {"user", "users"} & parsed(made["user-data"]).keys()


def test_own_files_go_in_byte_by_byte_and_our_key_beside_them(tmp_path: Path) -> None:
    written = {
        "user_data": b"#cloud-config\nusers: []  # mine\n",
        "meta_data": b"instance-id: mine\n",
        "network_config": b"version: 1\n",
    }
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
    made = files(CloudInit(**{name: str(tmp_path / name) for name in written}))
    assert made["user-data"] == written["user_data"]
    assert made["meta-data"] == written["meta_data"]
    assert made["network-config"] == written["network_config"]
    assert parsed(made["vendor-data"])["ssh_authorized_keys"] == [OWN]


def test_user_data_may_be_a_script(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"#!/bin/sh\n\xff: [\n")
    made = files(CloudInit(user_data=str(tmp_path / "s")))
    assert made["user-data"] == b"#!/bin/sh\n\xff: [\n"
    assert parsed(made["meta-data"])["public-keys"] == [OWN]


@pytest.mark.parametrize(
    ("field", "content", "words", "line"),
    [
        ("user_data", b"#cloud-config\na: 1\nb: [\n", "not valid YAML", 4),
        ("user_data", b"#cloud-config\n- a\n", "not a mapping", 1),
        ("user_data", b"#cloud-config\na: \x00\n", "not valid YAML", 2),
        ("user_data", b"#cloud-config\n\na: \xff\n", "not valid YAML", 3),
        ("user_data", b"#cloud-config\n" + b"[" * 5000, "nested too deeply", 2),
        ("meta_data", b"", "not a mapping", 1),
        ("network_config", b"version: 2\n\tx: 1\n", "not valid YAML", 2),
    ],
)
def test_a_bad_file_is_named_with_its_line(
    tmp_path: Path, field: str, content: bytes, words: str, line: int
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=words) as error:
        files(CloudInit(**{field: str(path)}))
    assert (error.value.key, error.value.path) == (f"cloud_init.{field}", str(path))
    assert error.value.line == line


GOOD = b"""#cloud-config and words
packages: [a, [b, 1.2], {snap: [c]}]
bootcmd: [echo, [sh, -c, 1, true], null]
runcmd:
- 'echo a: b'
- [touch, 1]
users: [default, {name: bob, ssh_authorized_keys: [k]}, {lock_passwd: true}, [a, b]]
user: {name: eve}
write_files:
- {path: /a}
- {path: /b, content: x, permissions: 0644, encoding: b64}
- {path: /c, content: !!binary aGk=}
ssh_authorized_keys: [k]
unknown: [{}]
"""


@pytest.mark.parametrize(
    "content",
    [
        b"#cloud-config-archive\n- type: text/cloud-config\n",
        b'#cloud-config-jsonp\n[{"op": "add"}]\n',
        b"#include\nhttps://example.org/x\n", b"#include-once\nhttp://x\n",
        b"#cloud-boothook\n#!/bin/sh\n", b"#part-handler\n", b"#upstart-job\n",
        b"## template: jinja\n#cloud-config\nhostname: {{ v1.x }}\n{% if a %}\n",
        b"Content-Type: multipart/mixed; boundary=x\nMIME-Version: 1.0\n\n--x\n",
        b"From x\nMIME-Version: 1.0\n\n",
        b"\x1f\x8b\x08\x00", b"\n#Cloud-Config\na: 1\n", b"#!/bin/sh", GOOD,
    ],
)  # fmt: skip
def test_user_data_may_be_all_that_cloud_init_knows(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "u").write_bytes(content)
    made = files(CloudInit(user_data=str(tmp_path / "u")))
    assert made["user-data"] == content


@pytest.mark.parametrize(
    "content",
    [b"packages: [vim]\n", b"", b"\xef\xbb\xbf#cloud-config\na: 1\n", b"\x7fELF\n",
     b"# cloud-config\na: 1\n", b"echo #!\n", b"{}"],
)  # fmt: skip
def test_user_data_that_cloud_init_would_pass_over_is_refused(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "u").write_bytes(content)
    with pytest.raises(SpecError, match=r"does not know .* first line") as error:
        files(CloudInit(user_data=str(tmp_path / "u")))
    assert (error.value.line, error.value.key) == (1, "cloud_init.user_data")
    assert error.value.hint is not None
    assert "#cloud-config" in error.value.hint


@pytest.mark.parametrize(
    ("config", "words", "line"),
    [
        ("packages: vim\n", "packages: not a list", 2),
        ("packages:\n- vim\n- 7\n", "packages[1]: not a package", 4),
        ("packages: [[a, b, c]]\n", "packages[0]: not a package", 2),
        ("packages:\n- apt: vim\n", "packages[0].apt: not a list of packages", 3),
        ("a: 1\nruncmd:\n- echo a: b\n", "runcmd[0]: not a command", 4),
        ("runcmd:\n- [sh, {a: b}]\n", "runcmd[0][1]: not a word of a command", 3),
        ("bootcmd: [1]\n", "bootcmd[0]: not a command", 2),
        ("runcmd: {a: b}\n", "runcmd: not a list", 2),
        ("users: 7\n", "users: not a list", 2),
        ("users:\n- default\n- 7\n", "users[1]: not a user", 4),
        ("users:\n- name: 7\n", "users[0].name: not a name", 3),
        ("users:\n- name: a\n  ssh_authorized_keys: 7\n", "not a list of public", 4),
        ("users: [{ssh_authorized_keys: [{}]}]\n", "keys[0]: not a public key", 2),
        ("user: [a]\n", "user: neither a name nor a mapping", 2),
        ("write_files: /x\n", "write_files: not a list", 2),
        ("write_files:\n- /x\n", "write_files[0]: not a file", 3),
        ("write_files:\n- content: x\n", "write_files[0]: without a path", 3),
        ("write_files:\n- path: 7\n", "write_files[0].path: without a path", 3),
        ("write_files: [{path: /x, content: 7}]\n", "content: not text", 2),
        ("write_files: [{path: /x, permissions: []}]\n", "not a mode", 2),
        ("ssh_authorized_keys:\n- a: b\n", "ssh_authorized_keys[0]: not a", 3),
        ("x: &x [7]\nruncmd: *x\n", "runcmd[0]: not a command", 2),
        ("x: " + "[" * 101 + "]" * 101, "nested too deeply: 100 levels", 2),
        ("x: " + "[" * 100_000, "nested too deeply: 100 levels", 2),
    ],
)
def test_user_data_of_the_wrong_type_is_named_with_its_line(
    tmp_path: Path, config: str, words: str, line: int
) -> None:
    (tmp_path / "u").write_text(f"#cloud-config\n{config}")
    with pytest.raises(SpecError, match=re.escape(words)) as error:
        files(CloudInit(user_data=str(tmp_path / "u")))
    assert (error.value.line, error.value.path) == (line, str(tmp_path / "u"))


@pytest.mark.parametrize("own", ["instance-id: mine\nlocal-hostname: a\n", "a: 1\n"])
def test_a_clone_gets_an_instance_id_also_into_the_users_own_meta_data(
    tmp_path: Path, own: str
) -> None:
    (tmp_path / "m").write_text(own)
    cloud = CloudInit(meta_data=str(tmp_path / "m"))
    assert files(cloud)["meta-data"] == own.encode()
    made = parsed(files(cloud, fresh_instance=True)["meta-data"])
    assert made == yaml.safe_load(own) | {"instance-id": "i-1"}
    options: Any = {"name": "web", "default_user": None, "keys": []}
    write_seed(
        tmp_path / "seed.iso", instance_id="i-2", cloud_init=cloud,
        fresh_instance=True, **options,
    )  # fmt: skip
    meta = parsed(from_iso(tmp_path / "seed.iso", "rr_path")["meta-data"])
    assert meta["instance-id"] == "i-2"
    # Without a file of the user's own nothing is different.
    assert files(fresh_instance=True) == files()


def test_a_file_that_cannot_be_read_or_is_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"#" * (SIZE_MAX + 1))
    for name, words in (("big", "too large"), ("no", "no such file"), ("", "cannot")):
        with pytest.raises(SpecError, match=words) as error:
            files(CloudInit(user_data=str(tmp_path / name)))
        assert error.value.key == "cloud_init.user_data"


def test_keys_come_from_files_and_a_private_one_never_does(tmp_path: Path) -> None:
    public, private = tmp_path / "id.pub", tmp_path / "id"
    public.write_text(f"# mine\n{OTHER}\n\n")
    private.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n")
    made = parsed(files(CloudInit(ssh_keys=(str(public),)))["meta-data"])
    assert made["public-keys"] == [OWN, OTHER]
    with pytest.raises(SpecError, match="must stay secret") as error:
        files(CloudInit(ssh_keys=(OTHER, str(private))))
    assert error.value.key == "cloud_init.ssh_keys[1]"
    assert error.value.hint == f"give the public one: {public}"
    public.write_text("nonsense\n")
    with pytest.raises(SpecError, match="not a public key"):
        files(CloudInit(ssh_keys=(str(public),)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("web", "web"), ("a_b", "a-b"), ("a.", "a"), ("x" * 64, "x" * 63), ("1_", "1")],
)
def test_a_vms_name_becomes_a_host_name(name: str, expected: str) -> None:
    assert hostname(name, CloudInit()) == expected


@pytest.mark.parametrize("previous", [False, True])
def test_a_clone_gets_an_identity_of_its_own_and_only_a_clone(
    tmp_path: Path, previous: bool
) -> None:
    command = parsed(files()["vendor-data"])["bootcmd"][0]
    assert command[:-1] == ["cloud-init-per", "instance", "qemuctl-clone", "sh", "-c"]
    for folder in ("etc", "run", "var/lib/dbus", "var/lib/dhcp", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    instances = tmp_path / "var/lib/cloud/instances"
    for name in ["i-1", *(["i-0"] if previous else [])]:
        (instances / name).mkdir(parents=True)
    (instances.parent / "instance").symlink_to(instances / "i-1")
    lease = tmp_path / "var/lib/dhcp/dhclient.leases"
    for file in (tmp_path / "etc/machine-id", tmp_path / "var/lib/dbus/machine-id"):
        file.write_text("old\n")
    lease.touch()
    tool = tmp_path / "bin/systemd-machine-id-setup"
    tool.write_text(f"#!/bin/sh\necho new >{tmp_path}/etc/machine-id\n")
    tool.chmod(0o755)
    script = command[-1]
    for top in ("var", "etc", "run"):
        script = re.sub(rf"(?<![\w*]){'/' + top}/", f"{tmp_path}/{top}/", script)
    path = f"{tool.parent}:{os.environ['PATH']}"
    subprocess.run(["sh", "-c", script], check=True, env={"PATH": path})
    expected = "new\n" if previous else "old\n"
    assert (tmp_path / "etc/machine-id").read_text() == expected
    assert (tmp_path / "var/lib/dbus/machine-id").read_text() == expected
    assert lease.exists() != previous
