"""Guests as fixtures of pytest; an entry point, so installing qemuctl is enough.

::

    def test_boots(vm):
        assert vm.run("uname -a").ok

    @pytest.mark.vm(image="debian", memory="1G")
    async def test_serves(vm):
        await vm.wait_for_unit("nginx")

Imported by every test run: what drives VMs is loaded when a test wants one.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from qemuctl.testing import options

if TYPE_CHECKING:
    from qemuctl.testing.guest import Guest
    from qemuctl.testing.guestbook import Factory, Guestbook
    from qemuctl.testing.hosting import Hosting
    from qemuctl.testing.sync import SyncGuest

_HOSTING = pytest.StashKey["Hosting"]()
_OPTIONS = pytest.StashKey[options.Options]()
_CONTROLLER = pytest.StashKey[int]()
_STDERR = pytest.StashKey[int]()
_BOOKS = pytest.StashKey[list["Guestbook"]]()
_FIXTURES = {"vm", "vm_factory", "vm_session"}
_SHARED = pytest.StashKey["Guestbook"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", options.MARK)
    config.stash[_OPTIONS] = options.read(config)
    if hasattr(config, "workerinput"):  # of pytest-xdist
        # Now, for later it may be dead, and the parent be another.
        config.stash[_CONTROLLER] = os.getppid()
    with contextlib.suppress(OSError):
        # Nothing is captured yet: here users are told what takes long.
        config.stash[_STDERR] = os.dup(2)


def pytest_unconfigure(config: pytest.Config) -> None:
    if (hosting := config.stash.get(_HOSTING, None)) is not None:
        hosting.close()
    if (stderr := config.stash.get(_STDERR, None)) is not None:
        os.close(stderr)


@pytest.fixture
def vm(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guest | SyncGuest]:
    """A fresh guest of this test alone, ready for vm.run("uname -a").

    @pytest.mark.vm(image=..., memory=...) says what it is like. In an `async def`
    test the verbs are coroutines: await vm.run("uname -a"). A fixture that is not as
    its tests are takes vm.plain, whose verbs wait, or vm.awaitable.
    """
    from qemuctl.testing.guestbook import explained

    with _guests(request, tmp_path_factory.getbasetemp) as book:
        with explained():
            guest = book.begin()
        yield guest if _is_async(request.node) else guest.plain


@pytest.fixture
def vm_factory(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Factory]:
    """Makes guests, several in one test: vm_factory(name="web", memory="1G").

    The keywords are those of @pytest.mark.vm, whose own are the defaults. In an
    `async def` test: await vm_factory(). A fixture that is not as its tests are takes
    vm_factory.plain() or await vm_factory.awaitable().
    """
    from qemuctl.testing.guestbook import Factory

    with _guests(request, tmp_path_factory.getbasetemp) as book:
        yield Factory(book, coroutines=_is_async(request.node))


@pytest.fixture(scope="session")
def vm_session(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SyncGuest]:
    """One guest that all tests of the session (of a worker, with xdist) share.

    What one test changes in it the next one sees. In an `async def` test the verbs
    are coroutines; a fixture, whose verbs wait, may take vm_session.awaitable.
    """
    from qemuctl.testing.guestbook import Guestbook, explained

    book = Guestbook(
        _hosting(request.config),
        "vm_session",
        folder=request.config.rootpath,
        scratch=tmp_path_factory.getbasetemp,
        label="vm_session",
        shared=True,
    )
    request.config.stash[_SHARED] = book
    try:
        with explained():
            guest = book.begin()
        yield guest.plain
    finally:
        book.close()


@contextlib.contextmanager
def _guests(
    request: pytest.FixtureRequest, scratch: Callable[[], Path]
) -> Iterator[Guestbook]:
    """The guests that a fixture gives to one test; gone after the block."""
    from qemuctl.testing.guestbook import Guestbook

    node: pytest.Item = request.node
    books = node.stash.setdefault(_BOOKS, [])
    book = Guestbook(
        _hosting(request.config),
        node.nodeid,
        folder=node.path.parent,
        scratch=scratch,
        words=_words(node),
        others=books,
    )
    books.append(book)
    try:
        yield book
    finally:
        book.close()


def _hosting(config: pytest.Config) -> Hosting:
    """What all guests of this process share, made when the first one is wanted."""
    if _HOSTING not in config.stash:
        from qemuctl.testing.hosting import Hosting

        config.stash[_HOSTING] = Hosting(
            config.stash[_OPTIONS],
            lambda text: _say(config, text),
            controller=config.stash.get(_CONTROLLER, None),
        )
    return config.stash[_HOSTING]


def _say(config: pytest.Config, text: str) -> None:
    """Tells the user of what takes long, whatever pytest captures."""
    if (stderr := config.stash.get(_STDERR, None)) is not None:
        with contextlib.suppress(OSError):
            os.write(stderr, f"\n{text}\n".encode())


def _words(item: pytest.Item) -> dict[str, Any]:
    """The words of all marks `vm` of a test; the nearest mark has the last word."""
    words: dict[str, Any] = {}
    for mark in reversed(list(item.iter_markers("vm"))):
        if mark.args:
            pytest.fail(
                f"the mark vm takes keywords only: {mark.args[0]!r}\n\n"
                'hint: @pytest.mark.vm(image="debian")',
                pytrace=False,
            )
        words |= mark.kwargs
    return words


def _is_async(item: pytest.Item) -> bool:
    function = getattr(item, "obj", None)
    return function is not None and inspect.iscoroutinefunction(
        inspect.unwrap(function)
    )


def _books(item: pytest.Item) -> list[Guestbook]:
    """The guests that a test uses."""
    books = [*item.stash.setdefault(_BOOKS, [])]
    shared = item.config.stash.get(_SHARED, None)
    if shared is not None and "vm_session" in getattr(item, "fixturenames", ()):
        books.append(shared)
    return books


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fails a test whose mark makes no sense and skips one whose host is not fit,
    whether or not it gets to the point of starting a guest."""
    # Others may have a mark of this name for purposes of their own.
    if {"vm", "vm_factory"}.isdisjoint(getattr(item, "fixturenames", ())):
        return
    if words := _words(item):
        from qemuctl.testing.guestbook import explained
        from qemuctl.testing.request import wanted

        image = item.config.stash[_OPTIONS].image
        folder = item.path.parent
        with explained():
            wanted(words, folder=folder, image=image, test=item.name, label="vm")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Gives an `async def` test the coroutines of the session's guest."""
    shared = item.config.stash.get(_SHARED, None)
    arguments = getattr(item, "funcargs", {})
    if shared is not None and "vm_session" in arguments and _is_async(item):
        arguments["vm_session"] = shared.stays[0].guest


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs an `async def` test that uses guests, where no other plugin does.

    What other plugins run is no coroutine function any more, or they come first.
    """
    is_async = inspect.iscoroutinefunction(pyfuncitem.obj)
    if not is_async or _FIXTURES.isdisjoint(pyfuncitem.fixturenames):
        return None
    import asyncio

    # A parameter with a default is no fixture.
    given, names = pyfuncitem.funcargs, inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: given[name] for name in names if name in given}
    asyncio.run(pyfuncitem.obj(**arguments))
    return True


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds what is known of its guests to the report of a test."""
    books = _books(item)
    if not books:
        return (yield)
    from qemuctl.testing.report import conclude, end_at_verb

    error = call.excinfo.value if call.excinfo else None
    if not item.config.getoption("fulltrace", False):
        end_at_verb(error)
    report = yield
    # Of a unittest.TestCase it is known only now.
    error = call.excinfo.value if call.excinfo else None
    conclude(item, report, error, books)
    if report.when == "teardown":
        item.stash[_BOOKS].clear()
    return report
