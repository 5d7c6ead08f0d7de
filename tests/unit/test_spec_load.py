import contextlib
import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuctl.errors import SpecError
from qemuctl.spec import (
    Disk,
    check_name,
    load_spec,
    parse_spec,
    renamed,
    resolve_paths,
    validate,
    validate_name,
)
from qemuctl.units import GIB
from tests.hostile import fuzzed


def refused(text, **options):
    with pytest.raises(SpecError) as caught:
        parse_spec(text, source="vm.yaml", **options)
    return caught.value


def test_an_unknown_key_names_the_nearest_one():
    error = refused("name: web\n\nmemroy: 1G\n")
    assert str(error) == "vm.yaml:3: unknown key: memroy"
    assert error.hint == "did you mean memory?"
    assert (error.path, error.line, error.key) == ("vm.yaml", 3, "memroy")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("disks: [{size: 1G, formt: raw}]", "disks[0]: unknown key: formt", "format"),
        ("cpu: {topology: {core: 1}}", "cpu.topology: unknown key: core", "cores"),
        ("nics: [{forwards: []}]", "nics[0]: unknown key: forwards", "forward"),
        ("on-panic: none", "unknown key: on-panic", "on_panic"),
        ("display: vcn", "unknown value: 'vcn' (write none, vnc or spice)", "vnc"),
    ],
)
def test_the_hint_fits_the_part_that_holds_the_key(text, message, hint):
    error = refused(f"name: web\n{text}")
    assert message in str(error)
    assert error.hint == f"did you mean {hint}?"


@pytest.mark.parametrize(
    ("text", "line", "key", "message"),
    [
        ("memory: 12Q", 2, "memory", "not a size: '12Q'"),
        ("memory:\n  size: 12Q", 3, "memory.size", "not a size: '12Q'"),
        ("memory: 0", 2, "memory", "too small: 0 bytes"),
        ("memory:", 2, "memory", "no value"),
        ("cpu: two", 2, "cpu", "not a whole number: 'two'"),
        ("cpu:\n\n  count: 1.5", 4, "cpu.count", "not a whole number: '1.5'"),
        ("cpu: 0", 2, "cpu", "must be at least 1: '0'"),
        ("cpu: 5000", 2, "cpu", "must be at most 4096: '5000'"),
        ("serial: maybe", 2, "serial", "not true or false: 'maybe'"),
        ("image: [a]", 2, "image", "not text: ['a']"),
        ("image: ''", 2, "image", "empty"),
        ("extra_args: -S", 2, "extra_args", "not a list: '-S'"),
        ("boot: hd", 2, "boot", "not `key: value` lines: 'hd'"),
        ("disks:\n- size: 1G\n- data", 4, "disks[1]", "not `key: value` lines: 'data'"),
        ("disks:\n- {}", 3, "disks[0]", "either a path or a size"),
        (
            "disks:\n- size: 1G\n  serial: " + "x" * 30,
            4,
            "disks[0].serial",
            "too long: 30 characters, 20 at most",
        ),
        ("nics:\n- forward:\n  - 1:2\n  - x", 5, "nics[0].forward[1]", "not a port"),
        ("nics:\n- forward: [1:0]", 3, "nics[0].forward[0]", "must be at least 1: 0"),
        ("accel: xen", 2, "accel", "unknown value: 'xen' (write auto, kvm or tcg)"),
    ],
)
def test_a_wrong_value_is_told_by_line_and_key(text, line, key, message):
    error = refused(f"name: web\n{text}\n")
    assert (error.line, error.key) == (line, key)
    assert str(error).startswith(f"vm.yaml:{line}: {key}: ")
    assert message in str(error)
    for jargon in ("Input", "Value error", "pydantic", "valid integer", "permitted"):
        assert jargon not in str(error)


def test_all_problems_are_told_in_the_order_of_their_lines():
    error = refused("name: web\nserial: 3\nmemroy: 1G\ncpu: two\n")
    assert str(error).splitlines() == [
        "vm.yaml:2: serial: not true or false: '3'",
        "vm.yaml:3: unknown key: memroy (did you mean memory?)",
        "vm.yaml:4: cpu: not a whole number: 'two'",
    ]


def test_a_flood_of_problems_is_cut_short():
    error = refused("name: web\n" + "".join(f"x{n}: 1\n" for n in range(50)))
    assert len(str(error).splitlines()) == 21
    assert str(error).endswith("and 30 more")


def test_a_missing_name_is_told_without_a_line():
    error = refused("cpu: 1")
    assert (str(error), error.line) == ("vm.yaml: name: missing", None)


@pytest.mark.parametrize("name", ["a/b", "..", "x" * 300, "'a b'", "''"])
def test_a_bad_name_is_refused(name):
    assert refused(f"name: {name}").key == "name"
    with pytest.raises(SpecError):
        validate_name(name)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", None, "empty"),
        ("# only a comment\n", None, "empty"),
        ("---\n", None, "empty"),
        ("- a\n- b", 1, "not a spec"),
        ("web", 1, "not a spec"),
        (b"\x7fELF\x02\x01\x01\0\0\0", None, "binary file"),
        (b"name: a\nimage: \xff", 2, "not UTF-8"),
        ("a: \ud800", None, "Unicode"),
        ("name: a\x07", None, "control character"),
        ("name: a\nb: [1", 2, "not valid YAML"),
        ("name: a\nb: c: d", 2, "not valid YAML"),
        ("name: a\n---\nname: b", 2, "second document"),
        ("name: a\ncpu: 1\nname: b", 3, "stands twice, first in line 1"),
        ("name: a\nimage: !!python/name:os.system x", 2, "tags are not supported"),
        ("name: !!str a", 1, "tags are not supported: !!str"),
        ("? [a]\n: b", 1, "a key must be plain text"),
        ("name: *a", 1, "no such anchor: *a"),
        ("name: &a [*a]", 1, "no such anchor: *a"),
        ("[" * 100_000, 1, "nested too deeply: 32 levels"),
        ("- " * 100_000, 1, "nested too deeply: 32 levels"),
        ("name: a\nb: " + "[" * 33 + "]" * 33, 2, "nested too deeply: 32 levels"),
        ("name: " + "a" * 1024**2, None, "too large"),
        ("extra_args: [" + "a," * 30_000 + "]", 1, "too many values"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_not_one_yaml_mapping_is_refused(text, line, message):
    error = refused(text)
    assert message in str(error)
    assert (error.path, error.line) == ("vm.yaml", line)


def test_a_colon_inside_brackets_is_named_as_the_cause():
    error = refused("name: a\nnics: [{forward: [8080:80, :22]}]")
    assert "quote a value that starts with a colon" in error.hint
    assert parse_spec("name: a\nnics:\n- forward:\n  - :22").nics[0].forward


def test_tabs_are_named_as_the_cause():
    assert refused("cpu:\n\tcount: 1").hint == "indent with spaces, not tabs"


def test_an_alias_bomb_is_refused_before_it_goes_off():
    layers = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    layers += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "too many values" in str(refused("\n".join(layers)))


def test_an_anchor_may_be_used_again():
    spec = parse_spec("name: &n web\nimage: *n\n")
    assert (spec.name, spec.image) == ("web", "web")


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("name: 123", "name", "123"),
        ("name: no", "name", "no"),
        ("name: 1e3", "name", "1e3"),
        ("name: '007'", "name", "007"),
        ("name: a\nserial: off", "serial", False),
        ("name: a\nserial: yes", "serial", True),
        ("name: a\nserial: false", "serial", False),
        ("name: a\nimage: null", "image", None),
        ("name: a\nimage: 'null'", "image", "null"),
        ("name: a\nimage: ~", "image", None),
        ("name: a\nextra_args: [-k, 2, -usb]", "extra_args", ("-k", "2", "-usb")),
        ("\ufeffname: bom", "name", "bom"),
    ],
)
def test_a_plain_value_means_what_its_field_needs(text, field, value):
    assert getattr(parse_spec(text), field) == value


def test_a_port_forward_is_no_number_of_base_60():
    spec = parse_spec("name: a\nnics:\n- forward: [2222:22, 12:30, ':80', 22]\n")
    ports = [(f.host_port, f.guest_port) for f in spec.nics[0].forward]
    assert ports == [(2222, 22), (12, 30), (0, 80), (0, 22)]


def test_a_given_name_takes_the_place_of_the_file_s():
    assert parse_spec("name: a", name="b").name == "b"
    assert parse_spec("cpu: 1", name="b").name == "b"
    assert refused("name: a", name="b/c").line is None


def test_keyword_arguments_are_refused_by_key_alone():
    with pytest.raises(SpecError) as caught:
        validate({"name": "a", "memory": "12Q", "disks": [Disk(size=GIB)]})
    assert str(caught.value).startswith("memory: not a size: '12Q'")
    assert caught.value.path is None


def test_paths_start_from_the_folder_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    file = tmp_path / "vm.yaml"
    file.write_text(
        "name: a\nimage: ./base.qcow2\ncdrom: cd.iso\nqemu: bin/qemu\n"
        "boot: {kernel: vmlinuz, initrd: /boot/initrd}\n"
        "disks: [{path: ../d.raw}, {path: ~/e.raw}, {size: 1G}]\n"
        "nics: [{type: socket, listen: a.sock}, {type: socket, connect: b.sock}]\n"
    )
    spec = load_spec(file)
    assert spec.image == f"{tmp_path}/base.qcow2"
    assert spec.cdrom == f"{tmp_path}/cd.iso"
    assert spec.qemu == f"{tmp_path}/bin/qemu"
    assert spec.boot.kernel == f"{tmp_path}/vmlinuz"
    assert spec.boot.initrd == "/boot/initrd"
    paths = [disk.path for disk in spec.disks]
    assert paths == [f"{tmp_path}/../d.raw", "/home/me/e.raw", None]
    assert spec.nics[0].listen == f"{tmp_path}/a.sock"
    assert spec.nics[1].connect == f"{tmp_path}/b.sock"
    assert resolve_paths(spec, Path("/elsewhere")) == spec


def test_names_that_are_no_paths_stay():
    spec = parse_spec("name: a\nimage: tiny\nqemu: qemu-kvm", base=Path("/base"))
    assert (spec.image, spec.qemu) == ("tiny", "qemu-kvm")


def test_without_a_folder_paths_stay_as_written():
    assert parse_spec("name: a\ncdrom: ~/cd.iso").cdrom == "~/cd.iso"


def test_the_home_of_an_unknown_user_is_refused():
    error = refused("name: a\ncdrom: ~no-such-user-/cd.iso", base=Path("/"))
    assert (error.line, error.key) == (2, "cdrom")
    assert "no such home folder" in str(error)


def test_a_missing_file_names_the_folder_that_is_not_there(tmp_path):
    with pytest.raises(SpecError, match="no such file") as caught:
        load_spec(tmp_path / "a" / "b" / "vm.yaml")
    assert caught.value.hint == f"the folder does not exist: {tmp_path / 'a'}"


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(SpecError, match="is a directory"):
        load_spec(tmp_path)


def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    def deny(*_args):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    # Root may read everything, so the kernel's answer is played.
    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(SpecError, match=r"vm\.yaml: cannot be read: permission denied"):
        load_spec(tmp_path / "vm.yaml")


def test_a_path_with_a_nul_byte_is_refused():
    with pytest.raises(SpecError, match="not a path"):
        load_spec(Path("a\0b"))


def test_an_endless_file_is_refused():
    with pytest.raises(SpecError, match="too large"):
        load_spec(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("text", "new"),
    [
        ("# mine\nname: web  # é\ncpu: 2\n", "# mine\nname: db  # é\ncpu: 2\n"),
        ("cpu:\n  count: 2\nname: 'web'", "cpu:\n  count: 2\nname: db"),
        ("{cpu: 2, name: web}", "{cpu: 2, name: db}"),
        ("image: &x a\ncdrom: *x\nname: web", "image: &x a\ncdrom: *x\nname: db"),
        ("name: &n web\nimage: *n", "name: db\nimage: web\n"),
    ],
)
def test_a_new_name_leaves_the_rest_as_it_was(text, new):
    assert renamed(text, parse_spec(text), "db") == new


def test_a_bad_new_name_is_refused():
    with pytest.raises(SpecError, match="not a name"):
        renamed("name: a", parse_spec("name: a"), "b/c")


KEYS = st.sampled_from(["name", "memory", "cpu", "disks", "nics", "boot", "x", "size"])
TREES = st.recursive(
    st.text(max_size=8) | st.integers() | st.booleans() | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


@fuzzed(200)
@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_text_is_a_spec_or_a_spec_error(text):
    with contextlib.suppress(SpecError):
        assert check_name(parse_spec(text).name)


@fuzzed(200)
@given(st.dictionaries(KEYS, TREES, max_size=5))
def test_any_data_is_a_spec_or_a_spec_error(data):
    problem = ""
    try:
        validate(data)
    except SpecError as error:
        problem = str(error)
    assert "Input should" not in problem
