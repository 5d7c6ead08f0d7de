"""Runs the tests on several Debian releases, each with its own QEMU and Python.

A release is a folder with a minimal system of it, made once from the machine's own
package sources; scripts/setup installs the rest there, as on any fresh machine. Each
run copies the checkout in, makes the folder its root, and starts scripts/test.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
RELEASES = ("bookworm", "trixie", "sid")
# Where the checkout lies in a release; the results are written beside it.
INSIDE = Path("root/qemuctl")
DAY = 24 * 3600
# Seconds that interrupted tests get to end what they started.
GRACE = 60.0
# What an interrupted program exits with.
INTERRUPTED = 130

SCRIPT = r"""
cd "$1"
shift
scripts/setup tests
{
    qemu-system-x86_64 --version | sed -n 's/.*version \([0-9.]*\).*/\1/p'
    .venv/bin/python -c 'import platform; print(platform.python_version())'
} >../facts
status=0
scripts/test --junitxml="$(cd .. && pwd)/results.xml" "$@" || status=$?
tiny=$(.venv/bin/python -c '
from qemuctl import paths
found = paths.cache_home().glob("images/tiny-*/packages.txt")
print(max(found, key=lambda path: path.stat().st_mtime, default=""))')
[ -z "$tiny" ] || sed -n 's/^linux-image-[0-9][^ ]* //p' "$tiny" >>../facts
exit $status
"""


@dataclass(frozen=True)
class Target:
    """Where to run: a Debian release, or the machine itself with a chosen Python."""

    name: str
    folder: Path
    python: Path | None = None

    @property
    def checkout(self) -> Path:
        return self.folder / (INSIDE if self.python is None else INSIDE.name)


@dataclass(frozen=True)
class Result:
    target: str
    status: int
    facts: tuple[str, ...]
    counts: dict[str, int]
    seconds: float

    @property
    def row(self) -> list[str]:
        qemu, python, kernel = (*self.facts, "-", "-", "-")[:3]
        counts = self.counts
        passed = sum(counts.values()) and counts["tests"] - sum(
            counts[key] for key in ("failures", "errors", "skipped")
        )
        numbers = [passed, *(counts.get(key, 0) for key in ("failures", "errors"))]
        minutes, seconds = divmod(round(self.seconds), 60)
        how = "passed" if self.status == 0 else f"status {self.status}"
        return [
            self.target, qemu, python, kernel, *map(str, numbers),
            f"{minutes}:{seconds:02d}", how,
        ]  # fmt: skip


HEAD = ["TARGET", "QEMU", "PYTHON", "KERNEL", "PASSED", "FAILED", "ERRORS", "TIME", ""]


def main() -> int:
    options = parse()
    targets = chosen(options)
    if os.geteuid() and any(target.python is None for target in targets):
        return fail("only root can enter other releases; --python alone needs no root")
    # As an exception, so that what was started ends too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    results: list[Result] = []
    status = 0
    try:
        results.extend(run(target, options) for target in targets)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except (OSError, subprocess.CalledProcessError, LookupError) as error:
        status = fail(str(error))
    if results:
        print()
        show([HEAD, *(result.row for result in results)])
    return status or max((result.status for result in results), default=0)


def parse() -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser = argparse.ArgumentParser(
        prog="scripts/matrix",
        description="Run the tests on several Debian releases, each with its own QEMU "
        "and Python. Needs root, and the machine's package sources must be Debian's.",
        epilog="examples: scripts/matrix    "
        "scripts/matrix --only trixie -- tests/guest/test_cpus.py    "
        "scripts/matrix --python /usr/local/bin/python3.12 -- tests/unit",
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="RELEASE",
        help=f"run on this release, not on all of {', '.join(RELEASES)}; may be "
        "repeated, and any release that the package sources have will do",
    )
    parser.add_argument(
        "--python",
        action="append",
        type=Path,
        default=[],
        metavar="PATH",
        help="run on this machine with this interpreter, and on releases only with "
        "--only; for Pythons that no Debian release has, such as 3.12",
    )
    parser.add_argument("--fresh", action="store_true", help="make the releases anew")
    parser.add_argument(
        "--folder",
        type=Path,
        default=cache / "qemuctl-matrix",
        help="where the releases are kept (%(default)s)",
    )
    parser.add_argument("arguments", nargs="*", help="arguments of pytest, after --")
    return parser.parse_args()


def chosen(options: argparse.Namespace) -> list[Target]:
    releases = options.only or ([] if options.python else RELEASES)
    folder = options.folder.absolute()
    return [
        *(Target(name, folder / name) for name in releases),
        *(
            Target(path.name, folder / f"here-{path.name}", path.absolute())
            for path in options.python
        ),
    ]


def run(target: Target, options: argparse.Namespace) -> Result:
    say(f"{target.name}: {target.folder}")
    with locked(target.folder):
        if options.fresh:
            remove(target.folder)
        if target.python is None:
            make_release(target)
        else:
            put_first(target)
        copy_checkout(target.checkout)
        results = target.checkout.parent
        for name in ("facts", "results.xml"):
            (results / name).unlink(missing_ok=True)
        begun = time.monotonic()
        status = start(target, options.arguments)
        seconds = time.monotonic() - begun
        facts = results / "facts"
        lines = facts.read_text().splitlines() if facts.exists() else []
        counts = read_counts(results / "results.xml")
        result = Result(target.name, status, tuple(lines), counts, seconds)
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        return result


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Of two runs with one folder, the second waits."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def remove(folder: Path) -> None:
    """Removes a release, but nothing that somebody has mounted in it."""
    subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)


# --- a release ---------------------------------------------------------------


def make_release(target: Target) -> None:
    """A minimal system in the target's folder, if it is not there yet."""
    made = target.folder / "etc/qemuctl-matrix"
    if not made.exists():
        say(f"{target.name}: making it from the machine's package sources")
        remove(target.folder)
        need_mmdebstrap()
        subprocess.run(
            [
                "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase",
                "--include=ca-certificates", *apt_options(), target.name,
                target.folder, *sources(target.name),
            ],
            check=True,
        )  # fmt: skip
        # No package is to start its daemon.
        policy = target.folder / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        made.touch()
    lists = target.folder / "var/lib/apt/lists"
    if time.time() - lists.stat().st_mtime > DAY:
        enter(target, ["apt-get", "-q", "update"], check=True)
        lists.touch()


def need_mmdebstrap() -> None:
    if shutil.which("mmdebstrap") is None:
        subprocess.run([CHECKOUT / "scripts/setup"], check=True)


def sources(release: str) -> list[str]:
    """The machine's package sources, with this release in place of its own."""
    rows = subprocess.run(
        [
            "apt-get", "indextargets", "--format",
            "$(LABEL)|$(CODENAME)|$(RELEASE)|$(REPO_URI)|$(COMPONENT)",
            "Created-By: Packages",
        ],
        check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    lines = {}
    for row in rows:
        label, codename, suite, uri, component = row.split("|")
        if label.startswith("Debian") and component == "main":
            # sid has neither updates nor security fixes of its own.
            suite = suite.replace(codename.partition("-")[0], release)
            if release != "sid" or suite == release:
                lines[f"deb {uri} {suite} main"] = None
    if not lines:
        raise LookupError(
            "the package sources of this machine are not Debian's, or without lists"
            "\n\nhint: Run apt-get update on a Debian machine."
        )
    return list(lines)


def apt_options() -> list[str]:
    """How the machine reaches its package sources: proxies, certificates, checks."""
    dump = subprocess.run(
        ["apt-config", "dump"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    ours = ("Acquire::http", "Acquire::https", "Acquire::Check", "Acquire::Retries")
    return [f"--aptopt={line}" for line in dump if line.startswith(ours)]


# --- a Python of the machine -------------------------------------------------


def put_first(target: Target) -> None:
    """A folder for PATH in which python3 is the target's; scripts/setup takes that."""
    assert target.python is not None
    link = target.folder / "bin/python3"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target.python)
    venv = target.checkout / ".venv/bin/python"
    if venv.exists() and venv.resolve() != target.python.resolve():
        shutil.rmtree(target.checkout / ".venv")


# --- running -----------------------------------------------------------------


def copy_checkout(folder: Path) -> None:
    """Copies what git tracks, as it is now; the virtual environment there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.name != ".venv":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=CHECKOUT, check=True, capture_output=True
    ).stdout
    for name in filter(None, tracked.split(b"\0")):
        source, copy = CHECKOUT / os.fsdecode(name), folder / os.fsdecode(name)
        if source.is_file() or source.is_symlink():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy, follow_symlinks=False)


def start(target: Target, arguments: list[str]) -> int:
    """Runs the tests; their exit status, `INTERRUPTED` after Ctrl-C."""
    if target.python is None:
        shell = ["bash", "-euc", SCRIPT, "matrix", f"/{INSIDE}", *arguments]
        return enter(target, shell)
    path = f"{target.folder / 'bin'}:{os.environ['PATH']}"
    shell = ["bash", "-euc", SCRIPT, "matrix", str(target.checkout), *arguments]
    return wait(shell, os.environ | {"PATH": path})


def enter(target: Target, command: list[str], *, check: bool = False) -> int:
    """Runs a command with the release as its root folder."""
    binds = "\n".join(map(str, shared_paths()))
    argv = [
        "unshare", "--mount", "--pid", "--fork", "--kill-child",
        str(CHECKOUT / "scripts/matrix_enter"), str(target.folder), *command,
    ]  # fmt: skip
    status = wait(argv, environment() | {"BIND": binds})
    if check and status:
        raise subprocess.CalledProcessError(status, command)
    return status


def wait(argv: list[str], env: dict[str, str]) -> int:
    with subprocess.Popen(argv, env=env) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # It has got the same Ctrl-C, and tells what it knows.
            try:
                process.wait(GRACE)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                process.kill()
            return INTERRUPTED
        except BaseException:
            process.kill()
            raise


def environment() -> dict[str, str]:
    """What a release gets of the machine's environment: the way to the network."""
    ours = ("PIP_", "SSL_CERT", "REQUESTS_CA", "CURL_CA", "TERM", "COLUMNS")
    return {
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        **{
            name: value
            for name, value in os.environ.items()
            if name.startswith(ours) or name.lower().endswith("_proxy")
        },
    }


def shared_paths() -> list[Path]:
    """What a release sees of the machine: names, certificates, and pip's settings
    with the folders that they name."""
    wanted = [Path("/etc/resolv.conf"), Path("/etc/hosts")]
    wanted += [Path("/etc/ssl/certs/ca-certificates.crt"), Path("/etc/pip.conf")]
    wanted += [Path("/etc/xdg/pip"), Path("/root/.config/pip"), Path("/root/.pip")]
    settings = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    for word in settings.replace("'", " ").replace("\\n", " ").split():
        path = Path(word.removeprefix("file://"))
        if path.is_absolute() and path.exists():
            # The files of an index lie beside it.
            wanted.append(path.parent if path.name == "simple" else path)
    found: dict[Path, None] = {}
    for path in wanted:
        inside = any(parent in found for parent in path.parents)
        if path.exists() and not inside:
            found[path] = None
    return list(found)


# --- what came of it ---------------------------------------------------------


def read_counts(path: Path) -> dict[str, int]:
    """tests, failures, errors and skipped, of pytest's report."""
    if not path.exists():
        return {}
    suite = next(ET.parse(path).getroot().iter("testsuite"))
    keys = ("tests", "failures", "errors", "skipped")
    return {key: int(suite.get(key, 0)) for key in keys}


def show(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def say(message: str) -> None:
    print(f"==> {message}", flush=True)


def fail(message: str) -> int:
    print(f"scripts/matrix: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
