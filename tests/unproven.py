"""What not every machine can prove: a test that needs it ends as unproven, and the
end of the run says in a line what was not proven and why.

`Need` lists all that the project can do without. What is not in it, QEMU first of
all, fails the test that does not find it.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections import Counter
from enum import StrEnum
from typing import NoReturn

import pytest

MARK = "unproven: "


class Need(StrEnum):
    """What not every machine has and not every user may have."""

    KVM = "a /dev/kvm that opens"
    MOUNTS = "root or user namespaces, to mount something"
    HOSTS = "root, to make network, mount and process namespaces"
    USER = "root, to be a user without a name, who may read the project"
    IP = "ip, of the package iproute2"
    TC = "tc, and a kernel that slows a network down"
    SSHD = "sshd, of the package openssh-server"
    OPENSSL = "openssl, of the package of that name"
    DEBIAN = "mmdebstrap, and root or newuidmap with subordinate ids"


def unproven(what: str, need: Need) -> NoReturn:
    """Ends a test that cannot prove ``what`` on this machine."""
    pytest.skip(f"{MARK}{what}: needs {need}")


def in_small_mounts(what: str) -> tuple[str, ...]:
    """The beginning of a command line that may mount what only it sees."""
    for options in ("-rm", "-m"):
        if _succeeds("unshare", options, "mount", "-t", "tmpfs", "none", "/tmp"):
            return ("unshare", options)
    unproven(what, Need.MOUNTS)


def need_debian(what: str) -> None:
    """Goes on only where an image of Debian can be built."""
    root = os.geteuid() == 0 or _succeeds(
        "unshare", "--user", "--map-root-user", "--map-auto", "true"
    )
    if not (root and found("mmdebstrap")):
        unproven(what, Need.DEBIAN)


def need_hosts(what: str) -> None:
    """Goes on only where two hosts can be made, each with a network of its own."""
    spaces = ("--net", "--mount", "--pid", "--fork", "--mount-proc")
    if not _succeeds("unshare", *spaces, "true"):
        unproven(what, Need.HOSTS)
    for program, need in ("ip", Need.IP), ("sshd", Need.SSHD):
        if not found(program):
            unproven(what, need)


def found(program: str) -> bool:
    """Whether a program is there, also one that only root uses."""
    return (
        shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is not None
    )


@functools.cache
def _succeeds(*argv: str) -> bool:
    try:
        done = subprocess.run(argv, capture_output=True, check=False, timeout=30)
    except FileNotFoundError:
        return False
    return done.returncode == 0


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Counts them apart from what a mark skips."""
    return ("unproven", "u", "UNPROVEN") if MARK in _reason(report) else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A line for each thing that was not proven, however many tests it takes."""
    tests = terminalreporter.stats.get("unproven", [])
    if tests:
        terminalreporter.section("not proven on this machine")
    for reason, count in Counter(map(_reason, tests)).items():
        terminalreporter.write_line(f"{reason.partition(MARK)[2]} (tests: {count})")


def _reason(report: pytest.TestReport) -> str:
    """Why a test was skipped; nothing for another."""
    skipped = report.skipped and isinstance(report.longrepr, tuple)
    return str(report.longrepr[2]) if skipped else ""
