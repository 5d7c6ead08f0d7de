"""What a fork's guest is told, as the script that its shell gets."""

from __future__ import annotations

import re
import subprocess
import time

import pytest

from qemuctl.registry.template import Guest
from qemuctl.templates.identity import identity

MAC, NEW = "52:54:00:00:00:01", "52:54:00:00:00:02"


def script(
    *,
    reseed: str | None = "vmgenid",
    fine_clock: bool = True,
    hostname: str = "web",
    own: str = MAC,
) -> str:
    guest = Guest(macs=(MAC,), readdress=True, reseed=reseed, fine_clock=fine_clock)
    return "\n".join(identity(guest, hostname, (own,)))


@pytest.mark.parametrize("reseed", [None, "vmgenid", "perl", "python3"])
@pytest.mark.parametrize("own", [MAC, NEW])
def test_every_script_is_one_that_a_shell_understands(
    reseed: str | None, own: str
) -> None:
    text = script(reseed=reseed, own=own, hostname="it's; $(reboot) `x` \n")
    subprocess.run(["sh", "-n", "-c", text], check=True)


def test_no_two_forks_are_told_the_same() -> None:
    random = [re.findall(r"echo (\w{64}) > /dev/urandom", script()) for _ in range(9)]
    ids = [re.findall(r"echo (\w{32}) > /etc/machine-id", script()) for _ in range(9)]
    assert len({tuple(found) for found in random}) == 9
    assert len({tuple(found) for found in ids}) == 9
    assert all(len(found) == 1 for found in random + ids)


def test_the_numbers_are_made_anew_before_anything_that_may_use_them() -> None:
    for reseed in ("perl", "python3"):
        lines = script(reseed=reseed).splitlines()
        assert lines[0] == "set -e"
        assert "/dev/urandom" in lines[1]
        assert lines[2].startswith(reseed)
        assert "0x5207" in script(reseed=reseed)  # RNDRESEEDCRNG
    assert "0x5207" not in script(reseed="vmgenid")


def test_a_host_name_is_cut_to_what_the_kernel_takes() -> None:
    assert f"echo {'a' * 64} > /proc/sys/kernel/hostname" in script(hostname="a" * 99)


def test_a_hostile_name_is_data() -> None:
    text = script(hostname="$(touch x); y")
    assert "echo '$(touch x); y' > /proc/sys/kernel/hostname" in text


def test_only_cards_that_have_another_address_are_touched() -> None:
    assert "ip link" not in script()
    assert f"ip link set $card address {NEW};;" in script(own=NEW)


@pytest.mark.parametrize(("fine", "digits"), [(True, r"\d+\.\d{3}"), (False, r"\d+")])
def test_the_clock_is_set_last_to_now(fine: bool, digits: str) -> None:
    last = script(fine_clock=fine).splitlines()[-1]
    found = re.fullmatch(rf"exec date -u -s @({digits}) > /dev/null", last)
    assert found is not None
    assert abs(float(found[1]) - time.time()) < 2
