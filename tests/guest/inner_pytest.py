"""An inner pytest with the plugin, in a project and a home of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil

from qemuctl import paths

INI = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = error
addopts = --strict-markers --strict-config
"""
# Without the plugins that sync tests do not need: they take longest to start.
LEAN = (
    "-p", "no:asyncio", "-p", "no:timeout", "-p", "no:anyio",
    "-p", "no:hypothesispytest", "-p", "no:cacheprovider",
    "-o", "addopts=", "-o", "filterwarnings=", "-c", os.devnull,
)  # fmt: skip


def command(*arguments: object) -> list[str]:
    """The command line of pytest with the plugin, whether or not it is installed."""
    installed = "qemuctl" in entry_points(group="pytest11").names
    plugin = [] if installed else ["-p", "qemuctl.pytest_plugin"]
    return [sys.executable, "-m", "pytest", *plugin, *map(str, arguments)]


def project(folder: Path, tests: str) -> Path:
    """A folder with a test file."""
    folder.mkdir(exist_ok=True)
    (folder / "pytest.ini").write_text(INI)
    (folder / "test_inner.py").write_text("import pytest\n" + dedent(tests))
    return folder


@contextmanager
def running(
    folder: Path, *arguments: object, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """A pytest that is running, in a process group of its own as a shell's jobs."""
    with subprocess.Popen(
        command(*arguments),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
        env=_outside() | options.pop("env", {}),
        **options,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _outside() -> dict[str, str]:
    """The environment without what the pytest around it says of itself."""
    own = ("PYTEST_XDIST", "PYTEST_CURRENT")
    return {k: v for k, v in os.environ.items() if not k.startswith(own)}


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that do a pytest's work; itself, where it has no others."""
    main = psutil.Process(process.pid)
    found = [
        child
        for child in main.children()
        if any("execnet" in word for word in child.cmdline())
    ]
    return found or [main]


def left() -> list[str]:
    """VMs, and their sockets, that are still there."""
    states = [path.name for path in paths.vms_dir().glob("*")]
    return states + [path.name for path in paths.run_home().glob("[!.]*")]
