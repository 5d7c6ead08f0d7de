"""Images built from recipes: what a build leaves when it ends in a bad way."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qemuctl.errors import ImageError, SpecError, UsageError
from qemuctl.image import kept, store, tiny_image
from qemuctl.image import recipe as image_recipe
from qemuctl.image.manifest import FILE
from qemuctl.image.recipe import build
from qemuctl.image.verify import verify
from qemuctl.paths import cache_home, images_dir
from qemuctl.process import Identity
from tests.unit.disk_images import MIB, qcow2
from tests.unit.stores import everything

Recipe = Callable[..., None]
# Makes an image out of one that the test made.
BUILD = """#!/bin/sh
cp "$(dirname "$0")/../disk" "$1/disk.qcow2"
echo kernel >"$1/kernel"
echo initrd >"$1/initrd"
echo "stage $*"
"""
# Children and all: one that obeys, one in the background that does not.
LONG = """#!/bin/sh
trap 'rm -f "$1/half"; exit 143' TERM
echo half >"$1/half"
sh -c 'trap "" TERM; while :; do sleep 0.1; done' &
echo $$ $! >'{pids}'
echo stage begun
while :; do sleep 0.1; done
"""
CHILD = """
import asyncio, sys
from pathlib import Path
from qemuctl.image import recipe, kept, tiny_image
recipe.recipes = tiny_image.recipes = lambda: Path(sys.argv[1])
kept.GRACE = 0.5
show = lambda stage: print(stage, flush=True)
if sys.argv[2] == "tiny":
    asyncio.run(recipe.build_tiny(progress=show))
else:
    asyncio.run(recipe.build(sys.argv[2], "web", progress=show))
"""


@pytest.fixture
def recipe(tmp_path: Path, bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """`recipe(script)`: the recipes tiny and debian build by this script."""
    folder = tmp_path / "recipes"
    qcow2(folder_made(folder) / "disk", bytes(MIB))

    def write(script: str) -> None:
        for name in ("tiny", "debian"):
            build = folder_made(folder / name) / "build"
            build.write_text(script)
            build.chmod(0o755)
            (folder / name / FILE).write_text("cmdline: console=ttyS0\n")

    write(BUILD)
    for module in (image_recipe, tiny_image):
        monkeypatch.setattr(module, "recipes", lambda: folder)
    return write


def folder_made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("name", ["debian", "tiny"])
async def test_a_killed_build_ends_and_the_next_one_begins_at_once(
    recipe: Recipe,
    tmp_path: Path,
    processes: list[subprocess.Popen[Any]],
    until: Any,
    name: str,
) -> None:
    file = tmp_path / "pids"
    recipe(LONG.format(pids=file))
    argv = [sys.executable, "-c", CHILD, str(tmp_path / "recipes"), name]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    processes.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    pids = [int(pid) for pid in file.read_text().split()]
    assert all(Identity.of(pid) for pid in pids)
    (half,) = tmp_path.rglob("half")
    process.send_signal(signal.SIGKILL)
    process.wait()
    recipe(BUILD)
    if name == "tiny":
        image = await image_recipe.build_tiny()
    else:
        image = await build(name, "web")
    assert image.present
    until(lambda: not any(Identity.of(pid) for pid in pids))
    assert not half.parent.exists()
    place = cache_home() / "images" if name == "tiny" else images_dir()
    assert {path.parent for path in everything(place)} == {place, image.folder}


async def test_a_cancelled_build_whose_children_do_not_obey_ends_too(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "GRACE", 0.2)
    file = tmp_path / "pids"
    stubborn = LONG.replace("trap 'rm -f \"$1/half\"; exit 143' TERM", "trap '' TERM")
    recipe(stubborn.format(pids=file))
    begun = asyncio.Event()
    task = asyncio.create_task(build("debian", "web", progress=lambda _: begun.set()))
    async with asyncio.timeout(60):
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    for pid in file.read_text().split():
        deadline = time.monotonic() + 5
        while Identity.of(int(pid)):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
    assert everything(images_dir()) == []


async def test_a_build_gets_its_status_and_no_input(recipe: Recipe) -> None:
    recipe("#!/bin/sh\nread -r x && echo some >&2\nkill -9 $$\n")
    with pytest.raises(ImageError, match="could not be built") as caught:
        await build("debian", "web")
    assert caught.value.returncode == 137
    assert everything(images_dir()) == []


@pytest.mark.parametrize("suite", ["", "../x", "a b", "-x", "Trixie", "a/b"])
async def test_a_suite_that_can_be_none_is_refused_before_anything_is_made(
    recipe: Recipe, bare_home: Path, suite: str
) -> None:
    with pytest.raises(UsageError, match="not the name of a release") as caught:
        await build("debian", "web", suite=suite)
    assert "trixie" in (caught.value.hint or "")
    assert not bare_home.exists()


@pytest.mark.parametrize("name", ["", "../x", "a b", "a/b", "x" * 300])
async def test_a_bad_name_is_refused_before_anything_is_made(
    recipe: Recipe, bare_home: Path, name: str
) -> None:
    with pytest.raises(SpecError, match="name"):
        await build("debian", name)
    assert not bare_home.exists()


async def test_what_boots_with_the_disk_is_verified_with_it(recipe: Recipe) -> None:
    stages: list[str] = []
    image = await build("debian", "web", suite="trixie", progress=stages.append)
    assert stages[0].endswith(" --suite trixie")
    assert sorted(image.manifest.files) == ["initrd", "kernel"]
    assert await build("debian", "web", suite="trixie") == image
    steps: list[tuple[int, int | None]] = []
    await verify(image, progress=lambda *step: steps.append(step))
    assert steps[-1][0] == steps[-1][1]
    kernel = image.folder / "kernel"
    kernel.chmod(0o600)
    kernel.write_text("other\n")
    with pytest.raises(ImageError, match=f"wrong sha256 checksum of {kernel}: expect"):
        await verify(image)
    kernel.unlink()
    with pytest.raises(ImageError, match="the image's kernel does not exist"):
        await verify(image)


async def test_an_older_description_has_its_disk_verified(recipe: Recipe) -> None:
    image = await build("debian", "web")
    about = image.folder / FILE
    about.chmod(0o600)
    begin, _, rest = about.read_text().partition("files:")
    rest = "\n".join(x for x in rest.splitlines()[1:] if not x.startswith(" "))
    about.write_text(begin + rest)
    image = store.find("web")
    assert image.manifest.files == {}
    (image.folder / "kernel").chmod(0o600)
    (image.folder / "kernel").write_text("other")
    await verify(image)
    assert image.disk is not None
    image.disk.chmod(0o600)
    os.truncate(image.disk, 100)
    with pytest.raises(ImageError, match="has changed"):
        await verify(image)
