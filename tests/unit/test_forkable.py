"""What cannot be combined with a template, in words that name both sides."""

from __future__ import annotations

import pytest

from qemuctl.connection.fork_commands import check_command
from qemuctl.errors import SpecError
from qemuctl.spec import Spec, parse_spec
from qemuctl.templates.eligible import (
    check_alike,
    check_forkable,
    fork_spec,
    template_spec,
)


def spec(text: str = "") -> Spec:
    return parse_spec(f"name: web\n{text}\n")


REFUSED = {
    "agent: false": ("agent", "given its own name and clock by the guest's agent"),
    "balloon: true": ("balloon", "cut out of the memory of all"),
    "disks: [{path: /d.raw}]": ("disks[0].path", "write to the same file: /d.raw"),
    "disks: [{size: 1M}, {path: /d.raw}]": ("disks[1].path", "readonly: true"),
    "nics: [{type: tap, ifname: tap0}]": ("nics[0].type", "plugged into the same tap"),
    "nics: [{}, {type: socket, connect: '127.0.0.1:1'}]": (
        "nics[1].type",
        "plugged into the same socket",
    ),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_no_fork_could_have_a_copy_of_is_refused(text: str) -> None:
    key, words = REFUSED[text]
    with pytest.raises(SpecError) as caught:
        check_forkable(spec(text))
    assert caught.value.key == key
    assert "cannot be combined with a template" in caught.value.message
    assert words in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "", "balloon: false", "disks: [{size: 1M}]", "cdrom: /x.iso", "nics: []",
        "disks: [{path: /d.raw, readonly: true}]", "cpu: {count: 2, max: 4}",
        "memory: {size: 256M, max: 1G}", "machine: microvm",
        "extra_args: [-rtc, base=utc]", "extra_args: [-msg, timestamp=on]",
    ],
)  # fmt: skip
def test_all_else_is_taken(text: str) -> None:
    check_forkable(spec(text))


@pytest.mark.parametrize("dashes", ["-", "--"])
@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("mem-path", "memory"), ("drive", "same files"), ("blockdev", "same files"),
        ("fda", "same files"), ("pflash", "same files"), ("virtfs", "same files"),
    ],
)  # fmt: skip
def test_an_option_is_known_with_one_dash_and_with_two(
    dashes: str, option: str, words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        check_forkable(spec(f"extra_args: ['{dashes}{option}', x]"))


@pytest.mark.parametrize(
    "device",
    [
        "virtio-balloon-pci", "virtio-mem-pci,memdev=m", "vhost-user-fs-pci",
        "ivshmem-plain", "vfio-pci,host=1:0.0", '{"driver":"virtio-balloon"}',
    ],
)  # fmt: skip
def test_a_device_that_takes_memory_elsewhere_is_refused(device: str) -> None:
    with pytest.raises(SpecError, match="its forks' memory is the template's"):
        check_forkable(spec(f"extra_args: [-device, '{device}']"))


def test_a_template_takes_no_port_and_a_fork_takes_its_own() -> None:
    given = spec("nics: [{forward: [':22']}]")
    assert template_spec(given, "t").nics[0].forward == ()
    assert fork_spec(given, "f").nics == given.nics
    assert not fork_spec(given, "f").balloon


def test_what_differs_from_the_template_is_named() -> None:
    has = spec("nics: [{forward: [':22']}]")
    check_alike("t", has, spec().model_copy(update={"name": "other"}))
    for text, key in (
        ("memory: 1G", "memory"),
        ("cpu: 2", "cpu"),
        ("nics: []", "nics"),
        ("disks: [{size: 1M}]", "disks"),
        ("image: debian", "image"),
    ):
        with pytest.raises(SpecError) as caught:
            check_alike("t", has, spec(text))
        assert caught.value.key == key
        assert "the template t" in caught.value.message


def test_a_fork_is_given_no_balloon_by_any_command() -> None:
    check_command("device_add", {"driver": "virtio-net-pci"})
    check_command("query-status", None)
    for arguments in (
        {"driver": "virtio-balloon-pci", "id": "b"},
        {"command-line": "device_add virtio-balloon-pci"},
    ):
        with pytest.raises(SpecError, match="a fork takes no balloon"):
            check_command("device_add", arguments)
