"""A clone of a real distribution is another machine, as its first boot makes it."""

from __future__ import annotations

from tests.guest.conftest import Home
from tests.guest.test_debian import facts, home, ssh

__all__ = ["home"]


def test_a_clone_is_another_machine(here: Home) -> None:
    here.run("image", "build", "debian", timeout=600)
    spec = here.path / "web.yaml"
    spec.write_text(
        "name: web\nimage: debian\nmemory: 768M\ncpu: 2\n"
        "cloud_init: {run: ['echo first > /first-boot']}\n"
    )
    here.run("create", "-f", spec)
    here.run("start", "web")
    web = facts(here, "web")
    here.run("stop", "web")
    here.run("clone", "web", "web2", "--linked")
    assert "web2" in here.words("rm", "web", check=1)
    here.run("start", "web2")
    clone = facts(here, "web2")
    assert clone["host"] == "web2"
    assert {name for name in web if web[name] == clone[name]} == set()
    assert ssh(here, "web2", "cat", "/first-boot") == "first\n"
    here.run("kill", "web2")
    here.run("rm", "web2", "web")
    here.run("image", "verify", "debian", timeout=120)  # nobody wrote to it
