"""The common name of a certificate: who somebody is, for the other side to know."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from pathlib import Path

from qemuctl.errors import HostError

# X.520: id-at-commonName, as an object identifier in DER.
_COMMON_NAME = b"\x55\x04\x03"
_VERSION = 0xA0
# Strings whose bytes are those of their text: UTF8String, PrintableString, IA5String.
_TEXTS = (0x0C, 0x13, 0x16)
# What is written as it is in a distinguished name, and means nothing to QEMU's globs.
_PLAIN = re.compile(r"[A-Za-z0-9_.:@/-]+( [A-Za-z0-9_.:@/-]+)*")


def common_name(path: Path) -> str:
    """The common name (CN) of the subject of a PEM certificate.

    Raises HostError for a file that is none, for a certificate without a common name
    or with several, and for a name that a rule of QEMU's could not tell from others.
    """
    try:
        names = list(_common_names(path.read_text(encoding="ascii", errors="replace")))
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, IndexError) as error:
        raise HostError(f"not a certificate: {path}") from error
    if len(names) != 1 or not _PLAIN.fullmatch(names[0]):
        found = ", ".join(map(repr, names)) or "none"
        raise HostError(
            f"the other side could not tell this certificate from others: {path} has "
            f"the common names: {found}",
            hint="give it one common name of letters, digits, spaces and . _ - : @ /",
        )
    return names[0]


def _common_names(text: str) -> Iterator[str]:
    begin, end = text.index("-----BEGIN CERT"), text.index("-----END CERT")
    pem = text[begin:end] + "-----END CERTIFICATE-----\n"
    ((_, certificate),) = _parts(ssl.PEM_cert_to_DER_cert(pem))
    (_, signed), *_rest = _parts(certificate)
    fields = [body for tag, body in _parts(signed) if tag != _VERSION]
    # RFC 5280: serial number, algorithm, issuer, validity, subject.
    for _, attributes in _parts(fields[4]):
        for _, attribute in _parts(attributes):
            (_, kind), (tag, value) = _parts(attribute)
            if kind == _COMMON_NAME:
                yield value.decode() if tag in _TEXTS else repr(value)


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The values in DER, each with its tag (X.690, 8.1)."""
    at = 0
    while at < len(data):
        tag, size = data[at], data[at + 1]
        at += 2
        if size & 0x80:
            count = size & 0x7F
            size = int.from_bytes(data[at : at + count])
            at += count
        if at + size > len(data):
            raise ValueError("cut short")
        yield tag, data[at : at + size]
        at += size
