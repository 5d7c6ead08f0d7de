"""Chooses between KVM and software emulation (TCG), and says why.

A ``/dev/kvm`` that opens does not mean that a normal guest will run: some
modules other than kvm_intel and kvm_amd offer the same interface, run firmware
and small guests, and hang a Linux guest. So the choice asks for more.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

from qemuctl.errors import HostError, SpecError
from qemuctl.host.binary import Binary
from qemuctl.structs import Struct

KVM_GET_API_VERSION = 0xAE00  # linux/kvm.h: _IO(KVMIO, 0x00)
KVM_API_VERSION = 12  # the only one there has been since Linux 2.6.22
HARDWARE_MODULES = frozenset({"kvm_intel", "kvm_amd"})
HARDWARE_FLAGS = frozenset({"vmx", "svm"})

CPU_MODEL_KVM = "host"
CPU_MODEL_TCG = "max"


class KvmFacts(Struct):
    """What the host says about KVM.

    ``device`` is how opening ``/dev/kvm`` for reading and writing went, and
    ``problem`` holds the system's words when it failed; ``modules`` are the
    kernel's modules whose name starts with ``kvm``; ``flags`` those of the
    CPU's flags that stand for hardware virtualisation.
    """

    device: Literal["opens", "missing", "denied", "fails"]
    problem: str = ""
    api_version: int | None = None
    modules: frozenset[str] = frozenset()
    flags: frozenset[str] = frozenset()

    @property
    def hardware(self) -> bool:
        """Whether Intel's or AMD's module drives the CPU's own virtualisation."""
        return bool(self.modules & HARDWARE_MODULES) and bool(
            self.flags & HARDWARE_FLAGS
        )


class Accel(Struct):
    """The choice: ``kind`` as in ``-accel``, ``reason`` for people.

    ``cpu_model`` is the default of ``-cpu``; None leaves QEMU's own.
    """

    kind: Literal["kvm", "tcg"]
    reason: str
    cpu_model: str | None


def choose_accel(
    requested: Literal["auto", "kvm", "tcg"],
    binary: Binary,
    facts: KvmFacts | None = None,
) -> Accel:
    """The accelerator for ``requested``, by the facts (gathered when None).

    ``auto`` takes KVM only where a normal guest will run. ``kvm`` is obeyed,
    and raises HostError only when it cannot work at all; so does ``tcg`` when
    the binary was built without it.
    """
    if requested == "tcg":
        return _tcg("the spec asks for it", binary)
    facts = facts or gather_kvm_facts()
    problem = _impossible(facts, binary)
    if requested == "kvm":
        if problem is not None:
            raise HostError(f"KVM cannot be used: {problem}", hint=_advice(facts))
        doubt = _unfit(facts)
        reason = "the spec asks for it"
        return _kvm(reason if doubt is None else f"{reason}, although {doubt}", facts)
    problem = problem or _unfit(facts)
    if problem is None:
        module = min(facts.modules & HARDWARE_MODULES)
        return _kvm(f"/dev/kvm works, by {module}", facts)
    return _tcg(problem, binary)


def for_cpu_model(accel: Accel, requested: str, model: str | None) -> Accel:
    """The choice for a CPU model of the spec's, which for ``host`` is `host_model`'s.

    Raises SpecError where an accelerator that the spec asks for has no such model:
    QEMU would not start, or abort.
    """
    if model is None or not _is_host(model) or accel.cpu_model == CPU_MODEL_KVM:
        return accel
    if requested != "auto":
        raise SpecError(
            f"only hardware virtualisation has it, and this is {accel.reason}",
            key="cpu.model", hint="leave it out, or say accel: auto",
        )  # fmt: skip
    instead = f"{accel.reason}; the CPU model is {CPU_MODEL_TCG} in the place of host"
    return replace(accel, reason=instead)


def host_model(model: str, accel: Accel) -> str:
    """The same CPU model, or where the host's own cannot be had the one with all that
    is emulated; flags behind it stay."""
    if _is_host(model) and accel.cpu_model != CPU_MODEL_KVM:
        return model.replace(CPU_MODEL_KVM, CPU_MODEL_TCG, 1)
    return model


def _is_host(model: str) -> bool:
    return model.partition(",")[0] == CPU_MODEL_KVM


def doubt() -> str | None:
    """Why a guest that runs by KVM may hang on this host; None where it should not."""
    why = _unfit(gather_kvm_facts())
    return why and f"{why}; accel: auto, or tcg, runs it by emulation"


def _kvm(reason: str, facts: KvmFacts) -> Accel:
    # With any other module "-cpu host" aborts QEMU with an assertion.
    model = CPU_MODEL_KVM if facts.modules & HARDWARE_MODULES else None
    return Accel(
        kind="kvm", reason=f"hardware virtualisation (KVM): {reason}", cpu_model=model
    )


def _tcg(reason: str, binary: Binary) -> Accel:
    if "tcg" not in binary.accels:
        raise HostError(
            f"software emulation (TCG) is not part of this QEMU: {binary.path}",
            hint=f"and KVM is not used: {reason}",
        )
    return Accel(
        kind="tcg",
        reason=f"software emulation (TCG): {reason}",
        cpu_model=CPU_MODEL_TCG,
    )


def _impossible(facts: KvmFacts, binary: Binary) -> str | None:
    """Why KVM cannot work at all."""
    if facts.device == "missing":
        return "there is no /dev/kvm"
    if facts.device == "denied":
        return f"/dev/kvm may not be opened: {facts.problem}"
    if facts.device == "fails":
        return f"/dev/kvm does not open: {facts.problem}"
    if facts.api_version != KVM_API_VERSION:
        return f"/dev/kvm does not answer as KVM does: API version {facts.api_version}"
    if "kvm" not in binary.accels:
        return f"this QEMU was built without it: {binary.path}"
    return None


def _unfit(facts: KvmFacts) -> str | None:
    """Why a normal guest would not run, although ``/dev/kvm`` opens."""
    parts = []
    if not facts.modules & HARDWARE_MODULES:
        others = ", ".join(sorted(facts.modules - {"kvm"}))
        parts.append(
            f"the loaded module is {others}"
            if others
            else "neither kvm_intel nor kvm_amd is loaded"
        )
    if not facts.flags & HARDWARE_FLAGS:
        parts.append("the CPU has neither vmx nor svm")
    if not parts:
        return None
    return f"/dev/kvm opens, but {' and '.join(parts)}, so a normal guest would hang"


def _advice(facts: KvmFacts) -> str:
    if facts.device == "denied":
        return "sudo usermod -aG kvm $USER, then log in again; or set accel: tcg"
    if facts.device == "missing":
        return (
            "switch on virtualisation in the firmware and load kvm_intel or "
            "kvm_amd; or set accel: tcg"
        )
    return "set accel: tcg, or another QEMU binary by qemu:"


def gather_kvm_facts(
    device: Path = Path("/dev/kvm"),
    modules: Path = Path("/sys/module"),
    cpuinfo: Path = Path("/proc/cpuinfo"),
) -> KvmFacts:
    """Asks the host; never raises. The arguments are for tests."""
    state, problem, version = _open(device)
    return KvmFacts(
        device=state,
        problem=problem,
        api_version=version,
        modules=frozenset(path.name for path in modules.glob("kvm*")),
        flags=_cpu_flags(cpuinfo) & HARDWARE_FLAGS,
    )


def _open(
    device: Path,
) -> tuple[Literal["opens", "missing", "denied", "fails"], str, int | None]:
    try:
        handle = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return "missing", "", None
    except PermissionError as error:
        return "denied", error.strerror or str(error), None
    except OSError as error:
        return "fails", error.strerror or str(error), None
    try:
        return "opens", "", fcntl.ioctl(handle, KVM_GET_API_VERSION, 0)
    except OSError:
        return "opens", "", None
    finally:
        os.close(handle)


def _cpu_flags(cpuinfo: Path) -> frozenset[str]:
    try:
        with cpuinfo.open(encoding="ascii", errors="replace") as file:
            for line in file:
                # All processors of a host have the same; the first will do.
                if line.startswith("flags"):
                    return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()
