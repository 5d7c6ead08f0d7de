"""Which accelerator is chosen, by the facts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qemuctl.errors import HostError, SpecError
from qemuctl.host import Accel, Binary, KvmFacts, choose_accel, gather_kvm_facts
from qemuctl.host.accel import for_cpu_model, host_model
from qemuctl.host.discovery import from_json

RECORDED = Path(__file__).parent.parent / "golden" / "qemu-7.2.json"
BINARY = from_json(Path("/usr/bin/qemu-system-x86_64"), RECORDED.read_bytes())
GOOD = KvmFacts(
    device="opens",
    api_version=12,
    modules=frozenset({"kvm", "kvm_intel"}),
    flags=frozenset({"vmx"}),
)


def without(binary: Binary, accel: str) -> Binary:
    return replace(binary, accels=binary.accels - {accel})


def auto(facts: KvmFacts, binary: Binary = BINARY) -> Accel:
    return choose_accel("auto", binary, facts)


@pytest.mark.parametrize(("module", "flag"), [("kvm_intel", "vmx"), ("kvm_amd", "svm")])
def test_auto_takes_kvm_where_the_hardware_does_it(module: str, flag: str) -> None:
    facts = replace(GOOD, modules=frozenset({module}), flags=frozenset({flag}))
    accel = auto(facts)
    assert (accel.kind, accel.cpu_model) == ("kvm", "host")
    assert module in accel.reason


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (KvmFacts(device="missing"), "there is no /dev/kvm"),
        (
            KvmFacts(device="denied", problem="Permission denied"),
            "may not be opened: Permission denied",
        ),
        (
            KvmFacts(device="fails", problem="No such device"),
            "does not open: No such device",
        ),
        (replace(GOOD, api_version=None), "does not answer as KVM does"),
        (replace(GOOD, api_version=11), "API version 11"),
        (
            replace(GOOD, modules=frozenset({"kvm", "kvm_odd"}), flags=frozenset()),
            (
                "/dev/kvm opens, but the loaded module is kvm_odd and the CPU has "
                "neither vmx nor svm, so a normal guest would hang"
            ),
        ),
        (replace(GOOD, modules=frozenset({"kvm"})), "neither kvm_intel nor kvm_amd"),
        (replace(GOOD, flags=frozenset()), "neither vmx nor svm"),
    ],
)
def test_auto_takes_tcg_otherwise_and_says_why(facts: KvmFacts, reason: str) -> None:
    accel = auto(facts)
    assert (accel.kind, accel.cpu_model) == ("tcg", "max")
    assert accel.reason.startswith("software emulation (TCG): ")
    assert reason in accel.reason


def test_auto_takes_tcg_when_the_binary_has_no_kvm() -> None:
    assert "built without" in auto(GOOD, without(BINARY, "kvm")).reason


def test_tcg_is_obeyed_where_kvm_would_do() -> None:
    assert choose_accel("tcg", BINARY, GOOD).kind == "tcg"


def test_kvm_is_obeyed_where_a_normal_guest_would_hang() -> None:
    facts = replace(GOOD, modules=frozenset({"kvm_odd"}), flags=frozenset())
    accel = choose_accel("kvm", BINARY, facts)
    # "-cpu host" would abort QEMU there.
    assert (accel.kind, accel.cpu_model) == ("kvm", None)


@pytest.mark.parametrize(
    ("facts", "message", "hint"),
    [
        (KvmFacts(device="missing"), "no /dev/kvm", "kvm_intel"),
        (
            KvmFacts(device="denied", problem="Permission denied"),
            "Permission denied",
            "sudo usermod -aG kvm $USER",
        ),
        (KvmFacts(device="fails", problem="Bad"), "does not open: Bad", "accel: tcg"),
    ],
)
def test_kvm_that_cannot_work_is_an_error_with_advice(
    facts: KvmFacts, message: str, hint: str
) -> None:
    with pytest.raises(HostError, match=message) as caught:
        choose_accel("kvm", BINARY, facts)
    assert hint in (caught.value.hint or "")


def test_kvm_is_refused_when_the_binary_lacks_it() -> None:
    with pytest.raises(HostError, match="built without"):
        choose_accel("kvm", without(BINARY, "kvm"), GOOD)


def test_tcg_is_refused_when_the_binary_lacks_it() -> None:
    with pytest.raises(HostError, match="not part of this QEMU"):
        choose_accel("tcg", without(BINARY, "tcg"), GOOD)


def test_facts_are_gathered_from_the_host(tmp_path: Path) -> None:
    for module in ("kvm", "kvm_amd", "ext4"):
        (tmp_path / "modules" / module).mkdir(parents=True)
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor: 0\nflags\t\t: fpu svm sse\nprocessor: 1\n")
    facts = gather_kvm_facts(tmp_path / "none", tmp_path / "modules", cpuinfo)
    assert facts == KvmFacts(
        device="missing",
        modules=frozenset({"kvm", "kvm_amd"}),
        flags=frozenset({"svm"}),
    )
    assert facts.hardware


def test_a_device_that_is_not_kvm_has_no_api_version(tmp_path: Path) -> None:
    facts = gather_kvm_facts(Path("/dev/null"), tmp_path, tmp_path / "none")
    assert (facts.device, facts.api_version) == ("opens", None)
    assert auto(facts).kind == "tcg"


def test_a_device_that_does_not_open_says_why(tmp_path: Path) -> None:
    facts = gather_kvm_facts(tmp_path, tmp_path, tmp_path / "none")
    assert (facts.device, facts.problem) == ("fails", "Is a directory")


TCG = Accel(kind="tcg", reason="by emulation", cpu_model="max")
KVM = Accel(kind="kvm", reason="by KVM", cpu_model="host")
OTHER = Accel(kind="kvm", reason="by another module", cpu_model=None)


@pytest.mark.parametrize("model", ["host", "host,-vmx"])
def test_the_hosts_own_cpu_model_becomes_max_where_it_cannot_be_had(model: str) -> None:
    assert for_cpu_model(KVM, "auto", model) == KVM
    assert host_model(model, KVM) == model
    chosen = for_cpu_model(TCG, "auto", model)
    assert "max in the place of host" in chosen.reason
    assert host_model(model, chosen) == model.replace("host", "max")
    for accel, requested in ((TCG, "tcg"), (OTHER, "kvm")):
        with pytest.raises(SpecError, match=accel.reason) as error:
            for_cpu_model(accel, requested, model)
        assert error.value.key == "cpu.model"
    for other in ("max", "hostile", None):
        assert for_cpu_model(TCG, "tcg", other) == TCG
    assert host_model("hostile", TCG) == "hostile"
