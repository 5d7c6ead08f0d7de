"""The budget of guests: several processes, one file, nobody left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from qemuctl.errors import HostError
from qemuctl.process import Identity
from qemuctl.testing import budget as module
from qemuctl.testing.budget import Budget, Claim, Ledger, Limits
from qemuctl.units import GIB, MIB

ROOM = Limits(memory=4 * GIB, cpus=8)


def me() -> Identity:
    found = Identity.of(os.getpid())
    assert found is not None
    return found


def claim(owner: Identity, memory: int = GIB, cpus: int = 1, **more: object) -> Claim:
    return Claim(owner=owner, what="test_a", memory=memory, cpus=cpus, **more)  # type: ignore[arg-type]


@pytest.fixture
def other() -> Iterator[Identity]:
    """A process that lives for as long as the test."""
    process = subprocess.Popen(["/bin/sleep", "60"])
    found = Identity.of(process.pid)
    assert found is not None
    yield found
    process.kill()
    process.wait()


def inside(ledger: Ledger) -> list[bool]:
    return [claim.inside for claim in ledger.settled().claims]


def test_guests_are_let_in_until_memory_or_processors_are_used_up() -> None:
    claims = tuple(claim(me(), 1536 * MIB) for _ in range(2))
    assert inside(Ledger(ROOM, claims)) == [True, True]
    crowd = tuple(claim(me(), MIB, cpus=4) for _ in range(2))
    assert inside(Ledger(ROOM, crowd)) == [True, True]
    assert inside(Ledger(replace(ROOM, cpus=7), crowd[:1])) == [True]


def test_who_does_not_fit_is_not_overtaken_by_who_would(other: Identity) -> None:
    claims = (
        claim(other, 3 * GIB, inside=True),
        claim(me(), 2 * GIB),
        claim(me(), GIB),
    )
    assert inside(Ledger(ROOM, claims)) == [True, False, False]
    assert inside(Ledger(ROOM, claims[1:])) == [True, True]


def test_what_a_dead_process_had_counts_no_more(other: Identity) -> None:
    dead = replace(other, start_ticks=other.start_ticks - 1)
    claims = (claim(dead, 4 * GIB, inside=True), claim(me(), 4 * GIB))
    (left,) = Ledger(ROOM, claims).settled().claims
    assert left.inside
    assert left.owner == me()


def test_when_all_who_have_guests_wait_for_more_the_first_is_let_in(
    other: Identity,
) -> None:
    claims = (
        claim(other, 2 * GIB, inside=True),
        claim(me(), 2 * GIB, inside=True),
        claim(me(), GIB),
    )
    assert inside(Ledger(ROOM, claims)) == [True, True, False]  # the other one ends
    both = (*claims, claim(other, GIB))
    assert inside(Ledger(ROOM, both)) == [True, True, True, False]
    # Whoever has none yet cannot give way, and is passed over.
    third = Identity.of(os.getppid())
    assert third is not None
    behind = (*claims[:2], claim(third, GIB), *both[2:])
    assert inside(Ledger(ROOM, behind)) == [True, True, False, True, False]


@contextmanager
def holder(folder: Path, memory: int) -> Iterator[subprocess.Popen[str]]:
    """Another process that has room for a guest, and gives it back at a line."""
    program = f"""
        import asyncio, sys
        from pathlib import Path
        from qemuctl.testing.budget import Budget
        async def main():
            budget = Budget(Path({str(folder)!r}), memory={ROOM.memory}, cpus=8)
            async with budget.room("test_other", {memory}, 1, print):
                print("inside", flush=True)
                await asyncio.to_thread(sys.stdin.readline)
            print("left", flush=True)
            sys.stdin.readline()
        asyncio.run(main())
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "inside\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("end", ["leaves", "is killed"])
async def test_a_waiting_guest_starts_when_another_process_leaves_or_is_killed(
    tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAY_AFTER", 0.05)
    said: asyncio.Queue[str] = asyncio.Queue()
    with holder(tmp_path, 3 * GIB) as process:
        # No limits of its own: those of whoever is there hold.
        budget = Budget(tmp_path)

        async def work() -> None:
            async with budget.room("test_mine", 2 * GIB, 2, said.put_nowait):
                pass

        waiting = asyncio.create_task(work())
        assert await asyncio.wait_for(said.get(), 60) == (
            "test_mine waits for room: it needs 2G, 2 cpus of 4G, 8 cpus\n"
            f"  test_other has 3G, 1 cpu (process {process.pid})"
        )
        assert not waiting.done()
        assert process.stdin is not None
        if end == "leaves":
            process.stdin.write("\n")
            process.stdin.flush()
        else:
            process.send_signal(signal.SIGKILL)
        await asyncio.wait_for(waiting, 60)
    assert json.loads((tmp_path / ".budget").read_text())["claims"] == []


async def test_who_gives_up_waiting_is_not_in_the_way(tmp_path: Path) -> None:
    with holder(tmp_path, 3 * GIB):
        budget = Budget(tmp_path)
        waits = asyncio.Event()
        room = budget.room("test_mine", 2 * GIB, 1, lambda _: waits.set())
        waiting = asyncio.create_task(room.__aenter__())
        await asyncio.wait_for(waits.wait(), 60)
        assert len(claims(tmp_path)) == 2
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len(claims(tmp_path)) == 1
        async with budget.room("test_small", GIB, 1, print):
            assert len(claims(tmp_path)) == 2


async def test_a_vm_that_is_kept_has_its_room_until_it_ends(tmp_path: Path) -> None:
    budget = Budget(tmp_path, memory=ROOM.memory, cpus=8)
    qemu = subprocess.Popen(["/bin/sleep", "60"])
    process = Identity.of(qemu.pid)
    assert process is not None
    async with budget.room("test_kept", 3 * GIB, 1, print) as leave_to:
        leave_to(process, "kept-1")
    (left,) = claims(tmp_path)
    assert isinstance(left, dict)
    assert (left["owner"]["pid"], left["kept"]) == (qemu.pid, "kept-1")
    # Nobody would ever let this one in.
    with pytest.raises(HostError, match="VMs that were kept have it") as caught:
        async with budget.room("test_next", 2 * GIB, 1, print):
            pass
    assert "qemuctl kill kept-1" in str(caught.value.hint)
    with holder(tmp_path, GIB):  # which may leave, and so waiting makes sense
        said: asyncio.Queue[str] = asyncio.Queue()
        waiting = asyncio.create_task(_passing(budget, said.put_nowait))
        words = await asyncio.wait_for(said.get(), 60)
        assert "test_kept has 3G, 1 cpu (kept, to be removed by: " in words
        qemu.kill()
        qemu.wait()
        await asyncio.wait_for(waiting, 60)
        assert len(claims(tmp_path)) == 1


async def _passing(budget: Budget, say: Callable[[str], None]) -> None:
    async with budget.room("test_next", 2 * GIB, 1, say):
        pass


def claims(folder: Path) -> list[object]:
    found: list[object] = json.loads((folder / ".budget").read_text())["claims"]
    return found


async def test_a_guest_larger_than_all_of_it_fails_at_once(tmp_path: Path) -> None:
    budget = Budget(tmp_path, memory=GIB, cpus=2)
    with pytest.raises(HostError, match=r"needs 1\.5G of memory, .* may have: 1G") as e:
        async with budget.room("test_a", 1536 * MIB, 1, print):
            pass
    assert "vm_budget_memory" in str(e.value.hint)
    with pytest.raises(HostError, match=r"needs 3 processors, .* may have: 2"):
        async with budget.room("test_a", GIB, 3, print):
            pass
    assert claims(tmp_path) == []


async def test_a_damaged_file_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / ".budget").write_text('{"limits": {"memory": 1')
    async with Budget(tmp_path).room("test_a", MIB, 1, print):
        assert len(claims(tmp_path)) == 1


async def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / ".budget.new").mkdir(parents=True)
    with pytest.raises(HostError, match=r"cannot write .*budget: Is a directory"):
        async with Budget(folder).room("test_a", MIB, 1, print):
            pass
