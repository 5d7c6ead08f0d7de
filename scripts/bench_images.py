"""Images and files: making VMs, copying disks, pulling, copying into a guest."""

from __future__ import annotations

import asyncio
import http.server
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from bench_table import Row, compare, timed

import qemuctl
from qemuctl.copies.clone import clone
from qemuctl.image import store
from qemuctl.image.acquire import import_file, pull
from qemuctl.image.convert import convert
from qemuctl.paths import data_home
from qemuctl.registry.disks.disk_files import make_disks
from qemuctl.registry.removal import remove
from qemuctl.registry.vms import creating

QEMUCTL = str(Path(sys.executable).with_name("qemuctl"))
MIB = 1024 * 1024
IMAGE = 1024 * MIB  # of data that does not compress
DOWNLOAD = 512 * MIB
INTO_GUEST = 100 * MIB
# The start of the smallest program of this kind: one option, one model, YAML.
START = """
import asyncio, sys, typer, yaml
from dataclasses import asdict, dataclass
@dataclass
class Spec:
    name: str
def main(name: str = typer.Option()) -> None:
    asyncio.run(asyncio.sleep(0))
    yaml.safe_dump(asdict(Spec(name)))
sys.argv = ["start", "--name", "x"]
typer.run(main)
"""


def images(spec: qemuctl.Spec, runs: int) -> Iterator[Row]:
    """All rows about images; what they make is in one folder, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=data_home().parent) as name:
        folder = Path(name)
        random = folder / "random.raw"
        fill(random, IMAGE)
        asyncio.run(import_file(random, name="bench"))
        yield from making(folder, runs)
        yield converting(folder, random, runs)
        yield cloning(folder, runs)
        random.unlink()
        yield pulling(folder, runs)
        yield from asyncio.run(copying(spec, folder, runs))


def fill(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))


def stopwatch(work: Callable[[], object]) -> float:
    os.sync()  # what others have written must not be waited for by this one
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def awaited(work: Callable[[], Coroutine[Any, Any, object]]) -> float:
    return stopwatch(lambda: asyncio.run(work()))


def making(folder: Path, runs: int) -> Iterator[Row]:
    """A VM with an overlay on an image, as a command and as a call."""
    disk = store.find("bench").disk
    assert disk is not None
    numbers = count()

    def overlay() -> list[str]:
        backing = ["-b", f"file:{disk}", "-F", "raw"]
        return ["qemu-img", "create", "-q", "-f", "qcow2", *backing]

    def bare_command() -> float:
        target = folder / f"bare{next(numbers)}.qcow2"
        argv = [sys.executable, "-c", START]
        return timed(argv) + timed([*overlay(), os.fspath(target)])

    def command() -> float:
        name = f"made{next(numbers)}"
        elapsed = timed([QEMUCTL, "create", name, "--image", "bench"])
        remove(name)
        return elapsed

    def call() -> float:
        spec = qemuctl.Spec(name=f"made{next(numbers)}", image="bench")

        async def make() -> None:
            with creating(spec) as paths:
                await make_disks(spec, paths, store.find("bench"))

        elapsed = awaited(make)
        remove(spec.name)
        return elapsed

    def bare_call() -> float:
        target = folder / f"bare{next(numbers)}.qcow2"
        return timed([*overlay(), os.fspath(target)])

    name = "qemuctl create / start of Python + qemu-img create"
    yield compare(name, command, bare_command, 4 * runs, 1.3)
    yield compare("make a VM / qemu-img create", call, bare_call, 4 * runs)


def converting(folder: Path, source: Path, runs: int) -> Row:
    """1 GiB of data, raw to qcow2."""
    target = folder / "converted.qcow2"

    def ours() -> float:
        elapsed = awaited(
            partial(convert, source, target, source_format="raw", format="qcow2")
        )
        target.unlink()
        return elapsed

    def bare() -> float:
        os.sync()
        argv = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2"]
        elapsed = timed([*argv, os.fspath(source), os.fspath(target)])
        target.unlink()
        return elapsed

    return compare("convert 1 GiB / qemu-img convert", ours, bare, runs, 1.05)


def cloning(folder: Path, runs: int) -> Row:
    """A VM whose disk holds 1 GiB, copied whole."""
    spec = qemuctl.Spec(name="source", image="bench")
    with creating(spec) as paths:
        asyncio.run(make_disks(spec, paths, store.find("bench")))
    disk = qemuctl.paths.VmPaths.of("source").disk(0, "qcow2")
    target = folder / "cloned.qcow2"

    def ours() -> float:
        elapsed = awaited(partial(clone, "source", "copy"))
        remove("copy")
        return elapsed

    def bare() -> float:
        os.sync()
        argv = ["qemu-img", "convert", "-f", "qcow2", "-O", "qcow2"]
        elapsed = timed([*argv, os.fspath(disk), os.fspath(target)])
        target.unlink()
        return elapsed

    row = compare("full clone of 1 GiB / qemu-img convert", ours, bare, runs, 1.05)
    remove("source")
    return row


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files by sendfile(2): the server must not be what is measured."""

    protocol_version = "HTTP/1.1"

    def copyfile(self, source: Any, outputfile: Any) -> None:
        outputfile.flush()
        self.connection.sendfile(source)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    handler = partial(Quiet, directory=os.fspath(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def pulling(folder: Path, runs: int) -> Row:
    """A file from loopback into the store, its checksum known."""
    served = folder / "served"
    served.mkdir()
    fill(served / "disk.raw", DOWNLOAD)
    target = folder / "pulled.raw"
    with serving(served) as address:
        url = f"{address}/disk.raw"

        def ours() -> float:
            elapsed = awaited(partial(pull, url, name="pulled"))
            store.remove("pulled")
            return elapsed

        def bare() -> float:
            os.sync()
            elapsed = timed(["curl", "-sSf", "-o", os.fspath(target), url])
            elapsed += timed(["sha256sum", os.fspath(target)])
            target.unlink()
            return elapsed

        row = compare("pull 512 MiB / curl, sha256sum", ours, bare, runs, 1.1)
    shutil.rmtree(served)
    return row


async def copying(spec: qemuctl.Spec, folder: Path, runs: int) -> list[Row]:
    """100 MiB into a guest and out of it, by its agent, checksums compared."""
    source, back = folder / "into", folder / "back"
    fill(source, INTO_GUEST)
    into, out = [], []
    async with qemuctl.launch(spec) as vm:
        await vm.wait_ready()
        for _ in range(runs):
            started = time.perf_counter()
            await vm.files.put(source, "/tmp/copied")
            into.append(INTO_GUEST / 1e6 / (time.perf_counter() - started))
            started = time.perf_counter()
            await vm.files.get("/tmp/copied", back)
            out.append(INTO_GUEST / 1e6 / (time.perf_counter() - started))
            back.unlink()
            await vm.agent.run(["rm", "/tmp/copied"])
    subprocess.run(["sync"], check=True)
    return [
        Row("100 MiB into a guest by its agent", "MB/s", into),
        Row("100 MiB out of a guest by its agent", "MB/s", out),
    ]
