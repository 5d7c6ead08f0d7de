"""The command line as a command server."""

from __future__ import annotations

import pkgutil
from importlib import import_module

import qemuctl
from qemuctl.cli.app import build_all
from qemuctl.cli.main import main
from qemuctl.command_server.user import serve as serve_user
from qemuctl.registry.template import Template
from qemuctl.spec.base import Model
from qemuctl.typed.read import prepare

_NOT_OURS = ("qemuctl.__main__", "qemuctl.pytest_plugin", "qemuctl.testing", __name__)
# What modules load inside of functions, so that a cold command need not.
_LATER = (
    "asyncio", "concurrent.futures", "hashlib", "httpx", "importlib.metadata",
    "pycdlib", "rich.live", "rich.progress", "rich.table", "tarfile", "yaml",
    "zstandard",
)  # fmt: skip


def preload() -> None:
    """Loads and builds everything that a command may need."""
    for module in pkgutil.walk_packages(qemuctl.__path__, "qemuctl."):
        if not module.name.startswith(_NOT_OURS):
            import_module(module.name)
    for name in _LATER:
        import_module(name)
    build_all()
    for of in (*Model.__subclasses__(), Template):
        prepare(of)


def serve() -> None:
    """Serves the commands of this user until it is ended."""
    serve_user(main, preload)
