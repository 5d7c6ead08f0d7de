"""Names of images and where their recipes are, without a look at any of them.

Apart from the store and the catalogue, for the shell completes names while its
user waits, and to load what can read a description takes longer than that.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from qemuctl.paths import config_home, images_dir

TINY = "tiny"
RECIPES = (TINY, "debian")
_KEY = re.compile(r"""^(["']?)([\w.-]+)\1[ \t]*:""", re.MULTILINE)


def stored() -> list[str]:
    """The names of the images in the store, sorted."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(
            entry.name
            for entry in os.scandir(images_dir())
            if not entry.name.startswith(".") and entry.is_dir()
        )
    return []


def recipes() -> Path:
    """The folder of recipes: inside an installed package, or beside a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_images"
    return installed if installed.is_dir() else package.parent / "images"


def catalog_file() -> Path:
    """The project's own catalogue."""
    return recipes() / "catalog.yaml"


def user_file() -> Path:
    """The user's own catalogue: ``$XDG_CONFIG_HOME/qemuctl/catalog.yaml``."""
    return config_home() / "catalog.yaml"


def in_catalog() -> list[str]:
    """What looks like the names of the catalogue, sorted: the keys at the start of
    a line. Only for completion, for it is no parser of YAML."""
    found: set[str] = set()
    for path in (catalog_file(), user_file()):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            found |= {match[2] for match in _KEY.finditer(path.read_text())}
    return sorted(found)
