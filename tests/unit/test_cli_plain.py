"""Simple command lines, read without typer: as typer reads them, or left to it."""

from __future__ import annotations

import functools
import inspect
from typing import Any, get_args

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from qemuctl.cli import app
from qemuctl.cli.declare import HOMES, Command, Group, declared
from qemuctl.cli.plain import call_of
from tests.hostile import ODD, fuzzed


@functools.cache
def commands() -> dict[tuple[str, ...], Command]:
    found: dict[tuple[str, ...], Command] = {}

    def walk(one: Command | Group, words: tuple[str, ...]) -> None:
        if isinstance(one, Command):
            found[words] = one
        else:
            for name, member in one.members.items():
                walk(member, (*words, name))

    for name in HOMES:
        walk(declared(name), (name,))
    return found


@functools.cache
def options(words: tuple[str, ...]) -> list[str]:
    """All that the command takes by name, in pieces that may be put together."""
    signature = inspect.signature(commands()[words].function, eval_str=True)
    found = ["--help", "--", "--no-such", "-x"]
    for each in signature.parameters.values():
        _, parameter = get_args(each.annotation)
        word = each.name.replace("_", "-")
        given = parameter.names or (f"--{word}", f"--no-{word}")
        found += [name for names in given for name in names.split("/")]
    return found


def by_typer(words: list[str]) -> tuple[Any, dict[str, Any]] | None:
    """What typer calls for a command line, and with which arguments."""
    called: list[tuple[Any, dict[str, Any]]] = []

    def noted(command: Command) -> Any:
        made = app._in_typers_words(command.function)

        @functools.wraps(made)
        def note(**values: Any) -> None:
            called.append((command.function, values))

        note.__signature__ = made.__signature__
        return note

    names = next(n for n in commands() if list(n) == words[: len(n)])
    command = commands()[names]
    single = app._typer_app(add_completion=False)
    app._add(single, command, noted(command))
    try:
        typer.main.get_command(single)(
            words[len(names) :], prog_name="x", standalone_mode=False
        )
    except (Exception, SystemExit):  # noqa: BLE001 (whatever it says)
        return None
    return called[0] if called else None


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    verb = draw(st.sampled_from(sorted(commands())))
    word = st.sampled_from(["web", "1", "0", "-5", "12", "a.img", "a=b", "", "-", *ODD])
    option = st.sampled_from(options(verb))
    assigned = st.builds(lambda name, value: f"{name}={value}", option, word)
    parts = st.lists(word | option | assigned, max_size=6)
    return [*verb, *draw(parts)]


@fuzzed(300)
@given(words=lines())
def test_a_plain_line_is_read_as_typer_reads_it(words: list[str]) -> None:
    call = call_of(words)
    if call is None:
        return
    assert isinstance(call, functools.partial)
    if words[-1] in ("-h", "--help"):
        return
    expected = by_typer(words)
    assert expected is not None, words
    assert (call.func, call.keywords) == expected


@pytest.mark.parametrize(
    "line",
    [
        "ls -a --json", "ls", "pause web db", "kill --all", "stop web --timeout 5",
        "exec web -n -- sh -c id", "exec web ls -l", "run tiny --memory=1G -- true",
        "disk add web --size 10G", "start web --wait", "wait web --for serial:x",
        "qmp web query-status", "create web --image tiny", "top --count 1",
        "snapshot create web a", "logs web", "nic forward add web 80:80",
    ],
)  # fmt: skip
def test_what_is_typed_most_is_plain(line: str) -> None:
    call = call_of(line.split())
    assert isinstance(call, functools.partial)
    assert (call.func, call.keywords) == by_typer(line.split())


@pytest.mark.parametrize(
    "line",
    [
        "", "nothing", "--version", "pause web --help", "ls -aq", "ls --bad", "disk",
        "disk bad", "rename web", "rename a b c", "top --count x", "top --count 0",
        "fork -x", "exec web", "stop web --timeout", "cp --via no a b",
        "run --file a.yaml true", "reset",
    ],
)  # fmt: skip
def test_what_is_not_plain_is_left_to_typer(line: str) -> None:
    assert call_of(line.split()) is None


def test_completion_is_left_to_typer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_QEMUCTL_COMPLETE", "complete_bash")
    assert call_of(["ls"]) is None


def test_help_is_typers_own(capsys: pytest.CaptureFixture[str]) -> None:
    groups = {words[:-1] for words in commands() if len(words) > 1}
    for words in ((), *sorted(groups), *commands()):
        call = call_of([*words, "--help"])
        assert call is not None
        call()
        ours = capsys.readouterr().out
        app.app([*words, "--help"], prog_name="qemuctl", standalone_mode=False)
        assert ours == capsys.readouterr().out
