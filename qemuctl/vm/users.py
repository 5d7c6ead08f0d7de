"""Who uses which file: no disk has two writers, and no file that somebody
needs is taken away."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qemuctl.errors import ImageError, QemuctlError, StateError
from qemuctl.image import chain
from qemuctl.paths import VmPaths, kept_dir
from qemuctl.process import held
from qemuctl.spec import Spec, load_spec
from qemuctl.vm.definitions import names
from qemuctl.vm.record import Record
from qemuctl.vm.resolve import image_of, placed


@dataclass(frozen=True)
class Opened:
    """A file that the QEMU of a VM has open."""

    vm: str
    path: Path
    written: bool


def opened() -> Iterator[Opened]:
    """The disk images of all VMs that are on, as their command lines say."""
    for name in names():
        paths = VmPaths.of(name)
        is_on = held(paths.lock) and not paths.busy.exists()
        record = Record.read(paths.record) if is_on else None
        if record is not None:
            yield from _opened(name, record.argv)


def _opened(vm: str, argv: list[str]) -> Iterator[Opened]:
    for option, value in itertools.pairwise(argv):
        if option == "-blockdev":
            with contextlib.suppress(ValueError):
                node = json.loads(value)
                if "filename" in node:
                    path = Path(node["filename"])
                    yield Opened(vm, path, not node.get("read-only"))


def user_of(path: Path, *, written: bool = False, but: str = "") -> str | None:
    """The VM that has a file open now, or with ``written`` writes to it."""
    for file in opened():
        if file.vm != but and (file.written or not written):
            with contextlib.suppress(OSError):
                if file.path.samefile(path):
                    return file.vm
    return None


def check_not_written(spec: Spec, paths: VmPaths) -> None:
    """Raises StateError, naming the other VM, when a disk of this resolved spec
    is open elsewhere and either of the two writes to it."""
    for disk in spec.disks:
        path = Path(disk.path or "")
        if path.parent == paths.disks:
            continue
        other = user_of(path, written=disk.readonly, but=paths.name)
        if other is not None:
            raise StateError(
                f"start {paths.name}", "off",
                f"the VM {other} is using this disk image: {path}",
                hint=f"stop it first with: qemuctl stop {other}",
            )  # fmt: skip


def needing(where: Path) -> list[str]:
    """The VMs, on or off, that cannot do without the files below a folder, which
    is not their own; and kept disks, in words."""
    inside = where.resolve()
    found = []
    for name in names():
        paths = VmPaths.of(name)
        if paths.state.resolve() != inside and any(
            file.resolve().is_relative_to(inside) for file in _files(paths)
        ):
            found.append(name)
    with contextlib.suppress(FileNotFoundError):
        for folder in sorted(kept_dir().iterdir()):
            files = itertools.chain.from_iterable(_stacks_in(folder))
            if any(file.resolve().is_relative_to(inside) for file in files):
                found.append(f"the kept disks in {folder}")
    return found


def built_on(path: Path) -> list[str]:
    """The VMs, on or off, that have a disk on top of a file."""
    below = path.resolve()
    return [
        name
        for name in names()
        if any(
            file.resolve() == below
            for stack in _stacks(VmPaths.of(name))
            for file in stack[1:]
        )
    ]


def _files(paths: VmPaths) -> Iterator[Path]:
    """All that a VM's disks are made of, as far as it can be told."""
    for stack in _stacks(paths):
        yield from stack
    with contextlib.suppress(QemuctlError):
        image = image_of(load_spec(paths.spec))
        if image is not None:
            yield image.folder


def _stacks(paths: VmPaths) -> Iterator[list[Path]]:
    """The files of each disk of a VM, from the top."""
    yield from _stacks_in(paths.disks)
    with contextlib.suppress(QemuctlError):
        spec = load_spec(paths.spec)
        for disk in placed(spec, paths, image_of(spec)):
            yield _stack(Path(disk.path or ""), disk.driver)


def _stacks_in(folder: Path) -> Iterator[list[Path]]:
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(folder.iterdir()):
            yield _stack(path, path.suffix.removeprefix("."))


def _stack(path: Path, format_: str) -> list[Path]:
    try:
        return [layer.path for layer in chain.chain(path, format_)]
    except ImageError:  # at least what its name says
        return [path]
