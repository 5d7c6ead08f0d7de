"""`Struct`, the base of frozen dataclasses that cost nothing to define.

`dataclasses.dataclass` compiles six methods for each class, which takes a third of a
millisecond; a command that loads two hundred classes would wait for that longer than
for QEMU. Here the methods are written once.
"""

from __future__ import annotations

from dataclasses import MISSING, FrozenInstanceError, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, dataclass_transform


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(field,)
)
class Struct:
    """A class whose subclasses are as if by ``@dataclass(frozen=True, kw_only=True)``.

    ``class Point(Struct, kw_only=False)`` takes its fields by place, too.
    """

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Any]]
        __match_args__: ClassVar[tuple[str, ...]]

    __defaults: ClassVar[dict[str, Any]]
    __fields: ClassVar[dict[str, Any]]

    def __init_subclass__(cls, *, kw_only: bool = True) -> None:
        super().__init_subclass__()
        cls.__doc__ = cls.__doc__ or cls.__name__  # dataclass would make a long one
        dataclass(init=False, repr=False, eq=False, kw_only=kw_only)(cls)
        cls.__fields = {each.name: each for each in fields(cls)}
        cls.__defaults = {
            each.name: each.default
            for each in cls.__fields.values()
            if each.default is not MISSING
        }

    def __init__(self, *placed: Any, **named: Any) -> None:
        if placed:
            named = _named(self, placed, named)
        values = self.__defaults | named
        if values.keys() != self.__fields.keys():
            values = self.__made() | values
            wrong = ", ".join(sorted(values.keys() ^ self.__fields.keys()))
            if wrong:
                raise TypeError(f"{type(self).__name__}: missing or unknown: {wrong}")
        self.__dict__.update(values)
        self.__post_init__()

    def __post_init__(self) -> None:
        """Checks the values, where a subclass does; raises ValueError then."""

    def __made(self) -> dict[str, Any]:
        """The defaults that are made anew for each."""
        factories = {n: each.default_factory for n, each in self.__fields.items()}
        return {n: make() for n, make in factories.items() if make is not MISSING}

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return _compared(self) == _compared(other)

    def __hash__(self) -> int:
        hashed = (f for f in fields(self) if (f.compare if f.hash is None else f.hash))
        return hash(tuple(getattr(self, f.name) for f in hashed))

    def __repr__(self) -> str:
        shown = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.repr)
        return f"{type(self).__qualname__}({', '.join(shown)})"

    if not TYPE_CHECKING:

        def __setattr__(self, name: str, value: object) -> NoReturn:
            raise FrozenInstanceError(f"cannot assign to field {name!r}")

        def __delattr__(self, name: str) -> NoReturn:
            raise FrozenInstanceError(f"cannot delete field {name!r}")


def _named(
    each: Struct, placed: tuple[Any, ...], named: dict[str, Any]
) -> dict[str, Any]:
    """All arguments by name. Raises TypeError for too many, or one given twice."""
    names = each.__match_args__[: len(placed)]
    if len(names) < len(placed) or named.keys() & set(names):
        raise TypeError(f"{type(each).__name__}: too many arguments")
    return dict(zip(names, placed, strict=True)) | named


def _compared(each: Any) -> tuple[Any, ...]:
    return tuple(getattr(each, f.name) for f in fields(each) if f.compare)
