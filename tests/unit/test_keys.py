"""The key pair of qemuctl's own, made by the real ssh-keygen."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qemuctl.errors import HostError
from qemuctl.image.keys import own_key


def test_a_pair_is_made_once_and_only_for_its_owner(bare_home: Path) -> None:
    first = own_key()
    assert first.public.startswith("ssh-ed25519 ")
    assert first.public.endswith(" qemuctl")
    assert first.private.stat().st_mode & 0o777 == 0o600
    assert first.private.parent == bare_home / "data/ssh"
    assert first.private.parent.stat().st_mode & 0o777 == 0o700
    assert own_key() == first
    assert sorted(p.name for p in first.private.parent.iterdir()) == [
        ".lock", "id_ed25519", "id_ed25519.pub",
    ]  # fmt: skip


def test_two_at_once_make_one_pair(bare_home: Path) -> None:
    with ThreadPoolExecutor() as pool:
        pairs = list(pool.map(lambda _: own_key(), range(8)))
    assert len(set(pairs)) == 1


@pytest.mark.parametrize("damage", [None, "", "ssh-ed25519 AAAA qemuctl\n", "ü\n"])
def test_a_lost_public_half_is_computed_again(
    bare_home: Path, damage: str | None
) -> None:
    before = own_key()
    public = before.private.with_suffix(".pub")
    public.unlink()
    if damage is not None:
        public.write_text(damage)
    assert own_key().public.split()[:2] == before.public.split()[:2]
    assert public.read_text().split()[:2] == before.public.split()[:2]


def test_a_pair_without_its_private_half_is_made_again(bare_home: Path) -> None:
    before = own_key()
    before.private.unlink()
    after = own_key()
    assert after.public != before.public
    derived = subprocess.run(
        ["ssh-keygen", "-y", "-f", after.private], capture_output=True, check=True
    )
    assert derived.stdout.decode().split()[:2] == after.public.split()[:2]


def test_a_damaged_private_half_is_told_and_kept(bare_home: Path) -> None:
    pair = own_key()
    pair.private.write_text("mine, in a way\n")
    pair.private.with_suffix(".pub").unlink()
    with pytest.raises(HostError, match="ssh-keygen failed"):
        own_key()
    assert pair.private.read_text() == "mine, in a way\n"


def test_modes_that_let_others_in_are_mended(bare_home: Path) -> None:
    pair = own_key()
    pair.private.chmod(0o644)
    pair.private.parent.chmod(0o755)
    own_key()
    assert pair.private.stat().st_mode & 0o777 == 0o600
    assert pair.private.parent.stat().st_mode & 0o777 == 0o700


def test_a_host_without_ssh_keygen_learns_the_package(
    bare_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="no ssh-keygen") as error:
        own_key()
    assert error.value.hint == "install openssh-client"
    assert not (bare_home / "data/ssh/id_ed25519").exists()
