"""`migrate` and what belongs to it: a running VM goes to another home."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from qemuctl.cli.declare import Argument, Option, command
from qemuctl.cli.output import note, print_fields, print_json
from qemuctl.cli.parameters import Json, Name, seconds
from qemuctl.cli.running import run_async

if TYPE_CHECKING:
    from qemuctl.migration import Moved, Options
    from qemuctl.migration.report import Report

# QEMU's own limit of downtime-limit.
_LONGEST_DOWNTIME = 2000
Bandwidth = Annotated[
    str | None,
    Option(metavar="SIZE", help="at most so many bytes a second, such as 100M"),
]
Downtime = Annotated[
    str | None,
    Option(metavar="TIME", help="how long the guest may stand still"),
]
Receiver = Annotated[
    str,
    Option(metavar="COMMAND", help="qemuctl's command on the other host"),
]


@command("migrate", example="qemuctl migrate web ssh://other.example")
def migrate(
    name: Name,
    destination: Annotated[
        str, Argument(metavar="DEST", help="ssh://[USER@]HOST[:PORT], local:DIR")
    ],
    new_name: Annotated[
        str | None,
        Option("--name", metavar="NAME", help="its name there"),
    ] = None,
    bandwidth: Bandwidth = None,
    downtime: Downtime = None,
    copy_storage: Annotated[
        str, Option(metavar="all|top|none", help="what is copied of its disks")
    ] = "all",
    postcopy: Annotated[
        bool,
        Option("--postcopy", help="it may go on there before all has come"),
    ] = False,
    multifd: Annotated[
        int | None, Option(min=1, max=255, help="so many streams of memory")
    ] = None,
    compress: Annotated[
        str | None, Option(metavar="zstd", help="smaller, for a slow link")
    ] = None,
    auto_converge: Annotated[
        bool, Option(help="hold a busy guest back until it can be moved")
    ] = True,
    timeout: Annotated[
        str | None,
        Option(metavar="TIME", help="how long copying its memory may take"),
    ] = None,
    paused_ok: Annotated[
        bool,
        Option("--paused-ok", help="a busy guest may stand still meanwhile"),
    ] = False,
    offline: Annotated[
        bool, Option("--offline", help="a VM that is off: move its files")
    ] = False,
    tls: Annotated[
        Path | None,
        Option(metavar="DIR", help="certificates: the streams go by TCP"),
    ] = None,
    keep: Annotated[
        bool, Option("--keep", help="keep its spec and disks here, off")
    ] = False,
    receiver: Receiver = "qemuctl",
    json: Json = False,
) -> None:
    """Move a running VM to another home: here, or on another host.

    Its guest goes on there with its memory, disks and all that was plugged in; here
    it is gone. ssh is your own, with its configuration, and needs qemuctl on the
    other host. At every moment one copy runs: whatever fails or is interrupted, the
    guest goes on here, or `migrate-recover` finds out where it is.

    With --tls, DIR has, here, ca-cert.pem, client-cert.pem and client-key.pem, and
    there, at the same path, ca-cert.pem, server-cert.pem and server-key.pem. The
    server's certificate is for the host as it is named here; of all clients that
    the authority has signed, only the one with the common name (CN) of
    client-cert.pem is let in, at the address that ssh has come to.
    """
    options = _options(
        new_name, bandwidth, downtime, copy_storage, postcopy, multifd, compress,
        auto_converge, timeout, paused_ok, keep, tls,
    )  # fmt: skip
    if offline:
        with _said_when_called_off(name):
            moved = run_async(_offline(name, destination, options, receiver, json))
    else:
        with _said_when_called_off(name), _shown(name, json) as report:
            moved = run_async(_migrate(name, destination, options, receiver, report))
    _tell(name, moved, json, runs=not offline)


@contextlib.contextmanager
def _said_when_called_off(name: str) -> Iterator[None]:
    """Where the VM is after an interrupt."""
    try:
        yield
    except SystemExit:
        from qemuctl.paths import VmPaths
        from qemuctl.registry.records.migration_journal import on_its_way

        paths = VmPaths.of(name)
        if paths.spec.exists() and not paths.moved.exists():
            note(on_its_way(paths) or f"called off: {name} stays here, as it was")
        raise


def _options(
    name: str | None, bandwidth: str | None, downtime: str | None, copy_storage: str,
    postcopy: bool, multifd: int | None, compress: str | None, auto_converge: bool,
    timeout: str | None, paused_ok: bool, keep: bool,
    tls: Path | None,
) -> Options:  # fmt: skip
    from qemuctl.migration import Options
    from qemuctl.migration.options import DOWNTIME

    return Options(
        name=name,
        bandwidth=size(bandwidth),
        downtime=_downtime(downtime) if downtime is not None else DOWNTIME,
        copy_storage=_one_of("copy-storage", copy_storage, "all", "top", "none"),
        postcopy=postcopy,
        multifd=multifd,
        compress=_one_of("compress", compress, "zstd") if compress else None,
        auto_converge=auto_converge,
        timeout=seconds(timeout) if timeout is not None else None,
        paused_ok=paused_ok,
        keep=keep,
        tls=tls.absolute() if tls is not None else None,
    )


def _one_of(flag: str, value: str, *known: str) -> Any:
    from qemuctl.errors import UsageError

    if value not in known:
        raise UsageError(f"--{flag}: {value}", hint=f"one of: {', '.join(known)}")
    return value


def _downtime(text: str) -> float:
    """Seconds that QEMU takes. Raises UsageError."""
    from qemuctl.errors import UsageError

    wanted = seconds(text)
    if not 0 < wanted <= _LONGEST_DOWNTIME:
        raise UsageError(f"not a downtime: {text}", hint="from 1ms up to 2000s")
    return wanted


def size(text: str | None) -> int | None:
    """Bytes of what was typed. Raises UsageError."""
    from qemuctl.errors import UsageError
    from qemuctl.units import parse_size

    if text is None:
        return None
    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(str(error)) from error


async def _migrate(
    name: str, destination: str, options: Options, receiver: str, report: Report
) -> Moved:
    from qemuctl.migration import migrate as moving
    from qemuctl.migration import parse_destination
    from qemuctl.registry.states import Action
    from qemuctl.vm.attach import attach

    where = parse_destination(destination)
    async with await attach(name, Action.MIGRATE) as vm:
        return await moving(vm, where, options, receiver=receiver, report=report)


async def _offline(
    name: str, destination: str, options: Options, receiver: str, json: bool
) -> Moved:
    from qemuctl.migration import parse_destination
    from qemuctl.migration.offline import move

    where = parse_destination(destination)
    with _shown(name, json) as report:
        return await move(name, where, options, receiver=receiver, report=report)


# -- showing it --------------------------------------------------------------------


@contextlib.contextmanager
def _shown(name: str, json: bool) -> Iterator[Report]:
    """A line of JSON for each step, or a bar on a terminal."""
    from qemuctl.cli.migrate_bar import bar, lines

    with lines() if json else bar(name) as report:
        yield report


def _tell(name: str, moved: Moved, json: bool, *, runs: bool) -> None:
    from qemuctl.cli.streaming import print_line
    from qemuctl.units import format_rounded

    for text in moved.notes:
        note(f"note: {text}")
    if json:
        downtime, guest = moved.downtime, moved.guest_downtime
        print_line(
            {
                "phase": "done",
                "name": moved.name,
                "destination": moved.destination,
                "total_seconds": moved.total_seconds,
                "downtime_ms": None if downtime is None else round(downtime * 1000),
                "guest_downtime_ms": None if guest is None else round(guest * 1000),
                "ram_bytes": moved.ram_bytes,
                "storage_bytes": moved.storage_bytes,
                "bytes": moved.ram_bytes + moved.storage_bytes,
                "kept": moved.kept,
                "notes": list(moved.notes),
            }
        )
        return
    stood = [] if moved.downtime is None else [f"{moved.downtime * 1000:.0f} ms"]
    if moved.guest_downtime is not None:
        stood.append(f"{moved.guest_downtime * 1000:.0f} ms by its guest's clock")
    sent = format_rounded(moved.ram_bytes + moved.storage_bytes)
    still = f", its guest stood still for {' (or '.join(stood)}" if stood else ""
    still += ")" if len(stood) > 1 else ""
    note(
        f"{name} {'runs' if runs else 'is'} in {moved.destination} now"
        + (f", as {moved.name}" if moved.name != name else "")
        + f": {sent} in {moved.total_seconds:.1f} s{still}"
    )


# -- from another terminal ---------------------------------------------------------


@command("migrate-status", example="qemuctl migrate-status web --json")
def status(name: Name, json: Json = False) -> None:
    """Tell how far a VM's migration is."""
    from qemuctl.migration.control import status as asking

    found = run_async(asking(name))
    if json:
        print_json(asdict(found))
        return
    from qemuctl.cli.migrate_bar import fields

    print_fields(fields(found))


@command("migrate-cancel", example="qemuctl migrate-cancel web")
def cancel(name: Name) -> None:
    """Call a VM's migration off: its guest goes on here."""
    from qemuctl.migration.control import cancel as calling_off

    run_async(calling_off(name))
    note(f"{name} stays here")


@command("migrate-set", example="qemuctl migrate-set web --bandwidth 200M")
def set_limits(
    name: Name, bandwidth: Bandwidth = None, downtime: Downtime = None
) -> None:
    """Change the limits of a migration while it goes on."""
    from qemuctl.errors import UsageError
    from qemuctl.migration.control import set_limits as setting

    if bandwidth is None and downtime is None:
        raise UsageError("nothing to set", hint="--bandwidth 200M, --downtime 500ms")
    wanted = _downtime(downtime) if downtime is not None else None
    run_async(setting(name, bandwidth=size(bandwidth), downtime=wanted))
    note(f"{name}: changed")


@command("migrate-recover", example="qemuctl migrate-recover web")
def recover(
    name: Name,
    here: Annotated[
        bool,
        Option(
            "--here", help="do not ask: the other side is known to be gone for good"
        ),
    ] = False,
) -> None:
    """Find out what became of a migration that was cut short, and end it.

    Both sides are asked. Where the guest runs there, it is removed here; where it has
    never taken a step there, it goes on here.
    """
    from qemuctl.cli.output import working
    from qemuctl.migration import recover as asking

    with working(f"asking where {name} is"):
        gone = run_async(asking(name, here=here))
    note(f"{name} runs there, and is gone here" if gone else f"{name} is here")


@command("migrate-receive", example="qemuctl migrate-receive", hidden=True)
def receive(
    trust: Annotated[
        bool,
        Option("--trust", help="also files of this host and arguments for QEMU"),
    ] = False,
) -> None:
    """Receive a VM from another host or home.

    `migrate` starts it there, over your own ssh, with --trust: who can run commands
    there could do all that a spec can. A key that is to bring VMs and nothing else has
    restrict,command="qemuctl migrate-receive" in authorized_keys: VMs that keep to
    their own files then come by `migrate --offline`.
    """
    from qemuctl.migration.receiver import main

    run_async(main(trust=trust))
