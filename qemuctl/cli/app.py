"""The typer application, and the parameters that many commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from qemuctl.cli.output import speak_json

F = TypeVar("F", bound=Callable[..., Any])

# Which module has which command, in the order of --help. A command is built
# when it is asked for: building all of them would take longer than `ls` does.
_HOMES = {
    "run": "run",
    "fork": "fork",
    "create": "lifecycle",
    "edit": "lifecycle",
    "rename": "lifecycle",
    "rm": "lifecycle",
    "start": "power",
    "stop": "power",
    "kill": "power",
    "pause": "power",
    "resume": "power",
    "reset": "power",
    "reboot": "power",
    "set": "resources",
    "balloon": "resources",
    "diff": "resources",
    "save": "saves",
    "restore": "saves",
    "snapshot": "snapshots",
    "migrate": "migrate",
    "migrate-status": "migrate",
    "migrate-set": "migrate",
    "migrate-cancel": "migrate",
    "migrate-recover": "migrate",
    "migrate-receive": "migrate",
    "clone": "copies",
    "export": "copies",
    "import": "copies",
    "ls": "look",
    "info": "look",
    "stats": "stats",
    "top": "stats",
    "events": "events",
    "argv": "look",
    "exec": "execute",
    "ssh": "ssh",
    "ssh-config": "ssh",
    "cp": "copy",
    "console": "console",
    "screenshot": "screen",
    "sendkey": "screen",
    "type": "screen",
    "display": "screen",
    "view": "screen",
    "logs": "logs",
    "wait": "wait",
    "qmp": "qmp",
    "spec": "specs",
    "image": "image_group",
    "template": "templates",
    "pool": "pool",
    "disk": "disks",
    "nic": "nics",
    "cdrom": "cdrom",
    "server": "server",
    "doctor": "care",
    "gc": "care",
    "help": "help",
    "version": "help",
}
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
_registered: dict[str, typer.Typer] = {}


def typer_app(help: str | None = None, **options: Any) -> typer.Typer:
    """A typer application in the one style of all of them."""
    return typer.Typer(
        help=help,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=_SETTINGS,
        **options,
    )


def command(name: str, *, example: str, **options: Any) -> Callable[[F], F]:
    """Makes a function the command ``name``; ``example`` ends its help."""

    def register(function: F) -> F:
        single = typer_app(add_completion=False)
        epilog = f"Example:  {example}"
        single.command(name, epilog=epilog, **options)(function)
        _registered[name] = single
        return function

    return register


def group(name: str, help: str) -> typer.Typer:
    """A command with commands of its own."""
    _registered[name] = typer_app(help, no_args_is_help=True, add_completion=False)
    _registered[name].callback()(lambda: None)
    return _registered[name]


class Commands(TyperGroup):
    """The commands, each loaded when it is needed."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(_HOMES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        if cmd_name not in _HOMES:
            return None
        return _built(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As typer, but it knows only of commands that are built."""
        word = args[0]
        if word not in _HOMES and word[:1] != "-" and not ctx.resilient_parsing:
            known = _ELSEWHERE.get(word)
            near = [known] if known else get_close_matches(word, _HOMES, n=2)
            names = " or ".join(f"qemuctl {name}" for name in near)
            advice = f"did you mean {names}?" if near else "qemuctl --help lists them"
            ctx.fail(f"no such command: {word!r}; {advice}")
        return super().resolve_command(ctx, args)


def run(words: Sequence[str]) -> None:
    """Carries out a command line. Where JSON is asked for, wrong usage is an error as
    every other; typer prints its own text otherwise. Raises UsageError."""
    from qemuctl.errors import UsageError

    own = words[: words.index("--")] if "--" in words else words
    plain = "--json" not in own
    try:
        # By name, for `python -m qemuctl` and a command server's worker alike.
        status = app(prog_name="qemuctl", standalone_mode=plain)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # of which click makes a 1
            raise end.__context__ from None
        raise
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        speak_json()
        raise UsageError(error.format_message()) from error
    raise SystemExit(status or 0)


@functools.cache
def _built(name: str) -> Any:
    import_module(f"qemuctl.cli.{_HOMES[name]}")
    return typer.main.get_command(_registered[name])


def build_all() -> None:
    """Builds every command, for a process that will run many."""
    for name in _HOMES:
        _parse_nothing(_built(name), name)


def _parse_nothing(command: Any, name: str) -> None:
    """What typer makes of a parameter's type is made when it is first parsed."""
    with command.make_context(name, [], resilient_parsing=True) as context:
        if hasattr(command, "list_commands"):
            for inner in command.list_commands(context):
                _parse_nothing(command.get_command(context, inner), inner)


app = typer_app(name="qemuctl", no_args_is_help=True, cls=Commands)


def complete_names(incomplete: str) -> list[str]:
    """VM names for the shell's completion."""
    from qemuctl.vm.definitions import names

    return [name for name in names() if name.startswith(incomplete)]


def complete_images(incomplete: str) -> list[str]:
    """Image names for the shell's completion."""
    from qemuctl.image.names import TINY, stored

    return [name for name in (TINY, *stored()) if name.startswith(incomplete)]


Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="the VM's name", autocompletion=complete_names),
]
Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME…", help="names of VMs", autocompletion=complete_names),
]
SomeNames = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME…]", help="names of VMs", autocompletion=complete_names
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="print JSON; errors are objects on stderr",
        callback=speak_json,
        is_eager=True,
    ),
]
Timeout = Annotated[
    str, typer.Option("--timeout", metavar="TIME", help="such as 30, 30s or 2m")
]


def seconds(text: str) -> float:
    """A duration from the command line. Raises UsageError."""
    from qemuctl.errors import UsageError
    from qemuctl.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _version(wanted: bool) -> None:
    if wanted:
        from qemuctl import __version__

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
