"""Flags that describe a VM, and the spec that they and a file make together."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from qemuctl.cli.declare import Option

if TYPE_CHECKING:
    from qemuctl.spec import Spec

File = Annotated[
    Path | None,
    Option("--file", "-f", metavar="FILE", help="a YAML spec; - is standard input"),
]
Memory = Annotated[
    str | None, Option(metavar="SIZE", help="512M, or 512M,max=2G,slots=4")
]
Cpus = Annotated[str | None, Option(metavar="N", help="2, or 2,max=4")]
Disks = Annotated[
    list[str] | None,
    Option(
        "--disk", metavar="DISK", help="size=1G,format=qcow2 or path=a.raw (repeatable)"
    ),
]
Nics = Annotated[
    list[str] | None,
    Option(
        "--nic", metavar="NIC", help="user,forward=8080:80 | none | tap,ifname=tap0"
    ),
]
Forwards = Annotated[
    list[str] | None,
    Option(
        "--forward", "-p", metavar="PORTS", help="8080:80, or :80 for a free host port"
    ),
]
RootSize = Annotated[
    str | None,
    Option(metavar="SIZE", help="of the image's disk; default: its own"),
]
DiskMode = Annotated[
    str | None,
    Option(metavar="MODE", help="overlay on the image (default), or full copy"),
]
TrustBacking = Annotated[
    bool, Option("--trust-backing", help="follow backing files wherever they are")
]
Cdrom = Annotated[
    str | None, Option(metavar="ISO", help="a CD image; '' for an empty drive")
]
BootOnce = Annotated[
    str | None,
    Option("--boot", metavar="KIND", help="try first, once: cdrom, disk or network"),
]
UserData = Annotated[
    str | None,
    Option(metavar="FILE", help="cloud-init user-data of your own (copied)"),
]
SshKeys = Annotated[
    list[str] | None,
    Option("--ssh-key", metavar="KEY", help="a public key or its file"),
]
Kernel = Annotated[
    str | None,
    Option(metavar="PATH", help="boot this kernel (with tiny: its modules come along)"),
]
Initrd = Annotated[str | None, Option(metavar="PATH", help="its initrd")]
Append = Annotated[str | None, Option(metavar="TEXT", help="kernel command line")]
MachineType = Annotated[
    str | None, Option("--machine", help="q35, pc, microvm, or a versioned one")
]
Accel = Annotated[str | None, Option(help="auto, kvm or tcg")]
Display = Annotated[str | None, Option(help="none, vnc, or vnc,vga=virtio")]
QemuArgs = Annotated[
    list[str] | None,
    Option("--qemu-arg", metavar="ARG", help="one more argument for QEMU"),
]


Given = dict[str, Any]
"""What was given of `_described`'s flags, by their names."""


def _described(
    memory: Memory = None,
    cpus: Cpus = None,
    disk: Disks = None,
    nic: Nics = None,
    forward: Forwards = None,
    root_size: RootSize = None,
    disk_mode: DiskMode = None,
    cdrom: Cdrom = None,
    boot: BootOnce = None,
    user_data: UserData = None,
    ssh_key: SshKeys = None,
    trust_backing: TrustBacking = False,
    kernel: Kernel = None,
    initrd: Initrd = None,
    append: Append = None,
    machine: MachineType = None,
    accel: Accel = None,
    display: Display = None,
    qemu_arg: QemuArgs = None,
) -> None:
    """The flags that describe a VM."""


def describing(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the flags that describe a VM, in the place of its parameter
    ``given``, which gets them all."""
    own = inspect.signature(command, eval_str=True)
    flags = inspect.signature(_described, eval_str=True).parameters
    merged: list[inspect.Parameter] = []
    for name, parameter in own.parameters.items():
        merged += flags.values() if name == "given" else [parameter]

    def wrapped(**values: Any) -> None:
        given = {name: values.pop(name) for name in flags}
        command(**values, given=given)

    wrapped.__doc__ = command.__doc__
    # What typer reads the command line from.
    parameters = [each.replace(kind=each.KEYWORD_ONLY) for each in merged]
    wrapped.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {each.name: each.annotation for each in merged}
    return wrapped


def spec_from(
    *, name: str | None, image: str | None, file: Path | None, flags: dict[str, Any]
) -> tuple[Spec, str | None]:
    """The spec of a file with flags over it, and the file's own text if the
    spec is just what it says.

    Raises SpecError, UsageError.
    """
    from qemuctl.errors import SpecError, UsageError
    from qemuctl.spec import resolve_paths, validate

    try:
        given = _given(flags, image)
    except SpecError as error:
        error.exit_status = UsageError.exit_status
        raise
    if file is None:
        if name is None:
            raise UsageError("a name is missing", hint="give NAME, or -f FILE")
        try:
            spec = validate({"name": name, **given})
        except SpecError as error:
            error.exit_status = UsageError.exit_status  # there is no file to blame
            raise
        return with_texts(resolve_paths(spec, Path.cwd())), None
    spec, text = read_spec(file, name=name)
    if not given:
        spec = with_texts(spec)
        return spec, _rewritten(text, spec)
    written = spec.model_dump(exclude_defaults=True)
    merged = {**written, **given, "name": spec.name}
    for key in ("boot", "root", "cloud_init", "nics"):
        if key in given and key in written:
            merged[key] = _over(written[key], given[key])
    return with_texts(resolve_paths(validate(merged), Path.cwd())), None


def read_spec(file: Path, *, name: str | None = None) -> tuple[Spec, bytes]:
    """The spec in a file, in a pipe, or in standard input (``-``), with its text, which
    is read once. Raises SpecError."""
    from qemuctl.spec import base_of, parse_spec
    from qemuctl.spec.document import SIZE_MAX, read_file

    if str(file) == "-":
        # Not by its path: that of a socket, which sshd gives, cannot be opened.
        with open(0, "rb", closefd=False) as standard:
            text = standard.read(SIZE_MAX + 1)
        source, base = "standard input", Path.cwd()
    else:
        text, source, base = read_file(file), str(file), base_of(file)
    return parse_spec(text, source=source, base=base, name=name), text


def with_texts(spec: Spec) -> Spec:
    """The spec with the text of the files that its cloud-init names: they may be gone
    at its next start, or be pipes. Raises SpecError."""
    if spec.cloud_init is None or not spec.cloud_init.enabled:
        return spec
    if not spec.cloud_init.files:
        return spec
    from qemuctl.image.own_files import with_texts as texts

    return spec.model_copy(update={"cloud_init": texts(spec.cloud_init)})


def check_boots(spec: Spec) -> None:
    """Raises UsageError for a VM that has nothing to boot."""
    from qemuctl.errors import UsageError

    network = "network" in (spec.boot.once, *(spec.boot.order or ()))
    others = any(nic.type not in ("user", "none") for nic in spec.nics)
    media = spec.image or spec.disks or spec.cdrom is not None or spec.boot.kernel
    if not (media or network or others or spec.extra_args):
        raise UsageError(
            f"{spec.name} has nothing to boot",
            hint="give it one of --image tiny (qemuctl image ls --available shows "
            "more),\n--disk ./disk.qcow2, --cdrom ./installer.iso ('' for an empty "
            "drive),\n--kernel ./vmlinuz or --boot network",
        )


def _over(written: Any, given: Any) -> Any:
    return {**written, **given} if isinstance(given, dict) else given


def _rewritten(text: bytes, spec: Spec) -> str | None:
    """The user's text with its comments, as far as it says what the spec says; None
    when it has not the name that the VM gets by another way."""
    from qemuctl.spec.document import read_document
    from qemuctl.spec.rewrite import rewritten

    if "name" not in read_document(text, "the spec").data:
        return None
    return rewritten(text.decode("utf-8-sig"), spec)


def _given(flags: dict[str, Any], image: str | None) -> dict[str, Any]:
    """The fields that the flags set, as a spec would have them."""
    from qemuctl.spec import (
        parse_cpus,
        parse_disk,
        parse_display,
        parse_memory,
        parse_nic,
    )

    def each(key: str, parse: Any) -> list[Any] | None:
        return [parse(text) for text in flags[key]] if flags[key] else None

    nics = each("nic", parse_nic)
    if flags["forward"]:
        nics = [{"forward": flags["forward"]}, *(nics or [])]
    root = {"size": flags["root_size"], "mode": flags["disk_mode"]}
    own = "/dev/stdin" if flags["user_data"] == "-" else flags["user_data"]
    cloud = {"user_data": own, "ssh_keys": flags["ssh_key"]}
    boot = {
        "once": flags["boot"],
        "kernel": flags["kernel"],
        "initrd": flags["initrd"],
        "cmdline": flags["append"],
    }
    boot, root, cloud = map(_without_none, (boot, root, cloud))
    fields = {
        "image": image,
        "cpu": parse_cpus(flags["cpus"]) if flags["cpus"] else None,
        "memory": parse_memory(flags["memory"]) if flags["memory"] else None,
        "disks": each("disk", parse_disk),
        "nics": nics,
        "cdrom": flags["cdrom"],
        "boot": boot or None,
        "root": root or None,
        "cloud_init": cloud or None,
        "trust_backing": flags["trust_backing"] or None,
        "machine": flags["machine"],
        "accel": flags["accel"],
        "display": parse_display(flags["display"]) if flags["display"] else None,
        "extra_args": flags["qemu_arg"] or None,
    }
    return _without_none(fields)


def _without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}
