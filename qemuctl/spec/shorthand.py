"""The short notations of command-line flags: ``--disk size=1G,format=qcow2``.

They read as QEMU's own: ``key=value`` with commas between, and a comma that
belongs to a value is doubled. Each function gives plain data for `validate`,
in which a part that was not named is left out.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn, TypeVar

from qemuctl.errors import SpecError
from qemuctl.spec.base import Model
from qemuctl.spec.computer import Cpu, Display, Memory, Topology
from qemuctl.spec.disk import Disk
from qemuctl.spec.network import Nic
from qemuctl.spec.problems import nearest, spec_error
from qemuctl.typed.faults import Wrong
from qemuctl.units import parse_size

ModelT = TypeVar("ModelT", bound=Model)

_KEY = re.compile(r"([A-Za-z][A-Za-z_-]*)=(.*)", re.DOTALL)
_SWITCHES = {"on": True, "yes": True, "true": True} | {
    "off": False,
    "no": False,
    "false": False,
}


def parse_disk(text: str) -> dict[str, object]:
    """A disk: ``10G``, ``data.qcow2``, ``path=data.raw,readonly=on``.

    Raises SpecError.
    """
    data = _read(text, "--disk", Disk, bare=_disk_key)
    return _checked(data, "--disk", Disk)


def parse_nic(text: str) -> dict[str, object]:
    """A network card: ``user,model=e1000,forward=8080:80,forward=:22``.

    Raises SpecError.
    """
    data = _read(text, "--nic", Nic, bare="type", repeated=("forward",))
    return _checked(data, "--nic", Nic)


def parse_display(text: str) -> dict[str, object]:
    """A display: ``vnc``, ``vnc,address=127.0.0.1:5901,vga=std``.

    Raises SpecError.
    """
    return _checked(
        _read(text, "--display", Display, bare="type"), "--display", Display
    )


def parse_memory(text: str) -> dict[str, object]:
    """Memory: ``512M``, ``512M,max=2G,slots=4``. Raises SpecError."""
    return _checked(_read(text, "--memory", Memory, bare="size"), "--memory", Memory)


def parse_cpus(text: str) -> dict[str, object]:
    """Processors: ``2``, ``2,max=4``, ``sockets=1,cores=2,threads=1``.

    A topology without a count gives the count, as with QEMU's ``-smp``.
    Raises SpecError.
    """
    layout = tuple(Topology.model_fields)
    data = _read(text, "--cpus", Cpu, bare="count", also=layout, hidden=("topology",))
    topology = {key: data.pop(key) for key in layout if key in data}
    if topology:
        checked = _validated(topology, "--cpus", Topology)
        data["topology"] = topology
        if "count" not in data and "max" not in data:
            data["count"] = checked.sockets * checked.cores * checked.threads
    return _checked(data, "--cpus", Cpu)


def _disk_key(value: str) -> str:
    try:
        parse_size(value)
    except (ValueError, OverflowError):
        return "path"
    return "size"


def _split(text: str, flag: str) -> list[str]:
    if "\0" in text:
        raise SpecError("holds a NUL byte", key=flag)
    # No argument holds a NUL, so it can stand for a doubled comma.
    parts = text.replace(",,", "\0").split(",")
    return [part.replace("\0", ",") for part in parts]


def _read(
    text: str,
    flag: str,
    model: type[Model],
    *,
    bare: Any,
    also: tuple[str, ...] = (),
    hidden: tuple[str, ...] = (),
    repeated: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Keys and values of ``text``, its first part perhaps without a key.

    ``bare`` is the key of such a part, or makes it from the value.
    """
    known = [key for key in (*model.model_fields, *also) if key not in hidden]
    data: dict[str, Any] = {}
    for index, part in enumerate(_split(text, flag)):
        match = _KEY.fullmatch(part)
        if match is not None:
            key, value = match[1].replace("-", "_"), match[2]
        elif index == 0 and part:
            key, value = bare(part) if callable(bare) else bare, part
        else:
            _refuse_part(part, flag)
        if key not in known:
            raise SpecError(
                f"unknown key: {key}",
                key=flag,
                hint=nearest(key, known) or f"the keys are {', '.join(known)}",
            )
        if key in repeated:
            data.setdefault(key, []).append(value)
        elif key in data:
            raise SpecError(f"given twice: {key}", key=flag)
        else:
            data[key] = _switch(value) if _is_switch(model, key) else value
    return data


def _refuse_part(part: str, flag: str) -> NoReturn:
    if not part:
        raise SpecError(
            "an empty part", key=flag, hint="a comma inside a value is doubled: ,,"
        )
    raise SpecError(
        f"not key=value: {part!r}",
        key=flag,
        hint="a comma inside a value is doubled: ,,",
    )


def _is_switch(model: type[Model], key: str) -> bool:
    field = model.model_fields.get(key)
    return field is not None and field.annotation in (bool, bool | None)


def _switch(value: str) -> bool | str:
    # What is neither is left for the model to refuse.
    return _SWITCHES.get(value.lower(), value)


def _validated(data: dict[str, Any], flag: str, model: type[ModelT]) -> ModelT:
    try:
        return model.model_read(data)
    except Wrong as wrong:
        found = spec_error(wrong, data, source=flag)
        found.path, found.key = None, flag
        raise found from wrong


def _checked(data: dict[str, Any], flag: str, model: type[Model]) -> dict[str, object]:
    _validated(data, flag, model)
    return data
