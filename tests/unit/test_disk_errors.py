"""Why a VM has stopped, from the events that its QEMU wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qemuctl.registry.records.disk_errors import last_disk_error


def written(path: Path, *errors: dict[str, Any]) -> Path:
    whole = {"device": "", "operation": "write", "action": "stop", "reason": "Why"}
    path.write_text(
        "".join(
            json.dumps({"event": "BLOCK_IO_ERROR", "data": whole | error}) + "\n"
            for error in errors
        )
    )
    return path


def test_the_last_error_that_stopped_it_is_told(tmp_path: Path) -> None:
    events = written(
        tmp_path / "events",
        {"node-name": "vda", "nospace": True},
        {"node-name": "vdb-file", "reason": "Input/output error"},
        {"node-name": "vdc", "action": "report"},
    )
    error = last_disk_error(events)
    assert error is not None
    assert str(error) == "vdb: input/output error"
    assert "mend" in error.hint


def test_a_full_host_has_words_of_its_own(tmp_path: Path) -> None:
    error = last_disk_error(written(tmp_path / "events", {"nospace": True}))
    assert error is not None
    assert str(error) == "a disk: no space left on the host"
    assert "make room" in error.hint


def test_without_an_error_there_is_none(tmp_path: Path) -> None:
    assert last_disk_error(written(tmp_path / "events")) is None
    assert last_disk_error(tmp_path / "nowhere") is None
