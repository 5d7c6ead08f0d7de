"""What annotations say is read, and told where it is not so."""

import contextlib
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuctl.spec.document import Plain
from qemuctl.structs import Struct
from qemuctl.typed.faults import Wrong
from qemuctl.typed.marks import Before, Check, Limits, Written, setting
from qemuctl.typed.read import keys, read
from qemuctl.typed.write import written, written_fields
from tests.hostile import fuzzed, trees


def _even(value: int) -> int:
    if value % 2:
        raise ValueError("odd")
    return value


def _below(value: int, fields: Any) -> None:
    if value >= fields.get("number", 10):
        raise ValueError("not below number")


def _length(value: Any) -> int:
    if not isinstance(value, str):
        raise ValueError("nothing to count")
    return len(value)


class Part(Struct):
    size: Annotated[int, Before(_length), Written("x".__mul__)] = 3


class Whole(Struct):
    text: str
    number: int = 9
    share: float = 0.5
    on: bool = False
    kind: Literal["a", "b"] = "a"
    path: Path | None = None
    even: Annotated[int, Check(_even)] = 0
    few: Annotated[tuple[str, ...], Limits(max_length=2)] = ()
    below: int = setting(default=1, ge=1, check=_below)
    parts: tuple[Part, ...] = (Part(),)
    by_name: dict[str, list[int]] = field(default_factory=dict)
    names: frozenset[str] = frozenset()
    mixed: str | tuple[str, ...] | None = None
    anything: Any = None

    def __post_init__(self) -> None:
        if self.text == self.kind:
            raise ValueError("text and kind are the same")


def faults(data: Any) -> list[tuple[Any, str]]:
    with pytest.raises(Wrong) as caught:
        read(Whole, data)
    return [(fault.at, fault.text) for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("name", "data", "value"),
    [
        *[("number", data, 7) for data in (7, "7", " 7 ", "+7", "7.0", 7.0, "0_7")],
        *[("on", data, True) for data in (True, 1, 1.0, "on", "Yes", "TRUE", "1", "t")],
        *[("on", data, False) for data in (False, 0, "off", "No", "false", "0", "n")],
        *[("share", data, 2.0) for data in (2, "2", 2.0, "2e0")],
        *[("names", data, frozenset("ab")) for data in (["a", "b"], {"b", "a"})],
        *[("few", data, ("a",)) for data in (["a"], ("a",), iter("a"), {"a"})],
        ("kind", Plain("b"), "b"),
        ("path", "/a", Path("/a")),
        ("path", None, None),
        ("even", "4", 4),
        ("by_name", {"a": ["1", 2]}, {"a": [1, 2]}),
        ("parts", [{"size": "four"}, Part(size=1)], (Part(size=4), Part(size=1))),
        ("mixed", "a", "a"),
        ("mixed", ["a"], ("a",)),
        ("anything", [1], [1]),
        ("unknown", 1, None),
    ],
)  # fmt: skip
def test_a_value_is_read_as_its_annotation_says(name: str, data: Any, value: Any):
    found = read(Whole, {"text": Plain("x"), name: data})
    assert getattr(found, name, None) == value
    assert type(getattr(found, name, None)) is type(value)
    assert type(found.text) is str


@pytest.mark.parametrize(
    ("name", "data", "at", "text"),
    [
        *[("number", data, (), "not a whole number: " + said) for data, said in (
            (True, "true"), ("7.5", "'7.5'"), ("7.", "'7.'"), ("\u0667", "'"),
            (0.5, "0.5"),
            (float("inf"), "inf"), ("1__0", "'1__0'"), ([], "[]"), ("", "''"))],
        *[("on", data, (), "not true or false: " + said) for data, said in (
            (2, "2"), ("maybe", "'maybe'"), (" on", "' on'"), ([], "[]"))],
        *[("share", data, (), "not a number: " + said) for data, said in (
            (True, "true"), ("a", "'a'"), (10**400, "1"))],
        ("number", None, (), "no value"),
        ("text", 5, (), "not text: 5"),
        ("text", "\ud800", (), "not valid Unicode: '\\ud800'"),
        ("kind", "c", (), "unknown value: 'c' (write a or b)"),
        ("even", 3, (), "odd"),
        ("few", "a", (), "not a list: 'a'"),
        ("few", {"a": 1}, (), "not a list: {'a': 1}"),
        ("few", ["a", 1], (1,), "not text: 1"),
        ("few", ["a"] * 3, (), "too long: 3 characters, 2 at most"),
        ("below", "0", (), "must be at least 1: '0'"),
        ("below", 20, (), "not below number"),
        ("parts", [5], (0,), "not `key: value` lines: 5"),
        ("parts", [{"size": 5}], (0, "size"), "nothing to count"),
        ("parts", [{"size": None}], (0, "size"), "no value"),
        ("by_name", {"a": 1}, ("a",), "not a list: 1"),
        ("by_name", {1: []}, (1,), "not text: 1"),
        ("mixed", 5, (), "not text: 5"),
    ],
)  # fmt: skip
def test_what_it_is_not_is_told_with_its_place(
    name: str, data: Any, at: Any, text: str
):
    found, *_ = faults({"text": "x", name: data})
    assert found[0] == (name, *at)
    assert found[1].startswith(text)


def test_all_that_is_wrong_is_told_at_once():
    assert faults({"number": "x", "on": "maybe", "parts": [{}, 1, 2]}) == [
        (("text",), "missing"),
        (("number",), "not a whole number: 'x'"),
        (("on",), "not true or false: 'maybe'"),
        (("parts", 1), "not `key: value` lines: 1"),
        (("parts", 2), "not `key: value` lines: 2"),
    ]
    assert faults({"text": "a"}) == [((), "text and kind are the same")]
    assert faults([]) == [((), "not `key: value` lines: []")]


def test_what_is_written_reads_as_itself():
    made = read(Whole, {"text": "x", "names": ["b", "a"], "path": "/a", "parts": []})
    assert read(Whole, written(made)) == made
    assert written(made)["names"] == ["a", "b"]
    assert written(Part()) == {"size": "xxx"}
    assert written_fields(made, lean=True, exclude=("text",)) == {
        "path": "/a", "names": ["a", "b"], "parts": [],
    }  # fmt: skip


@fuzzed(200)
@given(trees(st.sampled_from([*keys(Whole), "size"])))
def test_any_data_is_read_or_refused(data: Any):
    with contextlib.suppress(Wrong):
        found = read(Whole, data)
        assert isinstance(found.number, int)
        assert isinstance(found.on, bool)
