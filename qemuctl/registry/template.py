"""A template on the disk: a booted guest, frozen, that forks start from.

::

    NAME/
        template.json    what it is; there only once all else is whole
        ID/              one making of it
            ram          the guest's memory, sparse
            state        the devices' state, of some hundred kilobytes
            disks/       what the guest's disks held: nobody writes to them
            overlays/    an empty overlay on each of these, which a fork copies
            seed.iso     what cloud-init was told, if it was
            serial.log   what the guest said on its console until then

A fork has ``ram`` mapped copy-on-write and a disk of ``disks`` below its own. So
a file here never changes: a template that is made again goes into a folder
beside the old one, which stays for as long as a VM's disk stands on it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from qemuctl import durable
from qemuctl.errors import QemuctlError, SpecError, TemplateError
from qemuctl.image.digests import Stamp, compute
from qemuctl.paths import cached_templates_dir
from qemuctl.process.identity import boot_id
from qemuctl.registry.template_lock import alone_now
from qemuctl.spec import Spec, parse_spec
from qemuctl.structs import Struct
from qemuctl.thread import Tick
from qemuctl.typed.read import read

FILE = "template.json"
_FORMAT = 1
_MAKING = re.compile(r"[0-9a-f]{8}")


class Guest(Struct):
    """What a template's guest is like, found out before it was frozen.

    ``macs`` are its cards' addresses, in the spec's order. ``reseed`` is the way in
    which its kernel makes its random numbers anew: ``vmgenid`` by itself, or the
    program that can ask it to, or None. ``fine_clock``: its date(1) takes parts of
    a second. ``readdress``: its cards can have other addresses without its asking for
    a lease anew, in which it would become another host to the port forwards.
    """

    macs: tuple[str, ...]
    readdress: bool
    reseed: str | None
    fine_clock: bool


class Kept(Struct):
    """One file: how it was when it was made, and what was in it."""

    stamp: Stamp
    digest: str


class Template(Struct):
    """One template.

    ``text`` is the spec that it was made from, ``key`` stands for all that
    matters; ``source`` says in words what it was made of, ``furnished`` that its
    disks were copies of a VM's; ``wait`` and ``run`` what it waited for and the
    command that warmed it up. Times in seconds; ``boot``
    is the host's boot in which its files were last read through, ``timeout`` what its
    maker gave the boot, and again the command.
    """

    folder: Path
    making: str
    key: str
    text: str
    source: str
    furnished: bool
    wait: str
    run: str | None
    made_at: float
    qemu: str
    version: str
    machine: str
    accel: str
    guest: Guest
    boot_seconds: float
    freeze_seconds: float
    boot: str
    timeout: float = 120.0
    files: dict[str, Kept] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def spec(self) -> Spec:
        """The spec of its guest; paths are absolute."""
        return parse_spec(self.text, source=str(self.folder / FILE))

    @property
    def content(self) -> Path:
        """The folder of its files."""
        return self.folder / self.making

    @property
    def ram(self) -> Path:
        return self.content / "ram"

    @property
    def state(self) -> Path:
        return self.content / "state"

    @property
    def seed(self) -> Path:
        return self.content / "seed.iso"

    @property
    def serial_log(self) -> Path:
        return self.content / "serial.log"

    @property
    def disks(self) -> Path:
        return self.content / "disks"

    @property
    def overlays(self) -> Path:
        return self.content / "overlays"

    @property
    def used(self) -> int:
        """Bytes that it takes on the host."""
        return sum(path.stat().st_blocks * 512 for path in self._present())

    def _present(self) -> Iterator[Path]:
        for name in self.files:
            if (self.content / name).is_file():
                yield self.content / name

    @property
    def made_here(self) -> bool:
        """Whether any of its files is the very one that was made: a copy has none."""
        for name, kept in self.files.items():
            with contextlib.suppress(OSError):
                if Stamp.of(self.content / name) == kept.stamp:
                    return True
        return False

    def problem(self) -> str | None:
        """What is wrong with its files, at a glance; None when they are as made."""
        for name, kept in self.files.items():
            try:
                stamp = Stamp.of(self.content / name)
            except OSError:
                return f"its file is missing: {self.content / name}"
            if stamp.size != kept.stamp.size:
                return f"its file has another size than when made: {name}"
            if stamp != kept.stamp:
                return f"its file was changed since it was made: {name}"
        return None

    def confirmed(self, tick: Tick = lambda: None) -> Template:
        """The template, its files as they were made.

        They are read through where a glance is not enough: after the host has booted,
        for the last boot may have ended before all of them were on the disk, and when
        something was done to a file that need not have changed what is in it. Raises
        TemplateError.
        """
        if self.boot == boot_id() and self.problem() is None:
            return self
        try:
            stamps = {name: Stamp.of(self.content / name) for name in self.files}
        except OSError:
            stamps = {}
        problem = self.damage(tick)
        if problem is not None:
            raise TemplateError(problem)
        files = {
            name: replace(kept, stamp=stamps.get(name, kept.stamp))
            for name, kept in self.files.items()
        }
        fresh = replace(self, boot=boot_id(), files=files)
        with contextlib.suppress(OSError, QemuctlError):  # else they are read again
            fresh.update()
        return fresh

    def distrust(self) -> None:
        """Has whoever uses it next read its files through. Raises OSError or
        HostError."""
        replace(self, boot="").update()

    def update(self) -> None:
        """Writes the description anew, unless another making has come meanwhile."""
        with alone_now(self.folder) as free:
            now = read_template(self.folder) if free else None
            if now is not None and now.making == self.making:
                self.write()

    def damage(self, tick: Tick = lambda: None) -> str | None:
        """What is wrong with its files, each read through; None when all is well."""
        for name, kept in self.files.items():
            try:
                if Stamp.of(self.content / name).size != kept.stamp.size:
                    return f"its file has another size than when made: {name}"
                if compute(self.content / name, tick) != kept.digest:
                    return f"its file is damaged: {name}"
            except OSError as error:
                return f"its file cannot be read: {name}: {error.strerror}"
        return None

    def write(self) -> None:
        """Makes it known, as a whole."""
        value = asdict(self)
        del value["folder"]
        # One that is made again by itself may be lost.
        named = self.folder.parent != cached_templates_dir()
        durable.write_json(
            self.folder / FILE, {"format": _FORMAT} | value, durable=named
        )


def read_template(folder: Path) -> Template | None:
    """The template in a folder; None when there is none yet.

    Raises TemplateError for a description that makes no sense.
    """
    path = folder / FILE
    try:
        return _parsed(path.read_text(), folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError, SpecError) as error:
        raise TemplateError(
            f"its description is damaged: {path}",
            hint=f"remove it with: qemuctl template rm {folder.name}",
        ) from error


def _parsed(text: str, folder: Path) -> Template:
    """Raises ValueError, or SpecError, for what `Template.write` did not write."""
    value = json.loads(text)
    if not isinstance(value, dict) or value.pop("format", None) != _FORMAT:
        raise ValueError("another format")
    template = read(Template, value | {"folder": folder})
    # Nothing outside of its folder is ever taken for a part of it.
    names = map(PurePosixPath, template.files)
    if not _MAKING.fullmatch(template.making) or not all(map(_is_inside, names)):
        raise ValueError("not in its folder")
    if not {"ram", "state"} <= template.files.keys():
        raise ValueError("it has no memory")
    assert template.spec  # makes sense, too
    return template


def _is_inside(path: PurePosixPath) -> bool:
    return not path.is_absolute() and ".." not in path.parts and "\0" not in str(path)


def kept_files(content: Path, tick: Tick = lambda: None) -> dict[str, Kept]:
    """How all files below a folder are now, by their relative names."""
    return {
        str(path.relative_to(content)): Kept(
            stamp=Stamp.of(path), digest=compute(path, tick)
        )
        for path in sorted(content.rglob("*"))
        if path.is_file()
    }
