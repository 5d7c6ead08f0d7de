"""The fixtures of tests with a real QEMU."""

from tests.guest.conftest import command_server, here, qemu, server, shared, web

__all__ = ["command_server", "here", "qemu", "server", "shared", "web"]
