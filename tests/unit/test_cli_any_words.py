"""Every command with arguments that make no sense: one sentence at most, and soon."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from qemuctl.cli.app import app, build_all
from qemuctl.errors import QemuctlError
from tests.hostile import ODD, fuzzed
from tests.unit.stores import add_vm

# Seconds for a command, of which none finds a QEMU, a network or an input.
ENOUGH = 30
# They go on until they are told to end.
ENDLESS = {"top", "events", "--follow", "-f", "--watch", "-w"}


@functools.cache
def verbs() -> dict[tuple[str, ...], list[str]]:
    """Each command's words, and its options."""
    build_all()
    found: dict[tuple[str, ...], list[str]] = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        context = typer.Context(command)
        if hasattr(command, "list_commands"):
            for name in command.list_commands(context):
                if name == "server":  # it would be the user's own
                    continue
                walk(command.get_command(context, name), (*words, name))
        else:
            opts = [
                opt
                for one in command.params
                for opt in (*one.opts, *one.secondary_opts)
            ]
            found[words] = sorted(opt for opt in opts if opt.startswith("-"))

    walk(typer.main.get_command(app), ())
    return found


def lines() -> st.SearchStrategy[list[str]]:
    # Nothing outside of the folder that the test is in is named.
    inside = [word for word in ODD if not word.startswith(("/", ".."))]
    words = st.sampled_from(inside) | st.text(max_size=6).filter(lambda x: "/" not in x)

    def of(verb: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
        options = st.sampled_from(verbs()[verb] or ["--help"])
        part = words.map(lambda word: [word]) | st.builds(
            lambda option, word: [option, word], options, words
        )
        return st.lists(part, max_size=4).map(lambda parts: [*verb, *chain(*parts)])

    return st.sampled_from(sorted(verbs())).flatmap(of)


@pytest.fixture
def bare(bare_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a VM that is off, where no program is found and no network is."""
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    for name in ("PATH", "EDITOR", "VISUAL", "HOME"):
        monkeypatch.setenv(name, str(nothing))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:1")
    monkeypatch.chdir(nothing)
    return bare_home


@contextlib.contextmanager
def _ended_soon() -> Iterator[None]:
    def late(*_: object) -> None:
        raise AssertionError(f"not in {ENOUGH} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(ENOUGH)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(words: list[str]) -> None:
    """A command in this process; what is more than an error is raised."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    errors = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    with (
        Path(os.devnull).open() as source,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        before, sys.stdin = sys.stdin, source
        try:
            with _ended_soon(), contextlib.suppress(QemuctlError, SystemExit, OSError):
                app(words, prog_name="qemuctl")
        finally:
            sys.stdin = before


@fuzzed(60)
@given(words=lines())
def test_any_words_are_an_error_at_most(bare: Path, words: list[str]) -> None:
    if ENDLESS & set(words):
        return
    shutil.rmtree(bare, ignore_errors=True)
    add_vm("web")
    run(words)


# What a command prints is a program's or a guest's own, or nothing at all; files of
# images, templates and pools, and what is asked or typed, have no state to tell of.
WITHOUT_JSON = {
    "run", "fork", "exec", "ssh", "ssh-config", "cp", "console", "screenshot",
    "sendkey", "type", "view", "logs", "qmp", "edit", "spec", "help", "version",
    "image", "template", "pool", "migrate-set", "migrate-cancel", "migrate-recover",
    "migrate-receive",
}  # fmt: skip


def test_what_changes_a_vm_or_prints_a_table_takes_json() -> None:
    silent = {words for words, options in verbs().items() if "--json" not in options}
    assert [words for words in silent if words[0] not in WITHOUT_JSON] == []
