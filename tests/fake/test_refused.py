"""A guest whose agent may run nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_agent import FakeGuest, as_agent
from fake_qmp import serving

from qemuctl.cli.in_guest import run_command
from qemuctl.cli.words import Typed
from qemuctl.errors import AgentRefused
from qemuctl.vm.vm import Vm


@pytest.mark.parametrize(
    ("attached", "forwards", "ways"),
    [(False, ["127.0.0.1:1->22"], "qemuctl ssh web, qemuctl console web"),
     (False, [], "qemuctl console web"), (True, [], "-p :22")],
)  # fmt: skip
async def test_what_works_without_the_agent_is_told(
    vm: Vm, attached: bool, forwards: list[str], ways: str
) -> None:
    vm.record = replace(vm.record, attached=attached, forwards=forwards)
    guest = FakeGuest({"guest-exec": [Exception]})
    async with serving(vm.paths.agent_socket, as_agent(guest)):
        with pytest.raises(AgentRefused) as caught:
            await run_command(vm, ["true"], Typed(no_stdin=True))
    assert ways in str(caught.value.hint)
