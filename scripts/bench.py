"""Measures qemuctl against what does the same job without it, in the same run.

Both sides of a row take turns (A B A B), so that a host that is slow for a
while is slow for both, and medians are compared. Nothing is asserted here: a
target is a column of the table.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from bench_commands import commands
from bench_forks import forks
from bench_images import images
from bench_migrate import migrations
from bench_plugin import plugin
from bench_run import running
from bench_save import saving
from bench_start import SPEC, listings, starting, talking, weighing
from bench_table import Row, show
from bench_top import top

from qemuctl.image import build_tiny
from qemuctl.paths import cache_home, private_dir, run_home

# Each gives its rows for a number of boots of each side, in a home with the image.
SECTIONS: dict[str, Callable[[int], Iterator[Row]]] = {
    "start": starting,
    "talk": talking,
    "ls": listings,
    "memory": weighing,
    "commands": commands,
    "forks": forks,
    "run": running,
    "save": lambda runs: saving(2 * runs),
    "plugin": lambda _: plugin(),
    "images": lambda runs: images(SPEC, runs),
    "migrate": migrations,
    "top": lambda _: top(),
}


@contextmanager
def private_home() -> Iterator[None]:
    """A home whose VMs nobody else sees; the cache, with the image, is shared."""
    cache = private_dir(cache_home())
    with tempfile.TemporaryDirectory(prefix="qemuctl-bench-") as home:
        (Path(home) / "cache").symlink_to(cache)
        os.environ["QEMUCTL_HOME"] = home
        try:
            yield
        finally:
            shutil.rmtree(run_home(), ignore_errors=True)


def measured(sections: list[str], runs: int) -> Iterator[Row]:
    """The rows of each section, in a home of its own."""
    for section in sections:
        with private_home():
            asyncio.run(build_tiny(progress=print))
            for row in SECTIONS[section](runs):
                print(f"measured: {row.name}", flush=True)
                yield row


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", default=list(SECTIONS),
        help=f"only these: {', '.join(SECTIONS)}",
    )  # fmt: skip
    parser.add_argument("--runs", type=int, default=5, help="boots of each side (5)")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), metavar="FILE")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.sections if name not in SECTIONS]:
        parser.error(f"no such section: {unknown[0]}; there are {', '.join(SECTIONS)}")
    # As for Ctrl-C: what was started is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rows = list(measured(arguments.sections, arguments.runs))
    show(rows)
    host = {"platform": platform.platform(), "cpus": os.cpu_count()}
    document = {"host": host, "rows": [asdict(r) | {"ratio": r.ratio} for r in rows]}
    arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written to {arguments.json}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
