"""A spec is changed by commands; what its user wrote beside that stays."""

from __future__ import annotations

import pytest

from qemuctl.spec import parse_spec
from qemuctl.spec.computer import Cpu, Memory
from qemuctl.spec.disk import Disk
from qemuctl.spec.model import Spec
from qemuctl.spec.rewrite import rewritten
from qemuctl.units import GIB

TEXT = """\
# the web server
name: web  # on the net
cpu:
  count: 2   # enough
  max: 4

# data lies here
disks:
- size: 1G   # logs
- path: /data.raw

# two cards
nics:
- user
"""


def changed(text: str, **fields: object) -> str:
    return rewritten(text, parse_spec(text).model_copy(update=fields))


def test_only_what_differs_is_written_anew() -> None:
    assert changed(TEXT, cpu=Cpu(count=3, max=4)) == TEXT.replace(
        "  count: 2   # enough\n", "  count: 3\n"
    )
    disks = (*parse_spec(TEXT).disks, Disk(id="new", size=GIB))
    after = changed(TEXT, disks=disks)
    assert "# data lies here" in after
    assert "# two cards\nnics:\n- user\n" in after
    assert parse_spec(after).disks == disks


def test_a_new_key_comes_last_and_a_default_goes() -> None:
    after = changed(TEXT, memory=Memory(size=2 * GIB))
    assert after == TEXT + "memory: 2G\n"
    gone = changed(TEXT, disks=())
    assert parse_spec(gone).disks == ()
    assert gone.startswith("# the web server\nname: web  # on the net\n")


@pytest.mark.parametrize(
    "text",
    [
        "{name: web, memory: 1G}",
        "name: web\nmemory: 1G",
        "name: web\nmemory: {size: 1G}",
    ],
)
def test_whatever_the_style_the_result_says_what_was_wanted(text: str) -> None:
    after = parse_spec(text).model_copy(update={"memory": Memory(size=3 * GIB)})
    assert parse_spec(rewritten(text, after)) == after


def test_comments_stay_also_where_the_name_is_the_folders() -> None:
    text = "# mine\nmemory: 1G\n"
    after = parse_spec(text, name="web").model_copy(update={"cpu": Cpu(count=2)})
    assert rewritten(text, after) == "# mine\nmemory: 1G\ncpu: 2\n"


def test_what_does_not_differ_is_not_touched() -> None:
    assert rewritten(TEXT, parse_spec(TEXT)) == TEXT
    assert isinstance(parse_spec(TEXT), Spec)
