"""How commands and their parameters are declared, whoever reads the command line.

The records here need no library: `plain` reads simple command lines by them, and
`app` makes the typer application of them, for help, completion and all other lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from importlib import import_module
from typing import Any, TypeVar

from qemuctl.structs import Struct

F = TypeVar("F", bound=Callable[..., Any])

# Options that say what the VM is of a command for the guest, so that no argument does.
NAMING = {"file", "template"}
# Which module has which command, in the order of --help. A command is loaded
# when it is asked for: loading all of them would take longer than `ls` does.
HOMES = {
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


class Parameter:
    """What `Annotated` says of a command's parameter: the names of an option, and
    what typer's function of the same name takes besides."""

    def __init__(self, *names: str, **details: Any) -> None:
        self.names = names
        self.details = details


class Option(Parameter):
    """A parameter that is given by name; its own is ``--like-this`` by default."""


class Argument(Parameter):
    """A parameter that is given by its place."""


class Command(Struct, kw_only=False):
    """A command: ``function`` carries it out, and its annotated parameters are those
    of the command line; ``example`` ends its help.

    With ``words_like_options``, what looks like an option and is none is an
    argument. With ``for_guest``, it ends in a command for the guest, which begins
    with its first word.
    """

    name: str
    function: Callable[..., Any]
    example: str
    hidden: bool = False
    words_like_options: bool = False
    for_guest: bool = False


class Group(Struct, kw_only=False):
    """A command with commands of its own."""

    name: str
    help: str
    example: str | None = None
    members: dict[str, Command | Group] = field(default_factory=dict)

    def command(
        self, name: str | None = None, *, example: str, **options: Any
    ) -> Callable[[F], F]:
        """Makes a function a command of the group, by its own name by default."""

        def register(function: F) -> F:
            word = name or function.__name__
            self.members[word] = Command(word, function, example, **options)
            return function

        return register

    def group(self, name: str, help: str, *, example: str) -> Group:
        """A group in this one."""
        inner = self.members[name] = Group(name, help, example)
        return inner


_declared = Group("qemuctl", "")


def command(name: str, *, example: str, **options: Any) -> Callable[[F], F]:
    """Makes a function the command ``name``; `Command` tells of the options."""
    return _declared.command(name, example=example, **options)


def group(name: str, help: str) -> Group:
    """A command with commands of its own."""
    made = _declared.members[name] = Group(name, help)
    return made


def declared(name: str) -> Command | Group:
    """The command ``name`` of `HOMES`, loaded if it was not."""
    if name not in _declared.members:
        import_module(f"qemuctl.cli.{HOMES[name]}")
    return _declared.members[name]
