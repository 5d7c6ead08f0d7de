"""From the words of a mark to a spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qemuctl.errors import SpecError, TemplateError, UsageError
from qemuctl.testing import request
from qemuctl.testing.request import Unfit, Wanted, plain_name, wanted
from qemuctl.units import GIB, MIB


def want(folder: Path = Path("/tests"), **words: Any) -> Wanted:
    return wanted(words, folder=folder, image="tiny", test="test_a[x y]", label="vm")


def test_a_guest_without_words_is_of_the_usual_image_and_named_by_its_test() -> None:
    got = want()
    assert (got.spec.name, got.spec.image) == ("test-a-x-y", "tiny")
    assert (got.label, got.template) == ("vm", None)


def test_text_is_read_as_on_the_command_line_and_plain_values_as_in_yaml() -> None:
    spec = want(
        image="debian",
        memory="1G,max=2G",
        cpus="2,max=4",
        disks=["size=8M,serial=data", {"size": "1G"}],
        nics=["user,restrict=on", {"type": "none"}],
    ).spec
    assert spec.image == "debian"
    assert (spec.memory.size, spec.memory.max) == (GIB, 2 * GIB)
    assert (spec.cpu.count, spec.cpu.max) == (2, 4)
    assert [disk.size for disk in spec.disks] == [8 * MIB, GIB]
    assert [nic.type for nic in spec.nics] == ["user", "none"]
    assert want(memory=256 * MIB, cpus=3).spec.cpu.count == 3


def test_words_come_over_the_spec_and_the_image_of_a_file_is_its_own(
    tmp_path: Path,
) -> None:
    (tmp_path / "web.yaml").write_text(
        "name: web\nmemory: 1G\ncdrom: rescue.iso\ndisks: [{path: root.qcow2}]\n"
    )
    got = want(tmp_path, spec="web.yaml", memory="2G").spec
    assert (got.name, got.image, got.memory.size) == ("web", None, 2 * GIB)
    assert got.disks[0].path == str(tmp_path / "root.qcow2")
    assert got.cdrom == str(tmp_path / "rescue.iso")
    named = want(tmp_path, spec=tmp_path / "web.yaml", name="other")
    assert (named.spec.name, named.label) == ("other", "other")
    given = want(spec={"display": "vnc", "memory": "1G"}, memory="2G").spec
    assert (given.image, given.memory.size) == ("tiny", 2 * GIB)
    assert given.display.type == "vnc"
    bare = want(spec={"image": None}).spec
    assert bare.image is None


def test_an_unknown_template_is_told_before_anything_starts(bare_home: Path) -> None:
    with pytest.raises(TemplateError, match="no such template: web"):
        want(template="web")


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ({"imgae": "x"}, "unknown keyword of vm: imgae", "did you mean image?"),
        ({"zzz": 1}, "unknown keyword of vm: zzz", "the keywords are image, memory, "),
        ({"kvm": True}, 'kvm is "required" or left out: True', "accel"),
        ({"template": 1}, "not the name of a template: 1", ""),
        ({"spec": 7}, "spec is the path of a YAML file, or a dict: 7", ""),
    ],
)
def test_an_unknown_word_or_value_is_a_usage_error(
    words: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        want(**words)
    assert caught.value.message == message
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"memory": "12Q"}, "memory: not a size: '12Q'"),
        ({"disks": "size=1G"}, "disks: not a list: 'size=1G'"),
        ({"disks": ["sise=1G"]}, "disks: unknown key: sise"),
        ({"cpus": 0}, "cpu"),
        ({"spec": "none.yaml"}, "/tests/none.yaml"),
        ({"spec": {"memroy": "1G"}}, "unknown key: memroy"),
        ({"name": "a/b"}, "not a name"),
    ],
)
def test_a_value_of_no_sense_is_a_spec_error(
    words: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        want(**words)
    assert message in str(caught.value)


def test_kvm_is_asked_for_only_where_it_is_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(_: object) -> None:
        raise Unfit("no KVM here")

    monkeypatch.setattr(request, "_require_kvm", none)
    want()
    with pytest.raises(Unfit, match="no KVM here"):
        want(kvm="required")


def test_a_name_is_made_of_any_test_s() -> None:
    assert plain_name("test_boots[ä/b]") == "test-boots-b"
    assert plain_name("日本") == "vm"
    assert len(plain_name("test_" + "long_" * 20)) <= 24
