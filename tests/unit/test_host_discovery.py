"""Finding a QEMU, asking it, and remembering what it said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qemuctl.errors import HostError
from qemuctl.host import Binary, discovery, find_qemu, probe
from qemuctl.host.answers import digest
from qemuctl.host.discovery import from_json, to_json
from qemuctl.spec.model import Spec

ANSWERS: dict[str, Any] = {
    "version": {"qemu": {"major": 9, "minor": 1, "micro": 2}, "package": ""},
    "machines": [
        {
            "name": "pc-q35-9.1",
            "alias": "q35",
            "cpu-max": 4096,
            "hotpluggable-cpus": True,
        }
    ],
    "devices": [{"name": "VGA"}, {"name": "virtio-blk-pci"}],
    "accels": [{"name": "tcg-accel"}, {"name": "accel"}],
    "options": [{"option": "sandbox", "parameters": []}],
    "schema": [
        {"name": "quit", "meta-type": "command", "arg-type": "0"},
        {"name": "netdev_add", "meta-type": "command", "arg-type": "1"},
        {"name": "set-action", "meta-type": "command", "arg-type": "2"},
        {"name": "STOP", "meta-type": "event", "arg-type": "0"},
        {"name": "0", "meta-type": "object", "members": []},
        {"name": "1", "meta-type": "object", "variants": [{"case": "user"}]},
        {
            "name": "2",
            "meta-type": "object",
            "members": [{"name": "panic", "type": "3"}],
        },
        {
            "name": "3",
            "meta-type": "enum",
            "members": [{"name": "pause"}, {"name": "none"}],
        },
    ],
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QEMUCTL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


class Elf:
    """A binary that answers without being run, and counts how often."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked = 0
        path.write_bytes(b"\x7fELF rest")

    def ask(self, _path: Path, _timeout: float) -> dict[str, Any]:
        self.asked += 1
        return ANSWERS


@pytest.fixture
def elf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Elf:
    fake = Elf(tmp_path / "qemu")
    monkeypatch.setattr(discovery, "_ask", fake.ask)
    return fake


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def cache_files(home: Path) -> list[Path]:
    return list((home / "cache" / "qemu").glob("*"))


def test_answers_become_features() -> None:
    binary = digest(Path("/q"), ANSWERS)
    assert binary.version == "9.1.2"
    assert binary.machine("q35").name == "pc-q35-9.1"
    assert binary.devices == {"VGA", "virtio-blk-pci"}
    assert binary.accels == {"tcg"}
    assert binary.netdevs == {"user"}
    assert binary.panic_actions == {"pause", "none"}
    assert binary.commands == {"quit", "netdev_add", "set-action"}
    assert binary.events == {"STOP"}
    assert binary.chardevs == frozenset()


def test_the_cached_form_is_the_same_binary() -> None:
    binary = digest(Path("/q"), ANSWERS)
    assert from_json(Path("/q"), to_json(binary).encode()) == binary


def test_a_binary_is_asked_once(elf: Elf) -> None:
    first = probe(elf.path)
    assert probe(elf.path) == first
    assert elf.asked == 1


def test_a_changed_binary_is_asked_again(elf: Elf) -> None:
    probe(elf.path)
    elf.path.write_bytes(b"\x7fELF newer")
    probe(elf.path)
    assert elf.asked == 2


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"machines": {}}', b"\xff"])
def test_a_damaged_cache_is_made_anew(elf: Elf, home: Path, damage: bytes) -> None:
    first = probe(elf.path)
    (cache,) = cache_files(home)
    cache.write_bytes(damage)
    assert probe(elf.path) == first
    assert probe(elf.path) == first
    assert elf.asked == 2
    assert cache_files(home) == [cache]


def test_no_place_for_a_cache_is_no_error(elf: Elf, home: Path) -> None:
    home.write_text("not a folder")
    assert probe(elf.path).version == "9.1.2"


def test_a_missing_feature_makes_the_next_probe_ask_again(elf: Elf) -> None:
    binary = probe(elf.path)
    with pytest.raises(HostError):
        binary.require_device("qxl-vga", "display.vga")
    probe(elf.path)
    assert elf.asked == 2


def test_a_wrapper_script_works_and_is_asked_each_time(
    tmp_path: Path, home: Path
) -> None:
    replies = "".join(
        json.dumps({"return": value, "id": key}) + "\n"
        for key, value in ANSWERS.items()
    )
    (tmp_path / "replies").write_text(replies)
    wrapper = script(
        tmp_path / "my qemu",
        f"cat >/dev/null; echo hello; echo '[]'; cat '{tmp_path}/replies'",
    )
    assert probe(wrapper).version == "9.1.2"
    assert cache_files(home) == []


def test_a_binary_that_fails_is_quoted_with_its_command_line(tmp_path: Path) -> None:
    broken = script(tmp_path / "broken", "echo 'libfoo.so: cannot open' >&2; exit 127")
    with pytest.raises(HostError, match=r"broken: libfoo\.so: cannot open") as caught:
        probe(broken)
    assert f"{broken} -machine none" in (caught.value.hint or "")


def test_a_binary_that_says_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="exit status 3"):
        probe(script(tmp_path / "silent", "exit 3"))


def test_a_binary_that_hangs_is_given_up(tmp_path: Path) -> None:
    hanging = script(tmp_path / "hanging", "exec sleep 60")
    with pytest.raises(HostError, match=r"no answer within 0\.2 s"):
        probe(hanging, timeout=0.2)


def test_a_file_that_is_no_program_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\x00\x01 not a program")
    path.chmod(0o755)
    with pytest.raises(HostError, match="Exec format error"):
        probe(path)


def test_qemu_is_found_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = script(tmp_path / "qemu-system-x86_64", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_qemu(Spec(name="vm")) == path


def test_a_missing_qemu_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="qemu-system-x86_64 is not on PATH") as caught:
        find_qemu(Spec(name="vm"))
    assert caught.value.hint == "sudo apt-get install qemu-system-x86"


def test_a_qemu_of_the_spec_must_exist(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no such QEMU binary") as caught:
        find_qemu(Spec(name="vm", qemu=str(tmp_path / "no" / "qemu")))
    assert str(tmp_path / "no") in (caught.value.hint or "")


def test_a_qemu_of_the_spec_must_be_executable(tmp_path: Path) -> None:
    path = tmp_path / "qemu"
    path.write_text("")
    with pytest.raises(HostError, match="may not be run"):
        find_qemu(Spec(name="vm", qemu=str(path)))


@pytest.mark.parametrize(
    ("require", "feature"),
    [
        ("require_device", "vga"),
        ("require_object", "rng-builtin"),
        ("require_netdev", "tap"),
        ("require_blockdev", "qcow2"),
        ("require_chardev", "pipe"),
        ("require_option", "spice"),
        ("require_panic_action", "exit-failure"),
    ],
)
def test_a_missing_feature_is_named_with_binary_and_version(
    require: str, feature: str
) -> None:
    binary: Binary = digest(Path("/opt/qemu"), ANSWERS)
    with pytest.raises(HostError) as caught:
        getattr(binary, require)(feature, "the spec")
    message = str(caught.value)
    assert message.startswith("the spec needs the ")
    assert feature in message
    assert message.endswith("/opt/qemu (version 9.1.2)")


def test_a_missing_feature_suggests_what_is_near() -> None:
    binary = digest(Path("/q"), ANSWERS)
    with pytest.raises(HostError) as caught:
        binary.require_device("virtio-blk-pcl", "disks[0].bus")
    assert caught.value.hint == "it has: virtio-blk-pci"


def test_an_unknown_machine_or_cpu_model_is_an_error() -> None:
    binary = digest(Path("/q"), ANSWERS)
    with pytest.raises(HostError, match="pc-q35-2"):
        binary.machine("pc-q35-2.1")
    binary.require_cpu_model("anything", "cpu.model")
    with pytest.raises(HostError, match="'Nehalen'"):
        replace(binary, cpu_models=frozenset({"Nehalem"})).require_cpu_model(
            "Nehalen,+vmx", "cpu.model"
        )
