"""The guests of one pytest process: who gets one, and who has to give it back.

Each guest lives in one task from its start to its end, in the loop of a thread
that all of them share; a test's own loop, if it has one, is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from qemuctl.errors import QemuctlError
from qemuctl.host import inspect_host
from qemuctl.paths import VmPaths, made_run_home
from qemuctl.process import Identity, wait_gone
from qemuctl.registry.disks.resolve import image_of, resolved
from qemuctl.templates.fresh_vm import fresh
from qemuctl.testing.artifacts import Evidence, gather, with_picture
from qemuctl.testing.budget import SAY_AFTER, Budget
from qemuctl.testing.guest import Guest
from qemuctl.testing.loop import LoopThread
from qemuctl.testing.verdict import oom_kills
from qemuctl.units import MIB

if TYPE_CHECKING:
    from qemuctl.spec import Spec
    from qemuctl.testing.options import Options
    from qemuctl.testing.request import Wanted
    from qemuctl.vm.vm import Vm

# What QEMU takes beside the guest's memory; under TCG its translations, too, of
# which a guest that only runs a test makes few.
_OVERHEAD = {"kvm": 64 * MIB, "tcg": 192 * MIB}
# Seconds for a look at a guest after a failure.
_LOOK_PATIENCE = 15.0


class Hosting:
    """All that the guests of one process share; ``say`` tells the user what takes
    long. ``controller`` is the pid of the process that this one works for."""

    def __init__(
        self,
        options: Options,
        say: Callable[[str], None],
        *,
        controller: int | None = None,
    ) -> None:
        self.options = options
        self.say = say
        self.thread = LoopThread("qemuctl-guests")
        self.budget = Budget(
            made_run_home(), memory=options.budget_memory, cpus=options.budget_cpus
        )
        self._watch: asyncio.Task[None] | None = None
        if controller is not None:
            self.thread.call(self._watched(controller))

    async def _watched(self, controller: int) -> None:
        self._watch = asyncio.create_task(_end_with(controller))

    def look(self, stay: Stay) -> Evidence | None:
        """What can be found of a guest now; None when there is nothing."""
        self.thread.call(stay.look())
        return stay.found

    def close(self) -> None:
        """Ends the loop, and guests that are still there with it."""
        self.thread.close()


async def _end_with(controller: int) -> None:
    """Ends this process when the one that it works for has been killed.

    Without it a worker of pytest-xdist would go on for seconds, its guests too.
    """
    process = Identity.of(controller)
    if process is not None:
        await wait_gone(process)
    os.kill(os.getpid(), signal.SIGKILL)


class Stay:
    """One guest, from the wish for it to its end; used in the hosting's loop.

    ``boot`` is ``fork`` or ``cold`` and ``seconds`` how long it took, once the guest
    is ready, which is ``guest``; ``error`` is why it never was. ``found`` is what a
    look at it gave, ``notices`` why it was not forked.
    """

    def __init__(self, wanted: Wanted, test: str, hosting: Hosting) -> None:
        self.wanted = wanted
        self.boot: str | None = None
        self.seconds: float | None = None
        self.error: BaseException | None = None
        self.found: Evidence | None = None
        self.notices: list[str] = []
        self.oom_kills = oom_kills()
        self._test = test
        self._hosting = hosting
        self.guest: Guest | None = None
        self._ready = asyncio.Event()
        self._over = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> Guest:
        """The guest, once it is ready.

        Raises as `fresh` does, and HostError for one that the host's budget has no
        room for.
        """
        self._task = asyncio.create_task(self._live())
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait({ready, self._task}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self._called_off(self._task)
            raise
        finally:
            ready.cancel()
        if self.guest is None:
            await self._task
        assert self.guest is not None
        return self.guest

    async def end(self, *, keep: bool = False) -> None:
        """Ends the guest and removes it, or with ``keep`` lets go of it.

        Nothing to do for one that never began. Raises what its end raises.
        """
        if self._task is None or self.error is not None:
            return
        if self.guest is None:
            await self._called_off(self._task)
            return
        self.guest.vm.kept = keep
        self._over.set()
        # In its own task, which goes on when nobody waits for it any more.
        await asyncio.shield(self._task)

    async def _called_off(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    @property
    def lives(self) -> bool:
        """Whether the guest is there, and its QEMU runs."""
        if self.guest is None or self._over.is_set():
            return False
        return self.guest.vm.record.qemu.alive()

    async def look(self) -> None:
        """Looks at a guest that is there, or has ended meanwhile."""
        if self.guest is not None and not self._over.is_set():
            await self._look(self.guest.vm)

    async def _look(self, vm: Vm) -> None:
        async with asyncio.timeout(_LOOK_PATIENCE):
            self.found = await gather(vm, self.wanted.spec)
            # What there is by now is kept, however long this takes.
            self.found = await with_picture(self.found, vm, self.wanted.spec)

    async def _last_look(self, vm: Vm) -> None:
        """A look at a guest that never was ready, which hides no other error."""
        with contextlib.suppress(QemuctlError, OSError, TimeoutError):
            await self._look(vm)

    def _say(self, stage: str) -> None:
        self._hosting.say(f"{self._test}: {stage}")

    async def _live(self) -> None:
        spec, options = self.wanted.spec, self._hosting.options
        waits = Waits(self._say)
        try:
            memory = _memory(spec) + _OVERHEAD[inspect_host(spec).accel.kind]
            async with self._hosting.budget.room(
                self._test, memory, spec.cpu.count, self._hosting.say
            ) as leave_to:
                started = time.perf_counter()
                # Who wants all guests booted need not be told so of each.
                status = waits.now if not options.cold else lambda _: None
                async with fresh(
                    spec,
                    template=self.wanted.template,
                    cold=options.cold,
                    timeout=options.timeout,
                    progress=self._say,
                    notice=self.notices.append,
                    status=status,
                    post_mortem=self._last_look,
                ) as vm:
                    self.seconds = time.perf_counter() - started
                    self.guest = Guest(vm, spec, self._hosting.thread)
                    self.boot = self.guest.booted_from
                    waits.over()
                    self._ready.set()
                    await self._over.wait()
                    if vm.kept:
                        leave_to(vm.record.qemu, vm.name)
        except BaseException as error:
            self.error = error
            raise
        finally:
            waits.over()


class Waits:
    """What is waited for, said once and only if it takes long; ``say`` tells it."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._known: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None

    def now(self, what: str) -> None:
        """This is waited for now, and nothing else any more."""
        if what not in self._known:
            self._known.add(what)
            self.over()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(SAY_AFTER, self._say, what)

    def over(self) -> None:
        """Nothing is waited for any more."""
        if self._timer is not None:
            self._timer.cancel()


def _memory(spec: Spec) -> int:
    """Bytes of memory that the guest gets, its image's needs included."""
    return resolved(spec, VmPaths.of(spec.name), image_of(spec)).memory.size
