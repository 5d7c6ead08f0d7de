"""What becomes of a migration that was cut short, by what the other side says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from qemuctl.errors import NotFound, QemuctlError
from qemuctl.migration.channel import ChannelLost
from qemuctl.migration.link import Link
from qemuctl.migration.recovery import settle
from qemuctl.paths import VmPaths
from qemuctl.registry.records.migration_journal import Leaving
from qemuctl.registry.records.moved_away import moved_to
from qemuctl.registry.vms import create, find
from qemuctl.spec import Spec

LEAVING = Leaving(
    token="0" * 32, destination="ssh://other", name="web", receiver="qemuctl",
    controller=None, phase="confirm", ran=True, keep=False,
    home="there", said_go=True,
)  # fmt: skip


class OtherSide:
    """Answers from a script, and keeps what it was asked."""

    def __init__(
        self, fate: str | None, *, accepted: bool = False, home: str = "there"
    ) -> None:
        told = {"fate": fate, "accepted": accepted, "complete": False, "home": home}
        self._answer = None if fate is None else told
        self.asked: list[str] = []
        self.channel = self

    async def ask(self, do: str, **arguments: Any) -> Any:
        self.asked.append(do)
        assert arguments["token"] == LEAVING.token
        if self._answer is None:
            raise ChannelLost("the other side has gone")
        return self._answer if do == "ask" else None


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VmPaths:
    monkeypatch.setenv("QEMUCTL_HOME", str(tmp_path))
    made = create(Spec(name="web"))
    LEAVING.write(made)
    return made


@pytest.mark.parametrize(
    ("fate", "accepted"),
    [("unknown", False), ("lost", False), ("lost", True), ("waiting", False)],
)
async def test_what_took_no_step_there_is_discarded_and_stays_here(
    paths: VmPaths, fate: str, accepted: bool
) -> None:
    other = OtherSide(fate, accepted=accepted)
    assert not await settle(paths, LEAVING, cast(Link, other), None)
    assert other.asked == ["ask", "discard"]
    assert Leaving.read(paths) is None
    assert find("web")


async def test_what_was_accepted_there_goes_on_there(paths: VmPaths) -> None:
    other = OtherSide("waiting", accepted=True)
    assert await settle(paths, LEAVING, cast(Link, other), None)
    assert other.asked == ["ask", "take", "finish"]
    with pytest.raises(NotFound):
        find("web")


async def test_what_has_run_there_is_gone_here(paths: VmPaths) -> None:
    other = OtherSide("arrived")
    assert await settle(paths, LEAVING, cast(Link, other), None)
    assert other.asked == ["ask", "finish"]
    with pytest.raises(NotFound):
        find("web")


async def test_what_was_to_be_kept_says_where_it_went(paths: VmPaths) -> None:
    other, kept = OtherSide("arrived"), replace(LEAVING, keep=True)
    assert await settle(paths, kept, cast(Link, other), None)
    assert moved_to(find("web")) == "ssh://other"
    assert Leaving.read(paths) is None


async def test_without_an_answer_all_stays_as_it_is(paths: VmPaths) -> None:
    with pytest.raises(ChannelLost):
        await settle(paths, LEAVING, cast(Link, OtherSide(None)), None)
    assert Leaving.read(paths) == LEAVING
    assert find("web")


async def test_another_home_at_that_place_is_not_believed(paths: VmPaths) -> None:
    other = OtherSide("unknown", home="another")
    with pytest.raises(QemuctlError, match="another home"):
        await settle(paths, LEAVING, cast(Link, other), None)
    assert other.asked == ["ask"]
    assert Leaving.read(paths) == LEAVING


async def test_nonsense_is_no_answer(paths: VmPaths) -> None:
    other = OtherSide("nowhere")
    with pytest.raises(QemuctlError, match="makes no sense"):
        await settle(paths, LEAVING, cast(Link, other), None)
    assert Leaving.read(paths) == LEAVING
