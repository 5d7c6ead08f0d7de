"""Checksums in every form that distributions publish them in."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import zlib
from collections.abc import AsyncIterator, Callable

import pytest
import zstandard
from hostile_server import MIB, Answer, HostileServer, hostile_server
from hypothesis import given
from hypothesis import strategies as st

from qemuctl.errors import ImageError
from qemuctl.image import fetch
from qemuctl.image.checksums import (
    Checksum,
    fetch_checksum,
    find_checksum,
    parse_checksum,
)
from tests.hostile import fuzzed, memory

A, B = (hashlib.sha256(text).hexdigest() for text in (b"a", b"b"))
LONG_A, LONG_B = (hashlib.sha512(text).hexdigest() for text in (b"a", b"b"))
NAME = "image-13.qcow2"

DEBIAN = f"""{LONG_B}  image-13.json
{LONG_A}  {NAME}
{LONG_B}  other-13.qcow2
"""
UBUNTU = f"{B} *other.img\n{A} *{NAME}\n{B} *{NAME}.manifest\n"
FEDORA = f"""-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

# {NAME}: 528154624 bytes
SHA256 ({NAME}) = {A}
# other.qcow2: 1 bytes
SHA256 (other.qcow2) = {B}
-----BEGIN PGP SIGNATURE-----

iQIzBAEBCAAdFiEE{"c" * 48}
{B}
=AbCd
-----END PGP SIGNATURE-----
"""
ROCKY = f"# {NAME}: 544997376 bytes\nSHA256 ({NAME}) = {A}\n"
BSD = f"MD5 ({NAME}) = {'0' * 32}\nSHA256({NAME})= {A}\nSHA1 ({NAME}) = {'0' * 40}\n"
GENTOO = f"""# BLAKE2B HASH
{LONG_B}  {NAME}
# SHA512 HASH
{LONG_A}  {NAME}
"""
RELEASE = f"""Suite: stable
MD5Sum:
 {"0" * 32}     1234 {NAME}
SHA256:
 {B}     1234 main/other
 {A}     1234 main/{NAME}
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "RETRY_DELAYS", (0.0, 0.0))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
async def server() -> AsyncIterator[HostileServer]:
    async with hostile_server() as running:
        yield running


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        (DEBIAN, LONG_A),
        (UBUNTU, A),
        (FEDORA, A),
        (FEDORA.replace("\n", "\r\n"), A),
        (ROCKY, A),
        (BSD, A),
        (f"{LONG_A}\n", LONG_A),  # Alpine
        (GENTOO, LONG_A),
        (GENTOO.replace("BLAKE2B", "WHIRLPOOL").replace(" HASH", ""), LONG_A),
        (f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n{GENTOO}", LONG_A),
        (f"DIST {NAME} 99 BLAKE2B {LONG_B} SHA512 {LONG_A}\n", LONG_A),
        (RELEASE, A),
        (f"BLAKE2b ({NAME}) = {LONG_B}\nSHA3-256 ({NAME}) = {B}\n{ROCKY}", A),
        (f"SHA2-256({NAME})= {A}\nSHA2-512({NAME})= {LONG_A}\n", LONG_A),
        (f"SHA512/256 ({NAME}) = {B}\nSHA256 ({NAME}) = {A}\n", A),
        (f"{NAME} {A}\n", A),
        (f"{NAME}: sha256:{A}\n", A),
        (f"sha256:{A}  {NAME}\nblake2b:{LONG_B}  {NAME}\n", A),
        (f"sha512:{LONG_A}\n", LONG_A),
        (f"\\{A}  {NAME}\n", A),
        (f"{A.upper()}  ./{NAME}\n", A),
        (f"\ufeff{A}  releases/13/{NAME}\n{A}  ./{NAME}", A),
        (f"{A}\t{NAME}", A),
        (f"{A}  {NAME}\n{LONG_A}  {NAME}\n", LONG_A),
        (f"{'0' * 40}  {NAME}\n{A}  {NAME}\n", A),
    ],
)
def test_every_form_is_read(text: str, digest: str) -> None:
    found = find_checksum(text, NAME)
    assert found.digest == digest
    assert found.algorithm == ("sha256" if len(digest) == 64 else "sha512")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>404</html>",
        f"{A}  x{NAME}\n",
        f"{A}  {NAME}.sig\n",
        f"{A}\n{B}\n",
        f"{A}\n{B}  other\n",
        f"{'0' * 40}  {NAME}\n",
        f"{'0' * 65}  {NAME}\n",
        f"# {A}  {NAME}\n",
        f"-----BEGIN PGP SIGNATURE-----\n{A}  {NAME}\n",
    ],
)
def test_a_name_that_is_not_there_is_an_error(text: str) -> None:
    with pytest.raises(ImageError, match=f"no sha256 or sha512 checksum of {NAME}"):
        find_checksum(text, NAME)


def test_the_names_that_are_there_are_a_hint() -> None:
    with pytest.raises(ImageError) as caught:
        find_checksum(DEBIAN, "none")
    assert "image-13.json, image-13.qcow2" in (caught.value.hint or "")


def test_lines_without_end_take_no_time() -> None:
    text = "\n".join(f"x{fill * 100_000}" for fill in (" ", "a ", "a", "x: ", "0 "))
    assert find_checksum(f"{text}\n{A}  {NAME}\n", NAME).digest == A


def test_two_digests_of_one_file_are_an_error() -> None:
    with pytest.raises(ImageError, match="several sha256 checksums"):
        find_checksum(f"{A}  a/{NAME}\n{B}  b/{NAME}\n", NAME)
    with pytest.raises(ImageError, match="several sha256 checksums"):
        find_checksum(f"{A}  a\n{B}  b\n", NAME, only=True)


@fuzzed(100)
@given(st.text(), st.text())
def test_no_text_is_more_than_an_error(text: str, name: str) -> None:
    with contextlib.suppress(ImageError):
        find_checksum(text, name, only=True)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (A, Checksum("sha256", A)),
        (f" {A.upper()}\n", Checksum("sha256", A)),
        (f"SHA256:{A}", Checksum("sha256", A)),
        (LONG_A, Checksum("sha512", LONG_A)),
        (f"sha512:{LONG_A}", Checksum("sha512", LONG_A)),
    ],
)
def test_a_checksum_is_known_by_its_length_or_name(text: str, found: Checksum) -> None:
    assert parse_checksum(text) == found
    assert parse_checksum(str(found)) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a checksum: ''"),
        ("x" * 64, "not a checksum"),
        ("0" * 40, "a checksum of 40 digits"),
        (f"sha512:{A}", "a checksum of 64 digits"),
        (f"md5:{A}", "unknown kind of checksum: 'md5'"),
        (f":{A}", "unknown kind of checksum"),
        (f"٣{A[1:]}", "not a checksum"),
    ],
)
def test_what_is_no_checksum_is_said(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_checksum(text)


async def test_a_checksum_file_is_fetched(server: HostileServer) -> None:
    server.answer(Answer(status=503), Answer(body=UBUNTU.encode()), path="/SHA256SUMS")
    url = server.url.replace("image", "SHA256SUMS")
    assert (await fetch_checksum(url, NAME)).digest == A
    with pytest.raises(ImageError, match=f"no sha256 .* of none: {url}"):
        await fetch_checksum(url, "none")


async def test_a_file_named_after_the_image_may_call_it_otherwise(
    server: HostileServer,
) -> None:
    body = f"{A}  image-13.0-Build19.146.qcow2\n".encode()
    server.answer(Answer(body=body), path=f"/{NAME}.sha256")
    server.answer(Answer(body=body), path="/SHA256SUMS")
    folder = server.url.removesuffix("image")
    assert (await fetch_checksum(f"{folder}{NAME}.sha256", NAME)).digest == A
    with pytest.raises(ImageError, match="no sha256"):
        await fetch_checksum(f"{folder}SHA256SUMS", NAME)


@pytest.mark.parametrize(
    ("coding", "pack"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("zstd", zstandard.compress)],
)
async def test_a_few_kilobytes_do_not_become_all_memory(
    server: HostileServer, coding: str, pack: Callable[[bytes], bytes]
) -> None:
    body = pack(bytes(64 * MIB))
    server.answer(Answer(body=body, headers=(f"Content-Encoding: {coding}",)))
    with memory(12 * MIB), pytest.raises(ImageError, match=r"more than|compressed"):
        await fetch_checksum(server.url, NAME)


@pytest.mark.parametrize(
    ("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
async def test_a_file_that_is_compressed_on_the_way_is_read(
    server: HostileServer, coding: str, pack: Callable[[bytes], bytes]
) -> None:
    body = pack(f"{A}  {NAME}\n".encode())
    headers = (f"Content-Encoding: {coding}",)
    server.answer(Answer(body=body, headers=headers))
    assert (await fetch_checksum(server.url, NAME)).digest == A
    for bad in (body[:-9], b"x", b""):
        server.answer(Answer(body=bad, headers=headers))
        with pytest.raises(ImageError, match=r"packed|cut off"):
            await fetch_checksum(server.url, NAME)


async def test_a_file_that_cannot_be_had_is_an_error(server: HostileServer) -> None:
    server.answer(Answer(status=404))
    with pytest.raises(ImageError, match="answers 404"):
        await fetch_checksum(server.url, NAME)
    server.answer(Answer(cut=1000))
    with pytest.raises(ImageError, match="ended too early"):
        await fetch_checksum(server.url, NAME)
    server.answer(Answer(status=500))
    with pytest.raises(ImageError, match="answers 500"):
        await fetch_checksum(server.url, NAME)
    server.answer(Answer(body=bytes(5 * MIB)))
    with pytest.raises(ImageError, match="more than 4194304 bytes came"):
        await fetch_checksum(server.url, NAME)
    with pytest.raises(ImageError, match="refuses the connection"):
        await fetch_checksum("http://127.0.0.1:1/x", NAME)
