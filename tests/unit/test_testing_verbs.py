"""The two faces of the verbs, and what needs no guest."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from qemuctl.errors import UsageError
from qemuctl.guest.agent import Result
from qemuctl.testing import Guest, SyncGuest
from qemuctl.testing.command import CommandFailed, by_shell, in_short, written
from qemuctl.testing.watch import listeners


def verbs(face: type) -> dict[str, Any]:
    return {
        name: member
        for name, member in inspect.getmembers(face, inspect.isfunction)
        if not name.startswith("_")
    }


def properties(face: type) -> set[str]:
    return {name for name, one in inspect.getmembers(face) if isinstance(one, property)}


def test_both_faces_have_the_same_verbs_with_the_same_arguments() -> None:
    there, here = verbs(Guest), verbs(SyncGuest)
    assert set(there) == set(here)
    for name, work in there.items():
        assert inspect.iscoroutinefunction(work), name
        assert not inspect.iscoroutinefunction(here[name]), name
        assert inspect.signature(work) == inspect.signature(here[name]), name
        assert here[name].__doc__, name


def test_both_faces_have_the_same_properties() -> None:
    attributes = {"vm", "spec"}  # of Guest, set when it is made
    assert properties(SyncGuest) == properties(Guest) | attributes


def test_a_port_is_looked_for_under_every_address_that_leads_to_it() -> None:
    assert listeners("127.0.0.1") == [
        "0100007F",
        "0" * 32,
        "00000000",
        "0000000000000000FFFF00000100007F",
    ]
    # As a kernel shows 2001:db8::1.
    assert listeners("2001:db8::1") == ["B80D0120000000000000000001000000", "0" * 32]
    for wrong in ("localhost", "", "10.0.2", "::1|.*"):
        with pytest.raises(UsageError, match="not an address"):
            listeners(wrong)


def test_a_long_command_is_short_in_a_message_and_moves_no_cursor() -> None:
    assert in_short(by_shell("echo 'a b'")) == "echo 'a b'"
    assert in_short(["echo", "a b"]) == "echo 'a b'"
    assert in_short(by_shell("\nfirst\nsecond")) == "first …"
    assert in_short(by_shell("x" * 200)) == "x" * 70 + " …"
    assert in_short(by_shell("")) == ""
    assert in_short(by_shell("a\x1b[2Jb")) == "ab"


def test_the_end_of_the_output_is_told_with_standard_error_last() -> None:
    def result(out: bytes, err: bytes) -> Result:
        return Result(("x",), 1, None, out, err)

    assert written(result(b"a\n", b"\x1b[1mb\n")) == "it wrote:\na\nb"
    assert written(result(b"a", b"b")) == "it wrote:\na\nb"
    assert written(result(b"", b"")) == ""
    long = written(result(b"x\n" * 1000, b"last")).splitlines()
    assert len(long) < 30
    assert long[-1] == "last"
    error = CommandFailed("a command failed", result(b"", b""))
    assert isinstance(error, AssertionError)
    assert error.hint == "it wrote nothing"
