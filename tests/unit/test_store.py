"""The image store: whole images, found by their names, and what crashes leave."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qemuctl.errors import ImageError, SpecError
from qemuctl.image import store, tiny
from qemuctl.image.manifest import FILE, Manifest, read_manifest, write_manifest
from qemuctl.paths import cache_home, images_dir, private_dir
from qemuctl.registry.disks.resolve import image_of
from qemuctl.registry.prune import prune, to_prune
from qemuctl.spec import Boot, Spec
from tests.unit.disk_images import MIB
from tests.unit.stores import add_image, add_vm, everything

pytestmark = pytest.mark.usefixtures("bare_home")

HALF = """
import sys
from qemuctl.image import store
with store.fresh("half") as folder:
    (folder / "disk.qcow2").write_text("half")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def half(processes: list[subprocess.Popen[Any]]) -> subprocess.Popen[Any]:
    """A process that has begun to add an image, and goes no further."""
    process = subprocess.Popen(
        [sys.executable, "-c", HALF], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    processes.append(process)
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def test_an_image_is_there_once_it_is_whole() -> None:
    with store.fresh("web") as folder:
        (folder / "disk.qcow2").write_text("disk")
        store.describe(folder, Manifest(format="qcow2", virtual_size=MIB))
        assert store.names() == []
        with pytest.raises(ImageError, match="no such image: web"):
            store.find("web")
    image = store.find("web")
    assert store.names() == ["web"]
    assert image.disk == images_dir() / "web" / "disk.qcow2"
    assert (image.kernel, image.initrd) == (None, None)
    assert image.manifest.virtual_size == MIB
    assert image.present


def test_an_image_and_its_folder_are_safe_from_others_and_from_accidents() -> None:
    image = add_image("web", kernel="kernel")
    assert image.folder.stat().st_mode & 0o777 == 0o700
    for file in image.folder.iterdir():
        assert file.stat().st_mode & 0o777 == 0o444


def test_an_exception_on_the_way_leaves_nothing() -> None:
    def fail() -> None:
        with store.fresh("web") as folder:
            (folder / "disk.qcow2").write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert everything(images_dir()) == []
    assert add_image("web").present


def test_what_a_killed_process_left_is_found_and_pruned(
    half: subprocess.Popen[Any],
) -> None:
    assert store.names() == []
    assert store.leftovers() == []
    assert to_prune() == []
    half.send_signal(signal.SIGKILL)
    half.wait()
    assert store.names() == []
    (left,) = to_prune()
    assert store.leftovers() == [left.path]
    assert left.used > 0
    prune([left])
    assert everything(images_dir()) == []


def test_what_a_killed_process_left_bars_no_name(half: subprocess.Popen[Any]) -> None:
    half.kill()
    half.wait()
    add_image("half")
    assert store.names() == ["half"]


def test_two_of_one_name_at_once_are_one_image_and_one_error() -> None:
    def both() -> None:
        with store.fresh("web") as first:
            (first / "disk.raw").write_text("first")
            store.describe(first, Manifest(format="raw"))
            with store.fresh("web") as second:
                (second / "disk.raw").write_text("second")
                store.describe(second, Manifest(format="raw"))

    with pytest.raises(ImageError, match="exists already: web"):
        both()
    assert (store.find("web").disk or Path()).read_text() == "second"
    assert everything(images_dir())[1:] == sorted((images_dir() / "web").iterdir())


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", ".new-x-1", "a b", "ü", "x" * 300, "-x"]
)
def test_a_name_that_is_no_name_is_refused_and_finds_nothing(name: str) -> None:
    add_image("x")
    with pytest.raises(SpecError, match="name"), store.fresh(name):
        pytest.fail("it was taken")
    for call in (store.find, store.remove):
        with pytest.raises(ImageError, match="no such image"):
            call(name)
    assert store.names() == ["x"]


@pytest.mark.parametrize("name", ["web", "tiny"])
def test_a_name_that_is_taken_is_refused_with_a_way_out(name: str) -> None:
    add_image("web", b"old")
    with pytest.raises(ImageError, match=f"exists already: {name}") as caught:
        add_image(name)
    assert "--name" in (caught.value.hint or "")
    assert f"qemuctl image rm {name}" in (caught.value.hint or "")
    assert store.names() == ["web"]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("format: qcow2\nvirtual_size: much\n", 2, "virtual_size"),
        ("format: qcow2\nuser: a\ncolour: red\n", 3, "colour"),
        ("format: qcow2\nuser: a\n- x\n", 3, "not valid YAML"),
        ("format: vmdk\n", 1, "format"),
    ],
)
def test_a_damaged_description_is_named_with_its_line(
    text: str, line: int, reason: str
) -> None:
    file = add_image("web").folder / FILE
    file.chmod(0o600)
    file.write_text(text)
    with pytest.raises(ImageError, match="description is damaged") as caught:
        store.find("web")
    assert f"{file}:{line}: " in str(caught.value)
    assert reason in str(caught.value)
    file.unlink()
    with pytest.raises(ImageError, match=f"cannot be read: {file}"):
        store.find("web")


def test_a_damaged_image_can_be_removed_and_does_not_hide_the_others() -> None:
    add_image("good")
    (add_image("bad").folder / FILE).unlink()
    assert store.names() == ["bad", "good"]
    store.remove("bad")
    assert everything(images_dir())[1:] == sorted((images_dir() / "good").iterdir())


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("wev", "did you mean web?"),
        ("tinny", "did you mean tiny?"),
        ("debian-13", "get it with: qemuctl image pull debian-13"),
        ("debian", "get it with: qemuctl image build debian"),
        ("zzzzzzzz", "qemuctl image ls --available shows all"),
    ],
)
def test_an_unknown_image_has_what_was_meant_or_how_it_is_got(
    name: str, hint: str
) -> None:
    add_image("web")
    with pytest.raises(ImageError, match=f"no such image: {name}") as caught:
        store.find(name)
    assert (caught.value.hint or "").startswith(hint)


def test_a_users_own_catalogue_is_known_and_a_broken_one_is_no_obstacle(
    bare_home: Path,
) -> None:
    own = bare_home / "config" / "catalog.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("mine:\n  url: http://127.0.0.1/mine.qcow2\n")
    with pytest.raises(ImageError) as caught:
        store.find("mine")
    assert caught.value.hint == "get it with: qemuctl image pull mine"
    own.write_text("mine: [\n")
    with pytest.raises(ImageError, match="no such image: mine"):
        store.find("mine")


@pytest.mark.parametrize(
    "source",
    [
        "/a: b/ünï #1.qcow2", "no", "null", "- x", "'", "  two  spaces  ",
        "/x  y" * 60, "a\x85b\u2028c", "{", "1e3", "%x", "@y",
    ],
)  # fmt: skip
def test_a_description_says_what_was_put_into_it(tmp_path: Path, source: str) -> None:
    for size in (0, 512, MIB, MIB + 512, 10**13 + 1):
        manifest = Manifest(
            source=source, format="raw", virtual_size=size, user=source, cmdline="",
            cloud_init=True, memory=384 * MIB,
        )  # fmt: skip
        path = tmp_path / f"{size}.yaml"
        write_manifest(path, manifest)
        assert read_manifest(path) == manifest


def test_a_removed_image_is_gone_and_a_removal_cut_short_is_pruned() -> None:
    image = add_image("web")
    image.folder.rename(images_dir() / f".removed-web-{2**22 + 1}")
    assert store.names() == []
    prune(to_prune())
    assert everything(images_dir()) == []
    add_image("web")
    store.remove("web")
    assert everything(images_dir()) == []
    with pytest.raises(ImageError, match="no such image: web"):
        store.remove("web")


def is_free(mode: int) -> bool:
    fd = os.open(images_dir() / ".lock", os.O_RDWR)
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def test_while_disks_are_made_from_images_none_is_removed() -> None:
    with store.steady():
        with store.steady():
            assert is_free(fcntl.LOCK_SH)
        assert not is_free(fcntl.LOCK_EX)
        with pytest.raises(ImageError, match="another command is making a VM's disks"):
            with store.steady(alone=True):
                pass
    with store.steady(alone=True):
        assert not is_free(fcntl.LOCK_SH)
    assert is_free(fcntl.LOCK_EX)


def test_pruning_takes_old_tiny_images_and_no_image_of_like_name() -> None:
    private_dir(cache_home() / "images")
    current = tiny().folder
    old = current.with_name("tiny-0123456789ab")
    for folder in (current, old):
        folder.mkdir()
    add_image(old.name)
    found = to_prune()
    assert [item.path for item in found] == [old]
    prune(found)
    assert store.names() == [old.name]
    assert list(current.parent.iterdir()) == [current]


def test_the_tiny_image_with_a_vms_own_kernel_is_not_pruned(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_text("kernel")
    spec = Spec(name="x", image="tiny", boot=Boot(kernel=str(kernel)))
    image = image_of(spec)
    assert image is not None
    private_dir(image.folder)
    add_vm("x", image="tiny", boot=spec.boot)
    assert to_prune() == []


def test_what_a_broken_build_or_removal_of_tiny_left_is_pruned() -> None:
    folder = private_dir(cache_home() / "images")
    for name in (".building-abc", f".removed-tiny-{2**22 + 1}"):
        (folder / name).mkdir()
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a build goes on
        assert [item.path.name[:8] for item in to_prune()] == [".removed"]
    prune(to_prune())
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_images_are_unused_until_a_vm_or_a_kept_disk_needs_them() -> None:
    for name in ("root", "idle"):
        add_image(name)
    add_vm("x", image="root")
    assert [item.path.name for item in to_prune(unused=True)] == ["idle"]
    prune(to_prune(unused=True))
    assert store.names() == ["root"]
