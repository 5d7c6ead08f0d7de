"""Every name that we put on the wire is one that the installed QEMU knows."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import pkgutil
import subprocess
import types
from collections.abc import Iterator
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest

import qemuctl
import qemuctl.qmp
from qemuctl.qmp.commands import Command, wire_name
from qemuctl.qmp.events import TypedEvent
from qemuctl.registry.records.outcome import _CAUSES
from qemuctl.registry.states import _RUN_STATES

SOURCES = Path(qemuctl.__file__).parent
JSON_TYPES = {
    "string": str,
    "int": int,
    "number": float,
    "boolean": bool,
    "null": types.NoneType,
}


def subclasses(base: type) -> Iterator[type]:
    for module in pkgutil.iter_modules(qemuctl.qmp.__path__, "qemuctl.qmp."):
        importlib.import_module(module.name)
    for child in base.__subclasses__():
        yield child
        yield from subclasses(child)


COMMANDS = sorted(subclasses(Command), key=lambda c: c.NAME)  # type: ignore[attr-defined]
EVENTS = sorted(subclasses(TypedEvent), key=lambda c: c.NAME)  # type: ignore[attr-defined]


class Schema:
    """The answer to query-qmp-schema, by name."""

    def __init__(self, entries: list[dict[str, Any]]) -> None:
        self._entries = {(e["meta-type"], e["name"]): e for e in entries}
        self._types = {
            e["name"]: e for e in entries if e["meta-type"] not in ("command", "event")
        }

    def command(self, name: str) -> dict[str, Any]:
        assert ("command", name) in self._entries, f"QEMU has no command {name}"
        return self._entries["command", name]

    def event(self, name: str) -> dict[str, Any]:
        assert ("event", name) in self._entries, f"QEMU has no event {name}"
        return self._entries["event", name]

    def type(self, name: str) -> dict[str, Any]:
        return self._types[name]

    def members(self, name: str) -> dict[str, dict[str, Any]]:
        """The members of an object type, those of its variants among them."""
        entry = self.type(name)
        if entry["meta-type"] != "object":
            return {}
        found = {member["name"]: member for member in entry["members"]}
        for variant in entry.get("variants", ()):
            for key, member in self.members(variant["type"]).items():
                # Only some variants have it, so none can count on it.
                found.setdefault(key, member | {"default": None})
        return found

    def enums_with(self, value: str) -> list[set[str]]:
        return [
            values
            for entry in self._types.values()
            if entry["meta-type"] == "enum" and value in (values := enum_values(entry))
        ]

    def mismatch(self, hint: Any, name: str) -> str | None:
        """Why a value of QEMU's type ``name`` is none of the Python type."""
        entry = self.type(name)
        meta = entry["meta-type"]
        if hint is Any:
            return None
        if meta == "builtin":
            wanted = JSON_TYPES.get(entry["json-type"])
            return None if hint is wanted else f"{name} is not {hint}"
        if meta == "enum":
            return self._enum_mismatch(hint, entry)
        if meta == "array":
            if get_origin(hint) not in (list, tuple):
                return f"a list is not {hint}"
            return self.mismatch(get_args(hint)[0], entry["element-type"])
        if meta == "object":
            if get_origin(hint) is dict or hint is dict:
                return None
            return "; ".join(problems(self, hint, name, sent=False)) or None
        return None if hint is Any else f"{meta} {name} is not {hint}"

    @staticmethod
    def _enum_mismatch(hint: Any, entry: dict[str, Any]) -> str | None:
        if hint is str:
            return None
        values = enum_values(entry)
        if isinstance(hint, type) and issubclass(hint, Enum):
            ours = {member.value for member in hint}
        else:
            ours = set(get_args(hint))
        unknown = ours - values
        return f"not among {sorted(values)}: {sorted(unknown)}" if unknown else None


def enum_values(entry: dict[str, Any]) -> set[str]:
    return set(entry.get("values") or [m["name"] for m in entry["members"]])


def problems(schema: Schema, ours: type, theirs: str, *, sent: bool) -> list[str]:
    """What is wrong with our fields for QEMU's object ``theirs``.

    What we send must have each member that QEMU requires; what we receive may
    only rely on members that QEMU always sends.
    """
    members = schema.members(theirs)
    hints = get_type_hints(ours)
    found = []
    names = set()
    for field in dataclasses.fields(ours):
        name = wire_name(field.name)
        names.add(name)
        member = members.get(name)
        if member is None:
            found.append(f"{name}: unknown; known: {', '.join(sorted(members))}")
            continue
        has_default = field.default is not dataclasses.MISSING
        required = "default" not in member
        if sent and required and has_default and field.default is None:
            found.append(f"{name}: QEMU requires it")
        if not sent and not required and not has_default:
            found.append(f"{name}: QEMU does not always send it")
        if why := schema.mismatch(without_none(hints[field.name]), member["type"]):
            found.append(f"{name}: {why}")
    if sent:
        missing = {n for n, m in members.items() if "default" not in m} - names
        found += [f"{name}: missing, QEMU requires it" for name in sorted(missing)]
    return found


def without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        rest = [part for part in get_args(hint) if part is not types.NoneType]
        return rest[0] if len(rest) == 1 else Union[tuple(rest)]  # noqa: UP007
    return hint


@cache
def asked(binary: Path) -> Schema:
    line = [binary, "-M", "none", "-nodefaults", "-display", "none", "-qmp", "stdio"]
    with subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        # A quit on their heels would cut the long reply short.
        for name in ("qmp_capabilities", "query-qmp-schema"):
            process.stdin.write(json.dumps({"execute": name}))
            process.stdin.flush()
            reply = json.loads(process.stdout.readline())
        process.kill()
    return Schema(reply["return"])


@pytest.fixture
def schema(qemu: Path) -> Schema:
    return asked(qemu)


def reply_type(command: Any) -> Any:
    """What `Command[…]` says that the command returns."""
    for base in command.__orig_bases__:
        if get_origin(base) is Command:
            return get_args(base)[0]
    raise AssertionError(f"{command} does not say what it returns")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.NAME)
def test_a_command_is_sent_as_qemu_wants_it(schema: Schema, command: Any) -> None:
    entry = schema.command(command.NAME)
    assert problems(schema, command, entry["arg-type"], sent=True) == []


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.NAME)
def test_a_reply_is_read_as_qemu_sends_it(schema: Schema, command: Any) -> None:
    entry = schema.command(command.NAME)
    hint = reply_type(command)
    assert schema.mismatch(hint, entry["ret-type"]) is None
    # `result` builds the type that the annotation promises.
    item = get_args(hint)[0] if get_origin(hint) is list else hint
    assert command.REPLY in (item, None)
    if command.REPLY is None:
        assert not dataclasses.is_dataclass(item)


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: e.NAME)
def test_an_event_is_read_as_qemu_sends_it(schema: Schema, event: Any) -> None:
    entry = schema.event(event.NAME)
    assert problems(schema, event, entry["arg-type"], sent=False) == []


def test_all_of_them_were_found() -> None:
    assert {"cont", "quit", "human-monitor-command"} <= {c.NAME for c in COMMANDS}
    assert {"SHUTDOWN", "VSERPORT_CHANGE"} <= {e.NAME for e in EVENTS}
    names = [c.NAME for c in (*COMMANDS, *EVENTS)]
    assert len(names) == len(set(names))


def literal_commands() -> list[str]:
    """Names that the sources hand to `….command("name")`; decorators are not ours."""
    found = set()
    for path in sorted(SOURCES.rglob("*.py")):
        if path.relative_to(SOURCES).parts[0] in ("cli", "host"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "command"
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                found.add(str(node.args[0].value))
    return sorted(found)


@pytest.mark.parametrize("name", literal_commands())
def test_a_command_that_is_only_named_exists(schema: Schema, name: str) -> None:
    schema.command(name)


def test_some_commands_are_only_named() -> None:
    assert "send-key" in literal_commands()


def test_every_run_state_of_this_qemu_has_its_meaning(schema: Schema) -> None:
    (states,) = schema.enums_with("inmigrate")
    assert states - set(_RUN_STATES) == set()


def test_every_cause_of_a_shutdown_has_its_words(schema: Schema) -> None:
    (causes,) = schema.enums_with("guest-shutdown")
    # `none` never goes out.
    assert causes - set(_CAUSES) == {"none"}
    assert set(_CAUSES) - causes == set()


# The comparison itself must be able to fail.


@dataclasses.dataclass(frozen=True, kw_only=True)
class MisspeltStatus:
    statsu: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class WronglyTypedStatus:
    running: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class VncWithoutServer:
    host: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    comand_line: str


@pytest.mark.parametrize(
    ("ours", "command", "part", "said"),
    [
        (MisspeltStatus, "query-status", "ret-type", "statsu: unknown"),
        (WronglyTypedStatus, "query-status", "ret-type", "running: bool is not"),
        (VncWithoutServer, "query-vnc", "ret-type", "host: QEMU does not always"),
        (Arguments, "human-monitor-command", "arg-type", "comand-line: unknown"),
        (Arguments, "human-monitor-command", "arg-type", "command-line: missing"),
    ],
)
def test_a_mistake_would_be_seen(
    schema: Schema, ours: type, command: str, part: str, said: str
) -> None:
    entry = schema.command(command)
    found = problems(schema, ours, entry[part], sent=part == "arg-type")
    assert any(said in text for text in found), found


def test_an_unknown_name_would_be_seen(schema: Schema) -> None:
    with pytest.raises(AssertionError, match="no command query-statsu"):
        schema.command("query-statsu")
    with pytest.raises(AssertionError, match="no event SHUTDWON"):
        schema.event("SHUTDWON")
