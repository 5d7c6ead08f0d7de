"""What we believe of the installed QEMU is all that it said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qemuctl.host import probe


def test_a_reader_that_is_late_still_gets_every_answer(
    qemu: Path, bare_home: Path, tmp_path: Path
) -> None:
    # The answers are longer than a pipe, and at `quit` QEMU drops what a pipe that
    # is full did not take: as on a loaded host, whose reader comes late.
    late = tmp_path / "late-qemu"
    late.write_text(
        f"""#!/bin/sh
[ -p /dev/stdout ] || exec {qemu} "$@"
{qemu} "$@" | {{ sleep 0.3; cat; }}
"""
    )
    late.chmod(0o755)
    found = probe(late)
    same = replace(probe(qemu), path=late, on_missing=found.on_missing)
    assert found == same
