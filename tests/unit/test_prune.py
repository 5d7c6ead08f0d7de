"""What is pruned, and what of it somebody takes up in the meantime."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qemuctl.cli import output
from qemuctl.cli.app import app
from qemuctl.image.acquire import downloads
from qemuctl.image.part import Part
from qemuctl.paths import images_dir, private_dir
from qemuctl.registry.prune import prune, to_prune
from tests.unit.disk_images import MIB
from tests.unit.stores import add_image

pytestmark = pytest.mark.usefixtures("bare_home")
GONE = 2**22 + 1  # no process has this number
URL = "http://127.0.0.1/image"


@pytest.fixture
def broken() -> Part:
    """A download of 1 MiB that a crash left."""
    part = Part(private_dir(downloads()), URL)
    part.path.write_bytes(b"x" * MIB)
    part.path.with_suffix(".json").write_text(json.dumps({"url": URL, "etag": '"1"'}))
    part.path.with_suffix(".lock").touch()
    return part


@contextlib.contextmanager
def held(part: Part) -> Iterator[None]:
    """As long as a pull is at it."""
    with part.path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_a_broken_download_goes_as_a_whole(broken: Part) -> None:
    (item,) = to_prune()
    assert (item.what, item.path) == ("broken download", broken.path)
    assert item.used >= MIB
    assert prune([item]) == [item]
    assert list(downloads().iterdir()) == []


@pytest.mark.parametrize("suffix", [".part", ".json", ".new", ".lock"])
def test_each_file_of_a_download_goes_also_alone(suffix: str) -> None:
    alone = private_dir(downloads()) / f"{'a' * 32}{suffix}"
    alone.touch()
    (item,) = to_prune()
    assert item.path == alone
    assert list(downloads().iterdir()) == [alone]
    prune([item])
    assert list(downloads().iterdir()) == []


def test_a_download_that_goes_on_is_none_of_it(broken: Part) -> None:
    with held(broken):
        assert to_prune() == []


def test_a_download_that_was_taken_up_meanwhile_is_left_alone(broken: Part) -> None:
    found = to_prune()
    with held(broken):
        assert prune(found) == []
        assert broken.path.stat().st_size == MIB
    assert prune(found) == found


async def test_while_a_download_is_removed_nobody_takes_it_up(
    broken: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, free = broken.path.with_suffix(".lock"), []
    unlink = Path.unlink

    def asked(path: Path, missing_ok: bool = False) -> None:
        with lock.open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free.append(path)
            except BlockingIOError:
                pass
        unlink(path, missing_ok)

    found = to_prune()
    monkeypatch.setattr(Path, "unlink", asked)
    prune(found)
    assert free == []
    assert not lock.exists()


def invoke(*words: str) -> tuple[str, str]:
    output._as_objects = False  # a process has one command, and so one rule
    done = CliRunner().invoke(app, ["image", "prune", *words])
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def test_people_see_what_stayed(broken: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qemuctl.image.part._is_held", lambda _lock: False)
    with held(broken):
        table, words = invoke()
    assert table == ""
    assert words == f"not removed, in use or not yours: {broken.path}\n"


def test_people_see_what_it_is_its_size_and_what_it_gives(broken: Part) -> None:
    (private_dir(images_dir()) / f".removed-web-{GONE}").mkdir()
    add_image("idle")
    before = sorted(os.walk(downloads()))
    table, words = invoke("--all", "--dry-run")
    assert sorted(os.walk(downloads())) == before
    head, *rows = table.splitlines()
    assert head.split() == ["WHAT", "USED", "PATH"]
    assert [row.split("  ")[0] for row in rows] == [
        "half of an image", "broken download", "unused image",
    ]  # fmt: skip
    assert str(broken.path) in rows[1]
    assert "1M" in rows[1].replace("1.0M", "1M")
    used = sum(
        item["used"] for item in json.loads(invoke("-a", "--dry-run", "--json")[0])
    )
    assert "would be freed" in words
    assert used > MIB
    table, words = invoke("--all")
    assert len(table.splitlines()) == 4
    assert words.endswith("M freed\n")
    assert invoke() == ("", "nothing to remove\n")
