"""The spec of a VM, changed by commands: now, at the next start, or both."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from qemuctl.errors import ImageError, SpecError
from qemuctl.paths import VmPaths
from qemuctl.registry import vms
from qemuctl.registry.disks.resolve import base_of, image_of, seeded, with_ssh
from qemuctl.registry.mac_addresses import with_macs
from qemuctl.spec import Nic, Spec, dump, parse_spec, resolve_paths
from qemuctl.spec.network import nic_ids
from qemuctl.spec.rewrite import rewritten

Edit = Callable[[Spec], Spec]


def preview(name: str, edit: Edit) -> Spec:
    """The spec as ``edit`` would make it, checked as a whole; nothing is written.

    ``edit`` gets the spec as it is written, relative paths and all. Raises
    SpecError, NotFound.
    """
    return _edited(vms.find(name).spec.read_text(), name, edit)[0]


def reconfigure(name: str, edit: Edit) -> Spec:
    """Changes the spec of a VM in its file, comments kept; gives the new one.

    Other commands that change it wait meanwhile. Raises as `preview`.
    """
    with vms.writing(name) as path:
        text = path.read_text()
        after, new = _edited(text, name, edit)
        if new != text:
            vms.write(path, new)
        return after


def _edited(text: str, name: str, edit: Edit) -> tuple[Spec, str]:
    after = edit(parse_spec(text, name=name))
    # A copy of a model is not checked; reading its YAML is.
    after = parse_spec(dump(after), source=f"the changed spec of {name}")
    return after, rewritten(text, after)


def offset(spec: Spec, paths: VmPaths) -> int:
    """How many disks come before those of the spec: one where the image has one."""
    there = resolve_paths(spec, paths.state)
    return 0 if base_of(there, image_of(there)) is None else 1


def pinned(spec: Spec, paths: VmPaths) -> Spec:
    """The same spec with every id written out, so that one of its disks or cards
    can go without the others getting another name, file or address."""
    before = offset(spec, paths)
    disks = [
        disk.model_copy(update={"id": disk.id or f"disk{index}"})
        for index, disk in enumerate(spec.disks, before)
    ]
    nics = [
        nic.model_copy(update={"id": nic.id or f"nic{index}"})
        for index, nic in enumerate(with_macs(spec, spec.name).nics)
    ]
    return spec.model_copy(update={"disks": tuple(disks), "nics": tuple(nics)})


def cards_of(spec: Spec, paths: VmPaths) -> dict[str, Nic]:
    """The cards that a start gives the VM, by id; one of them with the way in for
    ssh that a guest with a seed gets."""
    whole = resolve_paths(pinned(spec, paths), paths.state)
    nics = whole.nics
    with contextlib.suppress(ImageError):  # which may be lost
        if seeded(whole, image_of(whole)):
            nics = with_ssh(nics)
    return {str(nic.id): nic for nic in nics}


def without(spec: Spec, paths: VmPaths, part: str, id_: str) -> Spec:
    """The spec without one disk or card; ``part`` is ``disks`` or ``nics``.

    Raises SpecError when the spec has none of this id.
    """
    whole = pinned(spec, paths)
    items = getattr(whole, part)
    left = [item for item in items if item.id != id_]
    if len(left) == len(items):
        known = ", ".join(item.id for item in items) or "none"
        raise SpecError(f"no such id: {id_}", key=part, hint=f"there are: {known}")
    # What stood before it keeps its notation: its place is the same.
    index = next(i for i, item in enumerate(items) if item.id == id_)
    before = getattr(spec, part)[:index]
    return spec.model_copy(update={part: (*before, *left[index:])})


def forget(name: str, part: str, id_: str) -> None:
    """Takes a disk or card that is gone out of the spec, if it is there still."""
    paths = VmPaths.of(name)

    def edit(spec: Spec) -> Spec:
        try:
            return without(spec, paths, part, id_)
        except SpecError:
            return spec

    reconfigure(name, edit)


def ids(spec: Spec, paths: VmPaths) -> set[str]:
    """The ids of all disks and cards that the spec gives the VM."""
    before = offset(spec, paths)
    disks = {disk.id or f"disk{n}" for n, disk in enumerate(spec.disks, before)}
    return disks | {f"disk{n}" for n in range(before)} | set(nic_ids(spec.nics))
