"""A saved machine out of any file: in the VM that it was, or in a new one.

A new VM has copies of the disks that were the saved VM's own; those at paths of the
user's stay where they are. Its cards keep their addresses, for the guest knows them.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

from qemuctl.boot.from_saved_state import check_disks, go_on
from qemuctl.copies.clone import own_boot_files
from qemuctl.durable import sync_tree
from qemuctl.errors import QemuctlError
from qemuctl.image.convert import convert
from qemuctl.image.progress import Progress, silent
from qemuctl.paths import VmPaths, private_dir
from qemuctl.process import held
from qemuctl.registry.disks.disk_files import DiskFile, date_seed, disk_files
from qemuctl.registry.disks.resolve import image_of, seeded
from qemuctl.registry.offline import locked
from qemuctl.registry.plan import Stages
from qemuctl.registry.records.disk_ledger import remember
from qemuctl.registry.removal import remove
from qemuctl.registry.saved_state import About, StateFile, read_state
from qemuctl.registry.states import Action
from qemuctl.registry.vms import creating, name_in_use
from qemuctl.savestate.foreign_state import check_state, saved_here
from qemuctl.spec import parse_spec, validate_name
from qemuctl.thread import Tick, in_thread
from qemuctl.vm.vm import Vm


async def restore(
    file: Path,
    *,
    name: str | None = None,
    paused: bool = False,
    trust: bool = False,
    progress: Progress = silent,
    stages: Stages | None = None,
) -> Vm:
    """Starts a machine that was saved to a file, which stays as it is (see `go_on`).

    It goes on in the VM ``name`` (by default as it was called) where that is off and
    its disks are those of then; where there is no such VM it is made. ``progress`` is
    told of each disk that is copied. A file that no VM of this home has written must
    keep to the VM's own files, unless ``trust``. Raises NameInUse, StateError when the
    VM is on, SpecError for what leads outside of it, StateFileError and ImageError with
    the reason; a VM that was made is gone then.
    """
    state = read_state(file.absolute())
    name = name or state.about.name
    validate_name(name)
    paths = VmPaths.of(name)
    own, there = saved_here(state), paths.state.exists()
    if not own or not there:
        # Before anything is done with it, or as it says.
        await in_thread(state.verify)
    if not trust and not own:
        check_state(state, paths)
    if not there:
        return await _in_new_vm(state, name, paused, progress, stages)
    if not _is_its_own(state.about, paths):
        raise name_in_use(name)
    with locked(name, Action.RESTORE):
        check_disks(state, paths.state)
    return await go_on(state, paths, paused=paused, verified=not own, progress=stages)


def _is_its_own(about: About, paths: VmPaths) -> bool:
    """Whether the state is one of this VM, renamed since or not."""
    if about.home == str(paths.state):
        return True
    own = any(disk.own for disk in about.disks)
    return own and not about.problems(paths.state)


async def _in_new_vm(
    state: StateFile,
    name: str,
    paused: bool,
    progress: Progress,
    stages: Stages | None,
) -> Vm:
    copied = await _made(state, name, progress)
    paths = VmPaths.of(name)
    try:
        return await go_on(copied, paths, paused=paused, verified=True, progress=stages)
    except BaseException:
        if not held(paths.lock):  # its guest has not run
            with contextlib.suppress(QemuctlError):
                remove(name)
        raise


async def _made(state: StateFile, name: str, progress: Progress) -> StateFile:
    """Makes the VM; gives the state with the disks that are its own now."""
    about, home = state.about, Path(state.about.home)
    check_disks(state, home)
    source = VmPaths(home, home)  # nothing of what ran is needed
    ran = about.ran(home)
    image = image_of(ran)
    written = parse_spec(about.spec).model_copy(update={"name": name})
    with creating(written) as fresh:
        for disk in disk_files(ran, source, image):
            if disk.own:
                await _copied(disk, fresh, progress, trusted=ran.trust_backing)
        check_disks(state, home)  # nobody has written to them meanwhile
        seed = [source.seed, source.instance] if seeded(ran, image) else []
        files = [*seed, *own_boot_files(ran, source).values()]
        for file in files:
            await in_thread(partial(_taken, file, fresh.state))
        date_seed(fresh)
        disks = tuple(disk.as_in(fresh.state) for disk in about.disks)
        await in_thread(partial(sync_tree, fresh.state))
    return replace(state, about=replace(about, disks=disks))


async def _copied(
    disk: DiskFile, fresh: VmPaths, progress: Progress, *, trusted: bool
) -> None:
    copy = private_dir(fresh.disks) / disk.path.name
    await convert(
        disk.path, copy, source_format=disk.format, format=disk.format,
        progress=progress, trust_backing=trusted,
    )  # fmt: skip
    remember(copy, fresh)


def _taken(file: Path, folder: Path, _: Tick) -> None:
    with contextlib.suppress(FileNotFoundError):  # not every VM has a seed
        shutil.copyfile(file, folder / file.name)
