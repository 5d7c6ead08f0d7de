"""`nic add`, `rm`, `link`, `forward`: now, at the next start, or both."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

from qemuctl.cli.declare import Argument, Option
from qemuctl.cli.output import note, print_json
from qemuctl.cli.parameters import Json, Name, Timeout, seconds
from qemuctl.cli.scope import Both, Config, Live, changed, scope, words_of
from qemuctl.errors import HotplugError, SpecError, UsageError

if TYPE_CHECKING:
    from qemuctl.spec import Nic
    from qemuctl.spec.network import Forward


Id = Annotated[str, Argument(metavar="ID", help="the card, as nic ls shows it")]
First = Annotated[
    str, Argument(metavar="[ID]", help="default: the first card of type user")
]
Second = Annotated[
    str | None,
    Argument(metavar="PORTS", help="8080:80, udp:5353:53, :80 (any host port)"),
]


def add(
    name: Name,
    card: Annotated[
        str,
        Argument(
            metavar="[NIC]", help="user,forward=8080:80 | tap,ifname=tap0 | socket,…"
        ),
    ] = "user",
    model: Annotated[
        str | None, Option(help="virtio (default), e1000, e1000e, rtl8139, …")
    ] = None,
    mac: Annotated[
        str | None, Option(metavar="MAC", help="default: a free one")
    ] = None,
    id: Annotated[
        str | None, Option("--id", metavar="ID", help="default: the next nicN")
    ] = None,
    live: Live = False,
    config: Config = False,
    both: Both = False,
    json: Json = False,
) -> None:
    """Plug a network card into a VM, also while it runs."""
    wanted, made = scope(live, config, both), _nic(card, model=model, mac=mac, id=id)

    def off() -> Any:
        from qemuctl.hotplug.nics import in_spec

        return in_spec.add(name, made)

    done = changed(name, wanted, off, lambda vm, where: vm.nics.add(made, scope=where))
    if json:
        print_json(asdict(done))
        return
    ports = "".join(f", {text}" for text in done.forwards)
    inside = f"; guest: {done.guest}" if done.guest else ""
    note(f"added {done.id}, {done.mac}{ports}{inside}{words_of(done)}")


def remove(
    name: Name,
    id: Id,
    timeout: Timeout = "20",
    live: Live = False,
    config: Config = False,
    both: Both = False,
    json: Json = False,
) -> None:
    """Take a network card away from a VM, with its forwards.

    Exit status 0: removed; 1: refused; 3: pending, the guest may still let go of
    it, and a later command does the rest.
    """
    patience, wanted = seconds(timeout), scope(live, config, both)

    def off() -> Any:
        from qemuctl.hotplug.nics import in_spec

        return in_spec.remove(name, id)

    try:
        done = changed(
            name, wanted, off,
            lambda vm, where: vm.nics.remove(id, scope=where, timeout=patience),
        )  # fmt: skip
    except HotplugError as error:
        if json:
            print_json({"id": id, "outcome": error.outcome, "error": error.message})
        raise
    if json:
        print_json(asdict(done))
        return
    note(f"removed {id}{words_of(done)}")


def link(
    name: Name,
    id: Id,
    state: Annotated[str, Argument(metavar="up|down", help="in or out")],
    live: Live = False,
    config: Config = False,
    both: Both = False,
    json: Json = False,
) -> None:
    """Plug a card's cable in or out; the guest sees that."""
    if state not in ("up", "down"):
        raise UsageError(f"neither up nor down: {state}")
    cable: Literal["up", "down"] = "up" if state == "up" else "down"
    wanted = scope(live, config, both)

    def off() -> Any:
        from qemuctl.hotplug.nics import in_spec

        return in_spec.link(name, id, cable)

    done = changed(
        name, wanted, off, lambda vm, where: vm.nics.link(id, cable, scope=where)
    )
    if json:
        print_json(asdict(done))
        return
    note(f"{id} is {state}{words_of(done)}")


def add_forward(
    name: Name,
    first: First,
    second: Second = None,
    live: Live = False,
    config: Config = False,
    both: Both = False,
    json: Json = False,
) -> None:
    """Lead a port of this host to one of the guest, also while it runs."""
    card, wanted = _forward(first, second)
    where = scope(live, config, both)

    def off() -> Any:
        from qemuctl.hotplug.nics import in_spec

        return in_spec.add_forward(name, wanted, card)

    done = changed(
        name, where, off,
        lambda vm, scope: vm.nics.add_forward(wanted, id=card, scope=scope),
    )  # fmt: skip
    if json:
        print_json(asdict(done))
        return
    note(f"{done.id}: {done.address or done.forward}{words_of(done)}")


def remove_forward(
    name: Name,
    first: First,
    second: Second = None,
    live: Live = False,
    config: Config = False,
    both: Both = False,
    json: Json = False,
) -> None:
    """Take a forward away; connections through it go on."""
    card, wanted = _forward(first, second)
    where = scope(live, config, both)

    def off() -> Any:
        from qemuctl.hotplug.nics import in_spec

        return in_spec.remove_forward(name, wanted, card)

    done = changed(
        name, where, off,
        lambda vm, scope: vm.nics.remove_forward(wanted, id=card, scope=scope),
    )  # fmt: skip
    if json:
        print_json(asdict(done))
        return
    note(f"{done.id}: no longer {done.address or done.forward}{words_of(done)}")


def _nic(text: str, **options: str | None) -> Nic:
    """The card that the notation and the flags describe. Raises UsageError."""
    from qemuctl.spec import parse_nic, validate

    try:
        fields = parse_nic(text)
        for key, value in options.items():
            if value is None:
                continue
            if key in fields:
                raise UsageError(f"given twice: {key}")
            fields[key] = value
        return validate({"name": "x", "nics": [fields]}).nics[0]
    except SpecError as error:
        raise UsageError(error.problem, hint=error.hint) from error


def _forward(first: str, second: str | None) -> tuple[str | None, Forward]:
    """The card, if one is named, and the forward. Raises UsageError."""
    from qemuctl.spec import validate

    card, ports = (None, first) if second is None else (first, second)
    try:
        spec = validate({"name": "x", "nics": [{"forward": [ports]}]})
    except SpecError as error:
        raise UsageError(error.problem, hint=error.hint) from error
    return card, spec.nics[0].forward[0]
