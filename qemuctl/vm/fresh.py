"""A throwaway VM whose guest is ready, in the shortest time that can be had."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from qemuctl.errors import (
    QemuctlError,
    TemplateError,
    WaitTimeout,
)
from qemuctl.spec import Spec
from qemuctl.vm.attached import Attached
from qemuctl.vm.fork import begin_fork
from qemuctl.vm.launch import launch
from qemuctl.vm.plan import Stages
from qemuctl.vm.template import Template
from qemuctl.vm.templates import cached_template, current, find
from qemuctl.vm.vm import READY_TIMEOUT, Vm


@contextlib.asynccontextmanager
async def fresh(
    spec: Spec,
    *,
    template: str | None = None,
    cold: bool = False,
    timeout: float = READY_TIMEOUT,
    progress: Stages | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[Vm]:
    """A throwaway VM whose guest's agent answers; it ends with the block.

    It is a fork: of the named ``template``, or else of one that is made from the
    spec when there is none yet (``vm.record.template`` names it). With ``cold``,
    or where no fork is possible, it is booted; ``notice`` gets the reason.
    ``timeout`` in seconds is for the boot. Raises as `launch` and
    ``vm.wait_ready``, and TemplateError for a named template that cannot be used.
    """
    async with contextlib.AsyncExitStack() as stack:
        attached = None
        if not cold or template is not None:
            attached = await _forked(spec, template, timeout, progress, notice)
        if attached is not None:
            vm = await stack.enter_async_context(attached)
        else:
            vm = await stack.enter_async_context(launch(spec, progress=progress))
            await vm.wait_ready(timeout=timeout)
        yield vm


async def _forked(
    spec: Spec,
    name: str | None,
    timeout: float,
    progress: Stages | None,
    notice: Callable[[str], None],
) -> Attached | None:
    """A fork that runs, or None and the reason why there is none."""
    if name is not None:
        template = await current(find(name), progress=progress)
        return await begin_fork(template, spec)
    try:
        template = await cached_template(spec, timeout=timeout, progress=progress)
    except WaitTimeout:
        raise  # it would not answer in time if it was booted once more
    except (QemuctlError, OSError) as why:
        _tell(why, notice)
        return None
    try:
        return await begin_fork(_own_random(template), spec)
    except (QemuctlError, OSError) as why:
        _tell(why, notice)
        return None


def _tell(why: Exception, notice: Callable[[str], None]) -> None:
    reason = why.message if isinstance(why, QemuctlError) else str(why)
    notice(f"booting, for no fork can be had: {reason}")


def _own_random(template: Template) -> Template:
    # Whoever asked for a template by its name has been told.
    if template.guest.reseed is None:
        raise TemplateError(
            "its guest has no way to make its random numbers anew "
            "(vmgenid driver, perl or python3)"
        )
    return template
