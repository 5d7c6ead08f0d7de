"""Images of others, brought into the store: pulled from a server, or imported."""

from __future__ import annotations

import asyncio
import errno
import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from qemuctl.durable import sync_tree
from qemuctl.errors import ImageError, SpecError, UsageError
from qemuctl.image import store
from qemuctl.image.catalog import Entry, catalog
from qemuctl.image.chain import check_trusted
from qemuctl.image.checksums import Checksum
from qemuctl.image.complete import check_complete
from qemuctl.image.convert import FORMATS, readable
from qemuctl.image.copied import copied, copy_beside, copy_file
from qemuctl.image.download import Downloaded, downloading
from qemuctl.image.fetch import shown
from qemuctl.image.manifest import Format, Manifest, sha256_of, sums_beside
from qemuctl.image.model import Image
from qemuctl.image.overlay import check_format
from qemuctl.image.progress import Progress, silent
from qemuctl.image.recognise import Kind, check_sectors, other_kind, recognised
from qemuctl.paths import cache_home
from qemuctl.spec import validate_name
from qemuctl.thread import Tick, in_thread

Note = Callable[[str], None]
_SUFFIXES = {name: name for name in FORMATS} | {"vhd": "vpc"}


def downloads() -> Path:
    """Where files are while they are downloaded, and what is left of broken ones."""
    return cache_home() / "downloads"


async def pull(
    what: str,
    *,
    name: str | None = None,
    expected: Checksum | None = None,
    progress: Progress = silent,
    note: Note = lambda _text: None,
) -> Image:
    """The image of a catalogue name or an http(s) URL, downloaded if it is not there.

    ``name`` is what it is called in the store, by default as in the catalogue or
    as the file is. ``expected`` is the checksum to verify with in the place of
    the catalogue's. It appears in the store whole, or not at all.

    Raises ImageError: unknown, a download that fails, a file that is not what
    it should be, or another image of this name.
    """
    entry, url = _entry(what)
    name = validate_name(name) if name else what if entry else _named(_stem(url))
    if _there(name, url):
        return await _as_expected(store.find(name), expected)
    known = expected
    if known is None and entry is not None:
        known = await entry.expected()

    def ready() -> bool:
        return _there(name, url)

    async with downloading(
        url, downloads(), expected=known, ready=ready, progress=progress, note=note
    ) as got:
        if got is None:  # another command made it while this one waited
            return await _as_expected(store.find(name), expected)
        await _add(name, url, entry, got, progress)
    if known is None:
        note(f"nothing to verify it with: no checksum is known of {shown(url)}")
    return store.find(name)


def _there(name: str, url: str) -> bool:
    """Whether the store has this very image. Raises ImageError for another one."""
    if name in store.names():
        source = store.find(name).manifest.source
        if source is not None and shown(source) == shown(url):
            return True
    store.check_free(name)
    return False


async def _as_expected(image: Image, expected: Checksum | None) -> Image:
    """The image; raises ImageError when it is not the expected one."""
    if expected is None:
        return image
    about = image.manifest
    found = about.source_sha256 or about.sha256
    if expected.algorithm != "sha256" and image.disk is not None:
        algorithm = expected.algorithm
        if about.source_sha256 is not None:
            raise ImageError(
                f"the image {image.name} is there, and cannot be compared: it was "
                f"converted, and only the SHA-256 of what came is known: {found}",
                hint=f"qemuctl image rm {image.name}, then pull it again",
            )
        found = await in_thread(partial(sha256_of, image.disk, algorithm=algorithm))
    if expected.digest != found:
        raise ImageError(
            f"the image {image.name} is there, but its {expected.algorithm} checksum "
            f"is another: expected {expected.digest}, got {found}",
            hint="see that the checksum is the right one; if so, choose another name "
            f"with --name, or qemuctl image rm {image.name}",
        )
    return image


def _named(stem: str) -> str:
    """The name of a file as an image's. Raises SpecError when it cannot be one."""
    try:
        return validate_name(stem)
    except SpecError as error:
        error.hint = "choose a name for the image: --name NAME"
        raise


def _entry(what: str) -> tuple[Entry | None, str]:
    if "://" in what:
        return None, what
    known = catalog()
    if what in known:
        return known[what], known[what].url
    raise store.unknown(what)


def _stem(url: str) -> str:
    return PurePosixPath(_file_name(url)).stem.replace("_", "-")


def _file_name(url: str) -> str:
    return PurePosixPath(unquote(urlsplit(url).path)).name


async def _add(
    name: str, url: str, entry: Entry | None, got: Downloaded, progress: Progress
) -> None:
    kind = await _looked_at(got.path, entry, url)
    kept: Format = "raw" if kind == "raw" else "qcow2"
    with store.fresh(name) as folder:
        disk = folder / f"disk.{kept}"
        if kind == kept:
            sha256 = got.sha256
            await in_thread(partial(_move, got.path, disk))
        else:
            sha256 = await _converted(got.path, kind, disk, url, progress)
        manifest = Manifest(
            source=shown(url),
            created=_now(),
            format=kept,
            virtual_size=await asyncio.to_thread(_virtual_size, disk, kept),
            sha256=sha256,
            source_sha256=got.sha256 if kind != kept else None,
            user=entry.user if entry else None,
            cloud_init=entry is not None,
            memory=entry.memory if entry else None,
        )
        store.describe(folder, manifest)
        await in_thread(partial(sync_tree, folder))


async def _looked_at(path: Path, entry: Entry | None, url: str) -> str:
    """The format of a download, one of `FORMATS`. What is no whole image of its own
    is removed: the next pull would go on with it, and fail for the same reason."""
    try:
        kind = _format_found(path, entry, url)
        if kind not in ("qcow2", "raw"):
            readable(path, kind)
            return kind
        kept: Format = "raw" if kind == "raw" else "qcow2"
        await asyncio.to_thread(_virtual_size, path, kept)
        if kind == "qcow2":
            await check_complete(path)
    except ImageError as error:
        raise _refused(error, path, url) from error
    return kind


async def _converted(
    path: Path, kind: str, disk: Path, url: str, progress: Progress
) -> str:
    """Converts a download, which goes then, and gives the disk's SHA-256."""
    try:
        sha256 = await copied(path, kind, disk, False, progress)
    except ImageError as error:
        # What qemu-img says of the file; a full disk is no fault of it.
        if error.argv and (error.returncode or 0) > 0:
            raise _refused(error, path, url) from error
        raise
    path.unlink()
    return sha256


def _refused(error: ImageError, path: Path, url: str) -> ImageError:
    """The error for a download that is no whole image of its own. It is removed: the
    next pull would go on with it, and fail for the same reason."""
    hint = error.hint
    path.unlink(missing_ok=True)
    # It may be about the file, which is gone, or an option that pull has not.
    if hint is None or str(path) in hint or "--trust-backing" in hint:
        hint = "what came was removed; only a disk image in one file can be pulled"
    return ImageError(error.message.replace(str(path), shown(url)), hint=hint)


def _move(source: Path, target: Path, tick: Tick) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # The cache is on another file system.
        copy_file(source, target, silent, tick)
        source.unlink()


def _format_found(path: Path, entry: Entry | None, url: str) -> str:
    """The format of a download, one of `FORMATS`. Whoever gives a bare URL has not
    named it, and nothing but an empty header can be lost by looking.

    Raises ImageError for what nobody would call a disk.
    """
    kind = recognised(path)
    if kind is not None and kind.format is None:
        raise _not_a_disk(kind, url)
    if kind is not None and kind.format != "qcow2":
        return str(kind.format)  # what the catalogue says is of qcow2 and raw
    if entry is not None:
        return entry.format
    if kind is not None:
        return "qcow2"
    check_sectors(path)
    return "raw"


def _not_a_disk(kind: Kind, url: str) -> ImageError:
    """The error for what cannot be pulled, with the commands that bring it in."""
    file = _file_name(url)
    ready = PurePosixPath(file).stem
    between = f"qemu-img convert -O qcow2 {file} {(ready := f'{ready}.qcow2')}"
    if kind.unpack is not None:
        between, ready = f"{kind.unpack} {file}", PurePosixPath(file).stem
    return ImageError(
        f"not a disk image, but {kind.name}: {shown(url)}",
        hint=f"curl -LO {shlex.quote(shown(url))}; {between}; "
        f"qemuctl image import {ready}",
    )


def _virtual_size(path: Path, format: Format) -> int:
    """What a guest will see. Raises ImageError for a disk that is not itself whole."""
    check_format(path, format)
    layers = check_trusted(path, format, inside=())
    return layers[0].virtual_size


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


async def import_file(
    path: Path,
    *,
    name: str | None = None,
    format: str | None = None,
    user: str | None = None,
    trust_backing: bool = False,
    like: Image | None = None,
    progress: Progress = silent,
) -> Image:
    """Copies an image file into the store; the file stays as it is.

    ``format`` is that of the file, by default what its suffix says. What is
    neither qcow2 nor raw becomes qcow2, and an overlay is flattened. ``user``
    tells that it has cloud-init, and whom that makes. ``like`` is the image that it was
    made from: its kernel and what else is beside its disk are copied, too.

    Raises ImageError, UsageError for a format that is not known.
    """
    name = validate_name(name) if name else _named(path.stem)
    store.check_free(name)
    written = format or format_by_suffix(path)
    kept: Format = "raw" if written == "raw" else "qcow2"
    with store.fresh(name) as folder:
        disk = folder / f"disk.{kept}"
        inside = [like.folder] if like is not None else []
        sha256 = await copied(path, written, disk, trust_backing, progress, inside)
        known = Manifest() if like is None else like.manifest
        if like is not None:
            await in_thread(partial(copy_beside, like, folder))
        manifest = known.model_copy(
            update={
                # A file's name may be no text.
                "source": str(path.absolute()).encode(errors="replace").decode(),
                "created": _now(),
                "format": kept,
                "virtual_size": await asyncio.to_thread(_virtual_size, disk, kept),
                "sha256": sha256,
                "files": await in_thread(partial(sums_beside, disk)),
                "user": user or known.user,
                "cloud_init": known.cloud_init or user is not None,
                "source_sha256": None,
                "recipe": None,
            }
        )
        store.describe(folder, manifest)
        await in_thread(partial(sync_tree, folder))
    return store.find(name)


def format_by_suffix(path: Path) -> str:
    """The format that a file's name says. Raises UsageError when it says none."""
    suffix = path.suffix.lower().removeprefix(".")
    found = _SUFFIXES.get(suffix)
    if found is None:
        kind = recognised(path)
        if kind is not None and kind.format is None:
            raise other_kind("a disk image", path, kind)
        if kind is not None:
            raise UsageError(
                f"the format is not known by the file's name: {path}",
                hint=f"it begins as {kind.name} does: add --format {kind.format}",
            )
        raise UsageError(
            f"the format is not known: {path}",
            hint=f"add --format: {', '.join(FORMATS)}",
        )
    return found
