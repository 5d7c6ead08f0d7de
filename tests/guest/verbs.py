"""A booted guest for the tests of the verbs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from qemuctl import Spec, fresh, launch
from qemuctl.testing import Guest, LoopThread, SyncGuest
from tests.guest.conftest import Home


@contextlib.asynccontextmanager
async def _booted(
    spec: Spec, timeout: float, thread: LoopThread
) -> AsyncIterator[Guest]:
    ready = fresh(spec, timeout=timeout) if timeout else launch(spec)
    async with ready as vm:
        yield Guest(vm, spec, thread)


@contextlib.contextmanager
def guest_of(spec: Spec, home: Home, *, timeout: float = 90) -> Iterator[SyncGuest]:
    """A guest in a thread's loop; with a time-out of 0 it may not be ready."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QEMUCTL_HOME", str(home.path))
        thread = LoopThread()
        try:
            booted = _booted(spec, timeout, thread)
            guest = thread.call(booted.__aenter__())
            try:
                yield SyncGuest(guest, thread)
            finally:
                thread.call(booted.__aexit__(None, None, None))
        finally:
            thread.close()


def told(error: BaseException) -> str:
    """What a traceback shows of an error."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])
