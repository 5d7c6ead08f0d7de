"""The tiny image's folder, how it is built, and images that lie."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qemuctl.errors import ImageError, SpecError
from qemuctl.image import build_tiny, qemu_img, tiny, tiny_image
from qemuctl.image import recipe as image_recipe
from qemuctl.image.overlay import check_format, create_disk, create_overlay
from qemuctl.paths import VmPaths
from qemuctl.process import Identity
from qemuctl.registry.disks.disk_files import make_disks
from qemuctl.registry.disks.resolve import image_of
from qemuctl.spec import Boot, Disk, Spec

BUILD = """#!/bin/sh
echo stage one
echo stage two
echo kernel >"$1/kernel"
echo initrd >"$1/initrd"
echo built >>"$(dirname "$0")/../count"
"""
QCOW2 = b"QFI\xfb"

Recipe = Callable[[str], Path]


@pytest.fixture
def recipe(tmp_path: Path, bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """`recipe(script)`: a recipe that builds by this script."""
    folder = tmp_path / "recipes" / "tiny"
    folder.mkdir(parents=True)
    (folder / "image.yaml").write_text("cmdline: console=ttyS0 quiet\n")

    def write(script: str) -> Path:
        (folder / "build").write_text(script)
        (folder / "build").chmod(0o755)
        return folder

    write(BUILD)
    for module in (image_recipe, tiny_image):
        monkeypatch.setattr(module, "recipes", lambda: folder.parent)
    return write


def builds(folder: Path) -> int:
    count = folder.parent / "count"
    return len(count.read_text().split()) if count.exists() else 0


def test_the_real_recipe_is_found_from_here() -> None:
    image = tiny()
    assert "console=ttyS0" in (image.manifest.cmdline or "")
    assert "tsc_khz" in (image.manifest.cmdline_microvm or "")
    assert image.folder.name.startswith("tiny-")


def test_asking_builds_nothing(recipe: Recipe, bare_home: Path) -> None:
    image = tiny()
    assert not image.present
    assert image.manifest.cmdline == "console=ttyS0 quiet"
    assert not bare_home.exists()


def test_the_folder_changes_with_each_part_of_the_recipe(
    recipe: Recipe, tmp_path: Path
) -> None:
    folder = recipe(BUILD)
    seen = [tiny().folder]
    assert tiny().folder == seen[0]
    (folder / "init").write_text("a")
    seen.append(tiny().folder)
    (folder / "init").write_text("b")
    seen.append(tiny().folder)
    (folder / "init").rename(folder / "unit")
    seen.append(tiny().folder)
    kernel = tmp_path / "vmlinuz"
    for content in (b"1", b"2"):
        kernel.write_bytes(content)
        seen.append(tiny(kernel).folder)
    assert len(set(seen)) == len(seen)


def test_homes_that_share_a_cache_by_a_link_have_one_image(
    recipe: Recipe, bare_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its path is part of a template's key: each would make templates of its own."""
    found = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cache").symlink_to(tmp_path / "shared")
        monkeypatch.setenv("QEMUCTL_HOME", str(tmp_path / name))
        found.add(tiny().folder)
    assert len(found) == 1


def test_a_kernel_that_is_missing_is_named(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="the kernel does not exist") as caught:
        tiny(tmp_path / "nowhere" / "vmlinuz")
    assert str(tmp_path / "nowhere") in (caught.value.hint or "")


async def test_it_is_built_once_with_its_stages_told(recipe: Recipe) -> None:
    folder = recipe(BUILD)
    stages: list[str] = []
    image = await build_tiny(progress=stages.append)
    assert stages == ["one", "two"]
    assert image.present
    assert (image.kernel or Path()).read_text() == "kernel\n"
    assert await build_tiny(progress=stages.append) == image
    assert builds(folder) == 1
    assert leftovers(image.folder) == []


def leftovers(folder: Path) -> list[str]:
    if not folder.parent.exists():
        return []
    return sorted(
        p.name for p in folder.parent.iterdir() if p.name not in (".lock", folder.name)
    )


async def test_several_at_once_build_it_once(recipe: Recipe) -> None:
    folder = recipe(BUILD)
    images = await asyncio.gather(*(build_tiny() for _ in range(4)))
    assert len(set(images)) == 1
    assert builds(folder) == 1
    assert leftovers(images[0].folder) == []


async def test_a_failing_recipe_leaves_nothing_and_has_its_words(
    recipe: Recipe,
) -> None:
    recipe("#!/bin/sh\necho half >\"$1/kernel\"\necho 'no such package' >&2\nexit 3\n")
    with pytest.raises(ImageError, match="no such package") as caught:
        await build_tiny()
    assert caught.value.returncode == 3
    assert not tiny().present
    assert leftovers(tiny().folder) == []


async def test_a_recipe_that_fails_can_be_tried_again(recipe: Recipe) -> None:
    recipe("#!/bin/sh\nexit 1\n")
    with pytest.raises(ImageError):
        await build_tiny()
    recipe(BUILD)
    assert (await build_tiny()).present


async def test_a_cancelled_build_ends_its_processes_and_leaves_nothing(
    recipe: Recipe, tmp_path: Path, until: Any
) -> None:
    started = tmp_path / "pid"
    recipe(f"#!/bin/sh\necho $$ >'{started}'\necho stage begun\nexec sleep 60\n")
    begun = asyncio.Event()
    task = asyncio.create_task(build_tiny(progress=lambda _stage: begun.set()))
    async with asyncio.timeout(60):
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    pid = int(started.read_text())
    until(lambda: Identity.of(pid) is None)
    assert not tiny().present
    assert leftovers(tiny().folder) == []


def test_an_unknown_image_is_refused_with_what_there_is(bare_home: Path) -> None:
    with pytest.raises(ImageError, match="no such image: debian") as caught:
        image_of(Spec(name="x", image="debian"))
    assert caught.value.hint == "get it with: qemuctl image build debian"
    with pytest.raises(ImageError) as caught:
        image_of(Spec(name="x", image="debian-13"))
    assert caught.value.hint == "get it with: qemuctl image pull debian-13"
    with pytest.raises(ImageError) as caught:
        image_of(Spec(name="x", image="tinny"))
    assert caught.value.hint == "did you mean tiny?"


def test_only_tiny_is_built(recipe: Recipe, tmp_path: Path) -> None:
    assert image_of(Spec(name="x", image="./disk.qcow2")) is None
    assert image_of(Spec(name="x")) is None
    assert image_of(Spec(name="x", image="tiny")) == tiny()
    own = Boot(kernel=str(tmp_path / "k"), initrd=str(tmp_path / "i"))
    assert image_of(Spec(name="x", image="tiny", boot=own)) is None


@pytest.fixture
def disguised(tmp_path: Path) -> Path:
    """A raw image whose guest wrote a qcow2 header that names a file of the host."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret".ljust(65536, b"."))
    path = tmp_path / "disk.raw"
    qemu_img.run(
        "create", "-q", "-f", "qcow2", "-b", f"file:{secret}", "-F", "raw",
        f"file:{path}",
    )  # fmt: skip
    assert path.read_bytes()[:4] == QCOW2
    return path


def test_a_raw_image_with_a_qcow2_header_is_refused(
    disguised: Path, tmp_path: Path
) -> None:
    with pytest.raises(ImageError, match="said to be raw, but it has a qcow2 header"):
        check_format(disguised, "raw")
    overlay = tmp_path / "overlay.qcow2"
    with pytest.raises(ImageError, match="qcow2 header"):
        create_overlay(overlay, disguised, "raw")
    assert not overlay.exists()


async def test_an_image_is_what_its_name_says_and_never_guessed(
    disguised: Path, tmp_path: Path
) -> None:
    paths = VmPaths(state=tmp_path / "vm", run=tmp_path / "run")
    with pytest.raises(ImageError, match="qcow2 header"):
        await make_disks(Spec(name="x", image=str(disguised)), paths, None)
    nameless = tmp_path / "disk.img"
    nameless.touch()
    with pytest.raises(SpecError, match="the format of"):
        await make_disks(Spec(name="x", image=str(nameless)), paths, None)


def test_a_raw_image_that_is_said_to_be_qcow2_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"QFI", bytes(1024)):
        path = tmp_path / "disk"
        path.write_bytes(content)
        check_format(path, "raw")
        with pytest.raises(ImageError, match="not a qcow2 image"):
            check_format(path, "qcow2")


@pytest.mark.parametrize("name", ["plain", "a:b", "a,b", "q\"uo'te", "ü x", "nbd:x:1"])
def test_disks_and_overlays_have_any_name(tmp_path: Path, name: str) -> None:
    base = tmp_path / f"{name}.base"
    create_disk(base, "qcow2", 1 << 20)
    overlay = tmp_path / name
    create_overlay(overlay, base, "qcow2")
    found = qemu_img.info(overlay, "qcow2")
    assert found["virtual-size"] == 1 << 20
    assert found["backing-filename-format"] == "qcow2"
    assert found["full-backing-filename"].removeprefix("file:") == str(base)
    assert sorted(tmp_path.iterdir()) == sorted([base, overlay])


async def test_a_disk_that_exists_is_never_made_again(tmp_path: Path) -> None:
    paths = VmPaths(state=tmp_path, run=tmp_path / "run")
    spec = Spec(name="x", disks=(Disk(size=1 << 20, format="raw"),))
    await make_disks(spec, paths, None)
    disk = paths.disk(0, "raw")
    disk.write_bytes(b"mine")
    await make_disks(spec, paths, None)
    assert disk.read_bytes() == b"mine"


def test_a_disk_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        create_disk(tmp_path / "disk", "qcow2", 1 << 62)
    assert caught.value.stderr
    assert caught.value.argv[1] == "create"
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_image_names_what_bars_the_way(tmp_path: Path) -> None:
    missing = tmp_path / "no" / "disk.qcow2"
    with pytest.raises(ImageError, match="does not exist") as caught:
        check_format(missing, "qcow2")
    assert str(tmp_path / "no") in (caught.value.hint or "")
    with pytest.raises(ImageError, match="not a file"):
        check_format(tmp_path, "raw")


def test_a_folder_that_bars_the_way_is_named_to_an_ordinary_user(
    tmp_path: Path,
) -> None:
    barred = tmp_path / "barred"
    barred.mkdir()
    (barred / "disk.raw").touch()
    barred.chmod(0)
    code = """
import os, sys
from pathlib import Path
from qemuctl.errors import ImageError
from qemuctl.image.overlay import check_format
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    check_format(Path(sys.argv[1]), "raw")
except ImageError as error:
    print(error); print(error.hint)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, barred / "disk.raw"],
        capture_output=True,
        text=True,
        check=True,
    )
    barred.chmod(0o700)
    assert "cannot read the disk image" in done.stdout
    assert "the folder does not let you in: " in done.stdout
