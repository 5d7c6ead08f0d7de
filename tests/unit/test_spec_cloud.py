"""What `cloud_init` takes, and where its paths lead."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from qemuctl.errors import SpecError
from qemuctl.image.seed import seed_files
from qemuctl.spec import dump, parse_spec, validate
from qemuctl.spec.cloud import CloudInit, check_hostname, key_is_path

KEY = (
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEJRumXZ6nCMC98QofO8lMuzf92oT9j+"
    "9HF2OZUclAIW me@here"
)


@pytest.mark.parametrize("user", ["bob", "_x", "a-b_c9", "root", "x" * 32])
def test_a_posix_user_name_is_taken(user: str) -> None:
    assert CloudInit(user=user).user == user


@pytest.mark.parametrize("user", ["", "Bob", "9a", "a b", "a:b", "-a", "x" * 33, "ü"])
def test_another_user_name_is_refused(user: str) -> None:
    with pytest.raises(SpecError):
        CloudInit(user=user)


@pytest.mark.parametrize("name", ["a", "web-1", "web.example.org", "1", "x" * 63])
def test_a_host_name_of_rfc_1123_is_taken(name: str) -> None:
    assert CloudInit(hostname=name).hostname == name


@pytest.mark.parametrize(
    "name", ["-a", "a-", "a_b", "a..b", ".a", "a b", "x" * 64, "a." * 127 + "ab", "ü"]
)
def test_another_host_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a host name"):
        check_hostname(name)


@pytest.mark.parametrize(
    "key", [KEY, f'command="x y",no-pty {KEY}', KEY.rsplit(" ", 1)[0], f" {KEY}\n"]
)
def test_a_public_key_is_no_path(key: str) -> None:
    assert not key_is_path(key)
    assert CloudInit(ssh_keys=(key,)).ssh_keys == (key,)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n", "must stay secret"),
        ("-----BEGIN RSA PRIVATE KEY-----", "must stay secret"),
        (f"{KEY}\n{KEY}", "one line"),
        (KEY.replace("AAAAC3", "AAAAC4"), "not of its own type"),
        (KEY.replace("ssh-ed25519", "ssh-rsa"), "not of its own type"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5A me", "cut off"),
    ],
)
def test_what_is_no_public_key_is_refused(key: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        CloudInit(ssh_keys=(key,))


@pytest.mark.parametrize("package", ["-y", "a b", "a\nb"])
def test_what_is_no_package_is_refused(package: str) -> None:
    with pytest.raises(SpecError, match="not a package"):
        CloudInit(packages=(package,))


def test_a_private_key_is_not_repeated_by_the_error() -> None:
    text = "name: a\ncloud_init:\n  ssh_keys: ['-----BEGIN PRIVATE KEY-----s3cret']\n"
    with pytest.raises(SpecError, match="must stay secret") as error:
        parse_spec(text)
    assert "s3cret" not in str(error.value)
    assert error.value.key == "cloud_init.ssh_keys"


def test_key_files_count_from_the_folder_of_the_spec(tmp_path: Path) -> None:
    text = f"name: a\ncloud_init:\n  ssh_keys: [id.pub, ~/x.pub, /abs.pub, {KEY}]\n"
    spec = parse_spec(text, base=tmp_path)
    assert spec.cloud_init is not None
    assert spec.cloud_init.ssh_keys == (
        str(tmp_path / "id.pub"), str(Path.home() / "x.pub"), "/abs.pub", KEY,
    )  # fmt: skip


def test_the_home_of_nobody_is_an_error_with_its_place(tmp_path: Path) -> None:
    text = "name: a\ncloud_init:\n  ssh_keys:\n    - ~no-such-user-here/x.pub\n"
    with pytest.raises(SpecError, match="no such home folder") as error:
        parse_spec(text, base=tmp_path)
    assert (error.value.key, error.value.line) == ("cloud_init.ssh_keys[0]", 4)


NETWORK = """\
name: a
cloud_init:
  network:
    version: 2
    wifis: {w: {access-points: {home: {password: "12345678"}}}}
    ethernets:
      e: {dhcp4: no, dhcp6: On, optional: TRUE, mtu: 0x5dc, critical: "no", metric: 1.5,
          match: {macaddress: 52:54:00:12:34:56}, set-name: e0, since: 2024-01-01,
          id: 99999999999999999999, none: ~, octal: 010, odd: .inf}
"""


def test_the_network_is_passed_on_with_the_types_that_yaml_has() -> None:
    spec = parse_spec(NETWORK)
    assert spec.cloud_init is not None
    for cloud in (spec.cloud_init, parse_spec(dump(spec)).cloud_init):
        files = seed_files(
            name="a", instance_id="i", cloud_init=cloud, default_user=None, keys=()
        )
        seen = yaml.safe_load(files["network-config"])
        assert seen["version"] == 2
        assert seen["wifis"]["w"]["access-points"]["home"]["password"] == "12345678"
        assert seen["ethernets"]["e"] == {
            "dhcp4": False, "dhcp6": True, "optional": True, "mtu": 1500,
            "critical": "no", "metric": 1.5, "set-name": "e0", "since": "2024-01-01",
            "match": {"macaddress": "52:54:00:12:34:56"}, "none": None,
            "id": 99999999999999999999, "octal": 8, "odd": ".inf",
        }  # fmt: skip
    given = {"version": 2, "ethernets": {"e": {"dhcp4": False, "name": "no"}}}
    cloud = validate({"name": "a", "cloud_init": {"network": given}}).cloud_init
    assert cloud is not None
    assert cloud.network == given


def test_digits_without_end_are_text() -> None:
    digits = "9" * 5000
    spec = parse_spec(f"name: a\ncloud_init: {{network: {{x: {digits}}}}}")
    assert spec.cloud_init is not None
    assert spec.cloud_init.network == {"x": digits}
