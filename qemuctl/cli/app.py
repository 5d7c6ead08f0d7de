"""The typer application, made of what `declare` holds."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from qemuctl import __version__
from qemuctl.cli.declare import HOMES, Command, Group, Option, Parameter, declared
from qemuctl.cli.guest_command import GuestCommand
from qemuctl.cli.output import speak_json
from qemuctl.errors import UsageError

# What virsh, docker, lima and others call it.
_ELSEWHERE = {
    "list": "ls", "ps": "ls", "status": "info", "inspect": "info", "dominfo": "info",
    "dumpxml": "spec", "define": "create", "undefine": "rm", "delete": "rm",
    "shutdown": "stop", "poweroff": "stop", "destroy": "kill", "suspend": "pause",
    "unpause": "resume", "shell": "ssh", "attach": "console", "copy": "cp",
    "images": "image", "pull": "image", "build": "image", "commit": "image",
    "log": "logs", "prune": "gc",
}  # fmt: skip
_SETTINGS: Any = {"help_option_names": ["-h", "--help"]}


def _typer_app(help: str | None = None, **options: Any) -> typer.Typer:
    """A typer application in the one style of all of them."""
    return typer.Typer(
        help=help,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=_SETTINGS,
        **options,
    )


def _epilog(example: str | None) -> str | None:
    return example and f"Example:  {example}"


def _add(single: typer.Typer, command: Command, function: Callable[..., Any]) -> None:
    options: dict[str, Any] = {"cls": GuestCommand} if command.for_guest else {}
    if command.words_like_options:
        options["context_settings"] = {"ignore_unknown_options": True}
    options |= {"hidden": command.hidden, "epilog": _epilog(command.example)}
    single.command(command.name, **options)(function)


def _group(group: Group) -> typer.Typer:
    """A group with all that is in it."""
    made = _typer_app(
        group.help,
        no_args_is_help=True,
        add_completion=False,
        epilog=_epilog(group.example),
    )
    made.callback()(lambda: None)
    for name, member in group.members.items():
        if isinstance(member, Group):
            made.add_typer(_group(member), name=name)
        else:
            _add(made, member, _in_typers_words(member.function))
    return made


def _in_typers_words(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with parameters that typer can read."""
    signature = inspect.signature(function, eval_str=True)

    @functools.wraps(function)
    def wrapped(**values: Any) -> Any:
        return function(**values)

    parameters = [
        each.replace(
            kind=each.KEYWORD_ONLY, annotation=_in_typers_word(each.annotation)
        )
        for each in signature.parameters.values()
    ]
    # What typer reads the command line from.
    wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapped


def _in_typers_word(annotation: Any) -> Any:
    kind, parameter = get_args(annotation)
    assert isinstance(parameter, Parameter)
    made: Any = typer.Option if isinstance(parameter, Option) else typer.Argument
    return Annotated[kind, made(*parameter.names, **parameter.details)]


class Commands(TyperGroup):
    """The commands, each loaded when it is needed."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(HOMES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        return _built(cmd_name) if cmd_name in HOMES else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """As typer, but no command is built for the sake of its first line."""
        shown: dict[str, Any] = {}
        for name in HOMES:
            found = declared(name)
            hidden = isinstance(found, Command) and found.hidden
            text = found.help if isinstance(found, Group) else found.function.__doc__
            shown[name] = TyperCommand(name, help=text, hidden=hidden)
        TyperGroup(commands=shown).format_commands(ctx, formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As typer, but it knows only of commands that are built."""
        word = args[0]
        if word not in HOMES and word[:1] != "-" and not ctx.resilient_parsing:
            known = _ELSEWHERE.get(word)
            near = [known] if known else get_close_matches(word, HOMES, n=2)
            names = " or ".join(f"qemuctl {name}" for name in near)
            advice = f"did you mean {names}?" if near else "qemuctl --help lists them"
            ctx.fail(f"no such command: {word!r}; {advice}")
        return super().resolve_command(ctx, args)


def run_by_typer(words: Sequence[str]) -> None:
    """Carries out a command line. Where JSON is asked for, wrong usage is an error as
    every other; typer prints its own text otherwise. Raises UsageError."""
    own = words[: words.index("--")] if "--" in words else words
    try:
        # By name, for `python -m qemuctl` and a command server's worker alike.
        status = app([*words], prog_name="qemuctl", standalone_mode=False)
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        if "--json" in own:
            speak_json()
            raise UsageError(error.format_message()) from error
        error.show()  # type: ignore[attr-defined]
        raise SystemExit(error.exit_code) from error  # type: ignore[attr-defined]
    raise SystemExit(status or 0)


@functools.cache
def _built(name: str) -> Any:
    found = declared(name)
    if isinstance(found, Group):
        return typer.main.get_command(_group(found))
    single = _typer_app(add_completion=False)
    _add(single, found, _in_typers_words(found.function))
    return typer.main.get_command(single)


def build_all() -> None:
    """Builds every command, for a process that will run many."""
    for name in HOMES:
        _parse_nothing(_built(name), name)


def _parse_nothing(command: Any, name: str) -> None:
    """What typer makes of a parameter's type is made when it is first parsed."""
    with command.make_context(name, [], resilient_parsing=True) as context:
        if hasattr(command, "list_commands"):
            for inner in command.list_commands(context):
                _parse_nothing(command.get_command(context, inner), inner)


app = _typer_app(name="qemuctl", no_args_is_help=True, cls=Commands)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"qemuctl {__version__}")
        raise typer.Exit


@app.callback()
def _qemuctl(
    _show_version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="the version"),
    ] = False,
) -> None:
    """Virtual machines as ordinary processes: no libvirt, no root, no daemon.

    `qemuctl help` is the manual.
    """


def command_help(words: Sequence[str]) -> str:
    """The help of a command that there is, or of one of a group's."""
    context: Any = None
    for word in ("qemuctl", *words):
        inner: Any = typer.main.get_command(app)
        if context is not None:
            inner = context.command.get_command(context, word)
        # Not parsed: reading values, even none, would have typer load pydantic.
        settings = inner.context_settings
        context = typer.Context(inner, info_name=word, parent=context, **settings)
    return str(context.get_help())
