"""What a user can set: command line, ini file, environment, and the mark `vm`.

Loaded in every test run, with or without VMs: nothing heavy is imported here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from qemuctl.structs import Struct

T = TypeVar("T")

MARK = (
    "vm(image, memory, cpus, disks, nics, template, spec, kvm): what the guest of "
    "the fixtures vm and vm_factory is like, such as "
    'vm(image="debian", memory="1G", cpus=2, disks=["size=1G"], nics=["user"]). '
    "spec is a YAML file, counted from the test's folder, or a dict; the other words "
    "come over it. template names one to fork from. "
    'kvm="required" skips the test where KVM is missing. Marks of class and module '
    "count too, the nearest word wins."
)
_INI = {
    "vm_image": "the image of guests that name none (default: tiny)",
    "vm_artifacts": "as --vm-artifacts, counted from this file's folder",
    "vm_timeout": "how long a guest may take to be ready (default: 120s)",
    "vm_budget_memory": "memory of all guests at a time, such as 8G (default: most "
    "of what is free; or QEMUCTL_BUDGET_MEMORY)",
    "vm_budget_cpus": "processors of all guests at a time (default: four for each of "
    "the host's; or QEMUCTL_BUDGET_CPUS)",
}


class Options(Struct):
    """What holds for all guests of a test run; ``timeout`` in seconds, memory in
    bytes."""

    image: str
    keep: bool
    cold: bool
    artifacts: Path | None
    timeout: float
    budget_memory: int | None
    budget_cpus: int | None


def add(parser: pytest.Parser) -> None:
    """Adds the options to pytest's."""
    group = parser.getgroup("qemuctl", "virtual machines (qemuctl)")
    group.addoption(
        "--vm-image",
        metavar="IMAGE",
        help="image of guests that name none (default: tiny; ini: vm_image)",
    )
    group.addoption(
        "--vm-keep",
        action="store_true",
        help="let the VMs of failed tests live on, and say how to enter them",
    )
    group.addoption(
        "--vm-cold",
        action="store_true",
        help="boot every guest anew instead of forking it (ini: vm_cold)",
    )
    group.addoption(
        "--vm-artifacts",
        metavar="DIR",
        help="where console, QMP trace, screen and more of failed tests are "
        "written, DIR/TEST/GUEST/ (ini: vm_artifacts)",
    )
    for name, text in _INI.items():
        parser.addini(name, text)
    parser.addini("vm_cold", "as --vm-cold", type="bool", default=False)


def read(config: pytest.Config) -> Options:
    """The options of a test run. Raises pytest.UsageError for one of no sense."""
    from qemuctl.units import parse_duration, parse_size

    artifacts = config.getoption("--vm-artifacts")
    folder = config.invocation_params.dir
    if not artifacts:
        artifacts = config.getini("vm_artifacts")
        folder = config.inipath.parent if config.inipath else folder
    return Options(
        image=config.getoption("--vm-image") or config.getini("vm_image") or "tiny",
        keep=config.getoption("--vm-keep"),
        cold=config.getoption("--vm-cold") or config.getini("vm_cold"),
        artifacts=folder / Path(artifacts).expanduser() if artifacts else None,
        timeout=_value(config, "vm_timeout", parse_duration) or 120.0,
        budget_memory=_value(config, "vm_budget_memory", parse_size),
        budget_cpus=_value(config, "vm_budget_cpus", int),
    )


def _value(config: pytest.Config, name: str, parse: Callable[[str], T]) -> T | None:
    """An ini option, or for one of the budget the variable of the environment, which
    comes first: a machine's limits are not the project's."""
    variable = name.replace("vm_", "QEMUCTL_").upper()
    text = os.environ.get(variable) if name.startswith("vm_budget") else None
    source = variable if text else name
    text = text or config.getini(name)
    if not text:
        return None
    try:
        return parse(text)
    except ValueError as error:
        raise pytest.UsageError(f"{source}: {error}") from error
