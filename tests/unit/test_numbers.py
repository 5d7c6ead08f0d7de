"""How numbers look, and which of them a narrow terminal shows."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from test_sample import AFTER, BEFORE

from qemuctl.cli.numbers import document, print_numbers
from qemuctl.cli.table import HEAD, Tables, fitting, processors
from qemuctl.hotplug.balloon_stats import GuestMemory
from qemuctl.stats.all_vms import Row
from qemuctl.stats.sample import rates


def test_a_document_has_units_no_private_clock_and_short_numbers() -> None:
    memory = replace(
        BEFORE.memory, guest=GuestMemory(at=1, total_bytes=9, free_bytes=4)
    )
    sample = replace(AFTER, memory=memory, cpu_seconds=1 / 3)
    text = json.dumps(document(sample, rates(BEFORE, sample)))
    found = json.loads(text)
    assert "clock" not in text
    assert found["cpu_seconds"] == 0.3333
    assert found["memory"]["guest_used_bytes"] == 5
    assert found["disks"][0]["read_bytes"] == 5000
    assert found["rates"]["disks"][0]["read_bytes_per_second"] == 2000
    assert json.loads(json.dumps(document(BEFORE, None)))["rates"] is None


def test_what_nobody_tells_is_said_to_be_unknown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sample = replace(AFTER, disks=None, nics=None)
    found = rates(BEFORE, sample)
    assert found is not None
    print_numbers(sample, found)
    out = capsys.readouterr().out
    assert "150% of a core" in out
    assert "QEMU does not answer" in out
    assert "only the guest's agent could tell" in out


def test_a_table_in_a_pipe_has_the_busiest_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    idle = replace(AFTER, name="idle", cpu_seconds=5.0)
    busy = Row(AFTER, rates(BEFORE, AFTER))
    with Tables(live=False) as tables:
        tables.show([Row(idle, rates(BEFORE, idle)), busy, Row(BEFORE, None)])
    head, first, *rest = capsys.readouterr().out.splitlines()
    assert tuple(head.split()) == HEAD
    assert first.split()[:3] == ["web", "running", "150%"]
    assert [line.split()[0] for line in rest] == ["idle", "web"]
    assert rest[1].split()[2:4] == ["-", "-"]


def test_a_narrow_terminal_keeps_what_matters_most() -> None:
    cells = [["web", "unresponsive", *["100.5M"] * (len(HEAD) - 2)]]
    assert fitting(cells, 200) == list(range(len(HEAD)))
    names = [HEAD[number] for number in fitting(cells, 80)]
    assert names[:3] == ["NAME", "STATE", "CPU"]
    assert {"RES", "READ/s", "WRITE/s"} <= set(names)
    assert "VCPU%" not in names
    assert fitting([], 1)


def test_many_processors_take_little_room() -> None:
    assert processors([99.6, 0.0]) == "100 0"
    assert processors([1.0] * 63 + [98.0]) == "98 at most of 64"
