"""Rates between two looks at a VM, and the numbers behind them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from qemuctl.errors import AgentError
from qemuctl.hotplug.balloon_stats import GuestMemory, parsed
from qemuctl.process import Identity
from qemuctl.process.usage import proportional_bytes, thread_seconds, usage
from qemuctl.registry.states import State
from qemuctl.stats.nic_counters import MOST, Tap, of_guest, of_tap, taps
from qemuctl.stats.sample import (
    DiskCounters,
    MemoryUse,
    NicCounters,
    Sample,
    VcpuTime,
    rates,
)

UNKNOWN = 2**64 - 1


def disk(clock: float, **counters: int) -> DiskCounters:
    zero = dict.fromkeys(
        ("read_bytes", "written_bytes", "read_operations", "write_operations",
         "flush_operations"), 0,
    )  # fmt: skip
    return DiskCounters(id="disk0", clock=clock, **(zero | counters))


def nic(clock: float, received: int) -> NicCounters:
    return NicCounters(
        id="eth0", clock=clock, received_bytes=received, sent_bytes=0,
        received_packets=0, sent_packets=0,
    )  # fmt: skip


BEFORE = Sample(
    name="web",
    state=State.RUNNING,
    pid=7,
    at=1000.0,
    clock=10.0,
    cpu_seconds=5.0,
    vcpus=(VcpuTime(index=0, cpu_seconds=2.0), VcpuTime(index=1, cpu_seconds=1.0)),
    memory=MemoryUse(configured_bytes=64),
    disks=(disk(9.5, read_bytes=1000),),
    nics=(nic(5.0, 100),),
)
AFTER = replace(
    BEFORE,
    # The wall clock may go backwards; the other one does not.
    at=900.0,
    clock=12.0,
    cpu_seconds=8.0,
    vcpus=(VcpuTime(index=0, cpu_seconds=4.0), VcpuTime(index=1, cpu_seconds=1.5)),
    disks=(disk(11.5, read_bytes=5000, write_operations=4),),
    nics=(nic(15.0, 1100),),
)


def test_each_rate_is_that_of_its_own_two_readings() -> None:
    found = rates(BEFORE, AFTER)
    assert found is not None
    assert (found.seconds, found.cpu_share) == (2.0, 1.5)
    assert found.host_share == 1.5 / (os.cpu_count() or 1)
    assert [vcpu.cpu_share for vcpu in found.vcpus] == [1.0, 0.25]
    assert found.disks is not None
    assert found.disks[0].read_bytes_per_second == 2000
    assert found.disks[0].write_operations_per_second == 2
    assert found.nics is not None
    assert found.nics[0].received_bytes_per_second == 100


def test_there_are_no_rates_across_two_runs_or_of_one_moment() -> None:
    assert rates(BEFORE, replace(AFTER, pid=8)) is None
    assert rates(BEFORE, replace(AFTER, clock=10.0)) is None


@pytest.mark.parametrize(
    "after",
    [
        replace(AFTER, disks=None, nics=None),
        # Not read again meanwhile.
        replace(AFTER, disks=BEFORE.disks, nics=BEFORE.nics),
        replace(AFTER, disks=(replace(disk(11.5), id="other"),), nics=None),
    ],
)
def test_what_was_not_read_twice_has_no_rates(after: Sample) -> None:
    found = rates(BEFORE, after)
    assert found is not None
    assert (found.disks, found.nics) == (None, None)


def test_a_vm_without_disks_has_no_rates_of_any() -> None:
    found = rates(replace(BEFORE, disks=()), replace(AFTER, disks=()))
    assert found is not None
    assert found.disks == ()


def test_counters_that_began_anew_never_make_a_negative_rate() -> None:
    young = (VcpuTime(index=0, cpu_seconds=0.5), VcpuTime(index=2, cpu_seconds=1.0))
    found = rates(
        BEFORE,
        replace(AFTER, cpu_seconds=1.0, vcpus=young, disks=(disk(11.5),)),
    )
    assert found is not None
    assert found.cpu_share == 0
    assert [(v.index, v.cpu_share) for v in found.vcpus] == [(0, 0)]
    assert found.disks is not None
    assert found.disks[0].read_bytes_per_second == 0


# -- the balloon's driver ----------------------------------------------------------


def test_the_drivers_numbers_are_bytes() -> None:
    stats = {"stat-free-memory": 10, "stat-available-memory": 30,
             "stat-total-memory": 100, "stat-swap-in": UNKNOWN}  # fmt: skip
    memory = parsed({"last-update": 5, "stats": stats})
    assert memory == GuestMemory(
        at=5.0, free_bytes=10, available_bytes=30, total_bytes=100
    )
    assert memory.used_bytes == 70


def test_an_old_driver_does_not_tell_what_is_available() -> None:
    assert GuestMemory(at=1, free_bytes=40, total_bytes=100).used_bytes == 60
    assert GuestMemory(at=1, free_bytes=400, total_bytes=100).used_bytes == 0
    assert GuestMemory(at=1, total_bytes=100).used_bytes is None


@pytest.mark.parametrize(
    "reply",
    [None, {}, {"last-update": 0, "stats": {"stat-free-memory": UNKNOWN}}, "no"],
)
def test_without_a_driver_nothing_is_known(reply: object) -> None:
    assert parsed(reply) is None


# -- cards -------------------------------------------------------------------------

ARGV = [
    "qemu", "-netdev", '{"type":"tap","id":"net0","ifname":"tap7"}',
    "-netdev", '{"type":"user","id":"net1"}',
    "-device", '{"driver":"virtio-net-pci","id":"nic0","netdev":"net0","mac":"52:01"}',
    "-device", '{"driver":"virtio-net-pci","id":"nic1","netdev":"net1","mac":"52:02"}',
    "-netdev", "user,id=plain", "-device", "e1000,netdev=plain",
]  # fmt: skip
STATISTICS = {"rx-bytes": 1, "tx-bytes": 2, "rx-packets": 3, "tx-packets": 4}


def test_tap_interfaces_are_found_on_the_command_line() -> None:
    assert taps(ARGV) == [Tap("nic0", "tap7", "52:01")]


def test_what_a_tap_interface_sends_the_guest_receives(tmp_path: Path) -> None:
    folder = tmp_path / "tap7" / "statistics"
    folder.mkdir(parents=True)
    for number, name in enumerate(("rx_bytes", "tx_bytes", "rx_packets", "tx_packets")):
        (folder / name).write_text(f"{number}\n")
    found = of_tap(taps(ARGV)[0], 1.0, tmp_path)
    assert found == NicCounters(
        id="nic0", clock=1.0, received_bytes=1, sent_bytes=0, received_packets=3,
        sent_packets=2,
    )  # fmt: skip
    assert of_tap(Tap("nic0", "gone", None), 1.0, tmp_path) is None


def test_the_guests_counters_leave_out_what_the_host_counts() -> None:
    reply = [
        {"name": "lo", "statistics": STATISTICS},
        {"name": "eth0", "hardware-address": "52:01", "statistics": STATISTICS},
        {"name": "eth1", "hardware-address": "52:02", "statistics": STATISTICS},
        {"name": "old", "hardware-address": "52:03"},
    ]
    (found,) = of_guest(reply, 1.0, taps(ARGV))
    assert (found.id, found.received_bytes, found.sent_packets) == ("eth1", 1, 4)


def test_a_guest_cannot_count_without_end_nor_below_nothing() -> None:
    wild = STATISTICS | {"rx-bytes": -5, "tx-bytes": 10**400}
    (found,) = of_guest([{"name": "e\x1b[2J\n", "statistics": wild}], 1.0, [])
    assert (found.id, found.received_bytes, found.sent_bytes) == ("e", 0, UNKNOWN)
    many = [{"name": f"e{n}", "statistics": STATISTICS} for n in range(1000)]
    assert len(of_guest(many, 1.0, [])) == MOST


@pytest.mark.parametrize(
    "reply",
    [
        None,
        7,
        ["eth0"],
        [{}],
        [{"name": "e", "statistics": [1]}],
        [{"name": "e", "statistics": {"rx-bytes": 1}}],
        [{"name": "e", "statistics": STATISTICS | {"rx-bytes": "much"}}],
        [{"name": "e", "statistics": STATISTICS | {"rx-bytes": True}}],
        [{"name": "e", "statistics": STATISTICS | {"rx-bytes": float("inf")}}],
        [{"name": "e", "hardware-address": [], "statistics": STATISTICS}],
    ],
)
def test_nonsense_from_the_guest_is_an_agents_error(reply: object) -> None:
    with pytest.raises(AgentError, match="makes no sense"):
        of_guest(reply, 1.0, [])


# -- proc(5) -----------------------------------------------------------------------


def test_this_process_has_used_some_time_and_memory() -> None:
    me = Identity.of(os.getpid())
    assert me is not None
    used = usage(me)
    assert used is not None
    assert 0 < used.cpu_seconds < 3600
    assert used.resident_bytes > 1024 * 1024
    thread = thread_seconds(me.pid, me.pid)
    assert thread is not None
    assert thread <= used.cpu_seconds + 1
    proportional = proportional_bytes(me.pid)
    assert proportional is not None
    assert proportional > 0


def test_another_process_with_the_same_number_is_not_measured() -> None:
    me = Identity.of(os.getpid())
    assert me is not None
    assert usage(replace(me, start_ticks=1)) is None
    assert usage(replace(me, pid=2**22 + 1)) is None
    assert thread_seconds(me.pid, 2**22 + 1) is None
    assert proportional_bytes(2**22 + 1) is None
