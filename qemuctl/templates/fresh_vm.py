"""A throwaway VM whose guest is ready, in the shortest time that can be had."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

from qemuctl.boot.start import launch
from qemuctl.boot.throwaway import Attached, PostMortem, examined
from qemuctl.connection.connection import READY_TIMEOUT
from qemuctl.errors import NotReady, QemuctlError, TemplateError, WaitTimeout
from qemuctl.registry.plan import Stages
from qemuctl.registry.template import Template
from qemuctl.spec import Spec
from qemuctl.templates.catalog import cached_template, current, find
from qemuctl.templates.fork import begin_fork, spec_like
from qemuctl.vm.vm import Vm

Words = Callable[[str], None]


def _silent(_: str) -> None:
    pass


@contextlib.asynccontextmanager
async def fresh(
    spec: Spec,
    *,
    template: str | None = None,
    cold: bool = False,
    timeout: float = READY_TIMEOUT,
    progress: Stages | None = None,
    notice: Words = _silent,
    status: Words = _silent,
    post_mortem: PostMortem | None = None,
) -> AsyncIterator[Vm]:
    """A throwaway VM whose guest's agent answers; it ends with the block.

    It is a fork: of the named ``template`` (see `spec_like`), or else of one that is
    made from the spec when there is none yet (``vm.record.template`` names it). With
    ``cold``, or where no fork is possible, it is booted; ``notice`` gets the reason.
    ``timeout`` in seconds is for the boot; ``progress`` is told of an image's build,
    ``status`` of what takes long. ``post_mortem`` gets a VM whose guest did not become
    ready, for whatever reason, before it is removed. Raises as `launch` and
    ``vm.wait_ready``, and TemplateError for a named template that cannot be used.
    """
    async with contextlib.AsyncExitStack() as stack:
        attached: Attached | Exception | None = None
        if template is not None:
            found = await current(find(template), progress=status, status=status)
            attached = await begin_fork(
                found, spec_like(found, spec), post_mortem=post_mortem
            )
        elif not cold:
            attached = await _forked(spec, timeout, progress, status, post_mortem)
        if isinstance(attached, Attached):
            vm = await stack.enter_async_context(attached)
        else:
            status(f"booting {spec.image or spec.name}")
            with _told(attached, notice):
                vm = await stack.enter_async_context(launch(spec, progress=progress))
            async with examined(vm, post_mortem):
                await vm.wait_ready(timeout=timeout)
        yield vm


async def _forked(
    spec: Spec,
    timeout: float,
    progress: Stages | None,
    status: Words,
    post_mortem: PostMortem | None,
) -> Attached | Exception:
    """A fork that runs, or the reason why there can be none."""
    try:
        template = await cached_template(
            spec,
            timeout=timeout,
            progress=progress,
            status=status,
            post_mortem=post_mortem,
        )
    except (NotReady, WaitTimeout):
        raise  # it would not answer in time if it was booted once more
    except (QemuctlError, OSError) as why:
        return why
    try:
        return await begin_fork(_own_random(template), spec, post_mortem=post_mortem)
    except (QemuctlError, OSError) as why:
        return why


@contextlib.contextmanager
def _told(why: Exception | None, notice: Words) -> Iterator[None]:
    """Tells why there is no fork once the block, which boots instead, is done; not when
    it fails for the same reason, which its own error tells."""
    try:
        yield
    except Exception as error:
        if why is not None and str(error) != str(why):
            _tell(why, notice)
        raise
    if why is not None:
        _tell(why, notice)


def _tell(why: Exception, notice: Words) -> None:
    notice(f"note: it is booted, for no fork can be had: {why}")


def _own_random(template: Template) -> Template:
    # Whoever asked for a template by its name has been told.
    if template.guest.reseed is None:
        raise TemplateError(
            "its guest has no way to make its random numbers anew "
            "(vmgenid driver, perl or python3)"
        )
    return template
