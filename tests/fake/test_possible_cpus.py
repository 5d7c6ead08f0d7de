"""How many processors a guest says that it has room for, and what is made of it."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from fake_vm import fake_vm

from qemuctl.errors import HotplugError
from qemuctl.hotplug import cpus, possible_cpus


def tells(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any]) -> list[str]:
    """An agent with these answers; the names of what it is asked."""
    asked: list[str] = []

    async def ask_agent(_: Any, name: str, arguments: Any = None) -> Any:
        asked.append(name)
        return answers.get(name)

    monkeypatch.setattr(possible_cpus, "ask_agent", ask_agent)
    return asked


def read(text: str) -> dict[str, Any]:
    return {"count": len(text), "buf-b64": base64.b64encode(text.encode()).decode()}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0\n", 1),
        ("0-3\n", 4),
        ("0-1,4,6-7\n", 5),
        ("", None),
        ("0-\n", None),
        ("3-0", None),
        ("0-99999999999", None),
        ("none", None),
        ("é", None),
    ],
)
async def test_the_ranges_are_counted(
    monkeypatch: pytest.MonkeyPatch, text: str, number: int | None
) -> None:
    asked = tells(
        monkeypatch, {"guest-file-open": 7, "guest-file-read": read(text)}
    )  # fmt: skip
    async with fake_vm("name: fake\n") as (vm, _):
        assert await possible_cpus.possible_cpus(vm) == number
    assert asked[-1] == "guest-file-close"


@pytest.mark.parametrize("reply", [None, {}, [], {"buf-b64": 3}, {"buf-b64": "!"}, "0"])
async def test_an_odd_answer_is_none(
    monkeypatch: pytest.MonkeyPatch, reply: Any
) -> None:
    tells(monkeypatch, {"guest-file-open": 7, "guest-file-read": reply})
    async with fake_vm("name: fake\n") as (vm, _):
        assert await possible_cpus.possible_cpus(vm) is None


async def test_a_guest_without_that_file_is_not_asked_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = tells(monkeypatch, {})
    async with fake_vm("name: fake\n") as (vm, _):
        assert await possible_cpus.possible_cpus(vm) is None
    assert asked == ["guest-file-open"]


async def test_more_than_the_kernel_has_room_for_is_refused_before_the_plug(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def two(_: Any) -> int:
        return 2

    monkeypatch.setattr(cpus, "possible_cpus", two)
    async with fake_vm("name: fake\ncpu:\n  count: 1\n  max: 3\n") as (vm, qemu):
        qemu.answers |= {
            "query-cpus-fast": lambda _: [{"cpu-index": 0, "thread-id": 1}],
            "query-hotpluggable-cpus": lambda _: [
                {"type": "max-x86_64-cpu", "vcpus-count": 1, "props": {"core-id": n}}
                for n in range(3)
            ],
        }
        for ask in (vm.cpus.check, vm.cpus.resize):
            with pytest.raises(HotplugError, match="its kernel has room for 2") as why:
                await ask(3)
            assert why.value.outcome == "refused"
            assert why.value.exit_status == 1
            assert "set fake --cpus 3 --config" in str(why.value.hint)
        assert "device_add" not in qemu.names()
