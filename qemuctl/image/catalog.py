"""The catalogue of cloud images: the project's own, with the user's merged over it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from qemuctl import spec
from qemuctl.errors import SpecError
from qemuctl.image.checksums import Checksum, fetch_checksum, parse_checksum
from qemuctl.image.fetch import shown
from qemuctl.image.names import catalog_file
from qemuctl.image.names import user_file as user_file
from qemuctl.spec.base import Model
from qemuctl.spec.document import Document, read_document, read_file
from qemuctl.spec.scalars import Size, Text, check_name
from qemuctl.typed.faults import Location, Wrong
from qemuctl.typed.marks import Check, setting
from qemuctl.units import MIB


def _check_url(value: str) -> str:
    parts = urlsplit(value)  # raises ValueError itself for a broken [address]
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"not an http or https URL: {shown(value)}")
    return value


def _check_file(value: str) -> str:
    if not _filename(_check_url(value)):
        raise ValueError(f"a URL without the name of a file: {shown(value)}")
    return value


def _check_checksum(value: str) -> str:
    return _check_url(value) if "://" in value else str(parse_checksum(value))


def _filename(url: str) -> str:
    return PurePosixPath(unquote(urlsplit(url).path)).name


class Entry(Model):
    """One image: where it comes from, and what its guest needs."""

    description: Text = "an image of your own"
    url: Annotated[Text, Check(_check_file)]
    checksum: Annotated[Text, Check(_check_checksum)] | None = setting(
        default=None, description="URL of a checksum file, or sha256:HEX or sha512:HEX"
    )
    checksum_name: Text | None = setting(
        default=None,
        description="the image's name in that file; default: that of the URL",
    )
    format: Literal["qcow2", "raw"] = "qcow2"
    user: Text | None = setting(
        default=None, description="whom cloud-init makes by default"
    )
    memory: Size = setting(
        default=512 * MIB, description="the least that it boots with"
    )

    @property
    def filename(self) -> str:
        """What the image is called at its distributor."""
        return _filename(self.url)

    async def expected(self) -> Checksum | None:
        """The checksum to verify with, fetched now; None if there is none.

        Raises ImageError.
        """
        if self.checksum is None or "://" not in self.checksum:
            return parse_checksum(self.checksum) if self.checksum else None
        return await fetch_checksum(self.checksum, self.checksum_name or self.filename)


def catalog() -> dict[str, Entry]:
    """Every image by its name.

    The user's file is merged in per name and key: it can change the URL of an
    entry, add entries, and remove one (``NAME: null``). Raises SpecError with
    file, line and key for what is wrong in it.
    """
    shipped_file, own_file = catalog_file(), user_file()
    shipped, own = _read(shipped_file), Document({}, {})
    if own_file.exists() or own_file.is_symlink():
        own = _read(own_file)
    merged = {**shipped.data}
    for name, change in own.data.items():
        _check_own(name, change, own, own_file)
        if change is None:
            merged.pop(name, None)
        else:
            merged[name] = {**merged.get(name, {}), **change}
    entries = {}
    for name, data in merged.items():
        is_own = name in own.data
        source, lines = (
            (own_file, own.lines) if is_own else (shipped_file, shipped.lines)
        )
        entries[name] = _entry(name, data, source, lines)
    return entries


def _check_own(name: str, change: Any, own: Document, source: Path) -> None:
    try:
        check_name(name)
        if change is not None and not isinstance(change, dict):
            raise ValueError("not `key: value` lines, nor null")
    except ValueError as error:
        line = own.lines.get((name,))
        raise SpecError(str(error), path=str(source), line=line, key=name) from error


def _entry(
    name: str, data: dict[str, Any], source: Path, lines: dict[Location, int]
) -> Entry:
    try:
        return Entry.model_read(data)
    except Wrong as wrong:
        inside = {at[1:]: line for at, line in lines.items() if at[0] == name}
        found = spec.spec_error(wrong, data, source=str(source), lines=inside)
        missing = found.problem == "missing"
        raise SpecError(
            found.problem,
            path=str(source),
            line=found.line or lines.get((name,)),
            key=f"{name}.{found.key}" if found.key else name,
            hint="every image needs it: write it down" if missing else found.hint,
        ) from wrong


def _read(path: Path) -> Document:
    text = read_file(path)
    if all(line.lstrip()[:1] in (b"", b"#") for line in text.splitlines()):
        return Document({}, {})  # no entries yet
    return read_document(text, str(path))


def near(name: str, known: Iterable[str]) -> str | None:
    """``did you mean debian-13?``, or which ones there are of ``debian``."""
    names, folded = sorted(known), name.lower()
    releases = [other for other in names if other.startswith(f"{folded}-")]
    if len(releases) > 1:
        return f"which one: {', '.join(releases)}?"
    close = releases or get_close_matches(folded, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else None
