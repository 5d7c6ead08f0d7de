"""The folder that holds the run folders of all of a user's homes.

It imports nothing but `os`: the client of a command server looks here before anything
else is loaded.
"""

from __future__ import annotations

import os


def tmp_base() -> str:
    """What is the user's own below ``/tmp``; its makers check whose it is."""
    return f"/tmp/qemuctl-{os.getuid()}"  # noqa: S108


def run_base() -> str:
    """Below ``$XDG_RUNTIME_DIR``, else below ``/tmp``.

    Not in ``/run/user``, though that is where the variable usually points:
    logind removes it when its user logs out, and a VM that goes on would lose
    its sockets.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if (
        runtime.startswith("/")
        and not runtime.startswith("/run/user/")
        and os.access(runtime, os.W_OK | os.X_OK)
    ):
        return os.path.join(runtime, "qemuctl")  # noqa: PTH118 (pathlib takes 5 ms)
    return tmp_base()
