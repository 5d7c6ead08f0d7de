"""The built wheel, in an environment and a folder that know no checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from qemuctl.cli.help import TOPICS, page
from tests.unproven import found

pytestmark = pytest.mark.timeout(600)

CHECKOUT = Path(__file__).parents[2]
TESTS = """
def test_a_guest(vm):
    assert vm.run("echo works").text == "works"
"""


def call(*argv: object) -> str:
    done = subprocess.run(
        list(map(str, argv)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel; what the wheel depends on is seen
    where the tests have it, for nothing may be fetched."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    build = ("--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    call(*pip, "wheel", *build, CHECKOUT)
    (wheel,) = folder.glob("qemuctl-*.whl")
    call(sys.executable, "-m", "venv", "--without-pip", folder / "env")
    python = folder / "env/bin/python"
    call(*pip, "--python", python, "install", "--no-index", "--no-deps", wheel)
    show_dependencies(folder / "dependencies", python)
    return python


def show_dependencies(folder: Path, python: Path) -> None:
    """Gives an environment what the tests' own has, without its qemuctl."""
    folder.mkdir()
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(place).iterdir():
            if "qemuctl" not in entry.name and entry.suffix != ".pth":
                (folder / entry.name).symlink_to(entry)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = call(python, "-c", ask).strip()
    (Path(packages) / "dependencies.pth").write_text(f"{folder}\n")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, which is not the checkout."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return folder


def test_it_has_the_whole_package_and_its_own_images(
    python: Path, elsewhere: Path
) -> None:
    ask = "from qemuctl.image.names import recipes as r; print(r())"
    images = Path(call(python, "-c", ask).strip())
    assert images.is_relative_to(python.parents[1])
    assert images.parent.name == "qemuctl"
    assert listing(images.parent) == listing(CHECKOUT / "qemuctl")
    assert listing(images) == listing(CHECKOUT / "images")


def listing(folder: Path) -> dict[str, bool]:
    """The files below a folder, and whether each may be run."""
    return {
        str(name): os.access(folder / name, os.X_OK)
        for name in (path.relative_to(folder) for path in folder.rglob("*"))
        if (folder / name).is_file() and not {"__pycache__", "_images"} & {*name.parts}
    }


def test_man_has_the_whole_manual(python: Path, elsewhere: Path) -> None:
    made = python.parents[1] / "share/man/man1/qemuctl.1"
    text = made.read_text()
    heads = re.findall(r"^\.SH (.*)", text.replace("\\-", "-"), re.MULTILINE)
    titles = [page(topic).splitlines()[0][2:].upper() for topic in TOPICS]
    assert heads == ["NAME", "SYNOPSIS", "DESCRIPTION", *titles]
    assert text.count("\n.nf\n") == text.count("\n.fi\n")
    assert "`" not in text
    if found("groff"):
        shown = call("groff", "-Kutf8", "-man", "-ww", "-Tutf8", "-P-cbou", made)
        assert "warning" not in shown
        assert "    qemuctl create web --image tiny --memory 512M" in shown
    if found("man"):
        argv = ["env", f"PATH={python.parent}:/usr/bin:/bin", "man", "-w", "qemuctl"]
        assert Path(call(*argv).strip()).samefile(made)


def test_its_command_runs_a_guest(
    python: Path, elsewhere: Path, home: Path, qemu: Path
) -> None:
    call(python.with_name("qemuctl"), "run", "tiny", "--", "true")


def test_its_plugin_gives_a_guest_to_a_test(
    python: Path, elsewhere: Path, home: Path, qemu: Path
) -> None:
    (elsewhere / "test_it.py").write_text(TESTS)
    said = call(python, "-m", "pytest", "-p", "no:cacheprovider", "test_it.py")
    assert "1 passed" in said, said
