"""The guests of one test: as many as it asks for, all gone when it is over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from qemuctl.errors import QemuctlError, UnexpectedExit, WaitTimeout
from qemuctl.testing.hosting import Hosting, Stay
from qemuctl.testing.loop import across
from qemuctl.testing.request import Unfit, wanted
from qemuctl.testing.sync import SyncGuest

if TYPE_CHECKING:
    from qemuctl.testing.guest import Guest


class Guestbook:
    """The guests of one test, or the one that all tests of a session share.

    ``words`` are those of the marks, ``folder`` is where relative paths count from,
    and ``scratch`` tells where files may be left. ``keep`` lets the guests outlive
    the test.
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
        self._news: list[tuple[str, object]] = []

    def begin(self, **words: Any) -> Guest:
        """A guest that is ready. Raises as `wanted` and `Stay.begin` do."""
        stay = self._enter(words)
        return self._noted(stay, self.hosting.thread.call(stay.begin()))

    def plain(self, **words: Any) -> SyncGuest:
        """As `begin`, with verbs that wait."""
        return self.plainly(self.begin(**words))

    def plainly(self, guest: Guest) -> SyncGuest:
        """The same guest with verbs that wait."""
        return SyncGuest(guest, self.hosting.thread)

    async def awaited(self, **words: Any) -> Guest:
        """As `begin`, from any event loop."""
        stay = self._enter(words)
        guest = await across(stay.begin(), self.hosting.thread.loop)
        return self._noted(stay, guest)

    def _enter(self, words: Mapping[str, Any]) -> Stay:
        number = len(self.stays) + 1
        label = self._label if number == 1 else f"{self._label}{number}"
        request = wanted(
            {**self._words, **words},
            folder=self._folder,
            image=self.hosting.options.image,
            test=self._test.rpartition("::")[2],
            label=label,
        )
        stay = Stay(request, self._test, self.hosting)
        self.stays.append(stay)
        return stay

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


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """For the block, what qemuctl can explain fails the test in a few words, and a
    guest that this host cannot run skips it."""
    try:
        yield
    except Unfit as error:
        pytest.skip(error.message)
    except QemuctlError as error:
        # What hints of these repeat, the console, has a section of its own.
        told = isinstance(error, UnexpectedExit | WaitTimeout)
        hint = f"\n\nhint: {error.hint}" if error.hint and not told else ""
        text = f"{error.message}{hint}"
        raise pytest.fail.Exception(text, pytrace=False) from None
