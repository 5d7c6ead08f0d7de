"""The templates that exist: find, make, list, remove.

Some have a name that somebody gave them; the others were made by the way, are
named by their key, and go when they have not been used for a while.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from qemuctl.boot.throwaway import Furnish, PostMortem
from qemuctl.connection.connection import READY_TIMEOUT
from qemuctl.copies.foreign_spec import check_inside, without_stored
from qemuctl.durable import sync, sync_tree
from qemuctl.errors import TemplateError
from qemuctl.image import build_tiny
from qemuctl.paths import PoolPaths, cached_templates_dir, private_dir, templates_dir
from qemuctl.process import held
from qemuctl.process.identity import boot_id
from qemuctl.registry.disks.resolve import image_of
from qemuctl.registry.file_users import needing
from qemuctl.registry.plan import Stages
from qemuctl.registry.template import FILE, Kept, Template, kept_files, read_template
from qemuctl.registry.template_lock import alone, alone_now, lock_of
from qemuctl.spec import Spec, dump, validate_name
from qemuctl.structs import Struct
from qemuctl.templates.eligible import template_spec
from qemuctl.templates.key import Key, Recipe, compute_key
from qemuctl.templates.make import Frozen, freeze
from qemuctl.thread import in_thread

# Days after which a template that was made by the way and not used is removed.
_UNUSED_DAYS = 14
_USED = "used"


class Making(Struct):
    """What is to be made: a ``spec`` as its user wrote it, how its guest is got
    ready, the words that name the ``source``, and what puts disks into its folder.
    ``timeout`` in seconds is for the boot, and again for the recipe's command;
    ``post_mortem`` is as for `fresh`."""

    spec: Spec
    recipe: Recipe
    source: str
    furnish: Furnish | None = None
    timeout: float = READY_TIMEOUT
    post_mortem: PostMortem | None = None


async def cached_template(
    spec: Spec,
    *,
    timeout: float = READY_TIMEOUT,
    progress: Stages | None = None,
    status: Stages = lambda _: None,
    post_mortem: PostMortem | None = None,
) -> Template:
    """The template of a spec, which is made when there is none yet.

    Of several that want the same one at once, in whatever processes, one makes it,
    and the others wait. ``status`` is told what takes long. Raises SpecError for what
    cannot be combined with a template, and what `freeze` raises.
    """
    source = spec.image or spec.name
    making = Making(
        spec=spec,
        recipe=Recipe(),
        source=source,
        timeout=timeout,
        post_mortem=post_mortem,
    )
    key = await _key(making, progress)
    folder = private_dir(cached_templates_dir()) / key.text
    found = await _usable(folder, key)
    if found is None:
        words = f"waiting for another process that boots {source}, once"
        async with alone(folder, lambda: status(words)):
            found = await _usable(folder, key)
            if found is None:
                status(f"booting {source}, once")
                _tidy(folder.parent, time.time() - _UNUSED_DAYS * 86400)
                found = await _make(folder, making, key, progress)
    with contextlib.suppress(OSError):
        (folder / _USED).touch()
    return found


async def create(
    name: str, making: Making, *, progress: Stages | None = None
) -> Template:
    """Makes a template that has a name.

    Raises TemplateError when there is one of that name, SpecError for what cannot
    be combined with a template, and what `freeze` raises.
    """
    validate_name(name)
    folder = private_dir(templates_dir()) / name
    async with alone(folder):
        if folder.exists() and read_template(folder) is not None:
            raise TemplateError(
                f"a template of this name exists already: {name}",
                hint=f"remove it with: qemuctl template rm {name}",
            )
        key = await _key(making, progress)
        _tidy(folder.parent)
        return await _make(folder, making, key, progress)


def find(name: str) -> Template:
    """The template that somebody gave a name.

    Raises TemplateError: for an unknown one with the nearest name, and for one
    whose description is damaged.
    """
    if name in _folders(templates_dir()):
        template = read_template(templates_dir() / name)
        if template is None:
            raise TemplateError(
                f"it was never finished: {name}",
                hint=f"remove it with: qemuctl template rm {name}",
            )
        return template
    near = get_close_matches(name, [template.name for template in named()], 1)
    raise TemplateError(
        f"no such template: {name}",
        hint=f"did you mean {near[0]}?"
        if near
        else "make it with: qemuctl template create NAME --image tiny",
    )


def named() -> list[Template]:
    """The templates that have a name, by it; damaged descriptions are left out."""
    return sorted(_templates(templates_dir()), key=lambda template: template.name)


def cached() -> list[Template]:
    """The templates that were made by the way, the latest first."""
    found = _templates(cached_templates_dir())
    return sorted(found, key=lambda template: -template.made_at)


def damaged() -> list[str]:
    """The named ones that are no templates any more, or not yet."""
    known = {template.name for template in named()}
    return sorted(name for name in _folders(templates_dir()) if name not in known)


def _templates(where: Path) -> Iterator[Template]:
    for name in _folders(where):
        with contextlib.suppress(TemplateError):
            template = read_template(where / name)
            if template is not None:
                yield template


def _folders(where: Path) -> list[str]:
    """The templates' names, finished or not. What is none of these, such as an empty
    word or a path, names no folder of a template."""
    with contextlib.suppress(FileNotFoundError):
        return [
            entry.name
            for entry in os.scandir(where)
            if entry.is_dir() and not entry.name.startswith(".")
        ]
    return []


async def current(
    template: Template,
    *,
    progress: Stages | None = None,
    status: Stages = lambda _: None,
) -> Template:
    """A template that somebody gave a name, as it can be used now: made again when
    its files are damaged, or what it was made from is another now.

    ``progress`` is told when it is made again, ``status`` of what takes long. Raises
    TemplateError where it cannot be made again, SpecError for one that was brought
    here from elsewhere and leads outside of its forks.
    """
    if not template.made_here:  # before the QEMU that it names is asked anything
        hint = f"qemuctl template rm {template.name}, and create it here"
        spec, source = without_stored(template.spec), template.folder / FILE
        check_inside(spec, (), source, hint=hint)
    making = Making(
        spec=template.spec,
        recipe=Recipe(template.wait, template.run),
        source=template.source,
        timeout=template.timeout,
    )
    key = await _key(making, progress)
    reason = "what it was made from has changed: QEMU, or an image"
    status(f"looking at the template {template.name}")
    try:
        confirmed = await in_thread(template.confirmed)
        if key.text == template.key:
            return confirmed
    except TemplateError as error:
        reason = error.message
    if template.furnished:
        raise TemplateError(
            f"the template {template.name} cannot be used: {reason}",
            hint=f"qemuctl template rm {template.name}, and create it again",
        )
    words = f"waiting for another process that makes the template {template.name}"
    async with alone(template.folder, lambda: status(words)):
        found = await _usable(template.folder, key)
        if found is not None:
            return found
        if progress is not None:
            progress(f"making the template {template.name} again: {reason}")
        return await _make(template.folder, making, key, progress)


async def _usable(folder: Path, key: Key) -> Template | None:
    with contextlib.suppress(TemplateError):
        found = read_template(folder)
        if found is not None and found.key == key.text:
            return await in_thread(found.confirmed)
    return None


async def _key(making: Making, progress: Stages | None) -> Key:
    spec = template_spec(making.spec, "template")
    image = image_of(spec)
    if image is not None and not image.present:
        kernel = Path(spec.boot.kernel) if spec.boot.kernel else None
        await build_tiny(kernel, progress=progress)
    return await in_thread(lambda tick: compute_key(spec, making.recipe, tick))


async def _make(
    folder: Path, making: Making, key: Key, progress: Stages | None
) -> Template:
    """Makes a template anew; its lock is held."""
    private_dir(folder)
    _sweep(folder)
    id_ = secrets.token_hex(4)
    content = folder / id_
    content.mkdir(mode=0o700)
    name = f"template-{id_}"
    try:
        frozen = await freeze(
            template_spec(making.spec, name),
            name,
            content,
            making.recipe,
            furnish=making.furnish,
            timeout=making.timeout,
            progress=progress,
            post_mortem=making.post_mortem,
        )
        files = await in_thread(partial(kept_files, content))
        template = _described(folder, id_, making, key, frozen, files)
        if folder.parent == templates_dir():  # else it is made again where it is lost
            await in_thread(partial(sync_tree, folder))
            sync(folder.parent)
        template.write()
    except BaseException:
        shutil.rmtree(content, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rmdir()  # unless there is an older making
            lock_of(folder).unlink()
        raise
    _sweep(folder)
    return template


def _described(
    folder: Path,
    id_: str,
    making: Making,
    key: Key,
    frozen: Frozen,
    files: dict[str, Kept],
) -> Template:
    return Template(
        folder=folder,
        making=id_,
        key=key.text,
        text=dump(making.spec),
        source=making.source,
        furnished=making.furnish is not None,
        wait=making.recipe.wait,
        run=making.recipe.run,
        made_at=time.time(),
        qemu=str(key.host.binary.path),
        version=key.host.binary.version,
        machine=frozen.machine,
        accel=key.host.accel.kind,
        guest=frozen.guest,
        boot_seconds=frozen.boot_seconds,
        freeze_seconds=frozen.freeze_seconds,
        boot=boot_id(),
        timeout=making.timeout,
        files=files,
    )


def _sweep(folder: Path) -> None:
    """Removes makings that were cut short, and those that nobody needs any more."""
    for content in _needless(folder):
        shutil.rmtree(content, ignore_errors=True)


def _needless(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(TemplateError):
        kept = read_template(folder)
        for content in sorted(folder.iterdir()):
            stays = kept is not None and content.name == kept.making
            if content.is_dir() and not stays and not needing(content):
                yield content


async def remove(name: str) -> None:
    """Removes a template that has a name, damaged or not.

    Raises TemplateError when there is none, when disks of VMs stand on it, and
    when a shared pool keeps forks of it.
    """
    folder = templates_dir() / name
    if name not in _folders(templates_dir()):
        find(name)
    if held(PoolPaths(name).lock):
        raise TemplateError(
            f"a pool keeps forks of the template {name}",
            hint=f"qemuctl pool stop {name}",
        )
    async with alone(folder):
        users = needing(folder)
        if users:
            raise TemplateError(
                f"disks of VMs stand on the template {name}: {', '.join(users)}",
                hint="first remove these, or give them disks of their own: "
                "qemuctl image rebase DISK --flatten",
            )
        discard(folder)


async def remove_cached() -> int:
    """Removes all that were made by the way, for no disk that stays is on them; gives
    how many."""
    where = cached_templates_dir()
    folders = [where / name for name in _folders(where)]
    for folder in folders:
        async with alone(folder):
            discard(folder)
    return len(folders)


def discard(folder: Path) -> None:
    """Removes a template's folder, of which the caller has the lock: first what makes
    it known, then the rest."""
    (folder / FILE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    lock_of(folder).unlink(missing_ok=True)


def _tidy(where: Path, unused_since: float = 0.0) -> None:
    """Removes what makers that were killed left, and the templates that have not been
    used since (seconds of the epoch); but for what somebody is making or using."""
    for folder in (where / name for name in _folders(where)):
        if _is_idle(folder, unused_since):
            with alone_now(folder) as free:
                # Somebody may have finished it just before.
                if free and _is_idle(folder, unused_since) and not needing(folder):
                    discard(folder)


def _is_idle(folder: Path, unused_since: float) -> bool:
    used = folder / _USED
    with contextlib.suppress(FileNotFoundError):  # removed in this moment
        at = (used if used.exists() else folder).stat().st_mtime
        return at < unused_since or not (folder / FILE).exists()
    return False


def leftovers() -> list[Path]:
    """Makings that were cut short, and nobody is at work on."""
    found = []
    for home in (templates_dir(), cached_templates_dir()):
        for folder in (home / name for name in _folders(home)):
            with alone_now(folder) as free:
                if free:
                    found += list(_needless(folder))
    return found
