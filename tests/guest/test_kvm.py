"""KVM for real, wherever /dev/kvm opens: a boot sector runs under it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from qemuctl.host import gather_kvm_facts
from tests.guest.conftest import Home
from tests.unproven import Need, unproven


def opens() -> bool:
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def test_an_explicit_kvm_is_obeyed_or_refused_with_the_reason(
    here: Home, boot_sector: Path
) -> None:
    words = here.words(
        "create", "k", "--accel", "kvm", "--nic", "none", "--disk",
        f"path={str(boot_sector).replace(',', ',,')},format=raw",
        check=0 if opens() else 1,
    )  # fmt: skip
    if not opens():
        assert "KVM cannot be used" in words
        unproven("a guest that runs under KVM", Need.KVM)
    assert "-accel kvm" in here.text("argv", "k")
    doubtful = not gather_kvm_facts().hardware
    assert ("a normal guest would hang" in here.words("start", "k")) == doubtful
    words = here.words("wait", "k", "--for", "agent", "--timeout", "0.2", check=1)
    assert ("accel: auto, or tcg, runs it" in words) == doubtful
    here.run("wait", "k", "--for", "serial:ok", "--timeout", "60")
    assert json.loads(here.text("info", "k", "--json"))["accel"] == "kvm"
    assert json.loads(here.text("qmp", "k", "query-kvm"))["enabled"] is True
    here.run("kill", "k")


def test_auto_and_tcg_give_what_they_say(here: Home) -> None:
    spec = here.path / "a.yaml"
    spec.write_text("name: a\naccel: tcg\n")
    assert "-accel tcg" in here.text("argv", "-f", spec)
    spec.write_text("name: a\naccel: auto\n")
    chosen = "kvm" if gather_kvm_facts().hardware and opens() else "tcg"
    assert f"-accel {chosen}" in here.text("argv", "-f", spec)
    # The host's own CPU model is had by KVM alone.
    spec.write_text("name: a\ncpu: {model: host}\n")
    model = "host" if chosen == "kvm" else "max"
    assert f"-cpu {model}" in here.text("argv", "-f", spec)
    spec.write_text("name: a\naccel: tcg\ncpu: {model: host}\n")
    words = here.words("argv", "-f", spec, check=1)
    assert "cpu.model: only hardware virtualisation has it" in words
