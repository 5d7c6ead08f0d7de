"""Images pulled from a server: whole and checked, or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hostile_server import Answer, HostileServer, hostile_server

from qemuctl.errors import ImageError, SpecError
from qemuctl.image import fetch, qemu_img, store
from qemuctl.image.acquire import downloads, import_file, pull
from qemuctl.image.checksums import Checksum
from qemuctl.image.verify import verify
from qemuctl.paths import images_dir
from tests.unit.disk_images import MIB, ODD, digest, overlay, qcow2, raw
from tests.unit.stores import PATTERN, add_image, everything, with_data_file

DATA = PATTERN.ljust(MIB, b"\0")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, bare_home: Path) -> None:
    monkeypatch.setattr(fetch, "RETRY_DELAYS", (0.0, 0.0, 0.0))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
async def server() -> AsyncIterator[HostileServer]:
    async with hostile_server() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / ODD
    path.mkdir()
    return path


@pytest.fixture
def disk(folder: Path) -> Path:
    """A qcow2 image of 1 MiB."""
    return qcow2(folder / "disk.qcow2", DATA)


def serve(server: HostileServer, disk: Path, name: str = "web.qcow2") -> str:
    """Serves an image; gives its URL."""
    server.answer(Answer(body=disk.read_bytes()), path=f"/{name}")
    return f"http://127.0.0.1:{server.port}/{name}"


def serve_checksum(server: HostileServer, text: str) -> str:
    server.answer(Answer(body=text.encode()), path="/SUMS")
    return f"http://127.0.0.1:{server.port}/SUMS"


def write_catalog(home: Path, name: str, **entry: str) -> None:
    path = home / "config" / "catalog.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({name: entry}))


def nothing_came() -> bool:
    return store.names() == [] and everything(images_dir()) == []


async def test_a_url_is_pulled_and_its_image_is_what_the_server_has(
    server: HostileServer, disk: Path
) -> None:
    notes: list[str] = []
    url = serve(server, disk)
    image = await pull(url, note=notes.append)
    assert (image.name, image.disk) == ("web", images_dir() / "web/disk.qcow2")
    assert (image.disk or Path()).read_bytes() == disk.read_bytes()
    about = image.manifest
    assert (about.source, about.virtual_size, about.cloud_init) == (url, MIB, False)
    assert about.sha256 == digest(disk.read_bytes())
    assert notes == [f"nothing to verify it with: no checksum is known of {url}"]
    assert everything(downloads()) == []
    await verify(image)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_an_image_of_the_users_own_catalogue_is_verified_by_its_checksum_file(
    server: HostileServer, disk: Path, bare_home: Path, algorithm: str
) -> None:
    hexed = hashlib.new(algorithm, disk.read_bytes()).hexdigest()
    sums = serve_checksum(server, f"{'0' * len(hexed)}  other\n{hexed} *web.qcow2\n")
    write_catalog(
        bare_home, "mine", url=serve(server, disk), checksum=sums, user="me",
        memory="384M",
    )  # fmt: skip
    notes: list[str] = []
    about = (await pull("mine", note=notes.append)).manifest
    assert (about.user, about.cloud_init, about.memory) == ("me", True, 384 * MIB)
    assert about.sha256 == digest(disk.read_bytes())
    assert notes == []


@pytest.mark.parametrize(
    ("sums", "words"),
    [
        (f"{'0' * 64}  web.qcow2\n", "wrong sha256 checksum of http"),
        (f"{'0' * 64}  other.qcow2\n", "no sha256 or sha512 checksum of web.qcow2"),
        ("", "no sha256 or sha512 checksum of web.qcow2"),
        (None, "404"),
    ],
)
async def test_a_wrong_or_missing_checksum_lets_nothing_in(
    server: HostileServer, disk: Path, bare_home: Path, sums: str | None, words: str
) -> None:
    url = serve_checksum(server, sums or "")
    if sums is None:
        server.answer(Answer(status=404), path="/SUMS")
    write_catalog(bare_home, "mine", url=serve(server, disk), checksum=url)
    with pytest.raises(ImageError, match=words):
        await pull("mine")
    assert nothing_came()
    right = Checksum("sha256", digest(disk.read_bytes()))
    assert (await pull("mine", expected=right)).present


async def test_what_is_there_is_not_pulled_again(
    server: HostileServer, disk: Path
) -> None:
    url = serve(server, disk)
    first = await pull(url)
    asked = len(server.requests)
    assert await pull(url) == first
    right = Checksum("sha256", digest(disk.read_bytes()))
    assert await pull(url, expected=right) == first
    assert len(server.requests) == asked
    for algorithm, digits in (("sha256", 64), ("sha512", 128)):
        wrong = Checksum(algorithm, "0" * digits)  # type: ignore[arg-type]
        with pytest.raises(ImageError, match=f"web is there, but its {algorithm}"):
            await pull(url, expected=wrong)
    strong = hashlib.sha512(disk.read_bytes()).hexdigest()
    assert await pull(url, expected=Checksum("sha512", strong)) == first


async def test_two_at_once_download_once(server: HostileServer, disk: Path) -> None:
    url = serve(server, disk)
    go_on = asyncio.Event()
    server.answer(Answer(body=disk.read_bytes(), gate=go_on), path="/web.qcow2")
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        if "another command" in text:
            go_on.set()

    one, other = await asyncio.gather(pull(url), pull(url, note=note))
    assert one == other
    assert len(server.requests) == 1


async def test_one_that_waited_for_another_has_its_own_checksum_checked(
    server: HostileServer, disk: Path
) -> None:
    url = serve(server, disk)
    go_on = asyncio.Event()
    server.answer(Answer(body=disk.read_bytes(), gate=go_on), path="/web.qcow2")
    first = asyncio.create_task(pull(url))
    while not server.requests:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    wrong = Checksum("sha256", "0" * 64)
    second = asyncio.create_task(
        pull(url, expected=wrong, note=lambda _text: go_on.set())
    )
    image = await first
    with pytest.raises(ImageError) as caught:
        await second
    assert f"expected {wrong.digest}, got {image.manifest.sha256}" in str(caught.value)
    assert store.names() == ["web"]
    assert len(server.requests) == 1


async def test_a_password_reaches_the_server_and_nothing_else(
    server: HostileServer, disk: Path, folder: Path
) -> None:
    plain = serve(server, disk)
    notes: list[str] = []
    url = plain.replace("http://", "http://me:secret@")
    image = await pull(url, note=notes.append)
    assert "authorization" in server.requests[0]
    assert image.manifest.source == plain
    assert "secret" not in (image.folder / "image.yaml").read_text()
    assert notes
    assert "secret" not in str(notes)
    assert await pull(url) == image
    odd = serve(server, raw(folder / "x", b"odd"), "odd")
    with pytest.raises(ImageError, match="not a disk image") as caught:
        await pull(odd.replace("http://", "http://me:secret@"))
    assert "secret" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("name", ["web", "tiny"])
async def test_another_image_of_that_name_stays(
    server: HostileServer, disk: Path, name: str
) -> None:
    add_image("web", b"mine")
    url = serve(server, disk)
    with pytest.raises(ImageError, match=f"exists already: {name}"):
        await pull(url, name=name)
    assert server.requests == []
    assert (await pull(url, name="other")).name == "other"


@pytest.mark.parametrize("kind", ["backing", "data", "cut", "html"])
async def test_what_is_no_image_of_one_file_is_refused(
    server: HostileServer, disk: Path, bare_home: Path, kind: str
) -> None:
    if kind == "backing":
        shown = overlay(disk.with_name("top"), disk, "qcow2")
    elif kind == "data":
        shown = with_data_file(disk.with_name("meta"))
    else:
        shown = disk.with_name("other")
        half = disk.read_bytes()[:4096]
        shown.write_bytes(half if kind == "cut" else b"<html>sorry</html>")
    url = serve(server, shown)
    write_catalog(bare_home, "mine", url=url, format="qcow2")
    for what in ("mine", url):
        with pytest.raises(ImageError):
            await pull(what)
        assert everything(downloads()) == []
    assert nothing_came()


async def test_that_nothing_could_be_verified_is_told_of_what_came_only(
    server: HostileServer, folder: Path
) -> None:
    notes: list[str] = []
    with pytest.raises(ImageError):
        await pull(serve(server, raw(folder / "x", b"html")), note=notes.append)
    server.answer(Answer(status=404), path="/web.qcow2")
    with pytest.raises(ImageError, match="404"):
        await pull(f"http://127.0.0.1:{server.port}/web.qcow2", note=notes.append)
    assert notes == []


@pytest.mark.parametrize("end", [100, 4096, 300_000, 700_000])
async def test_a_truncated_image_is_refused_and_not_kept(
    server: HostileServer, folder: Path, end: int
) -> None:
    whole = qcow2(folder / "whole", os.urandom(MIB)).read_bytes()
    url = serve(server, raw(folder / "cut", whole[:end]))
    with pytest.raises(ImageError, match=rf"ends before .*: {url}") as caught:
        await pull(url)
    assert str(downloads()) not in f"{caught.value} {caught.value.hint}"
    assert everything(downloads()) == []
    assert nothing_came()


@pytest.mark.parametrize(
    "start",
    [
        b"\xfd7zXZ\0", b"\x1f\x8b\x08", b"(\xb5/\xfd", b"PK\x03\x04", b"BZh9",
        b"QED\0", b"WithoutFreeSpace", b"disk.ovf".ljust(257, b"\0") + b"ustar",
    ],
)  # fmt: skip
async def test_what_is_packed_or_no_known_image_is_not_taken_for_a_raw_one(
    server: HostileServer, folder: Path, start: bytes
) -> None:
    packed = raw(folder / "x", start.ljust(512, b"x"))
    with pytest.raises(ImageError, match="not a disk image, but") as caught:
        await pull(serve(server, packed, "image.raw.xz"), name="x")
    assert "import image." in (caught.value.hint or "")
    assert nothing_came()


@pytest.mark.parametrize("format", ["vdi", "vmdk", "vhdx", "vpc"])
async def test_an_image_of_another_format_is_known_by_its_header_and_converted(
    server: HostileServer, disk: Path, folder: Path, format: str
) -> None:
    foreign = folder / f"x.{format}"
    source = qemu_img.file(disk)
    qemu_img.run("convert", "-O", format, source, qemu_img.file(foreign))
    url = serve(server, foreign, "web.img")
    image = await pull(url)
    about = image.manifest
    # What VHD can hold is a number of cylinders.
    assert (about.format, (about.virtual_size or 0) // MIB) == ("qcow2", 1)
    flat = folder / "flat"
    qemu_img.run("convert", "-O", "raw", image.disk or "", qemu_img.file(flat))
    assert flat.read_bytes().startswith(DATA)
    assert everything(downloads()) == []
    await verify(image)
    expected = Checksum("sha256", digest(foreign.read_bytes()))
    assert (await pull(url, expected=expected)).disk == image.disk


@pytest.mark.parametrize("start", [b"# Disk DescriptorFile\n", b"KDMV", b"vhdxfile"])
async def test_one_of_another_format_that_is_damaged_or_lists_files_is_refused(
    server: HostileServer, folder: Path, start: bytes
) -> None:
    with pytest.raises(ImageError):
        await pull(serve(server, raw(folder / "x", start.ljust(MIB, b"\0"))))
    assert nothing_came()
    assert everything(downloads()) == []


async def test_a_bare_raw_image_is_taken_as_raw(
    server: HostileServer, folder: Path
) -> None:
    image = await pull(serve(server, raw(folder / "x", DATA), "my_disk.img"))
    assert (image.name, image.manifest.format) == ("my-disk", "raw")
    assert (image.disk or Path()).read_bytes() == DATA


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder on another file system than the home, on most hosts."""
    path = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


async def test_the_cache_may_be_a_link_to_another_file_system(
    server: HostileServer, disk: Path, bare_home: Path, elsewhere: Path
) -> None:
    bare_home.mkdir()
    (bare_home / "cache").symlink_to(elsewhere)
    image = await pull(serve(server, disk))
    assert (image.disk or Path()).read_bytes() == disk.read_bytes()
    assert everything(elsewhere) == [elsewhere / "downloads"]


@pytest.mark.parametrize("name", ["ünï x.qcow2", ".qcow2", ""])
async def test_a_name_that_cannot_be_an_images_is_to_be_chosen(
    server: HostileServer, disk: Path, name: str
) -> None:
    with pytest.raises(SpecError, match="not a name") as caught:
        await pull(serve(server, disk, name))
    assert "--name" in (caught.value.hint or "")
    source = disk.rename(disk.with_name(name or "a b.qcow2"))
    with pytest.raises(SpecError, match="not a name") as caught:
        await import_file(source, format="qcow2")
    assert "--name" in (caught.value.hint or "")
    assert (await import_file(source, name="x", format="qcow2")).present
