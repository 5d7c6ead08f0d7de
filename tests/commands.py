"""The command line without a cold start: a command server of the tests' own."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests import worker_client
from tests.steps import Cut

_CHUNK = 1024 * 1024
_START = 120.0  # seconds, on however busy a machine


class Server:
    """A command server of the tests' own, which ends with this process.

    ``enter`` begins the command line of one in other namespaces.
    """

    def __init__(self, enter: Sequence[str] = ()) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="qemuctl-tests-")
        self.path = Path(self._folder.name) / "server"
        # Not of the home that the test which happens to be first has.
        env = {k: v for k, v in os.environ.items() if not k.startswith("QEMUCTL_")}
        self._process = subprocess.Popen(
            [*enter, sys.executable, "-m", "tests.serving", self.path],
            cwd=Path(__file__).parents[1],
            env=env | {"PYTHONPATH": str(Path(__file__).parents[1])},
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        deadline = time.monotonic() + _START
        while not self.path.exists():
            assert self._process.poll() is None, "the command server has ended"
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def close(self) -> None:
        """Ends it, and what it runs."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()

    def run(
        self,
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
            command = worker_client.start(
                self.path,
                argv,
                streams={0: stdin if isinstance(stdin, int) else stdin.fileno(),
                         1: to_out.fileno(), 2: to_err.fileno()},
                env={**env, **(cut.env if cut else {})},
                folder=cwd,
                timeout=_START,
            )  # fmt: skip
            stack.callback(command.close)  # kills it, if it still runs
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
                raise subprocess.TimeoutExpired(argv, timeout) from None
            return subprocess.CompletedProcess(argv, status, *texts)


@functools.cache
def server() -> Server:
    """The server of this process, started when it is first asked for."""
    server = Server()
    atexit.register(server.close)
    return server


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
