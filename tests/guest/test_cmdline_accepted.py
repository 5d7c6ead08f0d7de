"""The installed QEMU accepts every golden spec's line, up to prelaunch."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qemuctl.cmdline import Machine, argv, build, format_argv
from qemuctl.errors import HostError
from qemuctl.host import inspect_host
from qemuctl.paths import VmPaths
from qemuctl.spec import Spec, parse_spec

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.yaml"))
TIMEOUT = 30.0
# The start of a bzImage of boot protocol 2.0, all that QEMU looks at.
KERNEL = bytes(0x1F1) + b"\x01" + bytes(0x10) + b"HdrS\x00\x02" + bytes(4096)


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path, whose length does not leave room for a socket's path.
    path = Path(tempfile.mkdtemp(prefix="q"))
    yield path
    shutil.rmtree(path)


def takes_o_direct(folder: Path) -> bool:
    try:
        os.close(os.open(folder / "direct", os.O_CREAT | os.O_RDWR | os.O_DIRECT))
    except OSError:
        return False
    return True


def make_disk(path: Path, driver: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["qemu-img", "create", "-q", "-f", driver, path, "1M"]
    subprocess.run(command, check=True)


def made_real(spec: Spec, folder: Path) -> tuple[Spec, VmPaths]:
    """The spec with files that exist, and nothing that two tests could fight for."""
    data = spec.model_dump(exclude_defaults=True)
    data["accel"] = "tcg"
    if spec.cpu.model == "host":  # which needs KVM
        del data["cpu"]["model"]
    data["name"] = spec.name
    odd = 'o\'h, "ü"' if spec.name.startswith("odd") else "vm"
    paths = VmPaths(state=folder / odd / "s", run=folder / odd / "r")
    files = folder / "files"
    files.mkdir()
    direct = takes_o_direct(folder)
    for number, (disk, model) in enumerate(
        zip(data.get("disks", ()), spec.disks, strict=True)
    ):
        if model.path is None:
            file = paths.disk_file(model.id or f"disk{number}", model.driver)
            make_disk(file, model.driver)
        else:
            disk["path"] = str(files / Path(model.path).name)
            make_disk(Path(disk["path"]), model.driver)
        if model.aio == "io_uring" or not direct:
            disk.pop("aio", None)  # containers often forbid io_uring
        if not direct and model.cache in ("none", "directsync"):
            disk["cache"] = "writeback"
    if spec.cdrom is not None:
        data["cdrom"] = str(files / Path(spec.cdrom).name)
        Path(data["cdrom"]).write_bytes(bytes(2048))
    for key in ("kernel", "initrd"):
        if getattr(spec.boot, key) is not None:
            data["boot"][key] = str(files / Path(getattr(spec.boot, key)).name)
            Path(data["boot"][key]).write_bytes(KERNEL)
    data["nics"] = [own_nic(nic, files) for nic in data.get("nics", [{}])]
    data.get("display", {}).pop("address", None)
    return Spec.model_validate(data), paths


def own_nic(nic: dict[str, Any], files: Path) -> dict[str, Any]:
    if nic.get("type") == "tap":
        return {"type": "user", "model": nic["model"]}
    if nic.get("type") == "socket":
        return {"type": "socket", "listen": str(files / "w, 1.sock")}
    for forward in nic.get("forward", ()):
        forward["host_port"] = 0
    return nic


def launch(machine: Machine, paths: VmPaths) -> subprocess.Popen[bytes]:
    """Starts QEMU as the launcher does: sockets handed over, recorder files made."""
    for made in machine.folders:
        made.mkdir(parents=True, exist_ok=True)
    paths.events_in.write_text('{"execute":"qmp_capabilities"}\n')
    paths.events.touch()
    listening = {}
    for path in machine.listening:
        listening[path] = socket.socket(socket.AF_UNIX)
        listening[path].bind(str(path))
        listening[path].listen()
    fds = {path: listener.fileno() for path, listener in listening.items()}
    try:
        return subprocess.Popen(
            argv(machine, sockets=fds, paused=True),
            pass_fds=list(fds.values()),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    finally:
        for listener in listening.values():
            listener.close()


def converse(path: Path, *commands: str) -> list[dict[str, Any]]:
    """The replies to ``commands`` on the monitor at ``path``."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT)
        client.connect(str(path))
        with client.makefile("rw") as stream:
            replies = [json.loads(stream.readline() or "null")]
            for command in ("qmp_capabilities", *commands):
                stream.write(json.dumps({"execute": command}) + "\n")
                stream.flush()
                replies.append(json.loads(stream.readline() or "null"))
    return replies


@pytest.mark.parametrize("name", NAMES)
def test_the_installed_qemu_accepts_the_line(name: str, folder: Path) -> None:
    written = parse_spec((GOLDEN / f"{name}.yaml").read_text(encoding="utf-8"))
    spec, paths = made_real(written, folder)
    host = inspect_host(spec)
    if spec.display.type == "spice" and "spice" not in host.binary.options:
        with pytest.raises(HostError, match="'-spice'"):
            build(spec, paths, host)
        return
    with launch(build(spec, paths, host), paths) as process:
        try:
            replies = converse(paths.owner_socket, "query-status", "quit")
        except OSError:
            process.kill()
            replies = []
        _, stderr = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, stderr
    assert replies[2]["return"]["status"] == "prelaunch"
    # A warning would be ours to mend, but for what this host's CPU cannot do
    # and for the age of a machine type that the spec asks for.
    known = (b"TCG doesn", b"is deprecated: machines more than")
    warnings = [x for x in stderr.splitlines() if not any(k in x for k in known)]
    assert warnings == []
    events = [json.loads(line) for line in paths.events.read_text().splitlines()]
    assert "SHUTDOWN" in [entry.get("event") for entry in events]


@pytest.mark.parametrize("name", ["minimal", "kernel", "odd-paths", "microvm"])
def test_the_printed_line_works_when_it_is_pasted(name: str, folder: Path) -> None:
    written = parse_spec((GOLDEN / f"{name}.yaml").read_text(encoding="utf-8"))
    spec, paths = made_real(written, folder)
    spec = spec.model_copy(update={"extra_args": ("-qmp", "stdio")})
    machine = build(spec, paths, inspect_host(spec))
    text = format_argv(argv(machine, paused=True), folders=machine.folders)
    done = subprocess.run(
        ["bash", "-c", text],
        input=b'{"execute":"qmp_capabilities"}{"execute":"quit"}',
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"SHUTDOWN" in done.stdout


def test_a_bad_extra_argument_fails_with_qemus_own_words(folder: Path) -> None:
    spec = Spec.model_validate({"name": "bad", "extra_args": ["-nonsense"]})
    paths = VmPaths(state=folder / "s", run=folder / "r")
    with launch(build(spec, paths, inspect_host(spec)), paths) as process:
        _, stderr = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert b"-nonsense: invalid option" in stderr
