"""The gate for a spec that somebody else may have written.

Whatever brings one in asks here: an archive (`import`), a saved state (`restore`), a
peer (`migrate-receive`), a template that was not made where it lies. Such a spec must
keep to the VM's own files and sockets; anything else needs the user's word (`--trust`).
What lies in a VM's own folder is the user's, and so is a spec that they name (``-f``)
and a saved state that a VM here remembers to have written.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from qemuctl.copies.portable_spec import BOOT_FILES
from qemuctl.errors import SpecError
from qemuctl.image.store import TINY
from qemuctl.spec import Spec

TRUST = "if you trust where the file comes from, add --trust"


def check_inside(
    spec: Spec, names: Collection[str], source: Path | str, *, hint: str = TRUST
) -> None:
    """Raises SpecError for a spec out of ``source`` that has QEMU open more than the
    VM's own files, of which these ``names`` come along."""
    disks = {name for name in names if name.startswith("disks/")}
    found = {
        "extra_args": spec.extra_args,
        "qemu": spec.qemu,
        "cdrom": spec.cdrom,
        "image": spec.image if spec.image != TINY else None,
        "trust_backing": spec.trust_backing,
        "sandbox": not spec.sandbox,
        "nics": [nic for nic in spec.nics if nic.type in ("tap", "socket")],
        "forward": [
            forward
            for nic in spec.nics
            for forward in nic.forward
            if forward.address != "127.0.0.1"
        ],
        "display.address": spec.display.address,
        "boot": [
            key
            for key in BOOT_FILES
            if getattr(spec.boot, key) not in (None, *BOOT_FILES)
        ],
        # No other file: the spec itself, written to by a guest, would be obeyed.
        "disks": [disk for disk in spec.disks if disk.path not in (None, *disks)],
        "cloud_init": spec.cloud_init and spec.cloud_init.files,
    }
    for key, value in found.items():
        if value:
            raise outside(source, key, hint)


def outside(source: Path | str, key: str, hint: str = TRUST) -> SpecError:
    """The error for a key that names what is not the VM's own."""
    return SpecError("leads outside of the VM", path=str(source), key=key, hint=hint)


def without_stored(spec: Spec) -> Spec:
    """The spec without an image of the store: no path leads to one."""
    return spec if spec.image_is_file else spec.model_copy(update={"image": None})
