"""Where a VM is to go, what is known of one on its way, when a guest is too busy."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuctl.errors import DamagedFile, StateError, UsageError
from qemuctl.migration import Phase, parse_destination
from qemuctl.migration.arrivals import Arrival, leftovers
from qemuctl.migration.clocks import behind
from qemuctl.migration.memory import _Course
from qemuctl.migration.options import Options
from qemuctl.migration.phases import STEPS
from qemuctl.paths import VmPaths
from qemuctl.process import Identity
from qemuctl.qmp.migration import MigrationInfo, QueryMigrate, RamStats
from qemuctl.registry.records.migration_journal import (
    Leaving,
    check_here,
    end,
    moving,
    on_its_way,
)
from qemuctl.registry.records.moved_away import check_not_moved, moved_to, note_moved
from qemuctl.registry.removal import clear
from tests.hostile import fuzzed

TOKEN = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("text", "user", "host", "port"),
    [
        ("ssh://other", None, "other", None),
        ("ssh://me@other.example:2222", "me", "other.example", 2222),
        ("ssh://me@[fe80::1]:22", "me", "fe80::1", 22),
        ("ssh://other/", None, "other", None),
    ],
)
def test_a_host_is_named_as_for_ssh(
    text: str, user: str | None, host: str, port: int | None
) -> None:
    found = parse_destination(text)
    assert (found.user, found.host, found.port) == (user, host, port)
    assert found.home is None


def test_another_home_is_a_folder_wherever_the_command_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_destination("local:other").home == tmp_path / "other"
    assert parse_destination("local:/a/b").home == Path("/a/b")


@pytest.mark.parametrize(
    "text",
    [
        "", "other", "/folder", "local:", "ssh://", "ssh:///folder", "tcp://other",
        "ssh://other/folder", "ssh://me:secret@other", "ssh://other:port",
        "ssh://-oProxyCommand=true", "ssh://-l@other", "ssh://o;ther", "ssh://o ther",
    ],
)  # fmt: skip
def test_what_is_no_destination_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_destination(text)


@fuzzed(100)
@given(st.text())
def test_no_text_becomes_an_option_of_ssh(text: str) -> None:
    try:
        found = parse_destination(f"ssh://{text}")
    except UsageError:
        return
    assert not found.host.startswith("-")
    assert not (found.user or "").startswith("-")
    assert not set(found.host + (found.user or "")) & set(" \t\n;&|$`'\"<>")


def test_each_phase_says_what_undoes_it() -> None:
    assert set(STEPS) == set(Phase)
    still = [phase for phase, step in STEPS.items() if step.still]
    assert still == [Phase.SWITCH, Phase.CONFIRM]


# -- on its way --------------------------------------------------------------------


@pytest.fixture
def paths(tmp_path: Path) -> VmPaths:
    (tmp_path / "web").mkdir()
    return VmPaths(tmp_path / "web", tmp_path / "run")


def leaving(**changes: object) -> Leaving:
    here = Leaving(
        token=TOKEN, destination="ssh://other", name="web", receiver="qemuctl",
        controller=None, phase="ram", ran=True, keep=False,
    )  # fmt: skip
    return replace(here, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (leaving(), "migration: interrupted"),
        (leaving(said_go=True), "migration: outcome unknown"),
        (
            leaving(said_go=True, postcopy=True),
            "migration: its memory has yet to follow",
        ),
    ],
)
def test_what_is_known_of_a_vm_on_its_way_is_told(
    paths: VmPaths, state: Leaving, said: str
) -> None:
    assert on_its_way(paths) is None
    state.write(paths)
    assert Leaving.read(paths) == state
    assert on_its_way(paths) == said
    end(paths)
    assert on_its_way(paths) is None


def test_a_vm_that_is_being_moved_says_how_far_it_is(paths: VmPaths) -> None:
    # Its pid says nothing: it may be that of another namespace, or of another process.
    leaving(controller=Identity(2**22, 1, "other boot")).write(paths)
    with moving(paths):
        assert on_its_way(paths) == "migration to ssh://other: ram"
        with pytest.raises(StateError, match="just being migrated") as no:
            check_here(paths, "pause")
        assert "migrate-cancel web" in (no.value.hint or "")
    leaving(controller=Identity.of(os.getpid())).write(paths)
    assert on_its_way(paths) == "migration: interrupted"
    end(paths)
    assert list(paths.state.iterdir()) == []


def test_its_guest_takes_no_step_here_once_the_word_may_have_been_given(
    paths: VmPaths,
) -> None:
    check_here(paths, "resume")
    leaving().write(paths)
    check_here(paths, "resume")
    leaving(said_go=True).write(paths)
    with pytest.raises(StateError, match="may be running already in ssh://other") as no:
        check_here(paths, "resume")
    assert "migrate-recover web" in (no.value.hint or "")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"token": 1}', '{"controller": 5}'])
def test_a_journal_that_makes_no_sense_counts_as_one_that_says_go(
    paths: VmPaths, text: str
) -> None:
    paths.migration.write_text(text)
    with pytest.raises(DamagedFile, match="makes no sense"):
        check_here(paths, "resume")
    assert "makes no sense" in (on_its_way(paths) or "")


def test_a_vm_that_has_moved_is_not_started_by_mistake(paths: VmPaths) -> None:
    check_not_moved(paths)
    note_moved(paths, "web", "ssh://other")
    assert moved_to(paths) == "ssh://other"
    with pytest.raises(StateError, match="it has moved to ssh://other"):
        check_not_moved(paths)


def test_an_arrival_is_known_by_its_token_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QEMUCTL_HOME", str(tmp_path))
    assert Arrival.read(TOKEN) is None
    Arrival(token=TOKEN, name="web", stepped=True).write()
    assert Arrival.read(TOKEN) == Arrival(token=TOKEN, name="web", stepped=True)
    Arrival(token=TOKEN, name="web").forget()
    assert Arrival.read(TOKEN) is None
    for hostile in ("", "../../etc/passwd", TOKEN.upper(), TOKEN + "/"):
        with pytest.raises(ValueError, match="not a token"):
            Arrival.read(hostile)


def test_arrivals_of_which_nobody_asks_any_more_are_left_to_gc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QEMUCTL_HOME", str(tmp_path))
    for token in (TOKEN, TOKEN[::-1]):
        Arrival(token=token, name="web", stepped=True).write()
    assert leftovers() == []
    old = tmp_path / "state/arrivals" / TOKEN
    os.utime(old, (0, 0))
    assert leftovers() == [old]
    clear(old)
    assert Arrival.read(TOKEN) is None
    assert Arrival.read(TOKEN[::-1]) is not None


# -- a busy guest ------------------------------------------------------------------


def round_(count: int, remaining: int, throttle: int | None = None) -> MigrationInfo:
    ram = RamStats(dirty_sync_count=count, remaining=remaining)
    return MigrationInfo(status="active", ram=ram, cpu_throttle_percentage=throttle)


def test_a_rest_that_shrinks_is_waited_for() -> None:
    course, options = _Course(), Options(auto_converge=False)
    left = [100, 90, 80, 70, 60, 50, 40, 30, 20, 10]
    assert not any(course.stuck(round_(n, rest), options)
                   for n, rest in enumerate(left, 1))  # fmt: skip


def test_a_rest_that_does_not_shrink_is_not_waited_for_for_ever() -> None:
    course, options = _Course(), Options(auto_converge=False)
    seen = [course.stuck(round_(n, 100), options) for n in range(1, 12)]
    assert True in seen
    assert not any(seen[:5])


def test_a_guest_is_first_held_back_as_far_as_that_goes() -> None:
    course, options = _Course(), Options(auto_converge=True)
    assert not any(course.stuck(round_(n, 100, 50), options) for n in range(1, 30))
    assert course.stuck(round_(30, 100, 99), options)


def test_looks_within_one_round_say_nothing() -> None:
    course, options = _Course(), Options(auto_converge=False)
    assert not any(course.stuck(round_(3, 100), options) for _ in range(50))


# -- what is told ------------------------------------------------------------------


def test_a_clock_that_fell_behind_tells_how_long_a_guest_stood_still() -> None:
    assert behind(0.5, 0.75) == 0.25
    assert behind(0.5, 0.499) == 0.0
    assert behind(None, 1.0) is None
    assert behind(1.0, None) is None


def test_the_numbers_of_the_memory_are_read() -> None:
    told = {"status": "active", "ram": {"transferred": 5, "dirty-pages-rate": 7}}
    info = QueryMigrate().result(told)
    assert info.ram == RamStats(transferred=5, dirty_pages_rate=7)
    assert QueryMigrate().result({}).ram is None
