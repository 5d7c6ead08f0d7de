"""`Guest`: the verbs of a test, as coroutines or plain."""

from __future__ import annotations

from qemuctl.testing.sync import SyncGuest
from qemuctl.testing.verbs import Verbs


class Guest(Verbs):
    """A guest whose agent answers, with verbs that are coroutines."""

    @property
    def plain(self) -> SyncGuest:
        """The same guest with verbs that wait, for code that cannot await them."""
        return SyncGuest(self, self._thread)
