"""The argument list, and the text that can be pasted."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemuctl.cmdline import Machine, argv, build, format_argv
from qemuctl.host import Accel, Host
from qemuctl.host.discovery import from_json
from qemuctl.paths import VmPaths
from qemuctl.spec.model import Spec

RECORDED = Path(__file__).parent.parent / "golden" / "qemu-7.2.json"
HOST = Host(
    binary=from_json(Path("/opt/my qemu"), RECORDED.read_bytes()),
    accel=Accel(kind="tcg", reason="for the test", cpu_model="max"),
)
PATHS = VmPaths(state=Path("/s t/vm"), run=Path("/r/vm"))


def machine(**fields: object) -> Machine:
    return build(Spec.model_validate({"name": "vm", **fields}), PATHS, HOST)


def option(words: list[str], name: str) -> list[str]:
    return [words[at + 1] for at, word in enumerate(words) if word == name]


def through_a_shell(text: str, folder: Path) -> list[str]:
    """What a shell makes of ``text``, whose program is replaced."""
    program, _, rest = text.partition(" \\\n  ")
    assert program
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {rest}" if rest else "true"],
        capture_output=True,
        check=True,
        cwd=folder,
    )
    return done.stdout.decode(errors="surrogateescape").split("\0")[:-1]


def test_the_listening_sockets_are_monitors_serial_agent_and_copies() -> None:
    assert machine(display="vnc").listening == (
        PATHS.owner_socket,
        PATHS.tools_socket,
        PATHS.serial_socket,
        PATHS.agent_socket,
        PATHS.copy_socket,
    )


def test_a_vm_without_serial_and_agent_listens_on_its_monitors_only() -> None:
    assert machine(serial=False, agent=False).listening == (
        PATHS.owner_socket,
        PATHS.tools_socket,
    )


def test_sockets_handed_over_stand_as_descriptors() -> None:
    built = machine()
    fds = {path: 10 + at for at, path in enumerate(built.listening)}
    words = argv(built, sockets=fds)
    assert str(PATHS.run) not in " ".join(words)
    assert option(words, "-chardev")[:2] == [
        "socket,id=owner,fd=10,server=on,wait=off",
        "socket,id=tools,fd=11,server=on,wait=off",
    ]


def test_the_recorder_is_only_in_the_launched_line() -> None:
    built = machine()
    fds = dict.fromkeys(built.listening, 3)
    recorder = f"pipe,id=events,path={PATHS.events_stem}"
    assert recorder in option(argv(built, sockets=fds), "-chardev")
    assert recorder not in option(argv(built), "-chardev")


def test_a_socket_without_a_descriptor_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        argv(machine(), sockets={})


def test_paused_adds_its_switch_before_the_extra_arguments() -> None:
    built = machine(extra_args=["-device", "edu"])
    assert argv(built, paused=True)[-3:] == ["-S", "-device", "edu"]
    assert "-S" not in argv(built)


def test_each_line_is_one_option_with_its_value() -> None:
    lines = format_argv(["/q", "-a", "1", "-b", "-c", "x y", "-d"]).splitlines()
    assert lines == ["/q \\", "  -a 1 \\", "  -b \\", "  -c 'x y' \\", "  -d"]


def test_the_binary_is_quoted_and_stands_alone() -> None:
    assert format_argv(argv(machine())).splitlines()[0] == "'/opt/my qemu' \\"


def test_the_folders_are_made_first() -> None:
    built = machine()
    text = format_argv(["/q"], folders=built.folders)
    assert text == "mkdir -p -m 700 -- /r/vm '/s t/vm' &&\n/q"


def test_a_whole_line_survives_a_shell(tmp_path: Path) -> None:
    words = argv(machine(boot={"kernel": "/a'b", "cmdline": '$HOME "x" `y` \\ !'}))
    assert through_a_shell(format_argv(words), tmp_path) == words[1:]


# A shell is started for each example, which a busy host may do slowly.
@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), max_size=6)
)
def test_any_arguments_survive_a_shell(words: list[str]) -> None:
    text = format_argv(["/q", *words])
    assert through_a_shell(text, Path("/")) == words
