"""The ssh command line, as the installed OpenSSH understands it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qemuctl.cli.copy import _machine
from qemuctl.errors import UsageError
from qemuctl.guest.copy import get_file, put_file
from qemuctl.guest.port import CopyError, NotAFolder, Way
from qemuctl.guest.tree import get_tree, put_tree
from qemuctl.spec import Spec
from qemuctl.vm.ssh import Access, SshFailed, login_user, through_ssh


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


@dataclass(frozen=True, kw_only=True)
class Here(Access):
    """The guest's side of a copy run by this host's own shell and tools."""

    def argv(self, command: Sequence[str] = (), **_options: object) -> list[str]:
        # As sshd does: the words joined, for the login shell.
        return ["sh", "-c", super().argv(command)[-1]]


class Broken(Here):
    def argv(self, *_words: object, **_options: object) -> list[str]:
        return ["sh", "-c", "echo debian@web: Permission denied. >&2; exit 255"]


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
    for target, words in [("/no/x", "no such folder: /no/"), ("/dev/full", "ordinary")]:
        with pytest.raises(CopyError, match=words):
            await put_file(way(tmp_path), tmp_path / "f", target)
    with pytest.raises(CopyError, match="no such file"):
        await get_file(way(tmp_path), "/no", tmp_path / "x")
    with pytest.raises(NotAFolder):
        await get_tree(way(tmp_path), str(tmp_path / "f"), tmp_path / "x")


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
