"""Forks: guests that begin where a template's was frozen, a moment ago for them.

Each has the template's memory copy-on-write and its disks below its own ones,
and is told by its agent that it is somebody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Awaitable
from functools import partial

from qemuctl.boot.bring_up import Origin, bring_up, put_down
from qemuctl.boot.throwaway import Attached, PostMortem, begin, examined
from qemuctl.cmdline.ram import RamFile
from qemuctl.errors import QemuctlError, SpecError, TemplateError
from qemuctl.paths import VmPaths, private_dir
from qemuctl.registry.disks.disk_files import another_instance, date_seed
from qemuctl.registry.records.disk_ledger import remember
from qemuctl.registry.removal import remove
from qemuctl.registry.template import Template
from qemuctl.registry.template_lock import in_use
from qemuctl.registry.vms import creating
from qemuctl.spec import Spec, validate_name
from qemuctl.templates.eligible import check_alike, fork_spec
from qemuctl.templates.identity import macs, wake, wake_again
from qemuctl.templates.pool_client import pooled
from qemuctl.thread import Tick, in_thread
from qemuctl.units import format_size
from qemuctl.vm.vm import Vm


@contextlib.asynccontextmanager
async def fork(template: Template, spec: Spec | None = None) -> AsyncIterator[Vm]:
    """A throwaway fork, which runs and answers when the block begins.

    ``spec`` differs from the template's in what is on the host's side, such as
    port forwards, and its name is the guest's host name. Raises TemplateError,
    SpecError, LaunchError and WaitTimeout.
    """
    async with await begin_fork(template, spec) as vm:
        yield vm


async def begin_fork(
    template: Template,
    spec: Spec | None = None,
    *,
    post_mortem: PostMortem | None = None,
) -> Attached:
    """As `fork`, for whoever ends it by themselves; ``post_mortem`` as for `fresh`.

    It comes from the template's shared pool, if there is one with forks as this.
    """
    if _alike(template, spec):
        attached = await pooled(template)
        if attached is not None:
            # Whatever is wrong with that one, a fork of one's own will tell.
            with contextlib.suppress(QemuctlError):
                return await or_ended(attached, rouse(attached, template, spec))
    attached = await park(template, spec)
    return await or_ended(attached, _looked_at(attached, template, spec, post_mortem))


async def _looked_at(
    attached: Attached,
    template: Template,
    spec: Spec | None,
    post_mortem: PostMortem | None,
) -> None:
    async with examined(attached.vm, post_mortem):
        await unpark(attached, template, spec)


def _alike(template: Template, spec: Spec | None) -> bool:
    """Whether its forks are, but for their names, what a template's are by itself."""
    name = template.spec.name
    return spec is None or fork_spec(spec, name) == fork_spec(template.spec, name)


async def or_ended(attached: Attached, work: Awaitable[None]) -> Attached:
    """The same fork once the work on it is done; it has ended when that fails."""
    try:
        await work
    except BaseException:
        await asyncio.shield(attached.end())
        raise
    return attached


async def park(template: Template, spec: Spec | None = None) -> Attached:
    """A fork with its CPUs stopped: all is done but `unpark`.

    Raises TemplateError, SpecError, LaunchError, and leaves nothing then.
    """
    spec = spec or template.spec
    name = f"{spec.name}-{os.urandom(3).hex()}"
    check_alike(template.name, template.spec, spec)
    async with in_use(template.folder):
        _check_there(template)
        return await begin(
            running_spec(template, spec, name),
            name,
            furnish=partial(furnish, template),
            origin=origin(template),
        )


async def unpark(
    attached: Attached, template: Template, spec: Spec | None = None
) -> None:
    """Lets a parked fork run, as a machine of its own; raises as `wake` does."""
    vm = attached.vm
    own = running_spec(template, spec or template.spec, vm.name)
    await wake(vm, template.guest, _hostname(vm, spec), macs(own, vm.name))


async def warm_up(
    attached: Attached, template: Template, spec: Spec | None = None
) -> None:
    """Makes a parked fork a machine of its own, and stops it again for `rouse`.

    What is left to do then takes a fraction of the time, for the guest's code has
    been translated, its memory copied, and its agent known to answer. Raises as
    `unpark` does.
    """
    await unpark(attached, template, spec)
    await attached.vm.power.pause()
    # Only now: its agent must not begin to wait for the next one to connect.
    attached.vm.agent.release()


async def rouse(
    attached: Attached, template: Template, spec: Spec | None = None
) -> None:
    """Lets a fork run that is warm; its name may be another now. Raises as `unpark`
    does."""
    vm = attached.vm
    await wake_again(vm, template.guest, _hostname(vm, spec))


def _hostname(vm: Vm, spec: Spec | None) -> str:
    if spec is None:
        return vm.name
    given = spec.cloud_init.hostname if spec.cloud_init is not None else None
    return given or spec.name


async def create_fork(template: Template, name: str) -> Vm:
    """A fork that stays, as a VM of this name that runs; once it has been stopped,
    it starts as any other VM, from its disks alone.

    Raises NameInUse, and as `fork`; there is no such VM then.
    """
    validate_name(name)
    # Its user may give a MAC address to one guest, but not to many.
    nics = tuple(nic.model_copy(update={"mac": None}) for nic in template.spec.nics)
    spec = fork_spec(template.spec, name).model_copy(update={"nics": nics})
    async with in_use(template.folder):
        _check_there(template)
        with creating(spec) as fresh:
            await in_thread(partial(_furnish, template, fresh))
            if fresh.seed.exists():
                # Booted again, it is another instance for cloud-init, too.
                fresh.seed.unlink()
                another_instance(fresh)
        paths = VmPaths.of(name)
        try:
            return await _start(template, running_spec(template, spec, name), paths)
        except BaseException:
            remove(name)
            raise


async def _start(template: Template, spec: Spec, paths: VmPaths) -> Vm:
    vm, child = await bring_up(spec, paths, attached=False, origin=origin(template))
    try:
        await wake(vm, template.guest, paths.name, macs(spec, paths.name))
        child.detach()
        paths.booted.touch()
    except BaseException:
        await asyncio.shield(put_down(vm, child))
        raise
    return vm


def _check_there(template: Template) -> None:
    # Without it QEMU would make a new file, and we new disks: since it was found it
    # may have been removed, or made again.
    problem = template.problem()
    if problem is not None:
        raise TemplateError(f"the template {template.name} cannot be used: {problem}")


def running_spec(template: Template, spec: Spec, name: str) -> Spec:
    """The spec of a fork as it runs: with its cards' addresses."""
    guest = template.guest
    addresses = macs(spec, name) if guest.readdress else guest.macs
    nics = (
        nic.model_copy(update={"mac": mac})
        for nic, mac in zip(spec.nics, addresses, strict=True)
    )
    return fork_spec(spec, spec.name).model_copy(update={"nics": tuple(nics)})


def origin(template: Template) -> Origin:
    """What each of its forks is made from."""
    ram = RamFile(path=template.ram, shared=False, uuid=str(uuid.uuid4()))
    return Origin(
        ram=ram,
        state=template.state,
        template=template.name,
        console=template.serial_log,
    )


async def furnish(template: Template, paths: VmPaths) -> None:
    """Puts a fork's disks into its folder."""
    await in_thread(partial(_furnish, template, paths))


def _furnish(template: Template, paths: VmPaths, _: Tick) -> None:
    if template.overlays.is_dir():
        private_dir(paths.disks)
        for overlay in template.overlays.iterdir():
            disk = paths.disks / overlay.name
            shutil.copyfile(overlay, disk)
            remember(disk, paths, durable=False)
    if template.seed.exists():
        shutil.copyfile(template.seed, paths.seed)
        date_seed(paths)


def spec_like(template: Template, wanted: Spec) -> Spec:
    """The spec of a fork: ``wanted``, with the template's in all that it leaves open.

    Raises SpecError where it wants a machine other than the template's.
    """
    check_same(template, wanted)
    given = wanted.model_fields_set - {"memory", "cpu"}
    update = {key: getattr(wanted, key) for key in given}
    spec = template.spec.model_copy(update=update)
    check_alike(template.name, template.spec, spec)
    return spec


def check_same(template: Template, wanted: Spec) -> None:
    """Raises SpecError when a fork is to have other memory or processors than its
    template, as far as ``wanted`` says."""
    for key in sorted({"memory", "cpu"} & wanted.model_fields_set):
        asked, has = getattr(wanted, key), getattr(template.spec, key)
        for item in sorted(asked.model_fields_set):
            text = format_size if item in ("size", "max") and key == "memory" else str
            if (new := getattr(asked, item)) != (old := getattr(has, item)):
                raise SpecError(
                    f"the template {template.name} has "
                    f"{'none' if old is None else text(old)}, and so have its forks: "
                    f"{text(new)}",
                    key=f"{key}.{item}",
                    hint="make another template, or plug it in while the fork runs: "
                    "qemuctl set",
                )
