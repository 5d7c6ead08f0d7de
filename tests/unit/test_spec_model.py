from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemuctl.errors import SpecError
from qemuctl.spec import Disk, Display, Forward, Nic, Spec, check_name
from qemuctl.units import GIB, MIB


def test_every_field_but_the_name_has_a_default():
    required = [name for name, f in Spec.model_fields.items() if f.required]
    assert required == ["name"]
    spec = Spec(name="web")
    assert (spec.memory.size, spec.cpu.count, len(spec.nics)) == (512 * MIB, 1, 1)


def test_a_spec_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Spec(name="web").name = "other"


@pytest.mark.parametrize("name", ["a", "Web-1", "0", "a.b_c", "x" * 64])
def test_a_plain_name_is_good(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/etc", "-a", "a b", "é", "a\n", "a\0", "x" * 65]
)
def test_a_name_that_could_not_be_a_folder_is_refused(name):
    with pytest.raises(ValueError):
        check_name(name)


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"memory": "1G"}, {"memory": {"size": GIB}}),
        ({"memory": GIB}, {"memory": {"size": "1GiB"}}),
        ({"cpu": 2}, {"cpu": {"count": 2}}),
        ({"display": "vnc"}, {"display": {"type": "vnc"}}),
        ({"nics": ["none"]}, {"nics": [{"type": "none"}]}),
    ],
)
def test_a_plain_value_stands_for_a_part(short, long):
    built = Spec.model_validate({"name": "a", **short})
    assert built == Spec.model_validate({"name": "a", **long})


@pytest.mark.parametrize(
    ("text", "protocol", "address", "host", "guest"),
    [
        ("8080:80", "tcp", "127.0.0.1", 8080, 80),
        (":22", "tcp", "127.0.0.1", 0, 22),
        ("22", "tcp", "127.0.0.1", 0, 22),
        (22, "tcp", "127.0.0.1", 0, 22),
        ("0.0.0.0:2222:22", "tcp", "0.0.0.0", 2222, 22),
        ("udp:53:53", "udp", "127.0.0.1", 53, 53),
        ("udp:10.0.0.1::53", "udp", "10.0.0.1", 0, 53),
    ],
)
def test_a_forward_is_read_from_its_notation(text, protocol, address, host, guest):
    forward = Forward.model_validate(text)
    assert forward == Forward(
        protocol=protocol, address=address, host_port=host, guest_port=guest
    )
    assert Forward.model_validate(forward.notation) == forward


@pytest.mark.parametrize(
    "text",
    [
        *["", ":", "80:", "a:b", "tcp:80", "1:0", "65536:1", "1:65536", "1:2:3"],
        *["x:1:2:3", "300.0.0.1:1:2", "[::1]:1:2", "1:2,hostfwd=3", "٣:٤", True],
    ],
)
def test_what_is_no_forward_is_refused(text):
    with pytest.raises(SpecError):
        Forward.model_validate(text)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"memory": 0}, "too small: 0 bytes"),
        ({"memory": MIB + 1}, "not a whole number of MiB"),
        ({"memory": {"size": "1G", "max": "512M"}}, "max is below size: 512M < 1G"),
        ({"memory": {"slots": 2}}, "slots needs max"),
        ({"memory": "9" * 5000}, "not a size"),
        ({"memory": "9" * 400 + ".5"}, "not a size"),
        ({"memory": ["1G"]}, "not a size"),
        ({"cpu": True}, "not a whole number: true"),
        ({"cpu": {"count": 4, "max": 2}}, "max is below count: 2 < 4"),
        ({"cpu": {"count": 2, "topology": {"cores": 3}}}, "gives 3 processors"),
        ({"boot": {"initrd": "i"}}, "initrd needs kernel"),
        ({"boot": {"order": ["disk", "disk"]}}, "named twice in order: disk"),
        ({"machine": "q36"}, "not a machine"),
        ({"image": "a\0b"}, "NUL"),
        ({"extra_args": ["a\0b"]}, "NUL"),
        ({"display": {"address": "127.0.0.1:5901"}}, "address needs type"),
        ({"display": {"type": "vnc", "address": "5901"}}, "not an address"),
        ({"display": {"type": "vnc", "address": "h:²"}}, "not an address"),
        ({"display": {"type": "vnc", "address": "h:80"}}, "5900 or above"),
        ({"display": {"password": True}}, "password needs type"),
    ],
)
def test_what_makes_no_sense_is_refused(part, message):
    with pytest.raises(SpecError, match=message):
        Spec.model_validate({"name": "a", **part})


@pytest.mark.parametrize(
    ("display", "locked"),
    [
        ({}, False),
        ({"type": "vnc"}, False),
        ({"type": "vnc", "password": True}, True),
        ({"type": "vnc", "address": "127.0.0.1:5901"}, True),
        ({"type": "vnc", "address": "[::1]:5901"}, True),
        ({"type": "vnc", "address": "localhost:5901"}, True),
        ({"type": "vnc", "address": "0.0.0.0:5901"}, True),
        ({"type": "vnc", "address": "myhost:5901"}, True),
        ({"type": "spice", "address": "[::]:5901"}, True),
        ({"type": "vnc", "address": "0.0.0.0:5901", "password": False}, False),
        ({"type": "vnc", "address": "127.0.0.1:5901", "password": True}, True),
    ],
)
def test_a_screen_that_other_hosts_reach_is_locked(display, locked):
    assert Display.model_validate(display).locked is locked


@pytest.mark.parametrize(
    ("disk", "message"),
    [
        ({}, "either a path or a size"),
        ({"path": "a.raw", "size": "1G"}, "either a path or a size"),
        ({"size": "1"}, "too small"),
        ({"size": "1G", "readonly": True}, "cannot be read-only"),
        ({"path": "a.img"}, "format of 'a.img' is not known"),
        ({"size": "1G", "aio": "native"}, "needs cache"),
    ],
)
def test_a_disk_that_makes_no_sense_is_refused(disk, message):
    with pytest.raises(SpecError, match=message):
        Disk.model_validate(disk)


@pytest.mark.parametrize(
    ("disk", "driver"),
    [
        ({"size": "1G"}, "qcow2"),
        ({"size": "1G", "format": "raw"}, "raw"),
        ({"path": "a.raw"}, "raw"),
        ({"path": "a.qcow2"}, "qcow2"),
        ({"path": "a.raw", "format": "qcow2"}, "qcow2"),
    ],
)
def test_the_format_of_a_disk_is_always_known(disk, driver):
    assert Disk.model_validate(disk).driver == driver


@pytest.mark.parametrize(
    ("writers", "readers", "good"),
    [(1, 0, True), (0, 2, True), (2, 0, False), (1, 1, False)],
)
def test_a_disk_has_one_writer_or_many_readers(writers, readers, good):
    disks = [Disk(path="a.raw")] * writers + [Disk(path="a.raw", readonly=True)] * (
        readers
    )
    if good:
        assert len(Spec(name="a", disks=tuple(disks)).disks) == writers + readers
    else:
        with pytest.raises(SpecError, match=r"is used twice: a\.raw"):
            Spec(name="a", disks=tuple(disks))


def test_two_disks_do_not_share_a_boot_index():
    disks = [{"size": "1G", "boot_index": 1}, {"size": "1G", "boot_index": 1}]
    with pytest.raises(SpecError, match="same boot_index: 1"):
        Spec.model_validate({"name": "a", "disks": disks})


@pytest.mark.parametrize(
    ("nic", "message"),
    [
        ({"type": "tap"}, "belong together"),
        ({"ifname": "tap0"}, "belong together"),
        ({"type": "tap", "ifname": "tap0", "restrict": True}, "need type: user"),
        ({"type": "socket"}, "either listen or connect"),
        ({"type": "socket", "listen": "a", "connect": "b"}, "either listen or conn"),
        ({"listen": "a"}, "need type: socket"),
        ({"mac": "52:54:00"}, "not a MAC address"),
        ({"mac": "01:00:00:00:00:00"}, "multicast"),
    ],
)
def test_a_nic_that_makes_no_sense_is_refused(nic, message):
    with pytest.raises(SpecError, match=message):
        Nic.model_validate(nic)


def test_a_mac_address_is_kept_in_one_notation():
    assert Nic(mac="52-54-00-AB-CD-EF").mac == "52:54:00:ab:cd:ef"


@pytest.mark.parametrize(
    ("nics", "message"),
    [
        ([{"mac": "52:54:00:00:00:01"}] * 2, "same mac"),
        ([{"forward": ["80:80", "80:81"]}], "same host port: tcp:127.0.0.1:80"),
        ([{"forward": ["80:80"]}, {"forward": ["80:80"]}], "same host port"),
    ],
)
def test_what_two_cards_cannot_share_is_refused(nics, message):
    with pytest.raises(SpecError, match=message):
        Spec.model_validate({"name": "a", "nics": nics})


def test_cards_may_share_what_does_not_collide():
    forward = [":80", ":80", "53:53", "udp:53:53", "127.0.0.2:53:53"]
    nics = [{"forward": forward}, "user", "user"]
    assert len(Spec.model_validate({"name": "a", "nics": nics}).nics) == 3


@pytest.mark.parametrize(
    ("machine", "chipset"),
    [
        ("q35", "q35"),
        ("pc-q35-7.2", "q35"),
        ("pc", "pc"),
        ("pc-i440fx-2.12", "pc"),
        ("microvm", "microvm"),
    ],
)
def test_the_chipset_follows_from_the_machine(machine, chipset):
    assert Spec(name="a", machine=machine).chipset == chipset


@settings(deadline=None)
@given(
    st.text("0123456789:.tcpudx[]", max_size=20)
    | st.from_regex(r"(udp:)?([0-9.]{7,15}:)?[0-9]{0,5}:[0-9]{1,5}", fullmatch=True)
)
def test_any_forward_is_read_or_refused(text):
    try:
        forward = Forward.model_validate(text)
    except SpecError:
        return
    assert Forward.model_validate(forward.notation) == forward
