"""The fixtures of tests with a real QEMU."""

from tests.guest.conftest import here, qemu, shared, web

__all__ = ["here", "qemu", "shared", "web"]
