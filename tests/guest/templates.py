"""What the tests of templates and forks look at."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from qemuctl import paths
from tests.conftest import CACHE
from tests.guest.conftest import Home


def facts(home: Home, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(home.text("template", "info", name, "--json"))
    return found


def sums(home: Home, name: str) -> dict[str, str]:
    """What is in each file of a template."""
    content = Path(facts(home, name)["folder"])
    return {
        str(path.relative_to(content)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(content.rglob("*"))
        if path.is_file()
    }


def throwaways(home: Home) -> list[str]:
    """What forks and templates in the making have left."""
    kept = home.text("ls", "-q", "-a").split()
    found = [path.name for path in (home.path / "state/vms").glob("*")]
    found += [path.name for path in paths.run_home().glob("*")]
    return sorted({name for name in found if name not in kept})


def record(home: Home, vm: str) -> dict[str, Any]:
    path = home.path / "state/vms" / vm / "process.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def cached(home: Home) -> list[str]:
    """The keys of the templates that were made by the way."""
    listed = json.loads(home.text("template", "ls", "--all", "--json"))
    return [item["name"] for item in listed if item["name"] == item["key"]]


def own_cache(home: Path) -> Home:
    """A home with a cache in which there are images but no templates yet."""
    cache = home / "cache"
    cache.unlink(missing_ok=True)
    cache.mkdir(parents=True, mode=0o700)
    for name in ("images", "qemu"):
        (CACHE / name).mkdir(mode=0o700, exist_ok=True)
        (cache / name).symlink_to(CACHE / name)
    return Home(home)
