"""The ssh command line, as the installed OpenSSH understands it."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from qemuctl.cli.copy import _machine
from qemuctl.connection.ssh import login_user
from qemuctl.errors import HostError, UsageError
from qemuctl.guest.conversation import CopyError, NotAFolder
from qemuctl.guest.copy import get_file, put_file
from qemuctl.guest.port import Way
from qemuctl.guest.ssh import Access, SshFailed, through_ssh
from qemuctl.guest.tree import get_tree, put_tree
from qemuctl.spec import Spec


def access(folder: Path) -> Access:
    return Access(
        host="127.0.0.1", port=40123, user="debian", identity=folder / "id",
        known_hosts=folder / "known_hosts", alias="web",
    )  # fmt: skip


def understood(argv: Sequence[str | Path]) -> dict[str, str]:
    """What `ssh -G` makes of a command line."""
    done = subprocess.run(
        [argv[0], "-G", *argv[1:]], capture_output=True, check=True, text=True
    )
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "a 100%d 'folder'"
    path.mkdir()
    return path


def expected(folder: Path) -> dict[str, str]:
    return {
        "hostname": "127.0.0.1", "port": "40123", "user": "debian",
        "hostkeyalias": "web", "identitiesonly": "yes", "loglevel": "ERROR",
        "stricthostkeychecking": "accept-new", "forwardagent": "no",
        "globalknownhostsfile": "/dev/null",
    }  # fmt: skip


def test_ssh_understands_what_it_is_told(folder: Path) -> None:
    found = understood(access(folder).argv(["true"]))
    assert {key: found[key] for key in expected(folder)} == expected(folder)
    # Percent signs are expanded when ssh connects, so -G shows them doubled.
    for key, name in (("identityfile", "id"), ("userknownhostsfile", "known_hosts")):
        assert found[key].strip('"').replace("%%", "%") == str(folder / name)


def test_the_stanza_says_the_same_as_the_command_line(folder: Path) -> None:
    config = folder / "config"
    config.write_text(access(folder).stanza())
    assert understood(["ssh", "-F", config, "web"]) == understood(
        access(folder).argv(["true"])
    ) | {"host": "web"}


def test_options_of_the_user_and_another_login_come_first(folder: Path) -> None:
    options = ["ForwardAgent=yes", "Port=1", "LogLevel=DEBUG"]
    found = understood(access(folder).argv(options=options, user="root"))
    assert (found["forwardagent"], found["port"]) == ("yes", "1")
    assert (found["user"], found["loglevel"]) == ("root", "DEBUG")


def test_a_key_is_found_at_a_path_with_spaces_and_percent_signs(folder: Path) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "id"], check=True
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        # ssh reads its keys once it is connected.
        threading.Thread(target=lambda: server.accept()[0].close()).start()
        port = f"Port={server.getsockname()[1]}"
        argv = access(folder).argv(["true"], options=["LogLevel=DEBUG1", port])
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    # The type of a file that could not be read is -1.
    assert f"identity file {folder}/id type" in done.stderr
    assert f"identity file {folder}/id type -1" not in done.stderr


def test_words_of_a_command_arrive_as_they_were_given(tmp_path: Path) -> None:
    words = ["printf", "[%s]", "a b", "", "'", '"', "$HOME", "*", "-x", "--", "ü\n"]
    argv = access(tmp_path).argv(words)
    assert argv[-3:-1] == ["--", "web"]
    done = subprocess.run(["sh", "-c", argv[-1]], capture_output=True, check=True)
    assert done.stdout.decode() == "".join(f"[{word}]" for word in words[2:])
    assert access(tmp_path).argv()[-1] == "web"


def test_the_login_is_the_specs_or_else_ones_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOGNAME", "me")
    assert login_user(Spec.model_validate({"name": "a"})) == "me"
    assert login_user(Spec.model_validate({"name": "a", "image": "./x.qcow2"})) == "me"
    spec = {"name": "a", "image": "no-such", "cloud_init": {"user": "bob"}}
    assert login_user(Spec.model_validate(spec)) == "bob"


@pytest.mark.parametrize(
    ("sources", "target", "expected"),
    [
        (["a"], "web:/tmp", ("web", True)),
        (["./x:y", "b"], "web:", ("web", True)),
        (["web:/a", "web:b c"], ".", ("web", False)),
        (["web:/a:b"], "./c:d", ("web", False)),
    ],
)
def test_one_side_of_a_copy_is_in_a_vm(
    sources: list[str], target: str, expected: tuple[str, bool]
) -> None:
    assert _machine(sources, target) == expected


@pytest.mark.parametrize(
    ("sources", "target", "words"),
    [
        (["a"], "b", "neither side is in a VM"),
        (["./web:a"], "/web:b", "neither side is in a VM"),
        (["web:/a"], "other:/b", "from one VM to another"),
        (["web:/a", "other:/b"], ".", "must come from one VM"),
        (["web:/a", "b"], ".", "must come from one VM"),
    ],
)
def test_any_other_copy_is_refused(sources: list[str], target: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        _machine(sources, target)


class Here(Access):
    """The guest's side of a copy run by this host's own shell and tools."""

    def argv(self, command: Sequence[str] = (), **_options: object) -> list[str]:
        # As sshd does: the words joined, for the login shell.
        return ["sh", "-c", super().argv(command)[-1]]


class Silent(Here):
    def argv(self, *_words: object, **_options: object) -> list[str]:
        return ["sh", "-c", "cat >/dev/null"]


class Broken(Here):
    def argv(self, *_words: object, **_options: object) -> list[str]:
        words = "debian@web: \\033[2JPermission denied.\\n"
        return ["sh", "-c", f"printf '{words}' >&2; exit 255"]


def way(folder: Path, kind: type[Access] = Here) -> Way:
    return through_ssh(
        kind(
            host="-", port=1, user="-", identity=folder, known_hosts=folder, alias="web"
        )
    )


async def test_files_and_folders_go_through_the_shell_at_the_far_end(
    tmp_path: Path,
) -> None:
    source, there = tmp_path / "a 'b'", tmp_path / "there"
    (source / "sub").mkdir(parents=True)
    there.mkdir()
    (source / "sub/data").write_bytes(os.urandom(3_000_001))
    (source / "sub/back\\slash\nline").write_text("odd")
    (source / "sub/data").chmod(0o640)
    (source / "link").symlink_to("sub/data")
    put = await put_tree(way(tmp_path), source, str(there))
    assert put == str(there / source.name)
    again = await put_tree(way(tmp_path), source, str(there))
    assert again == put
    got = await get_tree(way(tmp_path), put, tmp_path / "got")
    for name in ("sub/data", "sub/back\\slash\nline"):
        assert (got / name).read_bytes() == (source / name).read_bytes()
    assert (got / "link").readlink() == Path("sub/data")
    file = await put_file(way(tmp_path), source / "sub/data", f"{there}/")
    assert Path(file).stat().st_mode & 0o777 == 0o640
    back = await get_file(way(tmp_path), file, tmp_path / "back")
    assert back.read_bytes() == (source / "sub/data").read_bytes()
    assert not list(there.glob(".qemuctl-*"))


async def test_the_far_end_says_why_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("f")
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for target, words in [
        ("/no/x", "the folder /no/ is missing"),
        (str(tmp_path / "pipe"), "ordinary"),
    ]:
        with pytest.raises(CopyError, match=words):
            await put_file(way(tmp_path), tmp_path / "f", target)
    with pytest.raises(CopyError, match="no such file"):
        await get_file(way(tmp_path), "/no", tmp_path / "x")
    with pytest.raises(NotAFolder):
        await get_tree(way(tmp_path), str(tmp_path / "f"), tmp_path / "x")


async def test_folders_that_nobody_may_write_to_come_as_they_are(
    tmp_path: Path,
) -> None:
    source, got = tmp_path / "there/it", tmp_path / "it"
    (source / "sub").mkdir(parents=True)
    (source / "sub/f").write_text("f")
    for folder in (source / "sub", source):
        folder.chmod(0o555)
    try:
        assert await get_tree(way(tmp_path), str(source), tmp_path) == got
        modes = [path.stat().st_mode & 0o777 for path in (got, got / "sub")]
        assert modes == [0o555, 0o555]
        for folder in (got, got / "sub", got / "sub/f"):
            folder.chmod(0o755)
        (got / "sub/f").write_text("old")
        # What is there already keeps its mode.
        await get_tree(way(tmp_path), str(source), tmp_path)
        assert (got / "sub/f").read_text() == "f"
        assert (got / "sub").stat().st_mode & 0o777 == 0o755
    finally:
        for folder in (source, source / "sub", got, got / "sub"):
            folder.chmod(0o755)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["it", "there"]


async def test_names_may_count_from_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (tmp_path / "f").write_text("f")
    for target, name in [("~/a", "a"), ("b", "b"), ("~", "f"), ("~x", "~x")]:
        await put_file(way(tmp_path), tmp_path / "f", target)
        assert (home / name).read_text() == "f"
    for source, name in [("~/a", "a"), ("b", "b"), ("~x", "~x")]:
        assert await get_file(way(tmp_path), source, here) == here / name
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_text("f")
    for target in ("~/d1", "d2", "~/", ""):
        await put_tree(way(tmp_path), tmp_path / "d", target)
    assert sorted(entry.name for entry in home.iterdir()) == [
        "a", "b", "d", "d1", "d2", "f", "~x",
    ]  # fmt: skip
    assert await get_tree(way(tmp_path), "~/d1/", here) == here / "d1"
    assert await get_tree(way(tmp_path), "d2", here) == here / "d2"
    # What the home folder is called, only the guest knows.
    assert await get_tree(way(tmp_path), "~", here / "all") == here / "all"
    assert await get_tree(way(tmp_path), "~", here) == here
    assert (here / "d/f").read_text() == "f"


async def test_a_full_disk_here_is_told_with_the_targets_own_name(
    tmp_path: Path,
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_bytes(bytes(3_000_000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        for copy in (
            get_file(way(tmp_path), str(tmp_path / "d/f"), tmp_path / "t"),
            get_tree(way(tmp_path), str(tmp_path / "d"), tmp_path / "t"),
        ):
            with pytest.raises(HostError) as error:
                await copy
            words = f"cannot copy {tmp_path}/t: file too large"
            assert error.value.message == words
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [entry.name for entry in tmp_path.iterdir()] == ["d"]


async def test_what_a_killed_copy_left_is_swept_by_the_next(
    tmp_path: Path, until: Callable[..., Any]
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    (there / "big").write_bytes(bytes(1000))
    # It waits for a guest that says nothing.
    copy = f"""
import asyncio
from pathlib import Path
from tests.unit.test_ssh import Silent, get_file, get_tree, way
async def main():
    await asyncio.gather(
        get_file(way(Path("/"), Silent), "/x", Path({str(here)!r})),
        get_tree(way(Path("/"), Silent), "/x", Path({str(here)!r})),
    )
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", copy)
    await asyncio.to_thread(until, lambda: len(list(here.glob("*.new"))) == 2, 20)
    process.kill()
    await process.wait()
    assert len(list(here.glob("*.new"))) == 2
    await get_file(way(tmp_path), str(there / "big"), here)
    assert [entry.name for entry in here.iterdir()] == ["big"]


async def test_a_copy_that_is_cancelled_leaves_nothing_at_the_far_end(
    tmp_path: Path, until: Callable[..., Any]
) -> None:
    (tmp_path / "f").write_bytes(bytes(30_000_000))
    (tmp_path / "d").mkdir()
    begun = asyncio.Event()

    def progress(done: int, _total: int | None) -> None:
        if done:
            begun.set()

    copying = put_file(
        way(tmp_path), tmp_path / "f", str(tmp_path / "d"), progress=progress
    )
    task = asyncio.create_task(copying)
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    until(lambda: not list((tmp_path / "d").iterdir()))


async def test_an_ssh_that_is_not_let_in_says_so(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("f")
    with pytest.raises(SshFailed, match=r"ssh failed: debian@web: Permission denied"):
        await put_file(way(tmp_path, Broken), tmp_path / "f", "/x")


class Small(Here):
    """No file at the far end may pass 64 KiB, as if the disk were full."""

    def argv(self, command: Sequence[str] = (), **_options: object) -> list[str]:
        words = super().argv(command)
        return ["sh", "-c", f"trap '' XFSZ; ulimit -f 128; {words[-1]}"]


@pytest.mark.parametrize("folder", [False, True])
async def test_a_full_disk_at_the_far_end_is_one_error_and_no_more(
    tmp_path: Path, folder: bool
) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, it: told.append(it))
    (tmp_path / "there").mkdir()
    source = tmp_path / "s"
    source.mkdir()
    (source / "f").write_bytes(bytes(30_000_000))
    put: Any = put_tree if folder else put_file
    with pytest.raises(CopyError, match=r"(?i)cannot copy.*(too large|only)") as error:
        await put(
            way(tmp_path, Small), source if folder else source / "f",
            str(tmp_path / "there"),
        )  # fmt: skip
    assert len(error.value.message.splitlines()) == 1
    assert list((tmp_path / "there").iterdir()) == []
    del error
    gc.collect()
    await asyncio.sleep(0)
    assert told == []
