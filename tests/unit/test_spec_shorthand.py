import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemuctl.errors import SpecError
from qemuctl.spec import (
    parse_cpus,
    parse_disk,
    parse_display,
    parse_memory,
    parse_nic,
    validate,
)
from tests.hostile import fuzzed

MAC = "52:54:00:12:34:56"


@pytest.mark.parametrize(
    ("parse", "text", "data"),
    [
        (parse_disk, "10G", {"size": "10G"}),
        (parse_disk, "data.qcow2", {"path": "data.qcow2"}),
        (parse_disk, "./10G.raw", {"path": "./10G.raw"}),
        (parse_disk, "./a=b.raw", {"path": "./a=b.raw"}),
        (parse_disk, "a,,b.raw", {"path": "a,b.raw"}),
        (parse_disk, "path=,,.raw", {"path": ",.raw"}),
        (parse_disk, "10G,format=raw", {"size": "10G", "format": "raw"}),
        (
            parse_disk,
            "path=data.raw,readonly=on,boot-index=2",
            {"path": "data.raw", "readonly": True, "boot_index": "2"},
        ),
        (parse_disk, "a.raw,readonly=NO", {"path": "a.raw", "readonly": False}),
        (parse_disk, "size=1G,boot_index=0", {"size": "1G", "boot_index": "0"}),
        (parse_nic, "user", {"type": "user"}),
        (parse_nic, "restrict=yes", {"restrict": True}),
        (
            parse_nic,
            f"user,model=e1000,forward=8080:80,forward=:22,mac={MAC}",
            {"type": "user", "model": "e1000", "forward": ["8080:80", ":22"]}
            | {"mac": MAC},
        ),
        (parse_nic, "tap,ifname=tap0", {"type": "tap", "ifname": "tap0"}),
        (parse_display, "vnc", {"type": "vnc"}),
        (parse_display, "vnc,password=on", {"type": "vnc", "password": True}),
        (
            parse_display,
            "vnc,address=127.0.0.1:5901,vga=std",
            {"type": "vnc", "address": "127.0.0.1:5901", "vga": "std"},
        ),
        (parse_cpus, "2", {"count": "2"}),
        (parse_cpus, "2,max=4", {"count": "2", "max": "4"}),
        (
            parse_cpus,
            "count=2,sockets=1,cores=2,threads=1",
            {"count": "2", "topology": {"sockets": "1", "cores": "2", "threads": "1"}},
        ),
        (
            parse_cpus,
            "sockets=2,cores=3",
            {"count": 6, "topology": {"sockets": "2", "cores": "3"}},
        ),
        (parse_memory, "512M", {"size": "512M"}),
        (
            parse_memory,
            "512M,max=2G,slots=4",
            {"size": "512M", "max": "2G", "slots": "4"},
        ),
    ],
)
def test_a_flag_becomes_data(parse, text, data):
    assert parse(text) == data


@pytest.mark.parametrize(
    ("parse", "text", "message", "hint"),
    [
        (parse_disk, "size=1G,formt=raw", "unknown key: formt", "did you mean format?"),
        (parse_disk, "boot-indx=1", "unknown key: boot_indx", "boot_index"),
        (parse_disk, "size=12Q", "size: not a size: '12Q'", None),
        (parse_disk, "0", "too small: 0 bytes", None),
        (parse_disk, "data.img", "add format: qcow2 or raw", None),
        (parse_disk, "", "an empty part", ",,"),
        (parse_disk, "a.raw,", "an empty part", ",,"),
        (parse_disk, "a.raw,b.raw", "not key=value: 'b.raw'", ",,"),
        (parse_disk, "a.raw,path=b.raw", "given twice: path", None),
        (parse_disk, "a.raw,readonly=maybe", "readonly: not true or false", None),
        (parse_disk, "a\0.raw", "NUL", None),
        (parse_disk, "x=1", "unknown key: x", "the keys are id, path, size"),
        (parse_nic, "usr", "unknown value: 'usr'", "did you mean user?"),
        (parse_nic, "forward=x", "forward[0]: not a port forward: 'x'", None),
        (parse_nic, "tap", "belong together", None),
        (parse_display, "vnc,adress=x", "unknown key: adress", "address"),
        (parse_display, "address=h:5901", "address needs type", None),
        (parse_cpus, "two", "not a whole number: 'two'", None),
        (parse_cpus, "0", "must be at least 1", None),
        (parse_cpus, "2,cores=3", "topology gives 3", None),
        (parse_cpus, "cores=x", "cores: not a whole number: 'x'", None),
        (parse_cpus, "topology=1", "unknown key: topology", None),
        (parse_memory, "0", "too small: 0 bytes", None),
        (parse_memory, "slots=2", "slots needs max", None),
    ],
)
def test_a_wrong_flag_is_refused_by_its_name(parse, text, message, hint):
    with pytest.raises(SpecError) as caught:
        parse(text)
    flag = f"--{parse.__name__.removeprefix('parse_')}"
    assert caught.value.key == flag
    assert str(caught.value).startswith(f"{flag}: ")
    assert message in str(caught.value)
    assert hint is None or hint in (caught.value.hint or "")


PARSERS = [
    (parse_disk, lambda part: {"disks": [part]}),
    (parse_nic, lambda part: {"nics": [part]}),
    (parse_display, lambda part: {"display": part}),
    (parse_cpus, lambda part: {"cpu": part}),
    (parse_memory, lambda part: {"memory": part}),
]
PIECES = st.sampled_from(
    [
        *["user", "vnc", "2", "1G", "a.raw", "size=", "max=", "cores=", "forward="],
        *["path=", "readonly=", "type=", "on", ",", ",,", "=", ":", "80", "é", "\0"],
    ]
)


@pytest.mark.parametrize(("parse", "part"), PARSERS)
@fuzzed(60)
@given(text=st.lists(PIECES, max_size=6).map("".join) | st.text(max_size=20))
def test_any_flag_is_good_for_a_spec_or_a_spec_error(parse, part, text):
    try:
        data = parse(text)
    except SpecError:
        return
    validate({"name": "a", **part(data)})


@settings(deadline=None)
@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1))
def test_a_path_with_doubled_commas_comes_back(path):
    data = parse_disk(f"path={path.replace(',', ',,')},format=raw")
    assert data == {"path": path, "format": "raw"}
