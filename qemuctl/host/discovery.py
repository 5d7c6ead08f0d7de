"""Finds a QEMU binary and asks it once what it offers.

One short-lived process, ``-machine none`` with QMP on its standard input and
output, answers everything. The answers are cached as JSON below the cache
folder, keyed by the binary's path, size and time of change.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from qemuctl.errors import HostError
from qemuctl.host.answers import QUESTIONS, digest
from qemuctl.host.binary import Binary, MachineType
from qemuctl.paths import blocking_folder, cache_home
from qemuctl.spec.model import Spec

PROBE_TIMEOUT = 10.0  # seconds; a loaded host may take several for 0.2 s of work
CACHE_FORMAT = 3
_ELF = b"\x7fELF"


def find_qemu(spec: Spec) -> Path:
    """The QEMU that ``spec`` names, or ``qemu-system-ARCH`` on ``PATH``.

    Raises HostError when it is missing or may not be run.
    """
    name = spec.qemu or f"qemu-system-{spec.arch}"
    if "/" not in name:
        found = shutil.which(name)
        if found is None:
            raise HostError(
                f"QEMU is not installed: {name} is not on PATH",
                hint="sudo apt-get install qemu-system-x86",
            )
        return Path(found).absolute()
    path = Path(name).expanduser().absolute()
    if not path.is_file():
        raise HostError(f"no such QEMU binary: {path}", hint=blocking_folder(path))
    if not os.access(path, os.X_OK):
        raise HostError(
            f"the QEMU binary may not be run: {path}",
            hint=f"chmod +x {shlex.quote(str(path))}",
        )
    return path


def probe(path: Path, *, timeout: float = PROBE_TIMEOUT) -> Binary:
    """What the QEMU at ``path`` offers; from the cache when it has not changed.

    Raises HostError with QEMU's own words when it does not answer within
    ``timeout`` seconds. Stands on ``query-machines``, ``qom-list-types``,
    ``query-command-line-options`` and ``query-qmp-schema``.
    """
    cache = _cache_file(path)
    if cache is None:
        return digest(path, _ask(path, timeout))
    forget = partial(_forget, cache)
    try:
        return _load(path, cache.read_bytes(), forget)
    except (OSError, ValueError, KeyError, TypeError):
        # Not there yet, or damaged: asking again heals both.
        binary = digest(path, _ask(path, timeout))
    _store(cache, binary)
    return replace(binary, on_missing=forget)


def _cache_file(path: Path) -> Path | None:
    """Where the answers are kept; None when they must not be.

    A wrapper script stays the same when the QEMU behind it is upgraded, so it
    is asked each time.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != _ELF:
                return None
            status = os.fstat(file.fileno())
    except OSError:
        return None
    key = f"{CACHE_FORMAT}\0{path}\0{status.st_size}\0{status.st_mtime_ns}"
    name = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
    return cache_home() / "qemu" / f"{name[:32]}.json"


def _ask(path: Path, timeout: float) -> dict[str, Any]:
    """Runs the binary once; answers by question."""
    argv = [str(path), "-machine", "none", "-nodefaults", "-no-user-config"]
    argv += ["-display", "none", "-S", "-qmp", "stdio"]
    questions = "".join(
        json.dumps({"execute": command, "arguments": arguments, "id": id_}) + "\n"
        for id_, (command, arguments) in QUESTIONS.items()
    )
    try:
        # A file takes all at once. A pipe would be full for a while, and at `quit`
        # QEMU drops what it could not write yet.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                argv,
                input=questions.encode(),
                stdout=output,
                stderr=subprocess.PIPE,
                timeout=timeout,
                check=False,
            )
            output.seek(0)
            answers = _answers(output.read())
    except subprocess.TimeoutExpired as error:
        raise _useless(argv, f"no answer within {timeout:g} s", error.stderr) from error
    except OSError as error:
        raise _useless(argv, error.strerror or str(error), None) from error
    if "version" not in answers:
        raise _useless(argv, f"exit status {done.returncode}", done.stderr)
    return answers


def _answers(output: bytes) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    for line in output.splitlines():
        # A wrapper script may write lines of its own between QEMU's.
        with contextlib.suppress(ValueError):
            reply = json.loads(line)
            if isinstance(reply, dict) and "return" in reply and "id" in reply:
                answers[reply["id"]] = reply["return"]
    return answers


def _useless(argv: list[str], problem: str, stderr: bytes | None) -> HostError:
    words = (stderr or b"").decode(errors="replace").strip()
    last = words.splitlines()[-1] if words else problem
    advice = f"it was run as: {shlex.join(argv)}"
    return HostError(
        f"cannot use this QEMU: {argv[0]}: {last}",
        hint=f"{words}\n{advice}" if "\n" in words else advice,
    )


def _load(path: Path, text: bytes, forget: Callable[[], None]) -> Binary:
    data = json.loads(text)
    machines = {
        name: MachineType(**entry) for name, entry in data.pop("machines").items()
    }
    version = data.pop("version")
    sets = {name: frozenset(data[name]) for name in _SETS}
    return Binary(
        path=path, version=version, machines=machines, on_missing=forget, **sets
    )


_SETS = [
    item.name
    for item in fields(Binary)
    if item.name not in ("path", "version", "machines", "on_missing")
]


def to_json(binary: Binary) -> str:
    """The cached form of ``binary``, without its path."""
    data: dict[str, Any] = {name: sorted(getattr(binary, name)) for name in _SETS}
    data["version"] = binary.version
    data["machines"] = {name: asdict(entry) for name, entry in binary.machines.items()}
    return json.dumps(data)


def from_json(path: Path, text: bytes) -> Binary:
    """A `Binary` at ``path`` from what `to_json` made; raises ValueError and kin."""
    return _load(path, text, lambda: None)


def _store(cache: Path, binary: Binary) -> None:
    """Writes the cache whole or not at all; without a cache all still works."""
    with contextlib.suppress(OSError):
        cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=cache.parent, suffix=".new")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(to_json(binary))
            Path(temporary).replace(cache)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise


def _forget(cache: Path) -> None:
    with contextlib.suppress(OSError):
        cache.unlink(missing_ok=True)
