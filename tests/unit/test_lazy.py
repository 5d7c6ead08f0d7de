"""Packages whose names are loaded when first asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "package",
    [
        "",
        ".cli",
        ".cmdline",
        ".guest",
        ".host",
        ".image",
        ".process",
        ".qmp",
        ".spec",
        ".vm",
    ],
)
def test_a_name_is_the_same_whatever_was_loaded_before(package: str) -> None:
    """A submodule of the same name would take the place of what it exports."""
    package = f"qemuctl{package}"
    code = f"""
import importlib, pkgutil, types
import {package} as package
for module in pkgutil.iter_modules(package.__path__):
    if not module.name.startswith("_"):
        importlib.import_module(f"{package}." + module.name)
for name in package.__all__:
    assert not isinstance(getattr(package, name), types.ModuleType), name
try:
    package.no_such_name
except AttributeError:
    print("good")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout == "good\n", done.stderr
