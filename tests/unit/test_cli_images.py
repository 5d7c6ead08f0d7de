"""The command `image` where no server and no guest is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qemuctl.cli.app import app
from qemuctl.image.catalog import catalog
from qemuctl.image.names import in_catalog
from tests.unit.stores import add_image


def completed(*words: str) -> list[str]:
    """What the shell offers for the last word."""
    done = subprocess.run(
        [Path(sys.executable).parent / "qemuctl"],
        env=os.environ
        | {
            "_QEMUCTL_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(["qemuctl", *words]),
            "COMP_CWORD": str(len(words)),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split()


def write_catalog(home: Path, text: str) -> None:
    own = home / "config" / "catalog.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(text)


def test_names_of_the_catalogue_complete_what_is_pulled(bare_home: Path) -> None:
    write_catalog(bare_home, 'debian-mine:\n  url: http://h/x\n"debian-2": # two\n')
    found = completed("image", "pull", "debian-")
    assert {"debian-13", "debian-mine", "debian-2"} <= set(found)
    assert all(name.startswith("debian-") for name in found)


def test_the_names_that_complete_are_those_of_the_catalogue(bare_home: Path) -> None:
    write_catalog(bare_home, "mine:\n  url: http://h/x\n")
    assert in_catalog() == sorted(catalog())


def test_a_broken_catalogue_is_no_obstacle_to_completion(bare_home: Path) -> None:
    write_catalog(bare_home, "\xff: [\n")
    assert "debian-13" in in_catalog()


def test_recipes_complete_what_is_built(bare_home: Path) -> None:
    assert completed("image", "build", "") == ["tiny", "debian"]
    assert completed("image", "build", "d") == ["debian"]


@pytest.mark.parametrize("command", ["verify", "rm"])
def test_images_of_the_store_complete(bare_home: Path, command: str) -> None:
    for name in ("web", "work", "other"):
        add_image(name)
    assert completed("image", command, "w") == ["web", "work"]


def test_completion_loads_nothing_that_takes_long(bare_home: Path) -> None:
    code = (
        "import sys; from qemuctl.cli import images, parameters;"
        "parameters.complete_images(''); images.complete_catalog('');"
        "images.complete_recipes(''); print({'pydantic', 'yaml', 'rich', 'httpx'}"
        " & set(sys.modules))"
    )
    argv = [sys.executable, "-c", code]
    assert subprocess.check_output(argv, text=True) == "set()\n"


@pytest.mark.parametrize("checksum", ["what", "0" * 40, f"sha512:{'0' * 128}"])
def test_a_checksum_that_is_none_is_refused_with_what_to_give(
    bare_home: Path, checksum: str
) -> None:
    done = CliRunner().invoke(
        app, ["image", "pull", "http://127.0.0.1:1/x", "--sha256", checksum]
    )
    error = done.exception
    assert str(error).startswith("--sha256: ")
    assert "64 digits" in (getattr(error, "hint", None) or "")
    assert not bare_home.exists()


@pytest.mark.parametrize("suite", ["", "../x", "-x"])
def test_a_suite_that_can_be_none_is_named(bare_home: Path, suite: str) -> None:
    done = CliRunner().invoke(app, ["image", "build", "debian", f"--suite={suite}"])
    assert "not the name of a release" in str(done.exception)
    assert not bare_home.exists()
