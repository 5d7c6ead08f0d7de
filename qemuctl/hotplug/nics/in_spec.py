"""The network cards of a VM in its spec: one more, one less, a cable, a forward.

What a change of the spec needs is found out before anything is touched; the
same functions serve a VM that is off and, before and after the live step, one
that runs (see `nics`).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection
from pathlib import Path

from qemuctl.cmdline.layout import Layout
from qemuctl.cmdline.mac import default_mac
from qemuctl.cmdline.network import backend_of
from qemuctl.errors import HostError, SpecError, StateError
from qemuctl.host import find_qemu
from qemuctl.host.discovery import probe
from qemuctl.hotplug.nics.results import (
    AddedNic,
    ChangedForward,
    Link,
    LinkedNic,
    RemovedNic,
)
from qemuctl.paths import VmPaths
from qemuctl.registry.edit import Edit, ids, pinned, preview, reconfigure, without
from qemuctl.registry.socket_nics import check_wires
from qemuctl.registry.vms import find, load
from qemuctl.spec import Nic, Spec, resolve_paths
from qemuctl.spec.network import Forward, nic_ids
from qemuctl.structs import Struct


class NewNic(Struct, kw_only=False):
    """A card to be, with its id and address; ``edit`` puts it into the spec."""

    id: str
    mac: str
    nic: Nic
    edit: Edit


def plan_nic(
    name: str,
    nic: Nic,
    *,
    taken: Collection[str] = (),
    macs: Collection[str] = (),
    config: bool = True,
) -> NewNic:
    """What adding a card comes to; changes nothing.

    ``taken`` are ids of what QEMU has, and ``macs`` addresses, besides those in the
    spec. Raises SpecError for what the spec cannot have, StateError for an id
    or address in use, HostError for a model that QEMU does not have.
    """
    paths, spec = find(name), load(name)
    if nic.type == "none":
        raise SpecError("a card of type none is no card", key="type")
    _check_model(spec, nic)
    id_ = _free_id(name, nic, ids(spec, paths) | set(taken))
    mac = _free_mac(name, nic, spec, macs)
    files = {
        key: str(Path(value).absolute())
        for key in ("listen", "connect")
        if (value := getattr(nic, key)) is not None
    }
    written = nic.model_copy(update={"id": id_, "mac": mac, **files})
    check_wires([written])

    def edit(spec: Spec) -> Spec:
        return spec.model_copy(update={"nics": (*spec.nics, written)})

    if config:
        _check_startable(resolve_paths(preview(name, edit), paths.state), paths)
    return NewNic(id_, mac, written, edit)


def _check_startable(spec: Spec, paths: VmPaths) -> None:
    """Raises SpecError for a spec whose machine has no room for it."""
    from qemuctl.registry.plan import draft

    with contextlib.suppress(HostError):  # which is no fault of the change
        draft(spec, paths)


def _check_model(spec: Spec, nic: Nic) -> None:
    binary = probe(find_qemu(spec))
    virtio = nic.model == "virtio"
    driver = Layout(spec.chipset).virtio("net") if virtio else nic.model
    binary.require_device(driver, f"model: {nic.model}")
    backend = "stream" if nic.type == "socket" else nic.type
    binary.require_netdev(backend, f"type: {nic.type}")


def _free_id(name: str, nic: Nic, used: set[str]) -> str:
    def in_use(id_: str) -> bool:
        return id_ in used or backend_of(id_) in used

    if nic.id is None:
        every = (f"nic{number}" for number in itertools.count())
        return next(id_ for id_ in every if not in_use(id_))
    if in_use(nic.id):
        raise StateError(
            f"add {nic.id} to {name}", "", f"the id is in use: {nic.id}",
            hint=f"qemuctl nic ls {name} shows all; without an id a free one is chosen",
        )  # fmt: skip
    return nic.id


def _free_mac(name: str, nic: Nic, spec: Spec, macs: Collection[str]) -> str:
    used = {*macs, *(card.mac for card in pinned(spec, find(name)).nics)}
    if nic.mac is None:
        every = (default_mac(spec.name, n) for n in itertools.count(len(spec.nics)))
        return next(mac for mac in every if mac not in used)
    if nic.mac in used:
        raise StateError(
            f"add a card to {name}", "", f"the MAC address is in use: {nic.mac}",
            hint="without one, a free one is made",
        )  # fmt: skip
    return nic.mac


# -- edits: each raises SpecError for what the spec does not have ----------


def entry(spec: Spec, id_: str) -> tuple[int, Nic]:
    """The place and entry of a card in the spec. Raises SpecError."""
    known = nic_ids(spec.nics)
    if id_ not in known:
        there = ", ".join(known) or "none"
        raise SpecError(f"no such card: {id_}", key="nics", hint=f"there are: {there}")
    index = known.index(id_)
    return index, spec.nics[index]


def has(name: str, id_: str) -> bool:
    """Whether the spec has a card of this id."""
    return id_ in nic_ids(load(name).nics)


def removal_of(name: str, id_: str) -> Edit:
    paths = find(name)

    def edit(spec: Spec) -> Spec:
        entry(spec, id_)
        return without(spec, paths, "nics", id_)

    return edit


def _editing(id_: str, change: Callable[[Nic], Nic]) -> Edit:
    def edit(spec: Spec) -> Spec:
        index, nic = entry(spec, id_)
        nics = (*spec.nics[:index], change(nic), *spec.nics[index + 1 :])
        return spec.model_copy(update={"nics": nics})

    return edit


def link_edit(id_: str, link: Link) -> Edit:
    def change(nic: Nic) -> Nic:
        if nic.type == "none":
            raise SpecError(f"{id_} is of type none: there is no card", key="nics")
        return nic.model_copy(update={"link": link})

    return _editing(id_, change)


def forward_edit(id_: str, forward: Forward) -> Edit:
    def change(nic: Nic) -> Nic:
        if nic.type != "user":
            raise not_user(id_, nic.type)
        return nic.model_copy(update={"forward": (*nic.forward, forward)})

    return _editing(id_, change)


def no_forward_edit(id_: str, forward: Forward) -> Edit:
    """Without ``forward``, which is one of the card's own."""

    def change(nic: Nic) -> Nic:
        left = tuple(each for each in nic.forward if each != forward)
        return nic.model_copy(update={"forward": left})

    return _editing(id_, change)


def not_user(id_: str, type_: str | None) -> SpecError:
    """The error for forwards of a card that has no user network."""
    return SpecError(
        f"{id_} is of type {type_}, which has no forwards",
        key="nics",
        hint="a card of type user has: qemuctl nic add NAME user,forward=8080:80",
    )


def user_card(name: str, id_: str | None) -> str:
    """The card of the spec that a forward is meant for: the first of type user
    where none is named. Raises SpecError."""
    spec = load(name)
    if id_ is None:
        pairs = zip(nic_ids(spec.nics), spec.nics, strict=True)
        id_ = next((each for each, nic in pairs if nic.type == "user"), None)
        if id_ is None:
            raise no_user_card(name)
    _, nic = entry(spec, id_)
    if nic.type != "user":
        raise not_user(id_, nic.type)
    return id_


def no_user_card(name: str) -> SpecError:
    """The error for a forward where no card could have it."""
    hint = f"add one: qemuctl nic add {name} user"
    return SpecError(f"{name} has no card of type user", key="nics", hint=hint)


def matching(
    name: str, id_: str, wanted: Forward, *, chosen: bool = False
) -> Forward | None:
    """The card's forward in the spec that ``wanted`` means, if any; host port 0 is any,
    and with ``chosen`` one that the kernel chooses is meant too. Raises SpecError for
    more than one."""
    _, nic = entry(load(name), id_)
    if wanted in nic.forward:
        return wanted

    def fits(each: Forward) -> bool:
        same = each.model_copy(update={"host_port": wanted.host_port}) == wanted
        return same and (wanted.host_port == 0 or (chosen and each.host_port == 0))

    found = [each for each in nic.forward if fits(each)]
    if len(found) > 1:
        raise ambiguous(id_, wanted, [each.notation for each in found])
    return found[0] if found else None


def ambiguous(id_: str, wanted: Forward, found: list[str]) -> SpecError:
    """The error for a forward that could be one of many."""
    return SpecError(
        f"{id_} has more than one such forward: {wanted.notation}",
        key="forward",
        hint=f"name its host port: {', '.join(found)}",
    )


def no_such_forward(id_: str, wanted: Forward, known: list[str]) -> SpecError:
    """The error for a forward that a card does not have."""
    there = ", ".join(known) or "none"
    message = f"{id_} has no such forward: {wanted.notation}"
    return SpecError(message, key="forward", hint=f"there are: {there}")


# -- changes of the spec alone ---------------------------------------------


def add(name: str, nic: Nic) -> AddedNic:
    """Adds a card from the next start on. Raises as `plan_nic`."""
    new = plan_nic(name, nic)
    reconfigure(name, new.edit)
    return AddedNic(
        id=new.id, mac=new.mac, model=new.nic.model, live=False, configured=True
    )


def remove(name: str, id_: str) -> RemovedNic:
    """Takes a card out of the spec. Raises SpecError."""
    reconfigure(name, removal_of(name, id_))
    return RemovedNic(id=id_, live=False, configured=True)


def link(name: str, id_: str, wanted: Link) -> LinkedNic:
    """Sets how a card's cable is at the next start. Raises SpecError."""
    reconfigure(name, link_edit(id_, wanted))
    return LinkedNic(id=id_, link=wanted, live=False, configured=True)


def add_forward(name: str, forward: Forward, id_: str | None) -> ChangedForward:
    """Adds a forward from the next start on. Raises SpecError."""
    card = user_card(name, id_)
    reconfigure(name, forward_edit(card, forward))
    return ChangedForward(
        id=card, forward=forward.notation, live=False, configured=True
    )


def remove_forward(name: str, forward: Forward, id_: str | None) -> ChangedForward:
    """Takes a forward out of the spec. Raises SpecError."""
    card = user_card(name, id_)
    found = matching(name, card, forward)
    if found is None:
        _, nic = entry(load(name), card)
        raise no_such_forward(card, forward, [f.notation for f in nic.forward])
    reconfigure(name, no_forward_edit(card, found))
    return ChangedForward(id=card, forward=found.notation, live=False, configured=True)
