"""`create`, `edit`, `rename`, `rm`: which VMs there are."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING, Annotated

from qemuctl.cli import flags
from qemuctl.cli.declare import Argument, Option, command
from qemuctl.cli.notices import say_doubts
from qemuctl.cli.output import note, print_json, tell
from qemuctl.cli.parameters import Json, Name, Names, complete_images
from qemuctl.cli.running import run_async
from qemuctl.errors import HostError, NotFound, QemuctlError, StateError
from qemuctl.paths import VmPaths
from qemuctl.registry.states import State

if TYPE_CHECKING:
    from qemuctl.spec import Spec


@command(
    "create",
    example="qemuctl create web --image tiny --memory 512M --cpus 2 --disk size=1G",
)
@flags.describing
def create(
    name: Annotated[str | None, Argument(metavar="[NAME]", help="its name")] = None,
    file: flags.File = None,
    image: Annotated[
        str | None,
        Option(help="an image's name, or ./disk.qcow2", autocompletion=complete_images),
    ] = None,
    *,
    given: flags.Given,
    json: Json = False,
) -> None:
    """Create a VM, from flags or a YAML file or both; it is not started."""
    spec, text = flags.spec_from(name=name, image=image, file=file, flags=given)
    run_async(_create(spec, text))
    say_doubts(spec)
    if json:
        path = VmPaths.of(spec.name).spec
        print_json({"name": spec.name, "state": State.OFF, "spec": str(path)})
        return
    note(f"created {spec.name}; start it with: qemuctl start {spec.name}")


async def _create(spec: Spec, text: str | None) -> None:
    from qemuctl.cli.progress import percent
    from qemuctl.image import store
    from qemuctl.registry import vms
    from qemuctl.registry.disks.disk_files import (
        check_media,
        check_new_medium,
        make_disks,
    )
    from qemuctl.registry.disks.resolve import image_of, resolved
    from qemuctl.registry.host_memory import check_memory
    from qemuctl.registry.plan import draft

    if VmPaths.of(spec.name).state.exists():
        raise vms.name_in_use(spec.name)
    check_memory(draft(spec, VmPaths.of(spec.name), spec.boot.once).spec)
    flags.check_boots(spec)
    with percent(f"copying {spec.image}") as progress:
        with store.steady(), vms.creating(spec, text) as paths:
            image = image_of(spec)
            await make_disks(spec, paths, image, progress=progress)
            check_media(resolved(spec, paths, image))
            for disk in spec.disks:
                if disk.path is not None:
                    check_new_medium(disk, spec)


@command("edit", example="EDITOR=nano qemuctl edit web")
def edit(name: Name) -> None:
    """Edit a VM's spec in $VISUAL or $EDITOR; a wrong one is not taken."""
    from qemuctl.paths import private_dir
    from qemuctl.process import held
    from qemuctl.registry import vms
    from qemuctl.registry.disks.disk_files import check_disks_kept
    from qemuctl.registry.disks.resolve import image_of
    from qemuctl.registry.plan import draft
    from qemuctl.spec import load_spec, parse_spec
    from qemuctl.spec.rewrite import rewritten

    paths = vms.find(name)
    before = paths.spec.read_text()
    after = _edited(before, paths)
    if after == before:
        note("nothing changed")
        return
    try:
        spec = parse_spec(after, source=f"{name}.yaml", base=paths.state)
        if spec.name != name:
            raise StateError(
                f"edit {name}", "present", "the name cannot change here",
                hint=f"qemuctl rename {name} {spec.name}",
            )  # fmt: skip
        whole = flags.with_texts(spec)
        if whole is not spec:
            own = {"cloud_init": whole.cloud_init}
            after = rewritten(after, parse_spec(after).model_copy(update=own))
        written = load_spec(paths.spec)
        images = image_of(written), image_of(spec)
        check_disks_kept(written, spec, paths, images)
        draft(spec, paths)
        vms.replace(name, after, expected=before)
    except QemuctlError as error:
        kept = private_dir(paths.rejected) / f"{name}.yaml"
        kept.write_text(after)
        error.hint = "\n".join(filter(None, [error.hint, f"your text is kept: {kept}"]))
        raise
    shutil.rmtree(paths.rejected, ignore_errors=True)
    note(f"changed {name}" + (", from its next start" if held(paths.lock) else ""))


def _edited(text: str, paths: VmPaths) -> str:
    from qemuctl.process.working import making
    from qemuctl.registry.vms import EDITING

    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with making(paths.state, EDITING) as folder:
        path = folder / f"{paths.name}.yaml"
        path.write_text(text)
        try:
            done = subprocess.run([*shlex.split(editor), str(path)], check=False)
        except OSError as error:
            raise HostError(
                f"no editor: {editor}: {error.strerror}", hint="set $EDITOR"
            ) from error
        if done.returncode != 0:
            raise HostError(
                f"the editor failed with status {done.returncode}: {editor}"
            )
        try:
            return path.read_text()
        except FileNotFoundError as error:  # removed or renamed meanwhile
            raise NotFound(paths.name) from error


@command("rename", example="qemuctl rename web www")
def rename(
    name: Name,
    new: Annotated[str, Argument(metavar="NEW", help="the new name")],
    json: Json = False,
) -> None:
    """Rename a VM that is off."""
    from qemuctl.registry.rename import rename as renaming

    renaming(name, new)
    tell({"name": new, "before": name}, f"{name} is now {new}", as_json=json)


@command("rm", example="qemuctl rm web")
def rm(
    names: Names,
    force: Annotated[
        bool, Option("--force", "-f", help="kill it first if it is on")
    ] = False,
    keep_disks: Annotated[
        bool, Option("--keep-disks", help="keep its disks, and say where")
    ] = False,
    json: Json = False,
) -> None:
    """Remove VMs that are off, with the disks that were made for them."""
    from qemuctl.cli.power import power, told
    from qemuctl.registry import removal, vms

    def remove(name: str) -> tuple[dict[str, object], str]:
        vms.find(name)
        if force:
            run_async(power(name, "kill"))
        kept = removal.remove(name, keep_disks=keep_disks)
        words = f"removed {name}" + (f"; its disks are in {kept}" if kept else "")
        return {"disks": str(kept) if kept else None}, words

    told(names, remove, as_json=json)
