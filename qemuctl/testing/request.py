"""From a mark's words to the guest that a test wants.

::

    @pytest.mark.vm(image="debian", memory="1G")    # or vm_factory(image=…)
            └─► Wanted(spec, template), or one clear error
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qemuctl.errors import QemuctlError, SpecError, UsageError
from qemuctl.host import inspect_host
from qemuctl.spec import (
    Spec,
    load_spec,
    parse_cpus,
    parse_disk,
    parse_memory,
    parse_nic,
    resolve_paths,
    validate,
)
from qemuctl.spec.problems import nearest
from qemuctl.structs import Struct
from qemuctl.templates.catalog import find
from qemuctl.templates.fork import spec_like

WORDS = (
    "image", "memory", "cpus", "disks", "nics", "template", "spec", "kvm", "name"
)  # fmt: skip
# Enough to recognise a test in `qemuctl ls`, little of a socket's path.
_NAME_MAX = 24


class Unfit(QemuctlError):
    """This host has no KVM that a guest runs with, and the test requires it."""


class Wanted(Struct):
    """A guest that a test wants; ``label`` is what reports call it."""

    label: str
    spec: Spec
    template: str | None = None


def wanted(
    words: Mapping[str, Any], *, folder: Path, image: str, test: str, label: str
) -> Wanted:
    """The guest that the words of marks and calls describe.

    Relative paths count from ``folder``; ``image`` is for guests that name none;
    ``test`` gives its name to one that has none. Raises UsageError for an unknown
    word, SpecError for a value that makes no sense or that a fork cannot have,
    TemplateError for an unknown template, HostError without a QEMU, Unfit where KVM is
    required and missing.
    """
    check_words(words)
    given = {
        key: value
        for key, value in words.items()
        if key in WORDS and key not in ("spec", "template", "kvm") and value is not None
    }
    fields = {_FIELDS.get(key, key): _field(key, value) for key, value in given.items()}
    template = words.get("template")
    usual = {"image": image} if template is None else {}
    spec = _spec(words.get("spec"), fields, folder, usual, plain_name(test))
    if template is not None:
        spec = spec_like(find(template), spec)
    if words.get("kvm") == "required":
        _require_kvm(spec)
    return Wanted(label=given.get("name", label), spec=spec, template=template)


def check_words(words: Mapping[str, Any]) -> None:
    """Raises UsageError for an unknown word, and for a value that it cannot have."""
    for word in words:
        if word not in WORDS:
            raise UsageError(
                f"unknown keyword of vm: {word}",
                hint=nearest(word, WORDS) or f"the keywords are {', '.join(WORDS)}",
            )
    if words.get("kvm") not in (None, "required"):
        raise UsageError(
            f'kvm is "required" or left out: {words["kvm"]!r}',
            hint='to forbid KVM write spec={"accel": "tcg"}',
        )
    template = words.get("template")
    if not isinstance(template, str | None):
        raise UsageError(f"not the name of a template: {template!r}")


def plain_name(test: str) -> str:
    """A VM's name from a test's: ``test_boots[a]`` becomes ``test-boots-a``."""
    return re.sub(r"[^A-Za-z0-9]+", "-", test)[:_NAME_MAX].strip("-") or "vm"


def _spec(
    base: Any, fields: dict[str, Any], folder: Path, usual: dict[str, Any], name: str
) -> Spec:
    """The spec of a file or a dict, with the fields that were given over it; ``usual``
    is for what a dict or nobody says."""
    if isinstance(base, Mapping):
        data = {**usual, **base, **fields}
    elif base is None:
        data = {**usual, **fields}
    elif isinstance(base, str | Path):
        # What a file says is meant as a whole: it may be without an image.
        spec = load_spec(folder / Path(base).expanduser(), name=fields.get("name"))
        data = {**spec.model_dump(exclude_defaults=True), **fields}
    else:
        raise UsageError(f"spec is the path of a YAML file, or a dict: {base!r}")
    return resolve_paths(validate({"name": name, **data}), folder)


def _require_kvm(spec: Spec) -> None:
    accel = inspect_host(spec).accel
    if accel.kind != "kvm":
        raise Unfit(f"KVM is required, but {accel.reason}")


def _field(key: str, value: Any) -> Any:
    """A value as a spec has it; text may be written as on the command line."""
    parse = _SHORT.get(key)
    if parse is None:
        return value
    try:
        if key in ("cpus", "memory"):
            return parse(value) if isinstance(value, str) else value
        if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
            raise SpecError(f"not a list: {value!r}")
        return [parse(item) if isinstance(item, str) else item for item in value]
    except SpecError as error:  # which would name a flag of the command line
        raise SpecError(error.problem, key=key, hint=error.hint) from error


_FIELDS = {"cpus": "cpu"}
_SHORT: dict[str, Callable[[str], dict[str, object]]] = {
    "cpus": parse_cpus,
    "memory": parse_memory,
    "disks": parse_disk,
    "nics": parse_nic,
}
