"""Files into a real guest and out of it, through agent and port."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import qemuctl
from qemuctl.connection.ssh import wait_ssh
from qemuctl.errors import HostError, QemuctlError, UsageError, WaitTimeout
from qemuctl.guest.conversation import CopyError, NoPort
from qemuctl.guest.port import through_agent
from qemuctl.guest.ssh import Access
from tests.guest.conftest import Home

MIB = 1024 * 1024
NAMES = ["a b", "ü'\"$(x)`", "-rf", "*", "new\nline", "\\n", "x" * 250]


@pytest.fixture
async def vm(
    shared: Home, web: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[qemuctl.Vm]:
    monkeypatch.setenv("QEMUCTL_HOME", str(shared.path))
    async with await qemuctl.attach(web) as found:
        await found.agent.run(["sh", "-c", "rm -rf /tmp/t; mkdir /tmp/t"])
        yield found
        # Whatever a test did: nothing half is left in the guest.
        assert await said(found, "ls -a /tmp/t | grep qemuctl") == ""


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(os.urandom(20 * MIB + 12345))
    return path


async def said(vm: qemuctl.Vm, script: str) -> str:
    return (await vm.agent.run(["sh", "-c", script])).text


async def test_megabytes_go_in_and_come_out_unchanged(
    vm: qemuctl.Vm, big: Path, tmp_path: Path
) -> None:
    big.chmod(0o4751)
    told: list[tuple[int, int | None]] = []
    size = big.stat().st_size
    put = await vm.files.put(big, "/tmp/t", progress=lambda *at: told.append(at))
    assert put == "/tmp/t/big"
    assert (told[0], told[-1]) == ((0, size), (size, size))
    assert told == sorted(told)
    assert await said(vm, f"stat -c '%s %a' {put}") == f"{size} 751"
    back = await vm.files.get(put, tmp_path / "back")
    assert back.read_bytes() == big.read_bytes()
    assert stat.S_IMODE(back.stat().st_mode) == 0o751


@pytest.mark.parametrize("size", [0, 65536, 65537])
async def test_small_sizes_arrive_too(
    vm: qemuctl.Vm, tmp_path: Path, size: int
) -> None:
    source = tmp_path / "small"
    source.write_bytes(b"\0" * size)
    await vm.files.put(source, "/tmp/t/small")
    assert await said(vm, "stat -c %s /tmp/t/small") == str(size)
    assert (await vm.files.get("/tmp/t/small", tmp_path / "b")).stat().st_size == size


async def test_odd_names_are_names(vm: qemuctl.Vm, tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).write_text(name)
        await vm.files.put(tmp_path / name, "/tmp/t")
    (tmp_path / "out").mkdir()
    for name in NAMES:
        await vm.files.get(f"/tmp/t/{name}", tmp_path / "out")
        assert (tmp_path / "out" / name).read_text() == name
    assert await said(vm, "ls -A /tmp/t | wc -l") == str(len(NAMES))


async def test_relative_names_count_from_the_home_folder(
    vm: qemuctl.Vm, tmp_path: Path
) -> None:
    (tmp_path / "-a").write_text("here")
    await vm.files.put(tmp_path / "-a", "")
    await vm.files.put(tmp_path / "-a", "~/b")
    assert await said(vm, "cd ~root && cat ./-a b && rm ./-a") == "herehere"
    await vm.files.get("~/b", tmp_path)
    assert (tmp_path / "b").read_text() == "here"
    assert (await vm.files.get("b", tmp_path / "c")).read_text() == "here"
    await said(vm, "rm ~root/b")


async def test_a_file_of_proc_comes_whole_though_its_size_is_zero(
    vm: qemuctl.Vm, tmp_path: Path
) -> None:
    got = await vm.files.get("/proc/version", tmp_path)
    assert got.read_text().startswith("Linux version")


async def test_what_cannot_be_copied_in_says_why_and_leaves_the_target(
    vm: qemuctl.Vm, tmp_path: Path
) -> None:
    source = tmp_path / "file"
    source.write_text("new")
    await said(vm, "cd /tmp/t; mkdir dir dir/file; mkfifo pipe; ln -s nowhere link")
    for target, words in [
        ("/tmp/no/x", "the folder /tmp/no/ is missing"),
        ("/tmp/t/no/", "the folder /tmp/t/no/ is missing"),
        ("/tmp/t/pipe", "not an ordinary file"),
        ("/tmp/t/dir", "a folder is there: /tmp/t/dir/file"),
        ("/dev/null", "not an ordinary file"),
        ("/proc/x", "(?i)can't create|cannot create|no such file"),
    ]:
        with pytest.raises(CopyError, match=words):
            await vm.files.put(source, target)
    os.mkfifo(tmp_path / "fifo")
    for name, words in [("no", "no such file"), ("fifo", "not an ordinary file"),
                        (".", "a folder, which needs -r")]:  # fmt: skip
        with pytest.raises(HostError, match=words):
            await vm.files.put(tmp_path / name, "/tmp/t")
    with pytest.raises(UsageError, match="not UTF-8"):
        await vm.files.put(source, "/tmp/t/\udcff")


async def test_what_cannot_be_copied_out_says_why_and_leaves_the_target(
    vm: qemuctl.Vm, tmp_path: Path
) -> None:
    await said(vm, "cd /tmp/t; mkdir dir; mkfifo pipe; echo x >x")
    target = tmp_path / "target"
    target.write_text("old")
    for source, words in [
        ("/tmp/no", "no such file: /tmp/no"),
        ("/tmp/t/dir", "a folder, which needs -r"),
        ("/tmp/t/pipe", "not an ordinary file"),
    ]:
        with pytest.raises(CopyError, match=words):
            await vm.files.get(source, target)
    for place, words in [(tmp_path / "no/x", "no such folder"),
                         (Path("/dev/null"), "not an ordinary file")]:  # fmt: skip
        with pytest.raises(HostError, match=words):
            await vm.files.get("/tmp/t/x", place)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("port", [True, False])
async def test_a_full_disk_in_the_guest_is_told_once_and_nothing_stays(
    vm: qemuctl.Vm, big: Path, tmp_path: Path, port: bool
) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, it: told.append(it))
    way = None if port else through_agent(vm.agent, tmp_path / "no-socket")
    await said(vm, "mkdir -p /tmp/full && mount -t tmpfs -o size=1M full /tmp/full")
    try:
        with pytest.raises(CopyError, match="No space left"):
            await vm.files.put(big, "/tmp/full", way=way)
        assert await said(vm, "ls -A /tmp/full") == ""
    finally:
        await said(vm, "umount /tmp/full")
    gc.collect()
    await asyncio.sleep(0)
    assert told == []


async def test_a_file_that_changes_on_the_way_is_an_error(
    vm: qemuctl.Vm, big: Path, tmp_path: Path
) -> None:
    def shrink(done: int, _total: int | None) -> None:
        os.truncate(big, max(done, MIB))

    with pytest.raises(HostError, match="changed while it was copied"):
        await vm.files.put(big, "/tmp/t", progress=shrink)
    assert await said(vm, "ls -A /tmp/t") == ""
    await said(vm, "head -c 8000000 /dev/zero >/tmp/t/z")
    write = "n=$((n + 1)); echo $n | dd of=/tmp/t/z conv=notrunc 2>/dev/null"
    await said(vm, f"while [ ! -e /tmp/over ]; do {write}; done >/dev/null 2>&1 &")
    with pytest.raises(CopyError, match="changed while it was copied"):
        await vm.files.get("/tmp/t/z", tmp_path / "z")
    await said(vm, "touch /tmp/over")
    assert not (tmp_path / "z").exists()


@pytest.mark.parametrize("way", ["in", "out"])
async def test_after_a_cancelled_copy_the_next_one_gets_none_of_its_bytes(
    vm: qemuctl.Vm, big: Path, tmp_path: Path, way: str
) -> None:
    if way == "out":
        await vm.files.put(big, "/tmp/t/big")
    begun = asyncio.Event()

    def progress(done: int, _total: int | None) -> None:
        if done:
            begun.set()

    copying: Any = (
        vm.files.put(big, "/tmp/t/cut", progress=progress)
        if way == "in"
        else vm.files.get("/tmp/t/big", tmp_path / "cut", progress=progress)
    )
    task = asyncio.create_task(copying)
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (tmp_path / "next").write_text("next")
    await vm.files.put(tmp_path / "next", "/tmp/t")
    got = await vm.files.get("/tmp/t/next", tmp_path / "got")
    assert got.read_text() == "next"
    assert not (tmp_path / "cut").exists()
    assert "cut" not in await said(vm, "ls -A /tmp/t")


@pytest.mark.parametrize("way", ["in", "out"])
async def test_after_a_killed_copy_the_next_one_gets_none_of_its_bytes(
    vm: qemuctl.Vm, shared: Home, big: Path, tmp_path: Path, way: str,
    until: Callable[..., Any],
) -> None:  # fmt: skip
    if way == "out":
        await vm.files.put(big, "/tmp/t/big")
    vm.agent.release()
    words = [str(big), "web:/tmp/t/cut"] if way == "in" else ["web:/tmp/t/big", "."]
    process = shared.popen("cp", "--via", "agent", *words, cwd=tmp_path / "..")
    folder = tmp_path / ".."

    def moving() -> bool:
        if way == "in":
            return position(process.pid, big) > MIB
        return any(path.stat().st_size for path in folder.glob(".qemuctl-*/*"))

    try:
        # In a thread: until the loop has closed our connection, cp waits for it.
        await asyncio.to_thread(until, moving, 30)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (tmp_path / "next").write_text("next")
    await vm.files.put(tmp_path / "next", "/tmp/t")
    got = await vm.files.get("/tmp/t/next", tmp_path / "got")
    assert got.read_text() == "next"
    assert "cut" not in await said(vm, "ls -A /tmp/t")


def position(pid: int, path: Path) -> int:
    """How far a process has read a file that it has open."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if link.resolve() == path:
                info = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text()
                return int(info.split()[1])
        except OSError:
            continue
    return 0


async def test_copies_at_once_wait_for_each_other_and_do_not_mix(
    vm: qemuctl.Vm, tmp_path: Path
) -> None:
    sources = [tmp_path / f"s{number}" for number in range(4)]
    for source in sources:
        source.write_bytes(os.urandom(MIB))
    await asyncio.gather(*(vm.files.put(source, "/tmp/t") for source in sources))
    back = await asyncio.gather(
        *(vm.files.get(f"/tmp/t/{s.name}", tmp_path / f"b-{s.name}") for s in sources)
    )
    for source, got in zip(sources, back, strict=True):
        assert got.read_bytes() == source.read_bytes()


async def test_the_guests_own_reader_of_the_port_does_not_stop_a_copy(
    vm: qemuctl.Vm, tmp_path: Path
) -> None:
    await vm.agent.start(["sh", "-c", "exec sleep 60 <>/dev/virtio-ports/qemuctl.copy"])
    (tmp_path / "x").write_text("x")
    assert await vm.files.put(tmp_path / "x", "/tmp/t") == "/tmp/t/x"


async def test_without_the_port_files_go_through_the_agent_in_parts(
    vm: qemuctl.Vm, tmp_path: Path
) -> None:
    way = through_agent(vm.agent, tmp_path / "no-socket")
    source = tmp_path / "s"
    source.write_bytes(os.urandom(MIB + 7))
    assert await vm.files.put(source, "/tmp/t", way=way) == "/tmp/t/s"
    got = await vm.files.get("/tmp/t/s", tmp_path / "b", way=way)
    assert got.read_bytes() == source.read_bytes()
    with pytest.raises(CopyError, match="no such file"):
        await vm.files.get("/tmp/t/no", tmp_path / "c", way=way)
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/f").write_text("f")
    await vm.files.put(tmp_path / "dir", "/tmp/t", recursive=True, way=way)
    await vm.files.get("/tmp/t/dir", tmp_path / "d2", recursive=True, way=way)
    assert (tmp_path / "d2/f").read_text() == "f"
    assert issubclass(NoPort, QemuctlError)


def tree(path: Path) -> dict[str, tuple[int, bytes | str]]:
    found: dict[str, tuple[int, bytes | str]] = {}
    for file in sorted(path.rglob("*")):
        status = file.lstat()
        content: bytes | str = b""
        if file.is_symlink():
            content = str(file.readlink())
        elif file.is_file():
            content = file.read_bytes()
        found[str(file.relative_to(path))] = (status.st_mode, content)
    return found


async def test_a_folder_goes_in_and_comes_out_with_all_modes_and_links(
    vm: qemuctl.Vm, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    (source / "sub dir/deep").mkdir(parents=True)
    for name in NAMES:
        (source / "sub dir" / name).write_text(name)
    (source / "empty").mkdir(mode=0o500)
    (source / "sub dir/deep/data").write_bytes(os.urandom(2 * MIB + 3))
    (source / "sub dir/deep/data").chmod(0o640)
    (source / "zero").touch(0o755)
    (source / "link").symlink_to("sub dir/deep/data")
    source.chmod(0o711)
    assert await vm.files.put(source, "/tmp/t", recursive=True) == "/tmp/t/source"
    got = await vm.files.get("/tmp/t/source", tmp_path / "out", recursive=True)
    assert tree(got) == tree(source)
    assert stat.S_IMODE(got.stat().st_mode) == 0o711
    # A folder that is there takes it in, and is merged with what it has.
    (got / "zero").write_text("changed")
    (got / "mine").write_text("mine")
    await vm.files.put(got, "/tmp/t/source/../", recursive=True)
    assert await said(vm, "cat /tmp/t/out/zero /tmp/t/out/mine") == "changedmine"
    await said(vm, "echo guest >/tmp/t/out/zero; rm /tmp/t/out/mine")
    again = await vm.files.get("/tmp/t/out", tmp_path, recursive=True)
    assert again == got
    assert ((got / "zero").read_text(), (got / "mine").read_text()) == (
        "guest\n", "mine",
    )  # fmt: skip
    one = await vm.files.get("/tmp/t/out/zero", tmp_path / "one", recursive=True)
    assert one.read_text() == "guest\n"


async def test_a_folder_that_holds_more_than_files_is_refused(
    vm: qemuctl.Vm, tmp_path: Path
) -> None:
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / "dir/pipe")
    with pytest.raises(HostError, match=r"not an ordinary file: .*pipe"):
        await vm.files.put(tmp_path / "dir", "/tmp/t", recursive=True)
    await said(vm, "cd /tmp/t; mkdir a b; ln -s /etc/passwd a/link; mkfifo b/pipe")
    for name in ("a", "b"):
        with pytest.raises(CopyError, match="holds what is not copied"):
            await vm.files.get(f"/tmp/t/{name}", tmp_path, recursive=True)
    assert [path.name for path in tmp_path.iterdir()] == ["dir"]


def test_cp_copies_both_ways_and_explains_itself(
    shared: Home, web: str, tmp_path: Path
) -> None:
    for name in ("a", "b c"):
        (tmp_path / name).write_text(name)
    cp = ("cp", "--via", "agent")
    done = shared.run(*cp, "a", "b c", f"{web}:/tmp", cwd=tmp_path)
    assert done.stdout == b""
    assert done.stderr.splitlines()[-1] == b"copied to web:/tmp/b c as root"
    words = shared.words(*cp, "a", f"{web}:", cwd=tmp_path)
    assert words == "copied to web:~/a as root\n"
    shared.run(*cp, f"{web}:/tmp/a", f"{web}:/tmp/b c", "-r", ".", cwd=tmp_path / "..")
    assert (tmp_path / "../b c").read_text() == "b c"
    words = shared.words(*cp, "a", "b c", f"{web}:/tmp/no", cwd=tmp_path, check=1)
    assert "the folder /tmp/no/ is missing" in words


def test_a_vm_that_is_off_is_told_with_the_commands_own_name(shared: Home) -> None:
    shared.run("create", "idle", "--image", "tiny")
    for verb, words in [("ssh", ["idle"]), ("cp", [__file__, "idle:/tmp/"])]:
        told = shared.words(verb, *words, check=1)
        assert told.startswith(f"error: cannot {verb} idle: the VM is off\n")
    shared.run("rm", "idle")


async def test_ssh_is_there_when_its_server_greets_and_not_before(
    vm: qemuctl.Vm, tmp_path: Path
) -> None:
    await vm.agent.run(["sh", "-c", "echo tiny speaks >/dev/ttyS0"])
    answers = [b"", b"busy, come back\n", b"hello\r\nSSH-2.0-x\r\n"]

    async def serve(_reader: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(answers.pop(0))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        await wait_ssh(vm, at(server.sockets[0].getsockname()[1], tmp_path), 10)
    assert not answers
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        with pytest.raises(WaitTimeout, match="waiting for ssh at") as late:
            await wait_ssh(vm, at(deaf.getsockname()[1], tmp_path), 0.2)
    assert "tiny" in late.value.console_tail


def test_a_file_goes_to_standard_output_and_comes_from_standard_input(
    shared: Home, web: str
) -> None:
    words = shared.words("cp", "-", f"{web}:/tmp/piped", input=b"piped")
    assert f"{web}:/tmp/piped as root" in words
    assert shared.text("cp", f"root@{web}:/tmp/piped", "-") == "piped"
    told = shared.words("cp", __file__, f"joe@{web}:", "--via", "agent", check=2)
    assert "you are root, not joe" in told


def at(port: int, folder: Path) -> Access:
    return Access(
        host="127.0.0.1", port=port, user="root", identity=folder / "id",
        known_hosts=folder / "known_hosts", alias="web",
    )  # fmt: skip


def test_ssh_config_tells_the_port_that_the_kernel_chose(
    shared: Home, web: str
) -> None:
    stanza = shared.text("ssh-config", web).splitlines()
    assert stanza[0] == "Host web"
    port = next(line.split()[1] for line in stanza if " Port " in line)
    assert f"127.0.0.1:{port}->22" in shared.text("info", web)
    late = shared.words("ssh", web, "--timeout", "200ms", "--", "true", check=1)
    assert "tiny has no ssh server" in late
    assert f"qemuctl console {web}" in late
