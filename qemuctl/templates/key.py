"""All that a template depends on, as one key: with another key it is another one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from qemuctl.cmdline import argv, build
from qemuctl.cmdline.ram import RamFile
from qemuctl.host import Host, inspect_host
from qemuctl.host.resources import cpu_model
from qemuctl.image import Image
from qemuctl.image.digests import digest
from qemuctl.paths import VmPaths
from qemuctl.registry.disks.backing_trust import check_chain
from qemuctl.registry.disks.resolve import base_of, image_of, resolved, seeded
from qemuctl.spec import Spec
from qemuctl.structs import Struct
from qemuctl.thread import Tick

# Another way of making templates makes other templates.
_VERSION = 2
_NAME = "template"
# Stand for the VM's own folders, which do not matter.
_PLACE = VmPaths(state=Path("/state"), run=Path("/run"))
_RAM = RamFile(path=Path("/ram"), shared=True)
# What may stand around a file's name in one of QEMU's arguments.
_MARKS = re.compile(r"[,=:\"]")


class Recipe(Struct, kw_only=False):
    """How a guest is got ready before it is frozen.

    ``wait``: ``agent`` or ``boot``, see `ready`; ``run``: a shell command for the
    guest, or None.
    """

    wait: str = "boot"
    run: str | None = None


class Key(Struct, kw_only=False):
    """A template's key, and the host that it was computed for."""

    text: str
    host: Host


def compute_key(spec: Spec, recipe: Recipe, tick: Tick = lambda: None) -> Key:
    """The key of the template of a guest.

    ``spec`` is what `template_spec` gives; its image is there. Files are known by
    their content, the QEMU binary by its path, size and time. Raises SpecError,
    HostError and ImageError as a start would.
    """
    host, image = inspect_host(spec), image_of(spec)
    spec = spec.model_copy(update={"name": _NAME})
    whole = resolved(spec, _PLACE, image)
    binary = host.binary.path.stat()
    parts = [
        _VERSION,
        [str(host.binary.path), binary.st_size, binary.st_mtime_ns],
        # State that was saved on one processor may not go on on another.
        cpu_model() if host.accel.kind == "kvm" else None,
        argv(build(whole, _PLACE, host, _RAM)),
        spec.model_dump(),
        [recipe.wait, recipe.run],
        [[str(path), digest(path, tick)] for path in _inputs(spec, whole, image)],
    ]
    text = json.dumps(parts, sort_keys=True)
    return Key(hashlib.sha256(text.encode()).hexdigest()[:24], host)


def _inputs(spec: Spec, whole: Spec, image: Image | None) -> Iterator[Path]:
    """The files that the guest is made from."""
    for name in (whole.boot.kernel, whole.boot.initrd, whole.cdrom):
        if name:
            yield Path(name)
    for argument in whole.extra_args:
        yield from (Path(word) for word in _MARKS.split(argument) if _is_file(word))
    base = base_of(spec, image)
    if base is not None:
        yield from _layers(base.path, base.format, spec)
    for disk in spec.disks:
        if disk.path is not None:
            yield from _layers(Path(disk.path), disk.driver, spec)
    if seeded(spec, image):
        yield from _seed_files(spec)


def _is_file(word: str) -> bool:
    with contextlib.suppress(OSError, ValueError):  # too long for a name
        return word.startswith("/") and Path(word).is_file()
    return False


def _layers(path: Path, format_: str, spec: Spec) -> Iterator[Path]:
    named = path if spec.image_is_file else None
    layers = check_chain(path, format_, image=named, trust_backing=spec.trust_backing)
    yield from (layer.path for layer in layers if layer.remote is None)


def _seed_files(spec: Spec) -> Iterator[Path]:
    from qemuctl.image.keys import own_key

    yield own_key().private.with_suffix(".pub")
    cloud = spec.cloud_init
    if cloud is not None:
        yield from (Path(name).expanduser() for name in cloud.files.values())
