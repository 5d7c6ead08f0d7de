"""The gateway to qemu-img: its words, its limits, its end."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuctl.errors import HostError, ImageError, ImageInUse
from qemuctl.image import qemu_img
from qemuctl.image.limits import LOOK, Limits
from qemuctl.image.progress import WHOLE

ODD = [
    "plain",
    "a:b",
    "a,b,,c",
    "-dash",
    "json:{x",
    "nbd:x:1",
    "q\"uo'te",
    "ünï x",
    "a\nb",
]


def running(folder: Path) -> list[psutil.Process]:
    """The qemu-img processes that have to do with a folder."""
    found = []
    for process in psutil.process_iter(["name", "cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or [])
        if process.info["name"] == "qemu-img" and str(folder) in words:
            found.append(process)
    return found


@pytest.fixture
def slow(tmp_path: Path) -> tuple[str, ...]:
    """The arguments of a conversion that takes minutes."""
    source = tmp_path / "source.raw"
    source.write_bytes(os.urandom(1 << 20) * 64)
    target = qemu_img.file(tmp_path / "target")
    return (
        "convert", "-r", "4M", "-f", "raw", "-O", "qcow2", qemu_img.file(source), target
    )  # fmt: skip


def test_a_failure_has_the_command_line_and_the_words(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"qemu-img info failed: .*No such file") as c:
        qemu_img.run("info", "-f", "raw", qemu_img.file(tmp_path / "none"))
    assert c.value.returncode == 1
    assert c.value.argv[1:] == ["info", "-f", "raw", f"file:{tmp_path}/none"]
    assert "No such file" in c.value.stderr


def test_a_host_without_qemu_img_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(HostError, match="qemu-img is not installed"):
        qemu_img.run("info")


@pytest.mark.parametrize("name", ODD)
async def test_a_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / name
    path.parent.mkdir()
    qemu_img.create(path, "qcow2", 1 << 20)
    assert qemu_img.info(path, "qcow2")["virtual-size"] == 1 << 20
    await qemu_img.job(
        "snapshot", "-c", name, "--image-opts", qemu_img.options(path, "qcow2")
    )
    assert qemu_img.info(path, "qcow2")["snapshots"][0]["name"] == name
    text = await qemu_img.job("check", "--output=json", qemu_img.alone(path, "qcow2"))
    assert '"format": "qcow2"' in text
    assert list(path.parent.iterdir()) == [path]


def test_a_relative_name_is_that_of_a_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    qemu_img.create(Path("nbd:x"), "raw", 512)
    assert (tmp_path / "nbd:x").stat().st_size == 512


def test_a_file_that_exists_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"mine")
    with pytest.raises(ImageError, match="there is a file already"):
        qemu_img.create(path, "raw", 512)
    assert path.read_bytes() == b"mine"


@pytest.fixture
def held(tmp_path: Path, processes: list[subprocess.Popen[Any]]) -> Path:
    """An image that another process has open for writing."""
    path = tmp_path / "held [by], some:one"
    qemu_img.create(path, "qcow2", 1 << 20)
    process = subprocess.Popen(
        ["qemu-io", "--image-opts", qemu_img.options(path, "qcow2")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    processes.append(process)
    assert process.stdout is not None
    assert process.stdout.read(8) == b"qemu-io>"
    return path


async def test_an_image_in_use_is_told_as_such(held: Path) -> None:
    arguments = ("resize", "-f", "qcow2", qemu_img.file(held), "2M")
    with pytest.raises(ImageInUse) as caught:
        qemu_img.run(*arguments)
    with pytest.raises(ImageInUse):
        await qemu_img.job(*arguments)
    with pytest.raises(ImageInUse):
        await qemu_img.job("check", qemu_img.alone(held, "qcow2"))
    assert caught.value.path == held
    assert str(caught.value) == f"is in use by another process: {held}"
    assert "running VM" in (caught.value.hint or "")
    assert "lock" in caught.value.stderr
    assert qemu_img.info(held, "qcow2")["virtual-size"] == 1 << 20


async def test_progress_comes_in_order_and_ends_whole(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(8 << 20))
    seen: list[tuple[int, int | None]] = []
    text = await qemu_img.job(
        "convert", "-f", "raw", "-O", "qcow2", qemu_img.file(source),
        qemu_img.file(tmp_path / "target"),
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert text.strip() == ""
    assert seen == sorted(seen)
    assert seen[-1] == (WHOLE, WHOLE)


@given(
    st.lists(st.integers(0, WHOLE), min_size=1, max_size=50),
    st.lists(st.integers(1, 40)),
    st.sampled_from([b"", b"words\n"]),
)
def test_progress_is_read_however_it_is_cut(
    values: list[int], cuts: list[int], more: bytes
) -> None:
    raw = b"".join(b"    (%.2f/100%%)\r" % (value / 100) for value in values) + more
    stream = asyncio.StreamReader(loop=asyncio.new_event_loop())
    seen: list[int] = []

    async def feed() -> str:
        left = raw
        watching = asyncio.ensure_future(
            qemu_img._watch(stream, lambda done, _total: seen.append(done))
        )
        for cut in cuts:
            stream.feed_data(left[:cut])
            left = left[cut:]
            await asyncio.sleep(0)
        stream.feed_data(left)
        stream.feed_eof()
        return await watching

    loop = stream._loop  # type: ignore[attr-defined]
    try:
        text = loop.run_until_complete(feed())
    finally:
        loop.close()
    assert text.strip() == more.decode().strip()
    assert seen[-1] == values[-1]
    assert set(seen) <= set(values)


async def test_a_job_that_is_cancelled_ends_its_process(
    slow: tuple[str, ...], tmp_path: Path
) -> None:
    begun = asyncio.Event()
    task = asyncio.create_task(
        qemu_img.job(*slow, progress=lambda done, _total: done and begun.set())
    )
    async with asyncio.timeout(60):
        await begun.wait()
        assert len(running(tmp_path)) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert running(tmp_path) == []


async def test_a_job_that_ignores_its_end_is_killed(
    slow: tuple[str, ...], tmp_path: Path, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu_img, "_KILL_AFTER", 0.2)
    task = asyncio.create_task(qemu_img.job(*slow))
    async with asyncio.timeout(60):
        await asyncio.to_thread(until, lambda: running(tmp_path))
        # A stopped process takes no SIGTERM.
        running(tmp_path)[0].send_signal(signal.SIGSTOP)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert running(tmp_path) == []


async def test_a_job_has_a_time_out(slow: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"qemu-img convert took longer than 0.2 s"):
        await qemu_img.job(*slow, timeout=0.2)
    assert running(tmp_path) == []
    with pytest.raises(ImageError, match=r"qemu-img convert took longer than 0.2 s"):
        qemu_img.run(*slow, timeout=0.2)
    assert running(tmp_path) == []


async def test_an_error_of_the_progress_is_passed_on(
    slow: tuple[str, ...], tmp_path: Path
) -> None:
    def fail(_done: int, _total: int | None) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError):
        await qemu_img.job(*slow, progress=fail)
    assert running(tmp_path) == []


def test_a_job_dies_with_its_process(
    slow: tuple[str, ...],
    tmp_path: Path,
    until: Any,
    processes: list[subprocess.Popen[Any]],
) -> None:
    code = """
import asyncio, sys
from qemuctl.image import qemu_img
asyncio.run(qemu_img.job(*sys.argv[1:]))
"""
    process = subprocess.Popen([sys.executable, "-c", code, *slow])
    processes.append(process)
    until(lambda: running(tmp_path))
    process.kill()
    process.wait()
    until(lambda: not running(tmp_path))


@pytest.mark.parametrize("name", ["a, b: c", "plain"])
async def test_words_name_a_file_as_its_user_does(tmp_path: Path, name: str) -> None:
    bad = tmp_path / f"{name}.qcow2"
    bad.write_bytes(b"no image")
    for arguments in (
        ["info", "-f", "qcow2", qemu_img.file(bad)],
        ["snapshot", "-c", "json:{x", "--image-opts", qemu_img.options(bad, "qcow2")],
        ["check", qemu_img.alone(bad, "qcow2")],
    ):
        with pytest.raises(ImageError) as caught:
            await qemu_img.job(*arguments)
        assert str(bad) in str(caught.value)
        for mark in ("file:", "json:", "driver"):
            assert mark not in str(caught.value)


def test_the_memory_that_a_hostile_file_may_take_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    # Clusters of 512 bytes: a table of 32 MiB, all of it a hole.
    entries, table = 1 << 22, 1024
    head = struct.pack(
        ">4sIQIIQIIQQIIQ",
        b"QFI\xfb", 2, 0, 0, 9, 128 << 30, 0, entries, table, 512, 1, 0, 0,
    )  # fmt: skip
    path.write_bytes(head)
    os.truncate(path, table + entries * 8)
    arguments = ("info", "--output=json", "-f", "qcow2", qemu_img.file(path))
    assert qemu_img.run(*arguments, limits=LOOK)
    _refused_for(arguments, Limits(48 << 20, 30), "more than 48 MiB of memory")


def test_the_output_that_a_hostile_file_may_take_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    # Data and holes in turn: a long map.
    with path.open("wb") as file:
        for number in range(64):
            file.seek(number << 17)
            file.write(b"x" * 4096)
    arguments = ("map", "--output=json", "-f", "raw", qemu_img.file(path))
    assert len(qemu_img.run(*arguments, limits=LOOK)) > 4096
    limits = Limits(1 << 30, 30, 1 << 10)
    _refused_for(arguments, limits, "it needed more than 0 MiB of output")


def _refused_for(arguments: tuple[str, ...], limits: Limits, words: str) -> None:
    with pytest.raises(ImageError) as caught:
        qemu_img.run(*arguments, limits=limits)
    assert words in str(caught.value)
    assert "made to do harm" in (caught.value.hint or "")


def test_processor_time_is_limited(slow: tuple[str, ...]) -> None:
    compressing = [word for word in slow if word not in ("-r", "4M")]
    compressing.insert(1, "-c")
    source = Path(slow[-2].removeprefix("file:"))
    # Few letters, for which zlib takes longest.
    letters = bytes(number & 7 for number in range(256))
    source.write_bytes(os.urandom(1 << 20).translate(letters) * 128)
    with pytest.raises(ImageError, match=r"it needed more than 1 s of processor time"):
        qemu_img.run(*compressing, limits=Limits(1 << 30, 1))
