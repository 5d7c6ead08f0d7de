"""Giving a VM that is off another name."""

from __future__ import annotations

from qemuctl import durable
from qemuctl.errors import UsageError
from qemuctl.paths import VmPaths
from qemuctl.registry.offline import locked
from qemuctl.registry.removal import refuse_needed
from qemuctl.registry.states import Action
from qemuctl.registry.vms import find, name_in_use, write


def rename(name: str, new: str) -> None:
    """Gives a VM that is off another name; its cards keep their MAC addresses.

    Raises NotFound, NameInUse, and StateError when it is on, or when another
    VM's disks are made from its own.
    """
    from qemuctl.registry.mac_addresses import with_macs
    from qemuctl.spec import parse_spec, renamed, validate_name
    from qemuctl.spec.rewrite import rewritten

    validate_name(new)
    if name == new and find(name):
        raise UsageError(f"that is its name already: {name}")
    with locked(name, Action.RENAME) as paths:
        refuse_needed(paths, Action.RENAME)
        target = VmPaths.of(new)
        if target.state.exists():
            raise name_in_use(new)
        text = paths.spec.read_text()
        spec = with_macs(parse_spec(text, source=str(paths.spec), name=name), name)
        # First, for by the folder's new name they would be others.
        text = rewritten(text, spec)
        write(paths.spec, text)
        text = renamed(text, spec, new)
        # Before the folder has its new name: the disk may be full.
        with durable.prepared(paths.spec, text) as fresh:
            try:
                durable.move(paths.state, target.state)
            except OSError as error:
                raise name_in_use(new) from error
            durable.move(target.state / fresh.name, target.spec)
