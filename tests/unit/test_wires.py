"""What is at the path of a wire, before QEMU puts its socket there."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from qemuctl.errors import SpecError, StateError
from qemuctl.registry.socket_nics import check_far_end, check_wires
from qemuctl.spec import Nic


def test_nothing_at_the_path_is_as_it_should_be(tmp_path: Path) -> None:
    check_wires([Nic(), Nic(type="socket", listen=str(tmp_path / "wire"))])


def test_a_file_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "wire"
    path.write_text("dear")
    with pytest.raises(SpecError, match="something else than a socket"):
        check_wires([Nic(type="socket", listen=str(path))])


def test_only_a_socket_that_nobody_serves_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a wire"
    listens = Nic(type="socket", listen=str(path))
    connects = Nic(type="socket", connect=str(path))
    with pytest.raises(StateError, match="nobody listens"):
        check_far_end("web", connects)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(1)
        check_far_end("web", connects)
        with pytest.raises(SpecError, match="another process listens there") as caught:
            check_wires([listens])
        assert "connect:" in (caught.value.hint or "")
    check_wires([listens])
    with pytest.raises(StateError, match="nobody listens"):
        check_far_end("web", connects)
    check_far_end("web", Nic())
