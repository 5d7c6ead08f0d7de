"""What every part of a spec is made of."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import field
from typing import Any, ClassVar, Self, dataclass_transform

from qemuctl.spec.problems import spec_error
from qemuctl.structs import Struct
from qemuctl.typed.faults import Wrong, refused
from qemuctl.typed.marks import setting
from qemuctl.typed.read import Key, fill, keys
from qemuctl.typed.write import written_fields


class _Keys:
    """The keys of the class that it is asked of."""

    def __get__(self, instance: object, owner: type[Model]) -> Mapping[str, Key]:
        return keys(owner)


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(field, setting)
)
class Model(Struct):
    """The base of every part: frozen, and no unknown keys.

    Whatever it is made from is checked, keyword arguments too: all that is wrong comes
    as one SpecError. The names of its methods are those of pydantic's models.
    ``class Memory(Model, plain="size")`` lets a plain value stand for the part, as if
    it had that key alone.
    """

    model_fields = _Keys()
    plain_key: ClassVar[str | None] = None

    def __init_subclass__(cls, *, plain: str | None = None) -> None:
        super().__init_subclass__()
        cls.plain_key = plain

    def __init__(self, **given: Any) -> None:
        try:
            _fill(self, given)
        except Wrong as wrong:
            raise spec_error(wrong, given) from wrong

    @property
    def model_fields_set(self) -> frozenset[str]:
        """The fields that were given, by their names; the others are by default."""
        given: frozenset[str] = self.__dict__["_given"]
        return given

    @classmethod
    def model_validate(cls, data: Any) -> Self:
        """One made from plain data. Raises SpecError."""
        try:
            return cls.model_read(data)
        except Wrong as wrong:
            raise spec_error(wrong, data) from wrong

    @classmethod
    def model_read(cls, data: Any) -> Self:
        """The same. Raises `Wrong`."""
        if isinstance(data, cls):
            return data
        try:
            whole = cls.model_widened(data)
        except ValueError as error:
            raise refused(data, str(error)) from error
        made = cls.__new__(cls)
        _fill(made, whole)
        return made

    @classmethod
    def model_widened(cls, data: Any) -> Any:
        """The keys and values that data stands for. Raises ValueError."""
        whole = data is None or isinstance(data, (Mapping, Model))
        return data if cls.plain_key is None or whole else {cls.plain_key: data}

    @classmethod
    def model_construct(cls, **values: Any) -> Self:
        """One of these values, which are not checked."""
        made = cls.__new__(cls)
        defaults = {
            name: key.default for name, key in keys(cls).items() if not key.required
        }
        made.__dict__.update(defaults | values, _given=frozenset(values))
        return made

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Self:
        """The same with other values, which are not checked."""
        made = type(self).__new__(type(self))
        given = self.model_fields_set | (update or {}).keys()
        made.__dict__.update({**self.__dict__, **(update or {}), "_given": given})
        return made

    def model_dump(
        self, *, exclude: Collection[str] = (), exclude_defaults: bool = False
    ) -> dict[str, Any]:
        """Plain data, as JSON has it; sizes are text."""
        return written_fields(self, lean=exclude_defaults, exclude=exclude)


def _fill(made: Model, data: Any) -> None:
    fill(made, data, only_known=True)
    made.__dict__["_given"] = frozenset(data)
