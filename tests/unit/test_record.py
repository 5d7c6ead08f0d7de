"""The record of a run: written as a whole, read with suspicion."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qemuctl.process import Identity
from qemuctl.registry.records.process_record import Record

RECORD = Record(
    qemu=Identity(10, 100, "boot"),
    shepherd=Identity(9, 99, "boot"),
    owner=Identity(8, 98, "boot"),
    attached=True,
    run="/run/ü x",
    started_at=1000.5,
    argv=["qemu", "-name", 'a "b", c'],
    accel="tcg",
    accel_reason="asked for",
    version="7.2.0",
    machine="pc-q35-7.2",
    cpus=2,
    memory=512 << 20,
    image="tiny",
    forwards=["127.0.0.1:1->80"],
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "process.json"


@pytest.mark.parametrize(
    "record", [RECORD, replace(RECORD, owner=None, image=None, forwards=[])]
)
def test_what_was_written_is_read(path: Path, record: Record) -> None:
    record.write(path)
    assert Record.read(path) == record


def test_writing_leaves_nothing_else(path: Path) -> None:
    RECORD.write(path)
    replace(RECORD, cpus=4).write(path)
    assert list(path.parent.iterdir()) == [path]
    again = Record.read(path)
    assert again is not None
    assert again.cpus == 4


def test_there_is_none_without_a_file(path: Path) -> None:
    assert Record.read(path) is None


def damaged() -> dict[str, Any]:
    good = json.dumps({"qemu": None, "shepherd": None, "owner": None})
    return {
        "empty": b"",
        "cut short": good[:-3].encode(),
        "a list": b"[]",
        "a number": b"5",
        "nothing": b"null",
        "an empty object": b"{}",
        "missing fields": good.encode(),
        "binary": b"\xff\xfe\x00\x80",
        "identity of a wrong shape": b'{"qemu": {"pid": 1}}',
        "identity that is text": b'{"qemu": "1", "shepherd": "2", "owner": "3"}',
    }


@pytest.mark.parametrize("content", damaged().values(), ids=damaged())
def test_a_damaged_file_is_no_record(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert Record.read(path) is None


def test_a_record_without_qemu_is_none(path: Path) -> None:
    RECORD.write(path)
    values = json.loads(path.read_text())
    values["qemu"] = None
    path.write_text(json.dumps(values))
    assert Record.read(path) is None
