"""The side that a VM comes to: what `migrate-receive` does.

What it has made belongs to it, and dies with it, whatever kills it, as any throwaway
VM does; until it is told ``go``. Then the VM is its user's.

What it trusts its peer with:

- Without ``trust`` a peer brings VMs that keep to their own files
  (`copies.foreign_spec`), under names that are free, as much as there is room for, and
  nothing else: no arguments for QEMU, no other QEMU, no file, card or open port of this
  host, no file below a disk.
  It can ask whether an image of a name and checksum is here, and what became of a VM
  that it brought, by the token of that. The RAM and devices that it sends are read by a
  QEMU in its sandbox, which is no defence that QEMU's authors promise.
- With ``trust`` it may do what whoever can run commands here may do, for a spec can
  name any file and program. `migrate` asks for that: it begins the receiver over the
  user's own ssh, who could run anything. A key that is to bring VMs and no more has
  ``restrict,command="qemuctl migrate-receive"`` in authorized_keys, and they come by
  ``migrate --offline``. A live migration needs ``port-forwarding`` beside it, by which
  ssh also leads to the monitors of all other VMs: that is to trust a peer with all.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qemuctl.copies import foreign_spec
from qemuctl.copies.archive import importing
from qemuctl.errors import QemuctlError, SpecError, UsageError
from qemuctl.migration import arrival, checks
from qemuctl.migration.arrivals import land, landed
from qemuctl.migration.channel import PROTOCOL, SILENCE, Channel, ChannelLost
from qemuctl.migration.incoming import Incoming
from qemuctl.migration.offer import Facts, Offer
from qemuctl.migration.place import home_id, place
from qemuctl.paths import VmPaths, private_dir, vms_dir
from qemuctl.process.working import making
from qemuctl.spec import check_name
from qemuctl.thread import in_full
from qemuctl.typed.read import read

Answer = Callable[[dict[str, Any]], Awaitable[Any]]


async def receive(channel: Channel, *, trust: bool) -> None:
    """Answers a source until that hangs up; undoes then what it was not told to
    keep."""
    receiver = Receiver(channel, trust=trust)
    try:
        await channel.send({"hello": PROTOCOL})
        await receiver.serve()
    except ChannelLost:
        pass
    finally:
        await in_full(receiver.end())


class Receiver:
    """One VM on its way here."""

    def __init__(self, channel: Channel, *, trust: bool) -> None:
        self._channel, self._trust = channel, trust
        self._offer: Offer | None = None
        self._staged: Path | None = None
        self._name = ""
        self._stack = contextlib.ExitStack()
        self._incoming: Incoming | None = None
        self._landing: contextlib.AsyncExitStack | None = None
        self._answers: dict[str, Answer] = {
            "ping": self._ping,
            "look": self._look,
            "check": self._check,
            "file": self._file,
            "prepare": self._prepare,
            "released": self._released,
            "arrived": self._arrived,
            "arm": self._arm,
            "go": self._go,
            "finish": self._finish,
            "ask": self._ask,
            "discard": self._discard,
            "take": self._take,
            "reconnect": self._reconnect,
            "lag": self._lag,
            "room": self._room,
            "archive": self._archive,
        }

    async def serve(self) -> None:
        """Raises ChannelLost at the end."""
        while True:
            try:
                async with asyncio.timeout(SILENCE):
                    request = await self._channel.receive()
            except TimeoutError as error:
                raise ChannelLost(f"not a word for {SILENCE:g} s") from error
            reply = await self._answer(request)
            await self._channel.send({"id": request.get("id"), **reply})

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        answer = self._answers.get(str(request.get("do")))
        if answer is None:
            return {"error": f"not understood: {request.get('do')}"}
        try:
            return {"ok": await answer(request)}
        except ChannelLost:
            raise
        except QemuctlError as error:
            return {"error": error.message, "hint": error.hint}
        except (OSError, ValueError, TypeError, KeyError) as error:
            return {"error": f"{type(error).__name__}: {error}"}

    async def end(self) -> None:
        """Undoes what was not to be kept."""
        if self._landing is not None:
            with contextlib.suppress(ChannelLost):
                async with self._landing:
                    raise ChannelLost("the other side has gone")
        if self._incoming is not None:
            await self._incoming.end()
        await asyncio.to_thread(self._stack.close)

    # -- before ------------------------------------------------------------

    async def _ping(self, _request: dict[str, Any]) -> None:
        """It is there, and so is its QEMU."""
        if self._incoming is not None:
            await self._incoming.sign_of_life()

    async def _look(self, request: dict[str, Any]) -> Any:
        name = request.get("image")
        found = name is not None and checks.has_image(name, request.get("sha256"))
        return asdict(Facts(place=place(), home=home_id(), has_image=found))

    async def _check(self, request: dict[str, Any]) -> None:
        offer = read(Offer, request["offer"])
        await asyncio.to_thread(checks.check, offer, trust=self._trust)
        self._offer = offer

    def _checked(self) -> Offer:
        if self._offer is None:
            raise QemuctlError("nothing has been offered")
        return self._offer

    async def _file(self, request: dict[str, Any]) -> None:
        sent = {file.name: file for file in self._checked().sent}
        file = sent[str(request["name"])]
        path = self._folder(self._checked().name) / Path(file.name).name
        await self._channel.receive_file(path, file.size, file.sha256)

    def _folder(self, name: str) -> Path:
        """For files that come before there is a VM; they are on its file system."""
        if self._staged is None:
            made = making(private_dir(vms_dir()), f".new-{name}-")
            self._staged = self._stack.enter_context(made)
        return self._staged

    async def _room(self, request: dict[str, Any]) -> None:
        name, place_, size = (request[key] for key in ("name", "place", "size"))
        await asyncio.to_thread(checks.check_files, str(name), str(place_), int(size))

    async def _archive(self, request: dict[str, Any]) -> None:
        name, same = check_name(str(request["name"])), bool(request["same"])
        self._name = name
        folder = self._folder(name)
        path = folder / "archive"
        size, sha256 = int(request["size"]), str(request["sha256"])
        await self._channel.receive_file(path, size, sha256)
        self._landing = contextlib.AsyncExitStack()
        arriving = importing(path, name=None if same else name, trust=self._trust)
        try:
            fresh = await self._landing.enter_async_context(arriving)
        except SpecError as error:
            if error.hint == foreign_spec.TRUST:
                error.hint = checks.TRUST
            raise
        land(fresh, str(request["token"]))

    async def _prepare(self, _request: dict[str, Any]) -> Any:
        def say(text: str) -> None:
            telling.add(asyncio.ensure_future(self._channel.send({"say": text})))

        telling: set[asyncio.Future[None]] = set()
        self._incoming = await Incoming.begin(self._checked(), self._staged, say)
        await asyncio.gather(*telling, return_exceptions=True)
        return self._incoming.addresses

    # -- the change --------------------------------------------------------

    def _coming(self) -> Incoming:
        if self._incoming is None:
            raise QemuctlError("nothing is on its way")
        return self._incoming

    async def _released(self, _request: dict[str, Any]) -> None:
        await self._coming().released()

    async def _arrived(self, _request: dict[str, Any]) -> None:
        await self._coming().arrived()

    async def _arm(self, _request: dict[str, Any]) -> None:
        await self._coming().arm()

    async def _go(self, request: dict[str, Any]) -> None:
        if self._landing is not None:
            landing, self._landing = self._landing, None
            await landing.aclose()
            landed(VmPaths.of(self._name))
            return
        await self._coming().go(running=bool(request["running"]))

    async def _finish(self, request: dict[str, Any]) -> Any:
        return await arrival.finish(str(request["token"]))

    # -- afterwards, by whoever comes to ask ----------------------------------

    async def _ask(self, request: dict[str, Any]) -> Any:
        return await arrival.ask(str(request["token"]))

    async def _discard(self, request: dict[str, Any]) -> None:
        await arrival.discard(str(request["token"]))

    async def _take(self, request: dict[str, Any]) -> None:
        await arrival.take(str(request["token"]), running=bool(request["running"]))

    async def _lag(self, request: dict[str, Any]) -> float | None:
        return await arrival.lag(str(request["token"]))

    async def _reconnect(self, request: dict[str, Any]) -> Any:
        return await arrival.reconnect(str(request["token"]))


async def main(*, trust: bool) -> None:
    """On the standard streams of this process."""
    for fd in (0, 1):
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            raise UsageError(
                "it speaks to another qemuctl, through pipes",
                hint="that one starts it: qemuctl migrate NAME DEST",
            )
    channel = await Channel.of_stdio()
    with contextlib.suppress(asyncio.CancelledError):
        await receive(channel, trust=trust)
