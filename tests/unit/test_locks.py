"""What set-up installs is what pyproject.toml asks for; `scripts/lock` mends it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

TOP = Path(__file__).parents[2]
PYTHONS = [f"3.{minor}" for minor in range(11, 15)]
PIN = re.compile(r"^([\w.-]+)==(\S+)(?: ; (.*?))? \\$", re.MULTILINE)


def asked(python: str) -> Iterator[Requirement]:
    """What pyproject.toml wants on a Python."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    words = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["test"],
    ]
    for requirement in map(Requirement, words):
        if requirement.marker is None or holds(requirement.marker, python):
            yield requirement


def holds(marker: Marker, python: str) -> bool:
    return marker.evaluate({"python_version": python, "python_full_version": python})


def locked(name: str, python: str) -> dict[str, Version]:
    """What a lock has for a Python."""
    text = (TOP / "scripts" / name).read_text()
    return {
        name: Version(version)
        for name, version, marker in PIN.findall(text)
        if not marker or holds(Marker(marker), python)
    }


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", ["requirements.lock", "requirements-oldest.lock"])
def test_a_lock_has_what_the_project_asks_for(name: str, python: str) -> None:
    pins = locked(name, python)
    for requirement in asked(python):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("python", PYTHONS)
def test_the_oldest_are_the_lowest_that_are_allowed(python: str) -> None:
    pins = locked("requirements-oldest.lock", python)
    bounds: dict[str, list[Version]] = {}
    for requirement in asked(python):
        lowest = [
            Version(s.version) for s in requirement.specifier if s.operator == ">="
        ]
        assert lowest, f"no lower bound: {requirement}"
        bounds.setdefault(canonicalize_name(requirement.name), []).extend(lowest)
    assert {name: pins[name] for name in bounds} == {
        name: max(lowest) for name, lowest in bounds.items()
    }


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-oldest.lock"])
def test_each_version_has_its_hashes_and_no_place(name: str) -> None:
    text = (TOP / "scripts" / name).read_text()
    entries = re.split(r"^(?=\w)", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(PIN.findall(text))
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text
