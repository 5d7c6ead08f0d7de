"""What the report of a test says about its guests."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import pytest

from qemuctl.errors import LaunchError, QemuctlError
from qemuctl.testing.artifacts import ARGV, CONSOLE, QMP, folder_name
from qemuctl.testing.verdict import FINE, last_words, never_ready, oom_kills, verdict

if TYPE_CHECKING:
    from qemuctl.testing.artifacts import Evidence
    from qemuctl.testing.guestbook import Guestbook
    from qemuctl.testing.hosting import Stay

# Of the console, by default and with -v; of the QMP trace.
_CONSOLE_SHORT, _CONSOLE_LINES, _QMP_LINES = 20, 80, 30


def conclude(
    item: pytest.Item,
    report: pytest.TestReport,
    error: BaseException | None,
    books: Iterable[Guestbook],
) -> None:
    """Completes the report of a test that has guests.

    One that failed gets sections about each guest: what became of it, the console's
    end where something did, and with -v the rest. All that was found is written as
    files, below the folder that the user gave (`Options.artifacts`) or else among
    pytest's temporary ones. ``error`` is what the test ended with.
    """
    whole = item.config.get_verbosity() > 0
    for book in books:
        news = book.news()
        if not news and book.shared and report.when == "setup":
            news.append(("vm_boot", "shared"))
        item.user_properties += news
        if report.failed and report.when != "teardown":
            book.keep = book.hosting.options.keep
            for stay in book.stays:
                words = _tell(report, error, stay, book, whole=whole)
                item.user_properties.append(("vm_verdict", words))


def end_at_verb(error: BaseException | None) -> None:
    """Ends the traceback of an error of qemuctl's, or of a time limit, where the test
    called a verb: what led to it inside is not the test's."""
    expected = isinstance(error, QemuctlError | pytest.fail.Exception)
    step = error.__traceback__ if error is not None and expected else None
    while error is not None and step is not None and step.tb_next is not None:
        name = step.tb_next.tb_frame.f_globals.get("__name__", "")
        if name.startswith("qemuctl.testing."):
            step.tb_next = None
            error.__cause__, error.__suppress_context__ = None, True
        step = step.tb_next


def _tell(
    report: pytest.TestReport,
    error: BaseException | None,
    stay: Stay,
    book: Guestbook,
    *,
    whole: bool,
) -> str:
    """Adds what is known of one guest, the ``whole`` of it or in short; the verdict."""
    label = stay.wanted.label
    try:
        book.hosting.look(stay)
    except Exception as problem:  # noqa: BLE001
        # Whatever it is, it does not hide the test's own failure.
        text = str(problem) or type(problem).__name__
        report.sections.append((f"{label}: no look was possible", text))
    words = _verdict(stay, error)
    if stay.found is not None:
        stay.found.files["verdict.txt"] = f"{words}\n".encode()
    parts = [
        ("verdict", words),
        *(_parts(stay) if whole else _in_short(stay, words)),
        ("files", _files(report, stay, book)),
    ]
    if book.keep and stay.lives and stay.guest is not None:
        parts.append(("kept", ways_in(stay.guest.name)))
    report.sections += [(f"{label}: {title}", text) for title, text in parts if text]
    return words


def _in_short(stay: Stay, words: str) -> Iterator[tuple[str, str]]:
    """The section about a guest with which something is wrong."""
    if words != FINE:
        yield "console", _console(stay, _CONSOLE_SHORT)


def _parts(stay: Stay) -> Iterator[tuple[str, str]]:
    """Titles and texts of all sections."""
    if isinstance(stay.error, LaunchError):
        from qemuctl.cmdline import format_argv

        yield "argv", format_argv(stay.error.argv)
    yield "console", _console(stay, _CONSOLE_LINES)
    if stay.found is not None:
        yield "QMP trace", stay.found.text(QMP, _QMP_LINES)
        yield "argv", stay.found.text(ARGV)


def _console(stay: Stay, lines: int) -> str:
    if stay.found is not None:
        return stay.found.text(CONSOLE, lines)
    return "\n".join(last_words(stay.error).splitlines()[-lines:])


def _verdict(stay: Stay, error: BaseException | None) -> str:
    # A boot that was called off tells nothing; what called it off does.
    off = stay.error is None or isinstance(stay.error, asyncio.CancelledError)
    cause, found = error if off else stay.error, stay.found
    if found is None and cause is not None and stay.guest is None:
        return never_ready(cause)
    if found is None:
        return "nothing is known of the guest"
    return verdict(
        found.ended,
        cause,
        console=found.text(CONSOLE),
        panicked=found.panicked,
        host_ran_out=oom_kills() > stay.oom_kills,
    )


def _files(report: pytest.TestReport, stay: Stay, book: Guestbook) -> str:
    """Writes the files; which folder has which, and what is missing."""
    found = stay.found
    if found is None:
        return ""
    missing = [f"no picture: {found.no_picture}"] if found.no_picture else []
    return "\n".join([_written(report, found, stay, book), *missing])


def _written(
    report: pytest.TestReport, found: Evidence, stay: Stay, book: Guestbook
) -> str:
    """Writes files; their folder and names, or why they cannot be written."""
    artifacts = book.hosting.options.artifacts
    test = folder_name(report.nodeid)
    try:
        target = (artifacts or book.scratch()) / test / stay.wanted.label
        found.write(target)
    except OSError as problem:
        return f"cannot write {problem.filename}: {problem.strerror}"
    return f"{target}: {', '.join(sorted(found.files))}"


def ways_in(name: str) -> str:
    """How to enter a VM that was kept, and how to be rid of it."""
    home = os.environ.get("QEMUCTL_HOME")
    qemuctl = f"QEMUCTL_HOME={shlex.quote(home)} qemuctl" if home else "qemuctl"
    return (
        f"the VM {name} goes on:\n"
        f"  {qemuctl} console {name}\n"
        f"  {qemuctl} exec {name} -- sh -c 'dmesg | tail'\n"
        f"and is removed by:\n"
        f"  {qemuctl} kill {name}"
    )
