"""Streams by TCP, with certificates that both sides check."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qemuctl.boot.start import launch
from qemuctl.errors import HostError
from qemuctl.migration import tls
from qemuctl.migration.certificate import common_name
from qemuctl.spec import parse_spec
from tests.conftest import survivors
from tests.guest.conftest import Home, make_home
from tests.unproven import Need, found, unproven

_EXTENSIONS = """
subjectAltName={names}
keyUsage=critical,digitalSignature,keyEncipherment
extendedKeyUsage=serverAuth,clientAuth
"""


def openssl(folder: Path, *arguments: object) -> None:
    words = list(map(str, arguments))
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


def authority(folder: Path, *addresses: str) -> Path:
    """A folder with certificates for both ends, by an authority of its own; they are
    those of all the addresses."""
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
    addresses = addresses or ("127.0.0.1",)
    names = ",".join(f"IP:{address}" for address in addresses)
    (folder / "extensions").write_text(_EXTENSIONS.format(names=names))
    for end in ("server", "client"):
        signed(folder, end, f"/O=tests/CN={addresses[0]}")
    return folder


def signed(folder: Path, end: str, subject: str) -> None:
    """A certificate that the authority of this folder has signed."""
    openssl(
        folder, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-nodes", "-keyout", f"{end}-key.pem", "-out", f"{end}.csr", "-subj", subject,
    )  # fmt: skip
    openssl(
        folder, "x509", "-req", "-in", f"{end}.csr", "-CA", "ca-cert.pem",
        "-CAkey", "ca-key.pem", "-CAcreateserial", "-out", f"{end}-cert.pem",
        "-days", 2, "-extfile", "extensions",
    )  # fmt: skip


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
    assert '"uri": "tcp:127.0.0.1:0"' in trace
    assert '"tls-authz": "tls-move-authz"' in trace


async def test_of_all_that_the_authority_has_signed_one_client_is_let_in(
    here: Home, tmp_path: Path
) -> None:
    folder = authority(tmp_path / "certificates")
    client = common_name(folder / "client-cert.pem")
    subjects = {
        "/CN=127.0.0.1": True,
        "/C=AQ/CN=127.0.0.1/O=tests": True,
        "/CN=127.0.0.10": False,
        "/CN=x/O=127.0.0.1": False,
        "/CN=x/O=a,CN=127.0.0.1": False,
        "/CN=x/O=a,CN=127.0.0.1,O=b": False,
    }
    async with launch(parse_spec("name: served\nmemory: 32M\nnics: []\n")) as vm:
        session = await vm.monitor()
        await tls.add_credentials(session, folder, "server")
        await tls.authorize(session, client)
        port = await tls.serve_disks(session, tls.own_address())
        for subject, welcome in subjects.items():
            signed(folder, "client", subject)
            words = await asyncio.to_thread(asked, folder, port)
            # One that is let in hears that there is nothing of that name.
            assert ("nothing" in words) == welcome, (subject, words)


def asked(folder: Path, port: int) -> str:
    creds = f"tls-creds-x509,id=c,endpoint=client,dir={folder}"
    image = f"driver=nbd,host=127.0.0.1,port={port},export=nothing,tls-creds=c"
    argv = ["qemu-img", "info", "--object", creds, "--image-opts", image]
    done = subprocess.run(argv, capture_output=True, check=False, timeout=60)
    return done.stderr.decode().replace(image, "")


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ("/O=no name", "none"),
        ("/CN=*.example.com", "'*.example.com'"),
        ("/CN=a/CN=b", "'a', 'b'"),
    ],
)
def test_a_client_that_cannot_be_told_from_others_is_refused(
    tmp_path: Path, subject: str, words: str
) -> None:
    folder = authority(tmp_path / "certificates")
    signed(folder, "client", subject)
    with pytest.raises(HostError) as caught:
        common_name(folder / "client-cert.pem")
    assert caught.value.message.endswith(words)
    whole = (folder / "ca-cert.pem").read_text()
    first, end = whole.splitlines()[0], whole.splitlines()[-1]
    bodies = ("", "AAAA", "MAA=", "MIIBojCCAUeg", "MIQA////", "!")
    for damaged in ("", whole[:200], *(f"{first}\n{body}\n{end}\n" for body in bodies)):
        (folder / "client-cert.pem").write_text(damaged)
        with pytest.raises(HostError):
            common_name(folder / "client-cert.pem")


def test_the_mode_of_a_folder_that_exists_is_left_as_it_is(
    here: Home, tmp_path: Path
) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o1777)
    new = tmp_path / "new"
    here.run("create", "a", "--disk", "size=8M")
    here.run("migrate", "a", f"local:{folder}", "--offline")
    assert folder.stat().st_mode & 0o7777 == 0o1777
    there = Home(folder)
    there.run("migrate", "a", f"local:{new}", "--offline")
    assert new.stat().st_mode & 0o7777 == 0o700
