"""Forks of a real distribution: systemd, a lease, a machine-id, a disk with a base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import CACHE
from tests.guest.conftest import Home
from tests.guest.templates import facts, own_cache, sums, throwaways
from tests.unproven import need_debian

pytestmark = pytest.mark.timeout(900)

ASK = "; ".join(
    [
        "hostname",
        "cat /etc/machine-id",
        "head -c 16 /dev/urandom | md5sum",
        "date +%s.%N",
        "cat /etc/hostname",
        "test ! -e /root/mark && echo mine > /root/mark && sync && cat /root/mark",
    ]
)


def test_two_forks_of_a_distribution_are_two_hosts(here: Home) -> None:
    need_debian("forks of Debian")
    images = CACHE / "tests/data/images"
    images.mkdir(mode=0o700, parents=True, exist_ok=True)
    (here.path / "data").mkdir(mode=0o700)
    (here.path / "data/images").symlink_to(images)
    mine = own_cache(here.path)
    mine.run("image", "build", "debian", timeout=600)
    mine.run(
        "template", "create", "deb", "--image", "debian", "--memory", "768M",
        timeout=400,
    )  # fmt: skip
    assert facts(mine, "deb")["reseed"] == "vmgenid"
    before = sums(mine, "deb")
    # Without vmgenid it is asked to; a program that fails would fail the fork.
    for reseed in ("perl", "vmgenid"):
        _set_reseed(mine, "deb", reseed)
        said = mine.text("fork", "deb", "--count", "2", "--", "sh", "-c", ASK)
        lines = said.splitlines()
        one, two = lines[:6], lines[6:]
        assert all(a != b for a, b in zip(one[:5], two[:5], strict=True)), said
        for fork in (one, two):
            assert fork[0] == fork[4]
            assert fork[5] == "mine"
        assert abs(float(one[3]) - float(two[3])) < 30
    mine.run("fork", "deb", "--name", "stays")
    words = mine.words("image", "rm", "debian", check=1)
    assert "the template deb" in words
    mine.run("kill", "stays")
    assert "stays" in mine.words("template", "rm", "deb", check=1)
    mine.run("rm", "stays")
    assert sums(mine, "deb") == before
    mine.run("template", "rm", "deb")
    assert throwaways(mine) == []


def _set_reseed(home: Home, name: str, way: str) -> None:
    path = Path(facts(home, name)["folder"]).parent / "template.json"
    value = json.loads(path.read_text())
    value["guest"]["reseed"] = way
    path.write_text(json.dumps(value))
