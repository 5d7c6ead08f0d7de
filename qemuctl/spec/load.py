"""From a file, text or keyword arguments to a `Spec`, or to one clear error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qemuctl.errors import SpecError
from qemuctl.spec.cloud import FILES, CloudInit
from qemuctl.spec.document import read_document, read_file
from qemuctl.spec.model import Spec
from qemuctl.spec.problems import spec_error
from qemuctl.typed.faults import Location, Wrong, dotted


def load_spec(path: Path, *, name: str | None = None) -> Spec:
    """The spec in the YAML file ``path``, its paths made absolute.

    ``name`` takes the place of the file's own. Raises SpecError, with file,
    line and key, for a file that cannot be read and for whatever is in it.
    """
    text = read_file(path)
    return parse_spec(text, source=str(path), base=base_of(path), name=name)


def base_of(path: Path) -> Path:
    """The folder that relative paths in a spec start from: that of its file, and the
    current one for a pipe or a descriptor, such as ``/dev/fd/63``."""
    descriptor = path.absolute().parts[1:2] in (("dev",), ("proc",))
    return path.parent if path.is_file() and not descriptor else Path.cwd()


def parse_spec(
    text: str | bytes,
    *,
    source: str = "<spec>",
    base: Path | None = None,
    name: str | None = None,
) -> Spec:
    """The spec in YAML ``text``; ``source`` is what errors call it.

    ``base`` is the folder that relative paths start from; without it paths
    stay as they are written. ``name`` takes the place of the text's own.
    Raises SpecError.
    """
    document = read_document(text, source)
    data, lines = document.data, document.lines
    if name is not None:
        data = {**data, "name": name}
        lines = {at: line for at, line in lines.items() if at != ("name",)}
    spec = validate(data, source=source, lines=lines)
    if base is None:
        return spec
    try:
        return resolve_paths(spec, base)
    except SpecError as error:
        line = {dotted(at): line for at, line in lines.items()}.get(error.key or "")
        raise SpecError(
            error.problem, path=source, line=line, key=error.key, hint=error.hint
        ) from error


def validate(
    data: Mapping[str, Any],
    *,
    source: str | None = None,
    lines: Mapping[Location, int] | None = None,
) -> Spec:
    """The spec of plain data, such as keyword arguments: ``{"name": "web"}``.

    ``source`` and ``lines`` (see `Document`) tell errors where the data came
    from. Raises SpecError with the key, and all other problems in its text.
    """
    try:
        return Spec.model_read(data)
    except Wrong as wrong:
        raise spec_error(wrong, data, source=source, lines=lines) from wrong


def resolve_paths(spec: Spec, base: Path) -> Spec:
    """The same spec with absolute paths: ``~`` expanded, the rest below ``base``.

    A name without a slash stays for `qemu`, which is then looked up in PATH,
    and for `image` what is no file (`Spec.image_is_file`). Raises SpecError for the
    ``~`` of an unknown user.
    """
    root = base.absolute()

    def whole(key: str, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            return str(root / Path(value).expanduser())
        except RuntimeError as error:
            raise SpecError(f"no such home folder: {value}", key=key) from error

    image, qemu = spec.image, spec.qemu
    if image is not None and spec.image_is_file:
        image = whole("image", image)
    if qemu is not None and "/" in qemu:
        qemu = whole("qemu", qemu)
    whole_fields = {
        "image": image,
        "qemu": qemu,
        "cdrom": whole("cdrom", spec.cdrom) if spec.cdrom else spec.cdrom,
        **_resolved_parts(spec, whole),
    }
    # What was not said stays so: no default holds a path.
    given = whole_fields.keys() & spec.model_fields_set
    return spec.model_copy(update={key: whole_fields[key] for key in given})


def _resolved_parts(
    spec: Spec, whole: Callable[[str, str | None], str | None]
) -> dict[str, Any]:
    """The parts of ``spec`` that hold paths, each path passed through ``whole``."""
    boot = {key: whole(f"boot.{key}", getattr(spec.boot, key)) for key in _BOOT}
    _check_one_file(boot["initrd"])
    disks = [
        disk.model_copy(update={"path": whole(f"disks[{index}].path", disk.path)})
        for index, disk in enumerate(spec.disks)
    ]
    nics = [
        nic.model_copy(
            update={
                key: whole(f"nics[{index}].{key}", getattr(nic, key)) for key in _NIC
            }
        )
        for index, nic in enumerate(spec.nics)
    ]
    return {
        "cloud_init": spec.cloud_init and _resolved_cloud(spec.cloud_init, whole),
        "boot": spec.boot.model_copy(update=boot),
        "disks": tuple(disks),
        "nics": tuple(nics),
    }


def _check_one_file(initrd: str | None) -> None:
    """Raises SpecError for what QEMU takes for a list where the kernel is a Multiboot
    one; a file may have a comma in its name."""
    if initrd is not None and "," in initrd and not Path(initrd).exists():
        raise SpecError(
            f"no such file: {initrd}", key="boot.initrd",
            hint="Multiboot modules are no initrd; they are given as "
            "extra_args: [-initrd, '/DIR/FILE ARGUMENTS,/DIR/FILE']",
        )  # fmt: skip


def _resolved_cloud(
    cloud: CloudInit, whole: Callable[[str, str | None], str | None]
) -> CloudInit:
    """Texts and public keys stay, the paths of files are passed through ``whole``."""
    files = {key: whole(f"cloud_init.{key}", name) for key, name in cloud.files.items()}
    keys = (
        files.get(f"ssh_keys[{index}]") or key
        for index, key in enumerate(cloud.ssh_keys)
    )
    own = {key: files[key] for key in FILES if key in files}
    return cloud.model_copy(update={**own, "ssh_keys": tuple(keys)})


_BOOT = ("kernel", "initrd")
_NIC = ("listen", "connect")
