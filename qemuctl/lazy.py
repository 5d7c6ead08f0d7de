"""Names of a package that are loaded when first asked for (PEP 562).

A package gathers what its users need, but `qemuctl ls` must not wait for
what it does not use.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # typing takes milliseconds to import
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


def exports(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's ``__getattr__``: ``homes`` tells which module has a name, or is
    what is meant by it."""

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(homes[name])
        is_module = homes[name] == f"{package}.{name}"
        return module if is_module else getattr(module, name)

    return __getattr__
