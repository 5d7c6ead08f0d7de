"""A throwaway VM: with a folder of its own, which dies with its owner.

Who owns it is who has its two pipes. They can be sent to another process, with
which the VM then lives and dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

from qemuctl.boot.bring_up import GREETING_TIMEOUT, Origin, bring_up, put_down
from qemuctl.errors import NotFound
from qemuctl.paths import VmPaths, private_dir, vms_dir
from qemuctl.process import Child, Identity, Undertaker, bury
from qemuctl.qmp import Recorder, Session
from qemuctl.registry.disks.resolve import Device
from qemuctl.registry.plan import Stages
from qemuctl.registry.records.owner import own
from qemuctl.registry.records.process_record import Record
from qemuctl.registry.vms import find, name_in_use
from qemuctl.spec import Spec, dump
from qemuctl.vm.vm import Vm

Furnish = Callable[[VmPaths], Awaitable[None]]
PostMortem = Callable[[Vm], Awaitable[object]]


@dataclass
class Attached:
    """One throwaway VM, and what it dies by; as a block it ends with that. ``owning``
    is the descriptor by which others see that it has an owner."""

    vm: Vm
    child: Child
    undertaker: Undertaker
    owning: int

    async def __aenter__(self) -> Vm:
        return self.vm

    async def __aexit__(self, *_exc: object) -> None:
        await self.end()

    async def end(self) -> None:
        """Ends QEMU and waits until its files are gone; where ``vm.kept`` is true, the
        VM lives on without an owner, and its files go when it ends."""
        try:
            if self.vm.kept and self.child.qemu.alive():
                await self._let_live()
                return
            try:
                await put_down(self.vm, self.child)
            finally:
                await self.undertaker.done()
        finally:
            self._disown()

    def _disown(self) -> None:
        if self.owning >= 0:
            os.close(self.owning)
            self.owning = -1

    async def _let_live(self) -> None:
        record = replace(self.vm.record, attached=False, owner=None)
        record.write(self.vm.paths.record)
        self.child.detach()
        self.undertaker.detach()
        await self.vm.close()

    @property
    def pipes(self) -> tuple[int, int]:
        """What to send to the process that is to own it."""
        return self.child.pipe, self.undertaker.pipe

    def let_go(self) -> None:
        """Gives it up, its pipes having been sent: it dies with who has them, or
        now when nobody has."""
        self.child.disown()
        self.undertaker.let_go()
        self._disown()

    async def reaped(self) -> None:
        """Waits for its end, and leaves no zombie of what this process started."""
        await self.child.reaped()
        await self.undertaker.reaped()


async def begin(
    spec: Spec,
    name: str,
    *,
    furnish: Furnish | None = None,
    boot: Device | None = None,
    progress: Stages | None = None,
    origin: Origin | None = None,
) -> Attached:
    """The throwaway VM that is to have this name, its CPUs stopped.

    ``furnish`` puts files into its new folder. Raises SpecError, HostError,
    ImageError, LaunchError or NameInUse, and leaves nothing then.
    """
    private_dir(vms_dir())
    paths = VmPaths.of(name)
    paths.check_sockets()
    # The undertaker is there before the first file is.
    undertaker = bury(paths.state, paths.run)
    try:
        paths.state.mkdir(mode=0o700)
    except BaseException as error:
        # The folder is another's, or was never made.
        await undertaker.dismiss()
        if isinstance(error, FileExistsError):
            raise name_in_use(name) from error
        raise
    owning = -1
    try:
        undertaker.made()
        owning = own(paths)
        paths.spec.write_text(dump(spec))
        if furnish is not None:
            await furnish(paths)
        vm, child = await bring_up(
            spec,
            paths,
            attached=True,
            keep_open=[undertaker.pipe],
            boot=boot,
            progress=progress,
            origin=origin,
        )
    except BaseException:
        await undertaker.done()
        if owning >= 0:
            os.close(owning)
        raise
    return Attached(vm, child, undertaker, owning)


@contextlib.asynccontextmanager
async def examined(vm: Vm, post_mortem: PostMortem | None) -> AsyncIterator[None]:
    """Where the block, in which a guest is to become ready, fails for whatever reason,
    ``post_mortem`` gets the VM before it is removed."""
    try:
        yield
    except BaseException:  # called off, too: the guest may hang
        if post_mortem is not None:
            await post_mortem(vm)
        raise


async def adopt(name: str, pipes: tuple[int, int], undertaker: Identity) -> Attached:
    """The throwaway VM that another process has sent the pipes of, as one's own.

    Raises NotFound, WaitTimeout or QmpError; the VM dies then.
    """
    child_pipe, pipe = pipes
    keeper, owning = Undertaker(pipe, undertaker), -1
    try:
        paths = find(name)
        record = Record.read(paths.record)
        if record is None:
            raise NotFound(name)
        record = replace(record, owner=Identity.of(os.getpid()))
        record.write(paths.record)
        owning = own(paths)
        session = await Session.connect(
            paths.owner_socket,
            recorder=Recorder(paths.qmp_log),
            timeout=GREETING_TIMEOUT,
        )
    except BaseException:
        os.close(child_pipe)
        await asyncio.shield(keeper.done())
        if owning >= 0:
            os.close(owning)
        raise
    child = Child.received(record.qemu, record.shepherd, child_pipe)
    return Attached(Vm(paths, record, session), child, keeper, owning)
