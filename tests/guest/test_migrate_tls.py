"""Streams by TCP, with certificates that both sides check."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import survivors
from tests.guest.conftest import Home, make_home
from tests.unproven import Need, found, unproven

_EXTENSIONS = """
subjectAltName=IP:127.0.0.1
keyUsage=critical,digitalSignature,keyEncipherment
extendedKeyUsage=serverAuth,clientAuth
"""


def openssl(folder: Path, *arguments: object) -> None:
    words = list(map(str, arguments))
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


def authority(folder: Path) -> Path:
    """A folder with certificates for both ends, by an authority of its own."""
    if not found("openssl"):
        unproven("encrypted streams of migration", Need.OPENSSL)
    folder.mkdir()
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        folder, "req", "-x509", *new, "-keyout", "ca-key.pem", "-out", "ca-cert.pem",
        "-subj", "/CN=authority", "-days", 2,
        "-addext", "basicConstraints=critical,CA:TRUE",
        "-addext", "keyUsage=critical,keyCertSign,cRLSign",
    )  # fmt: skip
    (folder / "extensions").write_text(_EXTENSIONS)
    for end in ("server", "client"):
        openssl(
            folder, "req", *new, "-keyout", f"{end}-key.pem", "-out", f"{end}.csr",
            "-subj", "/CN=127.0.0.1",
        )  # fmt: skip
        openssl(
            folder, "x509", "-req", "-in", f"{end}.csr", "-CA", "ca-cert.pem",
            "-CAkey", "ca-key.pem", "-CAcreateserial", "-out", f"{end}-cert.pem",
            "-days", 2, "-extfile", "extensions",
        )  # fmt: skip
    return folder


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Home]:
    home = make_home(tmp_path / "there")
    yield home
    for name in home.text("ls", "-q").split():
        home.run("kill", name)
    assert not survivors(home.path)


@pytest.fixture
def vm(here: Home, boot_sector: Path) -> Iterator[str]:
    path = str(boot_sector).replace(",", ",,")
    here.run("create", "eye", "--memory", "64M", "--disk", f"path={path}")
    here.run("start", "eye")
    yield "eye"
    here.run("kill", "eye", check=None)


def test_both_streams_are_encrypted_and_both_ends_are_known(
    here: Home, there: Home, vm: str, tmp_path: Path
) -> None:
    good = authority(tmp_path / "good")
    to = f"local:{there.path}"

    # Certificates that the other side's authority did not sign.
    mixed = tmp_path / "mixed"
    shutil.copytree(good, mixed)
    foreign = authority(tmp_path / "foreign")
    for end in ("client-key.pem", "client-cert.pem"):
        shutil.copy(foreign / end, mixed / end)
    words = here.words("migrate", vm, to, "--tls", mixed, check=1)
    assert "eye was not migrated" in words
    assert "certificate" in words.lower()

    # None at all.
    words = here.words("migrate", vm, to, "--tls", tmp_path / "none", check=1)
    assert "no certificate of the client" in words

    # The guest has noticed nothing, and goes with good ones.
    assert "eye   running" in here.text("ls")
    assert there.text("ls", "-aq") == ""
    lines = here.text("migrate", vm, to, "--tls", good, "--json").splitlines()
    assert json.loads(lines[-1])["storage_bytes"] >= 1024 * 1024
    assert here.text("ls", "-aq") == ""
    assert "eye   running" in there.text("ls")
    trace = (there.path / "state/vms/eye/qmp.jsonl").read_text()
    assert '"uri": "tcp:' in trace
    assert "tls-creds-x509" in trace
