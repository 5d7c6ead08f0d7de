"""The command line without a cold start: a command server of the tests' own."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qemuctl.command_server import client
from tests.steps import Cut

_CHUNK = 1024 * 1024
_START = 120.0  # seconds, on however busy a machine


@functools.cache
def server() -> Path:
    """The socket of this process's server, which ends with this process."""
    folder = tempfile.TemporaryDirectory(prefix="qemuctl-tests-")
    path = Path(folder.name) / "server"
    # Not of the home that the test which happens to be first has.
    env = {k: v for k, v in os.environ.items() if not k.startswith("QEMUCTL_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.serving", path],
        cwd=Path(__file__).parents[1],
        env=env,
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    deadline = time.monotonic() + _START
    while not path.exists():
        assert process.poll() is None, "the command server has ended"
        assert time.monotonic() < deadline
        time.sleep(0.01)

    def end() -> None:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
        folder.cleanup()

    atexit.register(end)
    return path


def run(
    *arguments: object,
    env: Mapping[str, str],
    timeout: float,
    input: bytes | None = None,
    stdin: Any = subprocess.DEVNULL,
    cwd: str | Path = ".",
    cut: Cut | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Runs a command as `subprocess.run` does, in a worker; ``timeout`` is in
    seconds, ``cut`` kills at a step of it."""
    argv = ["qemuctl", *map(str, arguments)]
    with contextlib.ExitStack() as stack:
        if input is not None:
            stdin, feed = _pipe(stack)
        elif stdin == subprocess.DEVNULL:
            stdin = stack.enter_context(Path(os.devnull).open("rb"))
        out, to_out = _pipe(stack)
        err, to_err = _pipe(stack)
        command = client.start(
            server(),
            argv,
            streams={0: stdin if isinstance(stdin, int) else stdin.fileno(),
                     1: to_out.fileno(), 2: to_err.fileno()},
            env={**env, **(cut.env if cut else {})},
            folder=cwd,
            timeout=_START,
        )  # fmt: skip
        stack.callback(command.close)
        to_out.close()
        to_err.close()
        if input is not None:
            stdin.close()
        deadline = time.monotonic() + timeout
        try:
            feeding = (feed, input) if input is not None else None
            texts = _talk([out, err], feeding, deadline)
            status = command.wait(max(0.001, deadline - time.monotonic()))
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(command.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(argv, timeout) from None
        return subprocess.CompletedProcess(argv, status, *texts)


def _pipe(stack: contextlib.ExitStack) -> tuple[Any, Any]:
    reading, writing = os.pipe()
    return (
        stack.enter_context(os.fdopen(reading, "rb", buffering=0)),
        stack.enter_context(os.fdopen(writing, "wb", buffering=0)),
    )


def _talk(
    reading: list[Any], feeding: tuple[Any, bytes] | None, deadline: float
) -> list[bytes]:
    """All that comes out until the end of both streams, while the input goes in."""
    texts = {file: bytearray() for file in reading}
    with selectors.DefaultSelector() as selector:
        for file in reading:
            selector.register(file, selectors.EVENT_READ)
        if feeding is not None:
            os.set_blocking(feeding[0].fileno(), False)
            selector.register(feeding[0], selectors.EVENT_WRITE, memoryview(feeding[1]))
        while any(key.fileobj in texts for key in selector.get_map().values()):
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                if key.fileobj in texts:
                    _read(selector, key, texts[key.fileobj])
                else:
                    _write(selector, key)
    return [bytes(texts[file]) for file in reading]


def _read(selector: Any, key: selectors.SelectorKey, text: bytearray) -> None:
    chunk = os.read(key.fd, _CHUNK)
    text += chunk
    if not chunk:
        selector.unregister(key.fileobj)


def _write(selector: Any, key: selectors.SelectorKey) -> None:
    """Feeds on; the input ends when all is written, or nobody reads it."""
    rest: memoryview = key.data
    try:
        rest = rest[os.write(key.fd, rest[:_CHUNK]) :] if rest else rest
    except BrokenPipeError:
        rest = memoryview(b"")
    selector.unregister(key.fileobj)
    if rest:
        selector.register(key.fileobj, selectors.EVENT_WRITE, rest)
    else:
        key.fileobj.close()
