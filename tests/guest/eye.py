"""A guest that shows a known picture and echoes its keyboard, and what looks at it:
a decoder of PNG, a client of VNC's own authentication."""

from __future__ import annotations

import ctypes
import ctypes.util
import socket
import struct
import zlib
from pathlib import Path

# A guest of one sector, there within a second. In text mode (int 10h), the cursor
# hidden, it makes all cells blue and row 12 red blocks; it says "ok" on the serial
# port, and from then on each character that the keyboard gives it (int 16h).
EYE = (
    bytes.fromhex(
        "fc b80300 cd10 b401 b90020 cd10"
        "b800b8 8ec0 31ff b82010 b9d007 f3ab"
        "bf8007 b8db04 b95000 f3ab"
        "baf803 b06fee b06bee b00aee"
        "30e4 cd16 ee ebf9"
    ).ljust(510, b"\0")
    + b"\x55\xaa"
)
# VGA's colours have six bits: 42 of 63.
BLUE, RED = (0, 0, 42), (42, 0, 0)


def eye_disk(folder: Path) -> Path:
    path = folder / "eye.raw"
    path.write_bytes(EYE.ljust(1 << 20, b"\0"))
    return path


def rows(png: bytes) -> list[list[tuple[int, ...]]]:
    """The pixels of a PNG of 8 bits a channel, not interlaced."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, packed, width, channels = 8, b"", 0, 0
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        body = png[at + 8 : at + 8 + size]
        (check,) = struct.unpack(">I", png[at + 8 + size : at + 12 + size])
        assert check == zlib.crc32(kind + body)
        if kind == b"IHDR":
            width, _height, depth, colour, *rest = struct.unpack(">IIBBBBB", body)
            assert (depth, rest) == (8, [0, 0, 0])
            channels = {2: 3, 6: 4}[colour]
        packed += body if kind == b"IDAT" else b""
        at += 12 + size
    assert kind == b"IEND"
    return unfiltered(zlib.decompress(packed), width, channels)


def unfiltered(data: bytes, width: int, channels: int) -> list[list[tuple[int, ...]]]:
    stride = width * channels
    above, found = bytearray(stride), []
    for start in range(0, len(data), stride + 1):
        kind, line = data[start], bytearray(data[start + 1 : start + 1 + stride])
        for i in range(stride):
            a = line[i - channels] if i >= channels else 0
            c = above[i - channels] if i >= channels else 0
            line[i] = (line[i] + predicted(kind, a, above[i], c)) & 0xFF
        found.append(
            [tuple(line[x : x + 3]) for x in range(0, stride, channels)],
        )
        above = line
    return found


def predicted(kind: int, a: int, b: int, c: int) -> int:
    if kind == 4:
        p = a + b - c
        return min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
    return (0, a, b, (a + b) // 2)[kind]


def check(png: bytes) -> None:
    picture = rows(png)
    assert (len(picture[0]), len(picture)) == (720, 400)
    for y, row in enumerate(picture):
        colours = {tuple(value >> 2 for value in pixel) for pixel in row}
        assert colours == {RED if y // 16 == 12 else BLUE}, y


def greeted(path: str) -> tuple[socket.socket, list[int]]:
    """A connection of RFB 3.8, and the kinds of security that it offers."""
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(10)
    link.connect(path)
    assert link.recv(12) == b"RFB 003.008\n"
    link.sendall(b"RFB 003.008\n")
    return link, list(link.recv(link.recv(1)[0]))


def security(path: str) -> list[int]:
    link, kinds = greeted(path)
    link.close()
    return kinds


def let_in(path: str, password: str) -> bool:
    """Whether VNC's own authentication takes a password: DES, each byte of the
    key mirrored."""
    link, _ = greeted(path)
    with link:
        link.sendall(b"\2")
        challenge = link.recv(16, socket.MSG_WAITALL)
        crypto = ctypes.CDLL(ctypes.util.find_library("crypto"))
        mirrored = bytes(int(f"{b:08b}"[::-1], 2) for b in password.encode())
        schedule = ctypes.create_string_buffer(128)
        crypto.DES_set_key_unchecked(mirrored.ljust(8, b"\0")[:8], schedule)
        answer = b""
        for half in (challenge[:8], challenge[8:]):
            block = ctypes.create_string_buffer(8)
            crypto.DES_ecb_encrypt(half, block, schedule, 1)
            answer += block.raw
        link.sendall(answer)
        return link.recv(4, socket.MSG_WAITALL) == b"\0\0\0\0"
