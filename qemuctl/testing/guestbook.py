"""The guests of one test: as many as it asks for, all gone when it is over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from qemuctl.errors import QemuctlError, UnexpectedExit, WaitTimeout
from qemuctl.testing.hosting import Hosting, Stay
from qemuctl.testing.loop import across
from qemuctl.testing.request import Unfit, wanted

if TYPE_CHECKING:
    from qemuctl.testing.guest import Guest
    from qemuctl.testing.sync import SyncGuest


class Guestbook:
    """The guests of one test, or the one that all tests of a session share.

    ``words`` are those of the marks, ``folder`` is where relative paths count from,
    and ``scratch`` tells where files may be left. ``others`` are all books of the test,
    whose guests have other labels. ``keep`` lets the guests outlive the test.
    """

    def __init__(
        self,
        hosting: Hosting,
        test: str,
        *,
        folder: Path,
        scratch: Callable[[], Path],
        words: Mapping[str, Any] | None = None,
        label: str = "vm",
        shared: bool = False,
        others: Sequence[Guestbook] = (),
    ) -> None:
        self.stays: list[Stay] = []
        self.keep = False
        self.hosting = hosting
        self.scratch = scratch
        self._test = test
        self._folder = folder
        self._words = words or {}
        self._label = label
        self.shared = shared
        self._others = others
        self._news: list[tuple[str, object]] = []

    def begin(self, **words: Any) -> Guest:
        """A guest that is ready. Raises as `wanted` and `Stay.begin` do, and skips the
        test where the host cannot run it."""
        with _hinted():
            stay = self._enter(words)
            return self._noted(stay, self.hosting.thread.call(stay.begin()))

    async def awaited(self, **words: Any) -> Guest:
        """As `begin`, from any event loop."""
        with _hinted():
            stay = self._enter(words)
            guest = await across(stay.begin(), self.hosting.thread.loop)
            return self._noted(stay, guest)

    def _enter(self, words: Mapping[str, Any]) -> Stay:
        request = wanted(
            {**self._words, **words},
            folder=self._folder,
            image=self.hosting.options.image,
            test=self._test.rpartition("::")[2],
            label=self._label,
        )
        label = self._free(request.label)
        stay = Stay(replace(request, label=label), self._test, self.hosting)
        self.stays.append(stay)
        return stay

    def _free(self, label: str) -> str:
        """The label, with a number where another guest of the test has it."""
        books = {self, *self._others}
        taken = {stay.wanted.label for book in books for stay in book.stays}
        numbered = (f"{label}{number}" for number in count(2))
        return (
            label if label not in taken else next(x for x in numbered if x not in taken)
        )

    def _noted(self, stay: Stay, guest: Guest) -> Guest:
        assert stay.seconds is not None
        self._news += [
            ("vm_boot", stay.boot),
            ("vm_boot_seconds", f"{stay.seconds:.3f}"),
            *(("vm_not_forked", reason) for reason in stay.notices),
        ]
        return guest

    def news(self) -> list[tuple[str, object]]:
        """Properties for a test's report: how each guest came up, told once."""
        news, self._news = self._news, []
        return news

    def close(self) -> None:
        """Ends all guests, or lets go of those that are kept."""
        if self.stays:
            self.hosting.thread.call(self._ended())

    async def _ended(self) -> None:
        ends = (stay.end(keep=self.keep and stay.lives) for stay in self.stays)
        for outcome in await asyncio.gather(*ends, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome


class Factory:
    """`vm_factory`: makes guests that are as the test is, coroutines with
    ``coroutines``, or as whoever asks says."""

    def __init__(self, book: Guestbook, *, coroutines: bool) -> None:
        self._book = book
        self._coroutines = coroutines

    def __call__(self, **words: Any) -> SyncGuest | Coroutine[Any, Any, Guest]:
        return self.awaitable(**words) if self._coroutines else self.plain(**words)

    def plain(self, **words: Any) -> SyncGuest:
        """A guest that is ready, with verbs that wait."""
        return self._book.begin(**words).plain

    async def awaitable(self, **words: Any) -> Guest:
        """A guest that is ready, with verbs that are coroutines."""
        return await self._book.awaited(**words)


@contextlib.contextmanager
def _hinted() -> Iterator[None]:
    """For the block, an error's hint is a note of it, which a traceback shows, and a
    guest that this host cannot run skips the test."""
    try:
        yield
    except Unfit as error:
        pytest.skip(error.message)
    except QemuctlError as error:
        if error.hint and not _is_told(error):
            error.add_note(f"hint: {error.hint}")
        raise


def _is_told(error: QemuctlError) -> bool:
    """Whether its hint, the console's end, has a section of its own in reports."""
    return isinstance(error, UnexpectedExit | WaitTimeout)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """For the block, what qemuctl can explain fails the test in a few words, and a
    guest that this host cannot run skips it."""
    try:
        yield
    except Unfit as error:
        pytest.skip(error.message)
    except QemuctlError as error:
        hint = f"\n\nhint: {error.hint}" if error.hint and not _is_told(error) else ""
        text = f"{error.message}{hint}"
        raise pytest.fail.Exception(text, pytrace=False) from None
