"""The file of a saved machine: what is written is read, and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuctl.cmdline.shape import Shape
from qemuctl.errors import ImageError, StateFileError
from qemuctl.registry.saved_state import (
    START,
    About,
    begin,
    digest,
    disks_then,
    finish,
    read_state,
)
from tests.hostile import fuzzed

MIB = 1024 * 1024
SHAPE = Shape(machine="pc-q35-7.2", accel="tcg", cpu_model="max", slots={})
ABOUT = About(
    name="web", home="/vms/web", saved_at=1.5, qemu="7.2.22", paused=False,
    spec="name: web\n", shape=SHAPE, devices={"nic0": "virtio-net-pci"},
)  # fmt: skip


def idle() -> None:
    """Nobody calls anything off here."""


def written(path: Path, stream: bytes = b"state" * 1000, about: About = ABOUT) -> About:
    with path.open("x+b", buffering=0) as file:
        begin(file)
        file.write(stream)
        file.seek(START)
        return finish(file, about, digest(file))


def forged(path: Path, head: Callable[[dict[str, Any]], Any]) -> None:
    """Writes another head, with a checksum that is right."""
    content = path.read_bytes()
    line, _, rest = content.partition(b"\n")
    text = json.dumps(head(json.loads(rest[: int(line.split()[3])]))).encode()
    sum_ = hashlib.sha256(text).hexdigest()
    fresh = b"qemuctl state 1 %d %s\n%s" % (len(text), sum_.encode(), text)
    path.write_bytes(fresh.ljust(START, b"\0") + content[START:])


def test_what_was_written_is_read(tmp_path: Path) -> None:
    about = written(tmp_path / "state")
    state = read_state(tmp_path / "state")
    assert state.about == about
    assert about == replace(ABOUT, size=5000, sha256=about.sha256)
    state.verify(idle)
    with state.open() as file:
        assert file.read() == b"state" * 1000


def test_a_file_without_its_head_is_none(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with path.open("x+b", buffering=0) as file:
        begin(file)
        file.write(b"state")
    with pytest.raises(StateFileError, match="not a saved machine, or not whole"):
        read_state(path)


@pytest.mark.parametrize("content", [b"", b"QEVM\0\0\0\3", b"\n", b"\xff" * 9000])
def test_a_foreign_file_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state"
    path.write_bytes(content)
    with pytest.raises(StateFileError, match="not a saved machine"):
        read_state(path)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        read_state(tmp_path / "nothing")
    with pytest.raises(ImageError):
        read_state(tmp_path)


@pytest.mark.parametrize("change", [-1, 1, -5000, -START])
def test_another_length_is_noticed(tmp_path: Path, change: int) -> None:
    path = tmp_path / "state"
    written(path)
    os.truncate(path, path.stat().st_size + change)
    with pytest.raises(StateFileError, match="damaged"):
        read_state(path)


@fuzzed(100)
@given(st.data())
def test_any_damage_is_noticed(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "state"
    path.unlink(missing_ok=True)
    written(path)
    content = bytearray(path.read_bytes())
    used = content.index(b"\0")  # behind the head there is nothing that counts
    places = st.one_of(st.integers(0, used - 1), st.integers(START, len(content) - 1))
    content[data.draw(places)] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(StateFileError):
        read_state(path).verify(idle)


@fuzzed(100)
@given(st.binary(max_size=200))
def test_no_head_makes_it_fall(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"qemuctl state " + tail)
    with pytest.raises(StateFileError):
        read_state(path)


@pytest.mark.parametrize("size", [b"-1", b"-0", b"+5", b"1_0", b"0", b"9" * 90])
def test_a_size_that_is_none_is_refused_and_not_read(
    tmp_path: Path, size: bytes
) -> None:
    path = tmp_path / "state"
    rest = b"{}"
    sum_ = hashlib.sha256(rest).hexdigest().encode()
    path.write_bytes(b"qemuctl state 1 " + size + b" " + sum_ + b"\n" + rest)
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # what would be held if all of it were read
    with pytest.raises(StateFileError, match=r"damaged|not whole"):
        read_state(path)


def test_a_later_format_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"qemuctl state 2 5 " + b"0" * 64 + b"\nwhatever")
    with pytest.raises(StateFileError, match="later version"):
        read_state(path)


@pytest.mark.parametrize(
    "head",
    [
        lambda about: [about],
        lambda about: about | {"spec": "name: web\nmemroy: 1G\n"},
        lambda about: about | {"shape": None},
        lambda about: about | {"disks": [{"id": "disk0"}]},
        lambda about: about | {"compression": "gzip"},
        lambda about: about | {"size": -1},
        lambda about: about | {"shape": about["shape"] | {"ports": -1}},
        lambda about: about | {"shape": about["shape"] | {"ports": 10**9}},
        *(
            lambda about, cpu=cpu: about | {"shape": about["shape"] | {"cpus": [cpu]}}
            for cpu in (
                {},
                {"driver": "loader", "file": "/etc/shadow", "addr": 0},
                {"driver": "e1000", "romfile": "/etc/shadow"},
                {"driver": "max-x86_64-cpu", "socket-id": "0,file=/etc/shadow"},
                {"driver": "max-x86_64-cpu", "id": ["cpu1"]},
            )
        ),
        lambda about: {k: v for k, v in about.items() if k != "devices"},
    ],
)
def test_a_head_that_makes_no_sense_is_refused(
    tmp_path: Path, head: Callable[[dict[str, Any]], Any]
) -> None:
    path = tmp_path / "state"
    written(path)
    forged(path, lambda about: about)
    read_state(path)
    forged(path, head)
    with pytest.raises(StateFileError, match="makes no sense"):
        read_state(path)


def test_a_head_that_has_no_room_is_not_written(tmp_path: Path) -> None:
    about = replace(ABOUT, devices={f"d{n}": "x" * 1000 for n in range(2000)})
    with pytest.raises(StateFileError, match="too many devices"):
        written(tmp_path / "state", about=about)
    with pytest.raises(StateFileError, match="not whole"):
        read_state(tmp_path / "state")


# -- the sum of the stream ---------------------------------------------------------


def test_a_hole_and_its_zeros_have_the_same_sum(tmp_path: Path) -> None:
    block = os.urandom(MIB)
    zeros = tmp_path / "zeros"
    zeros.write_bytes(block + bytes(3 * MIB) + block + bytes(2 * MIB + 7))
    holes = tmp_path / "holes"
    with holes.open("wb") as file:
        file.write(block)
        file.seek(4 * MIB)
        file.write(block)
        file.truncate(7 * MIB + 7)
    with zeros.open("rb") as one, holes.open("rb") as other:
        assert digest(one) == digest(other)


def test_the_sum_tells_where_zeros_are(tmp_path: Path) -> None:
    block = os.urandom(MIB)
    sums = set()
    for number, content in enumerate(
        [bytes(MIB) + block, block + bytes(MIB), block, block + bytes(7)]
    ):
        path = tmp_path / str(number)
        path.write_bytes(content)
        with path.open("rb") as file:
            sums.add(digest(file))
    # Zeros at the end of whole blocks are told by the file's length alone.
    assert len(sums) == 3


@pytest.mark.parametrize("start", [0, 1, MIB, MIB + 4096])
def test_the_sum_is_that_of_what_follows(tmp_path: Path, start: int) -> None:
    stream = os.urandom(MIB // 2) + bytes(4 * MIB) + os.urandom(99)
    alone, behind = tmp_path / "alone", tmp_path / "behind"
    alone.write_bytes(stream)
    behind.write_bytes(os.urandom(start) + stream)
    with alone.open("rb") as one, behind.open("rb") as other:
        other.seek(start)
        assert digest(one) == digest(other)


def test_a_file_that_grows_is_followed_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.touch()
    over = threading.Event()
    parts = [os.urandom(MIB // 3) for _ in range(10)]

    def write() -> None:
        with path.open("ab", buffering=0) as file:
            for part in parts:
                file.write(part)
        over.set()

    with path.open("rb") as file:
        writer = threading.Timer(0.05, write)
        writer.start()
        growing = digest(file, grows=lambda: not over.is_set())
        writer.join()
        file.seek(0)
        assert growing == digest(file)


def test_a_sum_can_be_called_off(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.touch()

    class Enough(Exception):
        pass

    def tick() -> None:
        raise Enough

    with path.open("rb") as file, pytest.raises(Enough):
        digest(file, grows=lambda: True, tick=tick)


# -- disks -------------------------------------------------------------------------


def test_a_disk_that_was_written_to_is_not_as_it_was(tmp_path: Path) -> None:
    web, user = tmp_path / "web", tmp_path / "user.raw"
    (web / "disks").mkdir(parents=True)
    own = web / "disks/disk0.qcow2"
    own.write_bytes(b"own")
    user.write_bytes(b"user")
    disks = disks_then({"disk0": own, "disk1": user}, web)
    assert [disk.path for disk in disks] == ["disks/disk0.qcow2", str(user)]
    assert [disk.own for disk in disks] == [True, False]
    about = replace(ABOUT, disks=disks)
    assert about.problems(web) == []
    moved = web.rename(tmp_path / "www")
    assert about.problems(moved) == []
    user.write_bytes(b"more")
    (moved / "disks/disk0.qcow2").unlink()
    gone, changed = about.problems(moved)
    assert "cannot be read" in gone
    assert "disk1 has been changed" in changed


def test_own_files_of_the_spec_are_in_the_folder_that_the_vm_has(
    tmp_path: Path,
) -> None:
    about = replace(
        ABOUT, spec="name: web\ndisks: [{path: disks/a.qcow2}, {path: /b.qcow2}]\n"
    )
    first, second = about.ran(tmp_path).disks
    assert first.path == str(tmp_path / "disks/a.qcow2")
    assert second.path == "/b.qcow2"
