"""Images, disks and copies of VMs, as their user types them."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.guest.conftest import Home
from tests.unit.disk_images import MIB, qcow2

PATTERN = bytes(range(256)) * 256


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


Served = tuple[Path, str]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A folder, and the URL where it is served."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()


@pytest.fixture
def base(here: Home, tmp_path: Path) -> str:
    """An image in the store, of 1 MiB."""
    path = qcow2(tmp_path / "a b: ü.qcow2", PATTERN.ljust(MIB, b"\0"))
    assert here.text("image", "import", path, "--name", "base", "--user", "me") == (
        "base\n"
    )
    return "base"


def rows(here: Home, *arguments: str) -> dict[str, dict[str, Any]]:
    found = json.loads(here.text("image", "ls", "--json", *arguments))
    return {row["name"]: row for row in found}


def disks(here: Home, name: str) -> list[dict[str, Any]]:
    return list(json.loads(here.text("disk", "ls", name, "--json")))


def test_an_image_is_pulled_by_the_users_own_catalogue(
    here: Home, served: Served, tmp_path: Path
) -> None:
    folder, url = served
    path = qcow2(folder / "mine.qcow2", PATTERN.ljust(MIB, b"\0"))
    sums = folder / "SHA256SUMS"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    sums.write_text(f"{'0' * 64}  mine.qcow2\n")
    catalog = here.path / "config" / "catalog.yaml"
    catalog.parent.mkdir()
    catalog.write_text(
        f"mine: {{url: {url}/mine.qcow2, checksum: {url}/SHA256SUMS, user: me}}\n"
    )
    available = rows(here, "--available")
    assert available["mine"]["state"] == "to pull"
    assert available["debian"]["state"] == "to build"
    assert "mine" in here.words("create", "x", "--image", "mine", check=1)
    assert "checksum" in here.words("image", "pull", "mine", check=1)
    assert "mine" not in rows(here)
    sums.write_text(f"{digest}  mine.qcow2\n")
    done = here.run("image", "pull", "mine")
    assert (done.stdout, done.stderr) == (b"mine\n", b"")
    assert here.text("image", "pull", "mine") == "mine\n"
    row = rows(here)["mine"]
    assert (row["state"], row["format"], row["size"], row["user"]) == (
        "ready", "qcow2", MIB, "me",
    )  # fmt: skip
    assert "mine is as it was" in here.words("image", "verify", "mine")
    assert "not a checksum" in here.words(
        "image", "pull", f"{url}/mine.qcow2", "--name", "x", "--sha256", "what",
        check=2,
    )  # fmt: skip


def test_images_that_are_needed_stay_and_the_others_go(here: Home, base: str) -> None:
    (here.path / "cache").unlink()  # the user's own, of which nothing must go
    assert base in here.text("image", "ls", "-q").split()
    assert re.search(r"(?m)^base +ready +qcow2 +1M .* me ", here.text("image", "ls"))
    here.run("create", "web", "--image", base)
    here.run("create", "db", "--image", base)
    words = here.words("image", "rm", base, check=1)
    assert "needed by db, web" in words
    before = sorted(here.path.rglob("*"))
    assert "nothing to remove" in here.words("image", "prune", "--all", "--dry-run")
    assert base not in here.text("image", "prune", "--all", "--dry-run")
    assert sorted(here.path.rglob("*")) == before
    kept = here.words("rm", "web", "--keep-disks")
    here.run("rm", "db")
    assert "the kept disks in" in here.words("image", "rm", base, check=1)
    assert str(here.path / "state" / "kept" / "web") in kept
    for disk in (here.path / "state" / "kept" / "web").iterdir():
        disk.unlink()
    (removed,) = json.loads(here.text("image", "prune", "--all", "--dry-run", "--json"))
    assert removed["path"].endswith("/images/base")
    assert base in rows(here)
    here.run("image", "prune", "--all")
    assert base not in rows(here)
    assert f"no such image: {base}" in here.words("image", "rm", base, check=1)


def test_a_vm_with_several_disks_is_cloned_exported_and_imported(
    here: Home, base: str, tmp_path: Path
) -> None:
    own = tmp_path / "own, disk.raw"
    own.write_bytes(PATTERN)
    written = str(own).replace(",", ",,")
    here.run(
        "create", "web", "--image", base, "--root-size", "2M", "--disk", "size=1M",
        "--disk", f"path={written},serial=own", "--disk", "size=1M,format=raw",
        "-p", "8022:22",
    )  # fmt: skip
    found = disks(here, "web")
    assert [disk["target"] for disk in found] == [f"disk{n}" for n in range(4)]
    assert [disk["serial"] for disk in found] == ["disk0", "disk1", "own", "disk3"]
    assert [disk["size"] for disk in found] == [2 * MIB, MIB, len(PATTERN), MIB]
    assert [len(disk["chain"]) for disk in found] == [2, 1, 1, 1]
    table = here.text("disk", "ls", "web")
    assert re.search(r"disk0 +disk0 +2M .* qcow2 +rw .*disk0\.qcow2 → .*/base/", table)

    words = here.words("clone", "web", "linked", "--linked")
    assert str(own) in words
    assert "either --linked or --full" in here.words(
        "clone", "web", "x", "--linked", "--full", check=2
    )
    assert "made from its own: linked" in here.words("rename", "web", "www", check=1)
    assert "linked" in here.words("rm", "web", check=1)

    archive = tmp_path / "web, all.tar"
    here.run("export", "linked", archive)
    assert "there is a file already" in here.words("export", "web", archive, check=1)
    assert "exists already" in here.words("import", archive, check=1)
    assert "imported new" in here.words("import", archive, "--name", "new")
    assert [disk["size"] for disk in disks(here, "new")] == [
        disk["size"] for disk in found
    ]
    subprocess.run(
        ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", own,
         here.path / "state/vms/new/disks/disk2.qcow2"],
        check=True, capture_output=True,
    )  # fmt: skip
    here.run("rm", "linked")
    here.run("rename", "web", "www")
    assert here.text("ls", "-aq") == "new\nwww\n"
    archive.write_bytes(archive.read_bytes()[:-20000])
    assert "damaged" in here.words("import", archive, "--name", "x", check=1)


# Runs `$1` for each disk of the guest: $disk is its device, $serial its name.
EACH = """
for file in /sys/block/vd*/serial; do
    serial=$(cat "$file"); disk=$(dirname "$file"); disk=/dev/${disk##*/}
    eval "$1" || exit 1
done
"""
WRITE = 'yes "$serial" | head -c 1048576 | dd of=$disk bs=1M conv=fsync 2>/dev/null'
READ = 'echo "$serial $(dd if=$disk bs=1M count=1 2>/dev/null | sha256sum)"'
CHANGE = "hostname | dd of=$disk bs=1M seek=1 conv=fsync 2>/dev/null"
CHANGED = 'echo "$serial $(dd if=$disk bs=1M skip=1 count=1 2>/dev/null | head -c 4)"'


def each(here: Home, vm: str, what: str) -> dict[str, str]:
    text = here.text("exec", vm, "--", "sh", "-ec", EACH, "sh", what)
    return dict(line.split()[:2] for line in text.splitlines())


def written(serial: str) -> str:
    text = f"{serial}\n".encode()
    return hashlib.sha256((text * MIB)[:MIB]).hexdigest()


def test_guests_find_their_disks_by_name_and_a_clone_has_its_own(
    here: Home, tmp_path: Path
) -> None:
    own = tmp_path / "own.raw"
    own.write_bytes(bytes(4 * MIB))
    here.run(
        "create", "a", "--image", "tiny", "--memory", "256M", "--disk", "size=4M",
        "--disk", "size=4M,format=qcow2,serial=logs", "--disk", f"path={own}",
    )  # fmt: skip
    here.run("start", "a", "--wait", timeout=150)
    serials = ("disk0", "logs", "disk2")
    assert each(here, "a", WRITE) == {}
    here.run("create", "c", "--disk", f"path={own}", "--memory", "64M")
    words = here.words("start", "c", check=1)
    assert f"the VM a is using this disk image: {own}" in words
    assert "the VM is on" in here.words("clone", "a", "b", "--linked", check=1)
    here.run("stop", "a")

    assert f"linked: {own}" in here.words("clone", "a", "b", "--linked")
    both = [here.popen("start", name, "--wait") for name in ("a", "b")]
    assert [process.wait(150) for process in both] == [0, 0]
    for name in ("a", "b"):
        assert each(here, name, READ) == {each: written(each) for each in serials}
        marked = CHANGE.replace("hostname", f"echo {name * 3}")
        assert each(here, name, marked) == {}
    for name in ("a", "b"):
        assert each(here, name, CHANGED) == dict.fromkeys(serials, name * 3)
        here.run("kill", name)
