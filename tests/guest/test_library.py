"""The library on real guests: the same engine as the command line."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import qemuctl
from qemuctl import paths
from qemuctl.errors import (
    CommandError,
    LaunchError,
    NameInUse,
    StateError,
    UnexpectedExit,
    WaitTimeout,
)

pytestmark = pytest.mark.usefixtures("home", "qemu")


async def test_a_launched_vm_runs_commands_and_is_gone_after_its_block() -> None:
    async with qemuctl.launch(qemuctl.Spec(name="demo", image="tiny")) as vm:
        await vm.wait_ready()
        result = await vm.agent.run(["uname", "-n"])
        assert (result.ok, result.text) == (True, "demo")
        failed = await vm.agent.run(["sh", "-c", "cat; echo e >&2; exit 3"], input=b"x")
        assert (failed.status, failed.stdout, failed.stderr) == (3, b"x", b"e\n")
        killed = await vm.agent.run(["sh", "-c", "kill -9 $$"])
        assert (killed.signal, killed.exit_status) == (9, 137)
        with pytest.raises(WaitTimeout, match="the end of 'sleep'"):
            await vm.agent.run(["sleep", "30"], timeout=0.1)
        # After a time-out the next one must not get the late reply.
        assert (await vm.agent.run(["echo", "next"])).text == "next"
        assert await vm.power.pause()
        assert not await vm.power.pause()
        assert await vm.state() is qemuctl.State.PAUSED
        assert await vm.power.resume()
        with pytest.raises(CommandError) as refused:
            await vm.command("no-such-command")
        assert refused.value.class_ == "CommandNotFound"
        pid, folder = vm.pid, vm.paths.state
    assert not Path(f"/proc/{pid}").exists()
    assert not folder.exists()
    assert not list(paths.run_home().iterdir())


async def test_whoever_waits_hears_of_the_end_and_how_it_came() -> None:
    async with qemuctl.launch(qemuctl.Spec(name="demo", nics=())) as vm:
        waiting = asyncio.create_task(vm.wait_ready(timeout=60))
        await vm.wait_state(qemuctl.State.RUNNING, timeout=60)
        await vm.power.kill()
        with pytest.raises(UnexpectedExit, match="killed by signal 9") as ended:
            await waiting
        assert ended.value.status == -9


async def test_a_failing_start_carries_qemus_words_and_leaves_nothing() -> None:
    spec = qemuctl.Spec(name="bad", extra_args=("-device", "nope"))
    with pytest.raises(LaunchError) as failure:
        async with qemuctl.launch(spec):
            pass
    assert "'nope' is not a valid device model name" in failure.value.stderr
    assert failure.value.returncode == 1
    assert failure.value.argv[-2:] == ["-device", "nope"]
    assert not list(paths.vms_dir().iterdir())


async def test_an_error_in_the_block_is_the_callers_and_the_vm_still_goes() -> None:
    pid = 0
    with pytest.raises(KeyError, match="mine"):  # noqa: PT012
        async with qemuctl.launch(qemuctl.Spec(name="demo", nics=())) as vm:
            pid = vm.pid
            raise KeyError("mine")
    assert not Path(f"/proc/{pid}").exists()


async def test_a_start_that_is_cancelled_leaves_the_vm_off() -> None:
    qemuctl.create(qemuctl.Spec(name="web", nics=()))
    for delay in (0.0, 0.01, 0.03, 0.06, 0.1):
        task = asyncio.create_task(qemuctl.start("web"))
        await asyncio.sleep(delay)  # the moment is the point
        task.cancel()
        result = (await asyncio.gather(task, return_exceptions=True))[0]
        if isinstance(result, qemuctl.Vm):  # it was quicker
            await result.power.kill()
            await result.close()
        with pytest.raises(StateError):
            await qemuctl.attach("web")


async def test_a_started_vm_is_found_again_by_its_name() -> None:
    qemuctl.create(qemuctl.Spec(name="web", nics=()))
    with pytest.raises(NameInUse):
        qemuctl.create(qemuctl.Spec(name="web"))
    vm = await qemuctl.start("web", paused=True)
    assert vm is not None
    async with vm, await qemuctl.attach("web") as again:
        assert again.pid == vm.pid
        assert await again.state() is qemuctl.State.PAUSED
        assert await qemuctl.start("web") is None
        report = await again.power.stop()
    assert report is not None
    assert (report.step, report.outcome.reason) == ("quit", "host-qmp-quit")
    qemuctl.remove("web")


async def test_many_tools_take_turns_at_one_monitor() -> None:
    async with qemuctl.launch(qemuctl.Spec(name="demo", nics=())) as vm:

        async def ask() -> str:
            async with await qemuctl.attach(vm.name) as tool:
                return str((await tool.command("query-name"))["name"])

        assert await asyncio.gather(*(ask() for _ in range(12))) == ["demo"] * 12
