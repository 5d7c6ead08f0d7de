"""A warm pool: forks of a template that are all but running, handed out at once.

`Pool` keeps them for one process. A shared one is a `Pool` in a process of its own
(`server`), which `control` starts and stops; it hands forks to any process that
starts one of the same template (`qemuctl.templates.pool_client`): from then on that
process owns the VM, and nothing that happens to the pool matters to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qemuctl.lazy import exports

if TYPE_CHECKING:
    from qemuctl.pool.pool import Pool
    from qemuctl.pool.status import Status

__getattr__ = exports(
    __name__, {"Pool": "qemuctl.pool.pool", "Status": "qemuctl.pool.status"}
)

__all__ = ["Pool", "Status"]
