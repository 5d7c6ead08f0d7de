"""`Struct` does what a frozen dataclass does."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, replace
from typing import Any, ClassVar

import pytest

from qemuctl.structs import Struct


class Disk(Struct):
    KIND: ClassVar[str] = "disk"
    id: str
    size: int = 0
    tags: list[str] = field(default_factory=list)
    secret: str = field(default="", repr=False)


class Tagged(Struct):
    name: str
    tags: list[str] = field(default_factory=list, hash=False)
    seen: int = field(default=0, compare=False)


class Point(Struct, kw_only=False):
    x: int
    y: int = 2


class Point3(Point, kw_only=False):
    z: int = 3


@dataclass(frozen=True)
class Known:
    x: int
    y: int = 2


def test_it_is_a_dataclass() -> None:
    disk = Disk(id="a")
    assert asdict(disk) == {"id": "a", "size": 0, "tags": [], "secret": ""}
    assert [each.name for each in fields(Disk)] == ["id", "size", "tags", "secret"]
    assert replace(disk, size=1) == Disk(id="a", size=1)
    assert repr(Disk(id="a", secret="x")) == "Disk(id='a', size=0, tags=[])"
    assert repr(Point(1)) == repr(Known(1)).replace("Known", "Point")


def test_it_is_compared_and_hashed_by_its_fields() -> None:
    assert Point(1, 2) == Point(x=1)
    assert Point(1, 2) != Point3(1, 2, 3)
    assert len({Point(1), Point(1), Point(2)}) == 2
    with pytest.raises(TypeError):
        hash(Disk(id="a"))


def test_fields_may_be_left_out_of_both() -> None:
    assert Tagged(name="a", seen=1) == Tagged(name="a", seen=2)
    assert hash(Tagged(name="a", tags=["x"])) == hash(Tagged(name="a"))
    assert Tagged(name="a", tags=["x"]) != Tagged(name="a")


def test_each_has_a_default_of_its_own() -> None:
    assert Disk(id="a").tags is not Disk(id="b").tags


def test_its_fields_cannot_be_changed() -> None:
    point: Any = Point(1)
    with pytest.raises(FrozenInstanceError):
        point.x = 2
    with pytest.raises(FrozenInstanceError):
        del point.x
    assert copy.copy(point) == pickle.loads(pickle.dumps(point)) == point


@pytest.mark.parametrize(
    ("kind", "placed", "named"),
    [
        (Disk, (), {}), (Disk, ("a",), {}), (Disk, (), {"id": "a", "bad": 1}),
        (Point, (1, 2, 3), {}), (Point, (1,), {"x": 1}), (Point, (), {"y": 1}),
    ],
)  # fmt: skip
def test_wrong_arguments_are_type_errors(
    kind: Any, placed: tuple[Any, ...], named: dict[str, Any]
) -> None:
    with pytest.raises(TypeError):
        kind(*placed, **named)


def test_a_pattern_matches_by_place() -> None:
    match Point3(1):
        case Point3(1, y, z):
            assert (y, z) == (2, 3)
        case _:
            raise AssertionError
