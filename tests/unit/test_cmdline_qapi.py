"""One dataclass, three renderings: QAPI object, JSON option, comma syntax."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from hypothesis import given
from hypothesis import strategies as st

from qemuctl.cmdline.blockdev import BlockCache, FileNode
from qemuctl.cmdline.chardev import SocketChardev
from qemuctl.cmdline.devices import PcieRootPort
from qemuctl.cmdline.keyval import KeyvalOption, Plain, escape
from qemuctl.cmdline.netdev import String, UserNetdev
from qemuctl.cmdline.options import MachineOption, Sandbox
from qemuctl.cmdline.qapi import to_qapi


class Sample(KeyvalOption):
    OPTION: ClassVar = "-sample"
    HEAD: ClassVar = "first"
    first: str
    second_key: str
    flag: bool | None = None


def split_like_qemu(text: str) -> list[str]:
    """QEMU's rule: a comma ends a value, two of them stand for one."""
    parts, current, at = [], "", 0
    while at < len(text):
        if text[at] == "," and text[at : at + 2] != ",,":
            parts.append(current)
            current = ""
        else:
            current += text[at]
            at += text[at] == ","
        at += 1
    return [*parts, current]


def test_none_is_left_out_and_underscores_become_dashes() -> None:
    node = FileNode(
        node_name="n",
        filename=Path("/a b"),
        cache=BlockCache(direct=True, no_flush=False),
    )
    assert to_qapi(node) == {
        "driver": "file",
        "node-name": "n",
        "filename": "/a b",
        "cache": {"direct": True, "no-flush": False},
    }


def test_a_list_of_strings_has_qemus_odd_form() -> None:
    netdev = UserNetdev(id="n", hostfwd=(String(str="tcp::0-:22"),))
    assert to_qapi(netdev)["hostfwd"] == [{"str": "tcp::0-:22"}]


def test_the_driver_comes_first_in_the_json() -> None:
    option, text = PcieRootPort(id="p", chassis=1, port=0).arguments()
    assert option == "-device"
    assert text.startswith('{"driver":"pcie-root-port","id":"p",')


@given(st.text())
def test_any_text_survives_json(text: str) -> None:
    netdev = UserNetdev(id=text)
    assert json.loads(netdev.arguments()[1])["id"] == text


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
def test_any_text_survives_comma_syntax(first: str, second: str) -> None:
    # A value is followed by a key, whose first letter is no comma.
    _, text = Sample(first=first, second_key=second, flag=True).arguments()
    assert split_like_qemu(text) == [first, f"second-key={second}", "flag=on"]


def test_switches_are_on_and_off() -> None:
    assert escape(True) == "on"
    assert escape(False) == "off"
    assert escape(5) == "5"


def test_the_head_has_no_key() -> None:
    assert MachineOption(type="pc", vmport=False).arguments() == [
        "-machine",
        "pc,vmport=off",
    ]
    assert Sandbox().arguments()[1].startswith("on,obsolete=deny,")


def test_a_plain_value_is_not_escaped() -> None:
    assert Plain(option="-append", value="a,b").arguments() == ["-append", "a,b"]
    assert Plain(option="-nodefaults").arguments() == ["-nodefaults"]


def test_a_chardev_can_be_handed_over() -> None:
    chardev = SocketChardev(id="c", path=Path("/a,b"), logfile=Path("/l,og"))
    assert chardev.arguments()[1] == (
        "socket,id=c,path=/a,,b,server=on,wait=off,logfile=/l,,og"
    )
    assert chardev.inherited(7).arguments()[1] == (
        "socket,id=c,fd=7,server=on,wait=off,logfile=/l,,og"
    )
