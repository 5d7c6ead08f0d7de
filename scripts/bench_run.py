"""A command in a fresh guest, as people type it, against the library's fork."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from bench_commands import QEMUCTL, qemuctl, server
from bench_forks import ours, turns
from bench_table import Row, timed

from qemuctl import Spec
from qemuctl.registry.template import Template
from qemuctl.templates.catalog import cached_template

TEMPLATE = "bench-run"


def running(runs: int) -> Iterator[Row]:
    """By a command server, without a pool and with one."""
    template = asyncio.run(cached_template(Spec(name="bench", image="tiny")))
    fork = partial(_by_library, template)
    with server() as served:
        if not served:
            return
        mine, library = turns(4 * runs, partial(_run, "tiny"), fork)
        yield Row("qemuctl run tiny -- true, served / fork", "s", mine, library)
        more = [1000 * (a - b) for a, b in zip(mine, library, strict=True)]
        yield Row("  more than the fork", "ms", more, target=80, absolute=True)
        with pool():
            (mine,) = turns(4 * runs, partial(_run, "--template", TEMPLATE))
            yield Row("  by a warm pool", "s", mine, target=0.15, absolute=True)


def _by_library(template: Template) -> float:
    return asyncio.run(ours(template))


def _run(*source: str) -> float:
    return timed([QEMUCTL, "run", *source, "--", "true"])


@contextmanager
def pool() -> Iterator[None]:
    qemuctl("template", "create", TEMPLATE, "--image", "tiny")
    qemuctl("pool", "start", TEMPLATE)
    try:
        yield
    finally:
        qemuctl("pool", "stop", TEMPLATE)
