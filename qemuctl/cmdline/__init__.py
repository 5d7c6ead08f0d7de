"""What QEMU gets: one dataclass a switch, device or backend, in QEMU's words.

Pure: nothing here opens a file or asks the host. ::

    machine = build(spec, paths, host)         # SpecError, HostError
    argv(machine)                              # works when pasted into a shell
    argv(machine, sockets={path: fd, ...})     # as the launcher runs it
    format_argv(argv(machine))                 # one option a line

`to_qapi` of a device or backend is the JSON of ``-device``, ``-blockdev``,
``-netdev`` or ``-object``, and also the arguments of ``device_add``,
``blockdev-add``, ``netdev_add`` or ``object-add``: cold plug and hot plug
cannot drift apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qemuctl.lazy import exports

if TYPE_CHECKING:
    from qemuctl.cmdline.machine import Machine
    from qemuctl.cmdline.machinery import build
    from qemuctl.cmdline.qapi import to_qapi
    from qemuctl.cmdline.render import argv, format_argv

__getattr__ = exports(
    __name__,
    {
        "Machine": "qemuctl.cmdline.machine",
        "argv": "qemuctl.cmdline.render",
        "build": "qemuctl.cmdline.machinery",
        "format_argv": "qemuctl.cmdline.render",
        "to_qapi": "qemuctl.cmdline.qapi",
    },
)

__all__ = ["Machine", "argv", "build", "format_argv", "to_qapi"]
