"""What an image and a seed add to a spec: disks, kernel, memory, a way in."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from qemuctl.cmdline.boot import boot_indexes
from qemuctl.errors import ImageError, SpecError
from qemuctl.image import Image, store, tiny
from qemuctl.image.chain import chain
from qemuctl.image.iso import check_iso
from qemuctl.paths import VmPaths
from qemuctl.registry.disks.disk_files import check_files, disk_files, make_disks
from qemuctl.registry.disks.resolve import (
    Device,
    base_of,
    image_of,
    placed,
    resolved,
    seeded,
)
from qemuctl.registry.edit import cards_of
from qemuctl.spec import (
    Boot,
    CloudInit,
    Disk,
    Memory,
    Nic,
    Root,
    Spec,
    load_spec,
    parse_spec,
)
from tests.unit.disk_images import MIB, content, digest
from tests.unit.stores import PATTERN, add_image, add_vm, leading_elsewhere

pytestmark = pytest.mark.usefixtures("bare_home")

DATA = PATTERN.ljust(MIB, b"\0")
TWO = (Disk(size=MIB), Disk(size=MIB, format="raw", serial="mine"))


@pytest.fixture
def paths(tmp_path: Path) -> VmPaths:
    state = tmp_path / "vm"
    state.mkdir()
    return VmPaths(state=state, run=tmp_path / "run")


def whole(spec: Spec, paths: VmPaths, once: Device | None = None) -> Spec:
    return resolved(spec, paths, image_of(spec), once)


def names(spec: Spec) -> list[str]:
    return [Path(disk.path or "").name for disk in spec.disks]


def test_without_an_image_the_first_disk_of_the_spec_is_disk0(paths: VmPaths) -> None:
    found = whole(Spec(name="x", disks=TWO), paths)
    assert names(found) == ["disk0.qcow2", "disk1.raw"]
    assert {Path(disk.path or "").parent for disk in found.disks} == {paths.disks}


def test_the_disk_that_an_image_brings_is_disk0(paths: VmPaths) -> None:
    add_image("web")
    spec = Spec(name="x", image="web", disks=TWO)
    assert names(whole(spec, paths)) == ["disk0.qcow2", "disk1.qcow2", "disk2.raw"]
    files = disk_files(spec, paths, image_of(spec))
    assert [file.target for file in files] == ["disk0", "disk1", "disk2"]
    assert [file.serial for file in files] == ["disk0", "disk1", "mine"]
    assert {file.problem for file in files} == {"not made yet"}


def test_an_image_that_is_a_file_brings_disk0_too(
    paths: VmPaths, tmp_path: Path
) -> None:
    for file, kind in (("a.qcow2", "qcow2"), ("b.raw", "raw")):
        path = tmp_path / file
        spec = Spec(name="x", image=str(path), disks=TWO)
        base = base_of(spec, image_of(spec))
        assert base is not None
        assert (base.path, base.format) == (path, kind)
        assert names(whole(spec, paths))[0] == "disk0.qcow2"
    nameless = Spec(name="x", image=str(tmp_path / "disk.img"))
    with pytest.raises(ImageError, match="does not exist"):
        placed(nameless, paths, None)
    (tmp_path / "disk.img").touch()
    with pytest.raises(
        SpecError, match=r"image: the format of '.*/disk.img'"
    ) as caught:
        placed(nameless, paths, None)
    assert "qemuctl image import" in (caught.value.hint or "")


def test_the_tiny_image_brings_no_disk(paths: VmPaths) -> None:
    found = whole(Spec(name="x", image="tiny", disks=TWO), paths)
    assert names(found) == ["disk0.qcow2", "disk1.raw"]
    assert found.boot.kernel == str(tiny().kernel)


def test_disks_of_the_users_keep_their_paths_and_count(
    paths: VmPaths, tmp_path: Path
) -> None:
    own = Disk(path=str(tmp_path / "own.raw"))
    found = whole(Spec(name="x", disks=(TWO[0], own, TWO[1])), paths)
    assert names(found) == ["disk0.qcow2", "own.raw", "disk2.raw"]


def test_the_seed_is_the_last_disk_and_read_only(paths: VmPaths) -> None:
    add_image("web", cloud_init=True, user="me")
    seed = whole(Spec(name="x", image="web", disks=TWO), paths).disks[-1]
    assert (seed.path, seed.format) == (str(paths.seed), "raw")
    assert (seed.readonly, seed.serial) == (True, "cidata")


@pytest.mark.parametrize(
    ("of_image", "wanted", "expected"),
    [
        (True, None, True),
        (False, None, False),
        (True, CloudInit(enabled=False), False),
        (False, CloudInit(), True),
        (False, CloudInit(user="me"), True),
    ],
)
def test_a_seed_is_for_images_with_cloud_init_unless_the_spec_says_otherwise(
    paths: VmPaths, of_image: bool, wanted: CloudInit | None, expected: bool
) -> None:
    add_image("web", cloud_init=of_image)
    spec = Spec(name="x", image="web", cloud_init=wanted)
    assert seeded(spec, image_of(spec)) == expected
    assert (len(whole(spec, paths).disks) == 2) == expected


@pytest.mark.parametrize(
    ("nics", "added"),
    [
        ([{}], 0),
        (["none", "user"], 1),
        ([{"forward": [":80"]}, "user"], 0),
        ([{"forward": ["2222:22"]}], None),
        (["user", {"forward": [":22"]}], None),
        (["none"], None),
        ([], None),
    ],
)
def test_a_seeded_vm_has_a_way_in_for_ssh(
    paths: VmPaths, nics: list[Any], added: int | None
) -> None:
    text = json.dumps({"name": "x", "nics": nics})
    plain = parse_spec(text)
    assert whole(plain, paths).nics == plain.nics
    found = whole(plain.model_copy(update={"cloud_init": CloudInit()}), paths).nics
    before = [nic.forward for nic in plain.nics]
    after = [nic.forward for nic in found]
    if added is None:
        assert after == before
        return
    new = after[added][-1]
    assert (new.guest_port, new.host_port, new.address) == (22, 0, "127.0.0.1")
    after[added] = after[added][:-1]
    assert after == before


def test_an_image_raises_memory_that_nobody_has_set(paths: VmPaths) -> None:
    add_image("web", memory=1024 * MIB)
    assert whole(Spec(name="x", image="web"), paths).memory.size == 1024 * MIB
    more = Spec(name="x", image="web", memory=Memory(size=2048 * MIB))
    assert whole(more, paths).memory.size == 2048 * MIB
    for text in ("memory: 512M", "memory: 128M", "memory: {size: 1023M}"):
        with pytest.raises(SpecError, match=r"memory: too little .* web.* 1G"):
            whole(parse_spec(f"name: x\nimage: web\n{text}\n"), paths)


def kernels(spec: Spec, paths: VmPaths) -> tuple[str | None, str | None, str | None]:
    boot = whole(spec, paths).boot
    return boot.kernel, boot.initrd, boot.cmdline


def test_the_kernel_is_the_images_unless_the_spec_has_its_own_or_an_order(
    paths: VmPaths,
) -> None:
    image = add_image("web", kernel="linux", cmdline="root=/dev/vda")
    files = str(image.folder / "kernel"), str(image.folder / "initrd")
    spec = Spec(name="x", image="web")
    assert kernels(spec, paths) == (*files, "root=/dev/vda")

    def booting(**boot: Any) -> Spec:
        return spec.model_copy(update={"boot": Boot(**boot)})

    assert kernels(booting(cmdline="quiet"), paths) == (*files, "quiet")
    assert kernels(booting(cmdline=""), paths) == (*files, "")
    assert kernels(booting(kernel="/k"), paths) == ("/k", None, None)
    assert kernels(booting(order=["disk"]), paths) == (None, None, None)
    add_image("loader")
    loader = Spec(name="x", image="loader")
    assert kernels(loader, paths) == (None, None, None)


def test_tiny_takes_a_kernel_of_the_users_with_its_own_initrd(
    paths: VmPaths, tmp_path: Path
) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_text("kernel")
    boot = Boot(kernel=str(kernel))
    found = whole(Spec(name="x", image="tiny", boot=boot), paths).boot
    assert found.kernel == str(tiny(kernel).kernel)
    assert found.initrd == str(tiny(kernel).initrd)
    assert found.cmdline is not None
    assert found.cmdline.startswith("console=ttyS0 quiet ")


@pytest.mark.parametrize(
    ("machine", "tsc_khz", "cmdline"),
    [
        ("q35", 2_596_000, "quiet tsc_early_khz=2596000 a={b}"),
        ("q35", None, "quiet a={b}"),
        ("microvm", 2_596_000, "tsc_early_khz=2596000"),
        ("microvm", None, ""),
    ],
)
def test_a_kernel_is_told_its_clocks_rate_where_that_is_known(
    machine: str, tsc_khz: int | None, cmdline: str, paths: VmPaths
) -> None:
    word = "tsc_early_khz={tsc_khz}"
    told = {"cmdline": f"quiet {word} a={{b}}", "cmdline_microvm": word}
    add_image("web", kernel="linux", **told)
    spec = parse_spec(f"name: x\nmachine: {machine}\nimage: web\n")
    found = resolved(spec, paths, image_of(spec), tsc_khz=tsc_khz)
    assert found.boot.cmdline == cmdline


def test_what_stays_beyond_a_start_says_nothing_of_this_hosts_clock(
    paths: VmPaths,
) -> None:
    add_image("web", kernel="linux", cmdline="quiet tsc_early_khz={tsc_khz}")
    assert whole(Spec(name="x", image="web"), paths).boot.cmdline == "quiet"


def test_the_device_of_one_start_comes_first_whatever_else_is_said(
    paths: VmPaths,
) -> None:
    add_image("web", kernel="linux")
    disks = (Disk(size=MIB, boot_index=0), Disk(size=MIB))
    spec = Spec(name="x", image="web", disks=disks, cdrom="/a.iso")
    kinds: list[tuple[Device, str]] = [
        ("cdrom", "cdrom0"), ("network", "nic0"), ("disk", "disk0"),
    ]  # fmt: skip
    for once, first in kinds:
        found = whole(spec, paths, once)
        assert found.boot.kernel is None
        assert boot_indexes(found)[first] == 0
        assert set(found.boot.order or ()) == {"disk", "cdrom", once}


@pytest.mark.parametrize("cdrom", [None, ""])
def test_there_is_no_starting_from_a_cd_that_is_not_there(
    paths: VmPaths, cdrom: str | None
) -> None:
    with pytest.raises(SpecError, match="no CD to boot from"):
        whole(Spec(name="x", cdrom=cdrom), paths, "cdrom")


async def made(spec: Spec, paths: VmPaths) -> Path:
    await make_disks(spec, paths, image_of(spec))
    return paths.disk(0, "qcow2")


async def test_the_root_disk_is_an_overlay_of_the_size_that_was_asked_for(
    paths: VmPaths,
) -> None:
    image = add_image("web")
    spec = Spec(name="x", image="web", root=Root(size=3 * MIB))
    layers = chain(await made(spec, paths), "qcow2")
    assert [layer.virtual_size for layer in layers] == [3 * MIB, MIB]
    assert layers[1].path == image.disk


async def test_a_full_root_disk_needs_no_image(paths: VmPaths) -> None:
    add_image("web")
    spec = Spec(name="x", image="web", root=Root(size=2 * MIB, mode="full"))
    disk = await made(spec, paths)
    store.remove("web")
    assert [layer.virtual_size for layer in chain(disk, "qcow2")] == [2 * MIB]
    assert content(disk) == digest(DATA + bytes(MIB))


@pytest.mark.parametrize("mode", ["overlay", "full"])
async def test_a_root_disk_is_never_smaller_than_its_image(
    paths: VmPaths, mode: Any
) -> None:
    add_image("web")
    spec = Spec(name="x", image="web", root=Root(size=MIB - 512, mode=mode))
    with pytest.raises(SpecError, match=r"root\.size: smaller than the image's own"):
        await made(spec, paths)
    assert list(paths.disks.iterdir()) == []


@pytest.mark.parametrize("mode", ["overlay", "full"])
async def test_an_image_file_that_leads_elsewhere_needs_trust(
    paths: VmPaths, tmp_path: Path, mode: Any
) -> None:
    top = leading_elsewhere(tmp_path)
    fields: dict[str, Any] = {"image": str(top), "root": Root(mode=mode)}
    with pytest.raises(ImageError) as caught:
        await made(Spec(name="x", **fields), paths)
    assert "trust" in (caught.value.hint or "")
    disk = await made(Spec(name="x", trust_backing=True, **fields), paths)
    assert content(disk) == digest(DATA)


async def test_disks_of_a_spec_with_trust_are_told_as_far_as_they_can_be_seen(
    paths: VmPaths, tmp_path: Path
) -> None:
    top = leading_elsewhere(tmp_path)
    spec = Spec(name="x", disks=(Disk(path=str(top)),))
    (file,) = disk_files(spec, paths, None)
    assert "is not a plain file" in (file.problem or "")
    trusting = spec.model_copy(update={"trust_backing": True})
    (file,) = disk_files(trusting, paths, None)
    assert (file.problem, file.size) == (None, MIB)
    assert (file.chain[1].remote or "").startswith("json:")


def test_a_pipe_is_neither_a_disk_nor_a_cd(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.raw"
    os.mkfifo(pipe)
    with pytest.raises(ImageError, match=f"not a file: {pipe}"):
        check_files(Spec(name="x", disks=(Disk(path=str(pipe)),)))
    with pytest.raises(ImageError, match=f"not a file: {pipe}"):
        check_iso(pipe)


def test_an_image_is_a_value_that_can_be_compared() -> None:
    assert add_image("web") == store.find("web") != add_image("other")
    assert isinstance(tiny(), Image)


def test_nics_that_are_not_for_users_get_no_forward(paths: VmPaths) -> None:
    nic = Nic(type="tap", ifname="tap0")
    spec = Spec(name="x", cloud_init=CloudInit(), nics=(nic,))
    assert whole(spec, paths).nics == (nic,)


def test_the_way_in_for_ssh_counts_as_configured() -> None:
    add_image("base", cloud_init=True)
    paths = add_vm("web", image="base", nics=(Nic(type="none"), Nic()))
    cards = cards_of(load_spec(paths.spec), paths)
    assert [each.notation for each in cards["nic1"].forward] == [":22"]
    assert cards["nic0"].forward == ()
    plain = add_vm("db")
    assert cards_of(load_spec(plain.spec), plain)["nic0"].forward == ()


def test_a_tiny_guest_is_told_the_name_of_its_vm() -> None:
    image = store.find("tiny")
    paths = VmPaths.of("web")
    told = "qemuctl.hostname=web"
    boot = resolved(Spec(name="web", image="tiny"), paths, image).boot
    assert (boot.cmdline or "").split()[-1] == told
    own = Spec.model_validate(
        {"name": "web", "image": "tiny", "boot": {"cmdline": "x"}}
    )
    assert resolved(own, paths, image).boot.cmdline == "x"
