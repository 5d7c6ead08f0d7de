"""A VM as one file, out and in again with all that it needs."""

from __future__ import annotations

import asyncio
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qemuctl.copies.archive import export, import_
from qemuctl.errors import ImageError, NameInUse, NotFound, SpecError, StateError
from qemuctl.image import qemu_img
from qemuctl.image.chain import chain
from qemuctl.paths import VmPaths, vms_dir
from qemuctl.process import take
from qemuctl.registry import removal, rename, vms
from qemuctl.registry.disks.resolve import image_of, resolved
from qemuctl.spec import Boot, CloudInit, Disk, Forward, Nic, Root, Spec
from tests.unit.disk_images import MIB, ODD, content, digest, qcow2, raw, write
from tests.unit.stores import PATTERN, add_image, add_vm, everything

pytestmark = pytest.mark.usefixtures("bare_home")

KEY = (
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEJRumXZ6nCMC98QofO8lMuzf92oT9j+"
    "9HF2OZUclAIW me"
)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / ODD
    folder.mkdir()
    return folder / "web.tar"


def on_another_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home without images and VMs."""
    monkeypatch.setenv("QEMUCTL_HOME", str(tmp_path / "other"))


def compared(path: Path, format: str, other: Path) -> str:
    return qemu_img.run(
        "compare", "-f", format, "-F", "qcow2", qemu_img.file(path),
        qemu_img.file(other),
    )  # fmt: skip


def boot_of(name: str) -> Boot:
    spec = vms.load(name)
    return resolved(spec, VmPaths.of(name), image_of(spec)).boot


@pytest.mark.parametrize("compress", [False, True])
async def test_all_disks_are_the_same_after_a_journey(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: bool
) -> None:
    add_image("base", memory=640 * MIB)
    own = qcow2(tmp_path / "own.qcow2", PATTERN)
    disks = (
        Disk(size=MIB, serial="a", bus="scsi"), Disk(size=2 * MIB, format="raw"),
        Disk(path=str(own), readonly=True),
    )  # fmt: skip
    web = add_vm("web", image="base", root=Root(size=4 * MIB), disks=disks)
    write(web.disk(0, "qcow2"), MIB, 4096, 1)
    write(web.disk(1, "qcow2"), 0, 4096, 2)
    with web.disk(2, "raw").open("r+b") as file:
        file.write(PATTERN)
    await export("web", target, compress=compress)
    assert list(target.parent.iterdir()) == [target]
    on_another_host(tmp_path, monkeypatch)
    assert await import_(target) == "web"
    spec, new = vms.load("web"), VmPaths.of("web")
    before = [web.disk(0, "qcow2"), web.disk(1, "qcow2"), web.disk(2, "raw"), own]
    for index, path in enumerate(before):
        made = new.disk(index, "qcow2")
        compared(path, path.suffix.removeprefix("."), made)
        assert len(chain(made, "qcow2")) == 1
        assert spec.disks[index].path == str(made)
    assert [(disk.serial, disk.bus) for disk in spec.disks[:2]] == [
        (None, "virtio"), ("a", "scsi"),
    ]  # fmt: skip
    assert spec.disks[3].readonly
    assert (spec.image, spec.root, spec.memory.size) == (None, Root(), 640 * MIB)
    # As a spec of its own, it can be cloned, renamed and exported again.
    rename.rename("web", "www")
    again = target.with_name("again.tar")
    await export("www", again)
    assert await import_(again, name="two") == "two"
    compared(own, "qcow2", VmPaths.of("two").disk(3, "qcow2"))


async def test_the_kernel_and_initrd_of_an_image_come_along(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_image("base", kernel="linux", cmdline="root=LABEL=x")
    add_vm("web", image="base")
    await export("web", target)
    on_another_host(tmp_path, monkeypatch)
    await import_(target)
    boot = boot_of("web")
    state = VmPaths.of("web").state
    assert (boot.kernel, boot.initrd) == (str(state / "kernel"), str(state / "initrd"))
    assert (state / "initrd").read_text() == "linux's initrd"
    assert boot.cmdline == "root=LABEL=x"


async def test_a_vm_on_tiny_needs_nothing_but_tiny(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = add_vm("web", image="tiny", disks=(Disk(size=MIB),))
    write(web.disk(0, "qcow2"), 0, 512, 1)
    await export("web", target)
    assert target.stat().st_size < 2 * MIB
    on_another_host(tmp_path, monkeypatch)
    await import_(target)
    assert vms.load("web").image == "tiny"
    compared(web.disk(0, "qcow2"), "qcow2", VmPaths.of("web").disk(0, "qcow2"))


@pytest.mark.parametrize("image", [None, "tiny"])
async def test_a_kernel_of_the_users_comes_along(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: str | None
) -> None:
    kernel, initrd = raw(tmp_path / "vmlinuz", b"k"), raw(tmp_path / "init.gz", b"i")
    boot = Boot(kernel=str(kernel), initrd=str(initrd), cmdline="quiet")
    add_vm("web", image=image, boot=boot)
    await export("web", target)
    on_another_host(tmp_path, monkeypatch)
    kernel.unlink()
    await import_(target)
    found = boot_of("web")
    assert Path(found.kernel or "").read_bytes() == b"k"
    assert Path(found.initrd or "").read_bytes() == b"i"
    assert found.cmdline == "quiet"


async def test_tiny_with_a_kernel_of_the_users_comes_along_whole(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = raw(tmp_path / "vmlinuz", b"k")
    spec = Spec(name="web", image="tiny", boot=Boot(kernel=str(kernel)))
    add_vm("web", image="tiny", boot=spec.boot)
    image = image_of(spec)
    assert image is not None
    image.folder.mkdir(parents=True)  # as its build would make it
    for name in ("kernel", "initrd"):
        (image.folder / name).write_text(f"built {name}")
    await export("web", target)
    on_another_host(tmp_path, monkeypatch)
    kernel.unlink()
    await import_(target)
    found = boot_of("web")
    assert Path(found.kernel or "").read_text() == "built kernel"
    assert Path(found.initrd or "").read_text() == "built initrd"
    assert image.manifest.cmdline is not None
    assert found.cmdline == image.manifest.cmdline.replace(
        " tsc_early_khz={tsc_khz}", ""
    )


async def test_the_cd_stays_and_its_drive_comes_along_empty(
    target: Path, tmp_path: Path
) -> None:
    iso = raw(tmp_path / "a.iso", b"iso")
    boot = Boot(once="cdrom")
    web = add_vm("web", cdrom=str(iso), boot=boot, disks=(Disk(size=MIB),))
    web.booted.touch()
    await export("web", target)
    await import_(target, name="new")
    spec = vms.load("new")
    assert spec.cdrom == ""
    # What it was installed from is not there, and not to be waited for.
    resolved(spec, VmPaths.of("new"), None, spec.boot.once)


@pytest.mark.parametrize("own", [None, CloudInit(packages=("vim",))])
async def test_what_cloud_init_was_told_it_is_told_again(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: CloudInit | None
) -> None:
    add_image("base", cloud_init=True, user="me")
    web = add_vm("web", image="base", cloud_init=own)
    await export("web", target)
    on_another_host(tmp_path, monkeypatch)
    await import_(target)
    spec, new = vms.load("web"), VmPaths.of("web")
    assert spec.cloud_init is not None
    assert spec.cloud_init.user == "me"
    assert spec.cloud_init.packages == (own.packages if own else ())
    assert new.seed.exists()
    # The same machine, so nothing is set up anew; under a new name it is another.
    assert new.instance.read_text() == web.instance.read_text()
    await import_(target, name="two")
    assert VmPaths.of("two").instance.read_text() != web.instance.read_text()


async def test_keys_for_ssh_come_along_in_the_archive(
    target: Path, tmp_path: Path
) -> None:
    file = tmp_path / "id.pub"
    file.write_text(f"{KEY}\n")
    add_vm("web", cloud_init=CloudInit(ssh_keys=(str(file), KEY.replace("me", "us"))))
    await export("web", target)
    file.unlink()
    await import_(target, name="new")
    cloud = vms.load("new").cloud_init
    assert cloud is not None
    assert cloud.ssh_keys == (KEY, KEY.replace("me", "us"))


async def test_what_is_flat_needs_no_trust_any_more(target: Path) -> None:
    add_vm("web", trust_backing=True, disks=(Disk(size=MIB),))
    await export("web", target)
    await import_(target, name="new")
    assert not vms.load("new").trust_backing


async def test_a_disk_that_is_not_made_yet_is_made_there(target: Path) -> None:
    web = add_vm("web", disks=(Disk(size=MIB), Disk(size=2 * MIB, format="raw")))
    web.disk(1, "raw").unlink()
    web.made.write_text("disk0.qcow2\n")  # as if it had just been added
    await export("web", target)
    await import_(target, name="new")
    spec = vms.load("new")
    assert [disk.size for disk in spec.disks] == [None, 2 * MIB]


async def test_a_linked_clone_is_flattened_as_well(target: Path) -> None:
    from qemuctl.copies.clone import clone

    web = add_vm("web", disks=(Disk(size=MIB),))
    write(web.disk(0, "qcow2"), 0, 512, 5)
    await clone("web", "linked", linked=True)
    await export("linked", target)
    removal.remove("linked")
    removal.remove("web")
    await import_(target)
    assert content(VmPaths.of("linked").disk(0, "qcow2")) == digest(
        b"\5" * 512 + bytes(MIB - 512)
    )


async def test_an_existing_name_is_refused_and_another_one_may_be_given(
    target: Path,
) -> None:
    web = add_vm("web", disks=(Disk(size=MIB),))
    await export("web", target)
    before = everything(vms_dir())
    with pytest.raises(NameInUse):
        await import_(target)
    with pytest.raises(SpecError, match="name"):
        await import_(target, name="../x")
    assert everything(vms_dir()) == before
    assert await import_(target, name="two") == "two"
    assert vms.load("two").name == "two"
    assert content(VmPaths.of("two").disk(0, "qcow2")) == content(web.disk(0, "qcow2"))


async def test_an_export_never_replaces_a_file_and_names_what_is_wrong(
    target: Path,
) -> None:
    add_vm("web", disks=(Disk(size=MIB),))
    target.write_text("mine")
    with pytest.raises(ImageError, match="there is a file already"):
        await export("web", target)
    with pytest.raises(ImageError, match="no such folder"):
        await export("web", target / "x" / "y")
    with pytest.raises(NotFound):
        await export("wep", target)
    VmPaths.of("web").disk(0, "qcow2").write_text("broken")
    with pytest.raises(ImageError, match="disk0 cannot be exported"):
        await export("web", target.with_name("x"))
    assert target.read_text() == "mine"
    assert list(target.parent.iterdir()) == [target]


@pytest.fixture
def locked() -> Iterator[str]:
    fd = take(add_vm("web", disks=(Disk(size=MIB),)).lock)
    assert fd is not None
    yield "web"
    os.close(fd)


async def test_a_vm_that_is_on_is_not_exported(locked: str, target: Path) -> None:
    with pytest.raises(StateError, match="cannot export web: the VM is on"):
        await export(locked, target)
    assert list(target.parent.iterdir()) == []


async def cancelled_at_first_sight(work: Any, begun: asyncio.Event) -> None:
    task = asyncio.create_task(work)
    await asyncio.wait(
        {task, asyncio.ensure_future(begun.wait())},
        return_when=asyncio.FIRST_COMPLETED,
    )
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_is_interrupted_leaves_nothing(target: Path) -> None:
    web = add_vm("web", disks=(Disk(size=16 * MIB, format="raw"),))
    web.disk(0, "raw").write_bytes(os.urandom(16 * MIB))
    loop = asyncio.get_running_loop()
    for work in (export, import_):
        begun = asyncio.Event()

        def progress(_done: int, _total: int | None, begun: Any = begun) -> None:
            loop.call_soon_threadsafe(begun.set)

        if work is export:
            await cancelled_at_first_sight(
                export("web", target, progress=progress), begun
            )
            assert list(target.parent.iterdir()) == []
            await export("web", target)
        else:
            await cancelled_at_first_sight(
                import_(target, name="new", progress=progress), begun
            )
    assert vms.names() == ["web"]
    assert [path.name for path in vms_dir().iterdir()] == ["web"]


async def test_a_spec_that_leads_outside_needs_trust(
    target: Path, tmp_path: Path
) -> None:
    """What the user of the first VM had for good reasons is not for everyone."""
    add_vm(
        "web", nics=(Nic(type="tap", ifname="tap0"),), extra_args=("-no-user-config",)
    )
    await export("web", target)
    with pytest.raises(SpecError, match="leads outside of the VM") as caught:
        await import_(target, name="new")
    assert "--trust" in (caught.value.hint or "")
    await import_(target, name="new", trust=True)
    assert vms.load("new").extra_args == ("-no-user-config",)


async def test_a_port_for_the_whole_network_needs_trust(target: Path) -> None:
    forward = Forward(address="0.0.0.0", host_port=8080, guest_port=80)
    add_vm("web", nics=(Nic(forward=(forward,)),))
    await export("web", target)
    with pytest.raises(SpecError, match="leads outside of the VM") as caught:
        await import_(target, name="new")
    assert caught.value.key == "forward"
    await import_(target, name="new", trust=True)


async def test_an_archive_is_for_its_owner_only(target: Path) -> None:
    """It holds disks with keys in them."""
    add_vm("web", disks=(Disk(size=MIB),))
    await export("web", target)
    assert target.stat().st_mode & 0o777 == 0o600


async def test_the_archive_is_what_its_description_says(target: Path) -> None:
    """Any tool can look into it, and see that it is whole."""
    add_vm("web", disks=(Disk(size=MIB),))
    await export("web", target)
    with tarfile.open(target) as tar:
        assert tar.getnames() == ["qemuctl.json", "vm.yaml", "disks/disk0.qcow2"]
        listed = tar.extractfile("qemuctl.json")
        assert listed is not None
        about = json.load(listed)
        for entry in about["files"]:
            member = tar.extractfile(entry["name"])
            assert member is not None
            data = member.read()
            assert (len(data), digest(data)) == (entry["size"], entry["sha256"])
    assert (about["format"], about["name"]) == (1, "web")
