"""ssh to a VM: as whom, with which key, and whether its server is there."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
from typing import TYPE_CHECKING

from qemuctl.connection.agent_port import boots_first
from qemuctl.connection.connection import Connection
from qemuctl.connection.readiness import unless_hopeless
from qemuctl.errors import QemuctlError, StateError
from qemuctl.guest.ssh import Access
from qemuctl.guest.ssh_port import PORT, forward_of, until_greets
from qemuctl.registry.vms import load

if TYPE_CHECKING:
    from qemuctl.spec import Spec

SSH_TIMEOUT = 120.0
_SHUT_DOWN = "poweroff || sudo -n poweroff || sudo -n shutdown -h now"


def access_at(vm: Connection, spec: Spec, at: tuple[str, int] | None) -> Access:
    """How to reach the ssh server that is at this address and port. Raises
    StateError without one, HostError when there is no key pair and none can be made."""
    from qemuctl.image.keys import check_user, own_key

    check_user()
    if at is None:
        raise no_way(vm)
    return Access(
        host=at[0],
        port=at[1],
        user=login_user(spec),
        identity=own_key().private,
        known_hosts=vm.paths.known_hosts,
        alias=vm.name,
    )


def no_way(vm: Connection) -> StateError:
    """The error where no way leads to a guest's ssh server."""
    return StateError(
        f"reach {vm.name} by ssh",
        "running",
        f"no port of this host leads to its port {PORT}, and its agent tells no "
        "address that this host reaches",
        hint=f"give it one: qemuctl create … -p :{PORT}, or nics in its spec "
        f"(qemuctl edit {vm.name}), and start it anew",
    )


def login_user(spec: Spec) -> str:
    """Whom to log in as: the spec's user, else the image's, else one's own name.

    Raises ImageError for an image that is not there any more.
    """
    if spec.cloud_init is not None and spec.cloud_init.user is not None:
        return spec.cloud_init.user
    return _image_user(spec) or getpass.getuser()


def _image_user(spec: Spec) -> str | None:
    """The one place that asks the image whom it makes at its first boot."""
    if spec.image is None or spec.image_is_file:
        return None
    from qemuctl.image.store import find

    return find(spec.image).manifest.user


async def wait_ssh(
    vm: Connection, access: Access, timeout: float = SSH_TIMEOUT
) -> None:
    """Waits until the guest's ssh server greets.

    Raises WaitTimeout with the console's tail, NotReady when the console tells that
    the guest does not boot, and UnexpectedExit when QEMU ends first.
    """
    greeting = unless_hopeless(
        until_greets(access.host, access.port),
        vm.paths.serial_log,
        past=boots_first(vm.paths, vm.record),
    )
    with vm.deadline(f"ssh at {access.host}:{access.port}", timeout) as left:
        await vm.unless_ended(greeting, left)


async def shut_down(vm: Connection, timeout: float) -> bool:
    """Tells the guest by ssh to shut down; whether it was told within ``timeout``
    seconds."""
    try:
        # By what is on the disk: its sockets may be out of reach.
        found = access_at(vm, load(vm.name), forward_of(vm.record.forwards))
        argv = found.argv(_SHUT_DOWN, options=["BatchMode=yes"])
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except (QemuctlError, OSError):
        return False
    try:
        async with asyncio.timeout(timeout):
            return await process.wait() == 0
    except TimeoutError:
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
