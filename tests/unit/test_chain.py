"""Backing files, found and judged before QEMU opens any of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuctl.errors import ImageError
from qemuctl.image import qemu_img
from qemuctl.image.chain import DEEPEST, chain, check_trusted, has_protocol
from qemuctl.image.files import rebase
from tests.unit.disk_images import content, digest, qcow2

ODD = "a, b: c ünï -x"


def make(path: Path, backing: str | None = None, format: str | None = "qcow2") -> Path:
    """A qcow2 file of 1 MiB with any name below it, there or not."""
    below = [] if backing is None else ["-u", "-b", backing, "-F", format or "raw"]
    qemu_img.run("create", "-q", "-f", "qcow2", *below, qemu_img.file(path), "1M")
    if backing is not None and format is None:
        # qemu-img no longer writes a name without its format; every reader skips
        # an extension that is unknown.
        raw = path.read_bytes()
        path.write_bytes(raw.replace(b"\xe2\x79\x2a\xca", b"\x12\x34\x56\x78", 1))
    return path


def test_the_layers_are_listed_from_the_top(tmp_path: Path) -> None:
    base = tmp_path / f"{ODD}.raw"
    base.write_bytes(os.urandom(4096).ljust(1 << 20, b"\0"))
    middle = make(tmp_path / f"{ODD}.mid", str(base), "raw")
    top = make(tmp_path / f"{ODD}.top", f"file:{middle}")
    layers = chain(top, "qcow2")
    assert [(layer.path, layer.format) for layer in layers] == [
        (top, "qcow2"), (middle, "qcow2"), (base, "raw"),
    ]  # fmt: skip
    assert {layer.virtual_size for layer in layers} == {1 << 20}
    assert layers[2].file_size == 1 << 20
    assert layers[2].used == base.stat().st_blocks * 512
    # It is what QEMU itself follows.
    assert qemu_img.run("map", "-f", "qcow2", qemu_img.file(top))


def test_a_relative_name_counts_from_the_folder_of_its_overlay(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    make(folder / "base.qcow2")
    make(folder / "a:b.qcow2")
    for name in ("base.qcow2", "./a:b.qcow2", "../folder/a:b.qcow2"):
        top = make(folder / "top.qcow2", name)
        assert chain(top, "qcow2")[1].path.samefile(folder / name)
        qemu_img.run("map", "-f", "qcow2", qemu_img.file(top))
        top.unlink()


def test_a_relative_name_marked_as_a_file_counts_from_nowhere(tmp_path: Path) -> None:
    make(tmp_path / "base.qcow2")
    top = make(tmp_path / "top.qcow2", "file:base.qcow2")
    with pytest.raises(ImageError, match="not a plain file: file:base"):
        chain(top, "qcow2")


@pytest.mark.parametrize(
    "name",
    [
        'json:{"driver":"null-co","size":1048576}',
        "nbd:127.0.0.1:1",
        "nbd+unix:///x?socket=/nonexistent",
        "http://127.0.0.1:1/disk.img",
        "fat:rw:/etc",
        "fat:/etc",
        "a:b.qcow2",
        "blkdebug::x",
        "file:relative",
    ],
)
def test_a_backing_name_that_is_no_files_is_refused(tmp_path: Path, name: str) -> None:
    top = make(tmp_path / "top.qcow2", name, "raw")
    with pytest.raises(ImageError) as caught:
        chain(top, "qcow2")
    assert name in str(caught.value)
    with pytest.raises(ImageError, match="not a plain file") as caught:
        check_trusted(top, "qcow2", inside=[Path("/")])
    assert "--trust-backing" in (caught.value.hint or "")
    layers = check_trusted(top, "qcow2", inside=[], trust_backing=True)
    assert [layer.remote for layer in layers] == [None, name]


@pytest.mark.parametrize(
    ("name", "protocol"),
    [("a:b", True), ("./a:b", False), ("/a:b", False), ("x/a:b", False), ("a", False)],
)
def test_a_colon_before_any_slash_makes_a_protocol(name: str, protocol: bool) -> None:
    assert has_protocol(name) == protocol


@given(st.text(alphabet="ab:/.", max_size=12))
def test_an_absolute_name_is_never_a_protocol(name: str) -> None:
    assert not has_protocol("/" + name)


def test_a_cyclic_chain_is_named_as_such(tmp_path: Path) -> None:
    names = [tmp_path / f"{n}, {ODD}.qcow2" for n in range(3)]
    make(names[2])
    make(names[1], str(names[2]))
    make(names[0], str(names[1]))
    qemu_img.run(
        "rebase", "-u", "-f", "qcow2", "-b", names[0], "-F", "qcow2",
        qemu_img.file(names[2]),
    )  # fmt: skip
    for name in names:
        with pytest.raises(ImageError, match="cyclic"):
            chain(name, "qcow2")


def test_a_file_below_itself_by_another_name_is_cyclic(tmp_path: Path) -> None:
    link = tmp_path / "link"
    top = make(tmp_path / "top.qcow2", str(link))
    link.symlink_to(top)
    with pytest.raises(ImageError, match="cyclic"):
        chain(top, "qcow2")


def test_a_missing_layer_is_named_with_its_overlay(tmp_path: Path) -> None:
    missing = tmp_path / "gone" / "base.qcow2"
    top = make(tmp_path / "top.qcow2", str(missing))
    with pytest.raises(ImageError) as caught:
        chain(top, "qcow2")
    assert str(caught.value) == (
        f"the backing file of {top}: the disk image does not exist: {missing}"
    )
    assert "qemuctl image rebase" in (caught.value.hint or "")
    assert str(missing.parent) in (caught.value.hint or "")


def test_a_layer_that_may_not_be_read_is_named_to_an_ordinary_user(
    tmp_path: Path,
) -> None:
    barred = tmp_path / "barred"
    barred.mkdir()
    top = make(tmp_path / "top.qcow2", str(make(barred / "base.qcow2")))
    barred.chmod(0)
    tmp_path.chmod(0o755)
    code = """
import os, sys
from pathlib import Path
from qemuctl.errors import ImageError
from qemuctl.image.chain import chain
folder = os.open(sys.argv[1], os.O_RDONLY)
os.fchdir(folder)
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    chain(Path(sys.argv[2]), "qcow2")
except ImageError as error:
    print(error); print(error.hint)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path, top],
        capture_output=True,
        text=True,
        check=True,
    )
    barred.chmod(0o700)
    assert "cannot read the disk image" in done.stdout
    assert "the folder does not let you in: " in done.stdout


def test_a_backing_file_without_a_format_is_never_guessed(tmp_path: Path) -> None:
    raw = tmp_path / "base.raw"
    raw.write_bytes(bytes(1 << 20))
    for base, kind in ((make(tmp_path / "base.qcow2"), "qcow2"), (raw, "raw")):
        top = make(tmp_path / f"on-{kind}.qcow2", str(base), None)
        with pytest.raises(ImageError, match="does not say which format") as caught:
            chain(top, "qcow2")
        assert "rebase --unsafe" in (caught.value.hint or "")
        layers = check_trusted(top, "qcow2", inside=[], trust_backing=True)
        assert layers[1].format == kind


def test_a_raw_layer_with_a_qcow2_header_is_refused(tmp_path: Path) -> None:
    disguised = make(tmp_path / "guest.raw", "/etc/shadow", "raw")
    top = make(tmp_path / "top.qcow2", str(disguised), "raw")
    for path, kind in ((disguised, "raw"), (top, "qcow2")):
        with pytest.raises(ImageError, match="said to be raw, but it has a qcow2"):
            chain(path, kind)


def test_a_format_that_we_do_not_follow_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "base.vmdk"
    qemu_img.run("create", "-q", "-f", "vmdk", base, "1M")
    top = make(tmp_path / "top.qcow2", str(base), "vmdk")
    with pytest.raises(ImageError, match="neither qcow2 nor raw, but vmdk"):
        chain(top, "qcow2")


def test_an_external_data_file_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    path = tmp_path / "disk.qcow2"
    qemu_img.run(
        "create", "-q", "-f", "qcow2", "-o", f"data_file={data}", str(path), "1M"
    )
    with pytest.raises(ImageError, match="is in another file"):
        chain(path, "qcow2")
    with pytest.raises(ImageError) as caught:
        check_trusted(path, "qcow2", inside=[tmp_path])
    assert "--trust-backing" in (caught.value.hint or "")
    assert len(check_trusted(path, "qcow2", inside=[], trust_backing=True)) == 1


def test_a_chain_has_an_end(tmp_path: Path) -> None:
    like = make(tmp_path / "like", "x").read_bytes()
    for number in range(DEEPEST + 2):
        make_named(tmp_path / str(number), str(number + 1), like)
    make(tmp_path / str(DEEPEST + 2))
    with pytest.raises(ImageError, match=f"more than {DEEPEST} backing files") as told:
        chain(tmp_path / "0", "qcow2")
    middle = tmp_path / str(DEEPEST // 2)
    assert told.value.hint is not None
    assert told.value.hint.endswith(f"qemuctl image rebase --flatten {middle}")
    assert len(chain(tmp_path / "2", "qcow2")) == DEEPEST + 1


async def test_the_deepest_chain_becomes_one_file(tmp_path: Path) -> None:
    like = make(tmp_path / "like", "x").read_bytes()
    for number in range(DEEPEST):
        make_named(tmp_path / str(number), str(number + 1), like)
    data = os.urandom(1 << 20)
    qcow2(tmp_path / str(DEEPEST), data)
    with pytest.raises(ImageError, match="more than"):
        await rebase(make_named(tmp_path / "top", "0", like), "qcow2", None, None)
    await rebase(tmp_path / "0", "qcow2", None, None)
    assert len(chain(tmp_path / "0", "qcow2")) == 1
    assert content(tmp_path / "0") == digest(data)
    # What was too deep is not, once that is done in the middle.
    await rebase(tmp_path / "top", "qcow2", None, None)
    assert content(tmp_path / "top") == digest(data)


def make_named(path: Path, backing: str, like: bytes) -> Path:
    """A copy of a file with another backing name, without a process for each."""
    raw = bytearray(like)
    offset = int.from_bytes(raw[8:16], "big")
    raw[16:20] = len(backing).to_bytes(4, "big")
    raw[offset : offset + len(backing)] = backing.encode()
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/null", "/"])
def test_a_backing_name_of_something_else_than_a_file_is_refused(
    tmp_path: Path, target: str
) -> None:
    top = make(tmp_path / "top.qcow2", target, "raw")
    with pytest.raises(ImageError, match=r"not a file|cannot read"):
        chain(top, "qcow2")


def test_a_pipe_in_a_chain_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    top = make(tmp_path / "top.qcow2", "pipe", "raw")
    with pytest.raises(ImageError, match="not a file"):
        chain(top, "qcow2")


def test_backing_files_elsewhere_need_trust(tmp_path: Path) -> None:
    store, other = tmp_path / "store", tmp_path / "other"
    store.mkdir()
    other.mkdir()
    base = make(other / "base.qcow2")
    top = make(store / "top.qcow2", str(base))
    assert len(check_trusted(top, "qcow2", inside=[store, other])) == 2
    with pytest.raises(ImageError, match="lies elsewhere") as caught:
        check_trusted(top, "qcow2", inside=[store])
    assert str(base) in str(caught.value)
    assert "--trust-backing" in (caught.value.hint or "")
    assert len(check_trusted(top, "qcow2", inside=[], trust_backing=True)) == 2


@pytest.mark.parametrize(
    "name", ["link.qcow2", "../other/base.qcow2", "dir/base.qcow2"]
)
def test_links_and_dots_do_not_lead_out(tmp_path: Path, name: str) -> None:
    store, other = tmp_path / "store", tmp_path / "other"
    store.mkdir()
    other.mkdir()
    make(other / "base.qcow2")
    (store / "link.qcow2").symlink_to(other / "base.qcow2")
    (store / "dir").symlink_to(other)
    top = make(store / "top.qcow2", name)
    with pytest.raises(ImageError, match="lies elsewhere"):
        check_trusted(top, "qcow2", inside=[store])


def test_the_image_itself_may_lie_anywhere(tmp_path: Path) -> None:
    top = make(tmp_path / "top.qcow2")
    assert check_trusted(top, "qcow2", inside=[]) == chain(top, "qcow2")
