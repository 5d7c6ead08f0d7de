"""What a failed test leaves: names that do not clash, and nothing lost by a hang."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qemuctl.errors import StateError
from qemuctl.spec import Spec
from qemuctl.testing import artifacts, guestbook, hosting
from qemuctl.testing.artifacts import Evidence, folder_name, with_picture
from qemuctl.testing.guestbook import Guestbook
from qemuctl.testing.hosting import Waits


def test_each_test_has_a_folder_of_its_own() -> None:
    tests = [
        "tests/a.py::t", "tests-a.py::t", "a.py::t[x/y]", "a.py::t[x-y]",
        "a.py::t[x::y]", "a.py::t[x.y]", "a.py::C::t", f"a.py::t[{'x' * 200}]",
        f"a.py::t[{'x' * 201}]", "../a.py::t", "a.py::t[ä]",
    ]  # fmt: skip
    names = [folder_name(test) for test in tests]
    assert len(set(names)) == len(tests)
    assert all("/" not in name and len(name) < 140 for name in names)
    assert folder_name("a.py::C::t[1-2]") == "a.py.C.t[1-2]"


class Begun:
    """A stay of a guest that nobody starts."""

    seconds, boot, notices = 0.0, "fork", ()

    def __init__(self, wanted: Any, *_: object) -> None:
        self.wanted = wanted

    async def begin(self) -> None:
        pass


def test_guests_of_one_test_have_different_labels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(guestbook, "Stay", Begun)

    def call(work: Coroutine[Any, Any, None]) -> None:
        work.close()

    host = SimpleNamespace(
        options=SimpleNamespace(image="tiny"), thread=SimpleNamespace(call=call)
    )
    books: list[Guestbook] = []
    for _ in range(2):  # of the fixtures vm and vm_factory
        books.append(
            Guestbook(
                cast(Any, host),
                "a.py::t",
                folder=tmp_path,
                scratch=lambda: tmp_path,
                others=books,
            )
        )
    own, factory = books
    own.begin()
    for words in ({}, {"name": "web"}, {"name": "web"}, {"name": "vm3"}, {}):
        factory.begin(**words)
    assert [stay.wanted.label for stay in own.stays] == ["vm"]
    labels = [stay.wanted.label for stay in factory.stays]
    assert labels == ["vm2", "web", "web2", "vm3", "vm4"]
    assert factory.stays[2].wanted.spec.name == "web"


async def _never() -> None:
    await asyncio.Event().wait()


async def _refused() -> None:
    raise StateError("take a picture", "running", "it is shy")


async def test_a_picture_that_is_not_to_be_had_costs_nothing_but_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(artifacts, "_PICTURE_PATIENCE", 0.05)
    found = Evidence(name="a", ended=None, panicked=False, files={"console.log": b"x"})
    seen = Spec(name="a", display="vnc")  # type: ignore[arg-type]

    async def why(picture: object, spec: Spec = seen) -> str | None:
        vm = cast(Any, SimpleNamespace(screen=SimpleNamespace(picture=picture)))
        after = await with_picture(found, vm, spec)
        assert after.files == found.files
        return after.no_picture

    assert await why(_never) == "QEMU gave none in 0.05 s"
    assert "it is shy" in str(await why(_refused))
    assert "has no display" in str(await why(_never, Spec(name="a")))


def test_what_is_left_of_a_guest_is_for_its_owner_alone(tmp_path: Path) -> None:
    found = Evidence(name="a", ended=None, panicked=False, files={"vm.yaml": b"secret"})
    for _ in range(2):
        found.write(tmp_path / "test" / "vm")
        assert (tmp_path / "test/vm").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "test/vm/vm.yaml").stat().st_mode & 0o777 == 0o600
        (tmp_path / "test/vm/vm.yaml").chmod(0o644)


async def test_what_takes_long_is_said_once_and_what_does_not_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hosting, "SAY_AFTER", 0.05)
    said: asyncio.Queue[str] = asyncio.Queue()
    waits = Waits(said.put_nowait)
    waits.now("short")
    waits.now("long")
    waits.now("long")
    assert await said.get() == "long"
    waits.now("long")
    waits.now("last")
    assert await said.get() == "last"
    waits.now("over")
    waits.over()
    waits.now("long")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(said.get(), 0.2)
