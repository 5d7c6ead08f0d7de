"""Two homes of one user: neither reaches, ends or cleans what the other has."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guest.conftest import Home


@dataclass(frozen=True)
class Plain(Home):
    """A home as most have it: `HOME`, and nothing else set."""

    @property
    def env(self) -> dict[str, str]:
        moved = ("QEMUCTL_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR")
        kept = {key: os.environ[key] for key in os.environ if key not in moved}
        return kept | {"HOME": str(self.path)}


@pytest.fixture
def homes(tmp_path: Path, qemu: Path, sector: Path) -> Iterator[list[Plain]]:
    """Two homes, each with a VM called web that is off."""
    with contextlib.ExitStack() as stack:
        made = [Plain(tmp_path / name) for name in ("one", "two")]
        for home in made:
            home.path.mkdir()
            home.run(
                "create", "web", "--disk", f"path={sector},readonly=true",
                "--memory", "32M", "--nic", "none",
            )  # fmt: skip
            stack.callback(home.run, "kill", "web", check=None)
        yield made


def facts(home: Home) -> dict[str, object]:
    return dict(json.loads(home.text("info", "web", "--json")))


def state(home: Home) -> object:
    return json.loads(home.text("ls", "-a", "--json"))[0]["state"]


def test_two_homes_have_nothing_in_common(homes: list[Plain]) -> None:
    one, two = homes
    one.run("start", "web")
    sockets = Path(str(facts(one)["sockets"]))
    there = sorted(sockets.iterdir())
    assert "nothing to remove" in two.words("gc")
    assert sorted(sockets.iterdir()) == there
    two.run("start", "web")
    assert facts(two)["sockets"] != str(sockets)
    assert facts(one)["pid"] != facts(two)["pid"]
    one.run("stop", "web", "--timeout", "0.1")
    assert (state(one), state(two)) == ("off", "running")
    two.run("rm", "--force", "web")
    one.run("start", "web")
    assert state(one) == "running"


def test_a_copy_of_a_home_does_not_reach_the_vms_of_the_original(
    homes: list[Plain], tmp_path: Path
) -> None:
    one, copy = homes[0], Plain(tmp_path / "copy")
    one.run("start", "web")
    shutil.copytree(one.path, copy.path, ignore=shutil.ignore_patterns("events.in"))
    assert state(copy) == "off"
    copy.run("gc")
    copy.run("rm", "web")
    assert state(one) == "running"
    assert all(Path(str(facts(one)["sockets"])).iterdir())


def test_gc_removes_the_empty_run_folder_of_a_home_that_is_gone(
    homes: list[Plain],
) -> None:
    one, two = homes
    one.run("start", "web")
    folder = Path(str(facts(one)["sockets"])).parent
    one.run("kill", "web")
    shutil.rmtree(one.path)
    assert folder.exists()
    two.run("gc", "--dry-run")
    assert folder.exists()
    two.run("gc")
    assert not folder.exists()
