"""What cloud-init makes of a user-data file, checked before a guest boots with it.

cloud-init passes over what it does not know with a warning in a log of the
guest's, and a value of the wrong type may end a whole stage of it.
https://cloudinit.readthedocs.io/en/latest/explanation/format.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml import events

from qemuctl.errors import SpecError
from qemuctl.spec.document import LOADER, syntax_problem, too_deep

Location = tuple[str | int, ...]
Problem = tuple[Location, str]
"""Where a value is, and what it should be."""

_CONFIG = b"#cloud-config"
_DEPTH_MAX = 100
_GZIP = b"\x1f\x8b"
_MIME, _MIME_WITHIN = b"mime-version:", 4096
# More may follow each on its line; the longest that fits counts.
_FIRST = (
    b"#cloud-config-archive", b"#cloud-config-jsonp", _CONFIG, b"#cloud-boothook",
    b"#part-handler", b"#upstart-job", b"#include", b"#!", b"## template: jinja",
)  # fmt: skip


def check_user_data(content: bytes, path: Path, key: str) -> None:
    """Raises SpecError for a file that cloud-init would pass over, or stumble on."""
    start = content.lstrip().lower()
    if content.startswith(_GZIP) or _MIME in content[:_MIME_WITHIN].lower():
        return
    kind = next(filter(start.startswith, _FIRST), None)
    if kind is None:
        raise SpecError(
            "cloud-init does not know what this is by its first line",
            path=str(path), line=1, key=key,
            hint="begin it with #cloud-config, or with #! if it is a script",
        )  # fmt: skip
    if kind != _CONFIG:
        return
    config = mapping(content, path, key)
    for where, words in _problems(config):
        raise SpecError(
            f"{_dotted(where)}: {words}",
            path=str(path), line=_line(content, where), key=key,
        )  # fmt: skip


def mapping(content: bytes, path: Path, key: str) -> dict[str, Any]:
    """The YAML mapping of a file. Raises SpecError, with the line where it can."""
    try:
        _check_depth(content, path, key)
        data = yaml.load(content, Loader=LOADER)  # noqa: S506 (a safe loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise SpecError(
            syntax_problem(error, _DEPTH_MAX),
            path=str(path), line=mark.line + 1 if mark else None, key=key,
        ) from error  # fmt: skip
    except yaml.reader.ReaderError as error:
        line = content[: error.position].count(b"\n") + 1
        raise SpecError(
            "not valid YAML: a character that may not be in it",
            path=str(path), line=line, key=key,
        ) from error  # fmt: skip
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SpecError("not valid YAML", path=str(path), key=key) from error
    if not isinstance(data, dict):
        raise SpecError(
            "not a mapping: it must be lines of `key: value`",
            path=str(path), line=1, key=key,
        )  # fmt: skip
    return data


def _check_depth(content: bytes, path: Path, key: str) -> None:
    """Raises SpecError for what `yaml.load` would exhaust the stack with: PyYAML's
    composer recurses, and before libyaml 0.2.6 nothing stops it."""
    depth = 0
    stream: Iterator[Any] = yaml.parse(content, Loader=LOADER)
    for event in stream:
        if isinstance(event, events.CollectionStartEvent):
            depth += 1
        elif isinstance(event, events.CollectionEndEvent):
            depth -= 1
        if depth > _DEPTH_MAX:
            raise SpecError(
                too_deep(_DEPTH_MAX),
                path=str(path), line=event.start_mark.line + 1, key=key,
            )  # fmt: skip


def _problems(config: dict[str, Any]) -> Iterator[Problem]:
    """The first thing that is wrong in each part that people write most."""
    for key, check in _ITEMS.items():
        value = config.get(key)
        if value is None:
            continue
        if not isinstance(value, list):
            # cloud-init takes other forms of `users`, by now with a warning.
            if key != "users" or not isinstance(value, (str, dict)):
                yield (key,), "not a list"
            continue
        for index, item in enumerate(value):
            for where, words in check(item):
                yield (key, index, *where), words
    if not isinstance(config.get("user", ""), (str, dict, type(None))):
        yield ("user",), "neither a name nor a mapping"


def _package(item: Any) -> Iterator[Problem]:
    is_pair = isinstance(item, list) and len(item) in (1, 2)
    if isinstance(item, dict):  # for one package manager: {snap: [...]}
        for manager, packages in item.items():
            if not isinstance(packages, list):
                yield (manager,), "not a list of packages"
    elif not isinstance(item, str) and not (
        is_pair and all(isinstance(word, (str, int, float)) for word in item)
    ):
        yield (), "not a package: a name, or a list of name and version"


def _command(item: Any) -> Iterator[Problem]:
    words = item if isinstance(item, list) else []
    for index, word in enumerate(words):
        if isinstance(word, (dict, list)):
            yield (index,), f"not a word of a command{_QUOTE}"
    if item is not None and not isinstance(item, (str, list)):
        yield (), f"not a command: a line for a shell, or a list of words{_QUOTE}"


def _user(item: Any) -> Iterator[Problem]:
    if isinstance(item, list):
        item = None if all(isinstance(name, str) for name in item) else 0
    if not isinstance(item, (str, dict, type(None))):
        yield (), "not a user: a name, or a mapping with one"
    if isinstance(item, dict):
        if not isinstance(item.get("name", ""), str):
            yield ("name",), "not a name"
        keys = item.get("ssh_authorized_keys")
        if not isinstance(keys, (str, list, type(None))):
            yield ("ssh_authorized_keys",), "not a list of public keys"
        for index, key in enumerate(keys if isinstance(keys, list) else []):
            for _, words in _key(key):
                yield ("ssh_authorized_keys", index), words


def _file(item: Any) -> Iterator[Problem]:
    if not isinstance(item, dict):
        yield (), "not a file: a mapping with path and content"
    elif not isinstance(item.get("path"), str):
        yield (("path",) if "path" in item else ()), "without a path, as text"
    elif not isinstance(item.get("content", ""), (str, bytes, type(None))):
        yield ("content",), f"not text{_QUOTE}"
    elif not isinstance(item.get("permissions", ""), (str, int, type(None))):
        yield ("permissions",), "not a mode, such as '0644'"


def _key(item: Any) -> Iterator[Problem]:
    if not isinstance(item, str):
        yield (), "not a public key"


_QUOTE = " (is it in need of quotes?)"
_ITEMS: dict[str, Callable[[Any], Iterator[Problem]]] = {
    "packages": _package,
    "bootcmd": _command,
    "runcmd": _command,
    "users": _user,
    "write_files": _file,
    "ssh_authorized_keys": _key,
}


def _dotted(where: Location) -> str:
    words = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in where)
    return "".join(words).removeprefix(".")


def _line(content: bytes, where: Location) -> int:
    """The line of a value; of what is around it, for one by an alias or `<<`."""
    node: Any = yaml.compose(content, Loader=LOADER)
    line = 1
    for step in where:
        if isinstance(node, yaml.MappingNode):
            found = [value for key, value in node.value if key.value == step]
        else:
            found = node.value[step : step + 1] if isinstance(step, int) else []
        if not found:
            break
        node = found[0]
        line = node.start_mark.line + 1
    return line
