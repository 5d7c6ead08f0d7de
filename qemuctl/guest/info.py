"""What a guest tells about itself, through its agent, as far as it does.

All questions share one time budget, and what was answered by its end is
given. The agent is the guest's own program: whatever it sends is checked,
cut to a sensible length and freed of control characters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from qemuctl.errors import AgentError, AgentRefused, WaitTimeout
from qemuctl.guest.agent import Agent, makes_sense
from qemuctl.structs import Struct
from qemuctl.tail import plain

# Seconds for all answers together.
BUDGET = 1.0
# A guest may send any number, of any length.
MOST = 64
_LONGEST = 200
_LARGEST = 2**63 - 1


class Interface(Struct):
    """A network interface; ``addresses`` as ``10.0.2.15/24``."""

    name: str
    mac: str | None = None
    addresses: tuple[str, ...] = ()


class FileSystem(Struct):
    """A mounted file system of a disk; sizes are None when the agent is too old."""

    mount_point: str
    type: str
    device: str | None = None
    size_bytes: int | None = None
    used_bytes: int | None = None


class User(Struct):
    """Somebody who is logged in, since ``login_at`` (seconds since the epoch)."""

    name: str
    login_at: float | None = None


class Guest(Struct):
    """What a guest has told; None is what it has not."""

    os: str | None = None
    kernel: str | None = None
    architecture: str | None = None
    host_name: str | None = None
    interfaces: tuple[Interface, ...] | None = None
    file_systems: tuple[FileSystem, ...] | None = None
    users: tuple[User, ...] | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """The IP addresses by which others could know it."""
        every = [x for card in self.interfaces or () for x in card.addresses]
        return tuple(x for x in every if not x.startswith(("127.", "::1/", "fe80:")))


class Inside:
    """``vm.inside``: a look into the guest."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def look(self, timeout: float = BUDGET) -> Guest:
        """Asks the agent about the system, in ``timeout`` seconds at most.

        With guest-get-osinfo, guest-get-host-name, guest-network-get-interfaces,
        guest-get-users and guest-get-fsinfo; what the agent refuses, does not
        know or answers with nonsense is left out. Raises WaitTimeout when it
        answers nothing in time, AgentError when nothing of it makes sense.
        """
        return await look(self._agent, timeout)


async def look(agent: Agent, timeout: float = BUDGET) -> Guest:
    """As `Inside.look`, of an agent that need not belong to a `Vm`."""
    guest, answered = Guest(), False
    problem: AgentError | WaitTimeout | None = None
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    for name, read in _QUESTIONS.items():
        try:
            reply = await agent.request(name, timeout=max(0, end - loop.time()))
            with makes_sense(name):
                guest = replace(guest, **read(reply))
            answered = True
        except AgentRefused:  # an answer, too
            answered = True
        except (AgentError, WaitTimeout) as error:
            problem = error
            if isinstance(error, WaitTimeout):
                break
    if problem is not None and not answered:
        raise problem
    return guest


async def interfaces(agent: Agent, timeout: float = BUDGET) -> tuple[Interface, ...]:
    """The guest's network interfaces (guest-network-get-interfaces).

    Raises AgentError when the agent refuses or what it says makes no sense,
    WaitTimeout when it does not answer.
    """
    name = "guest-network-get-interfaces"
    reply = await agent.request(name, timeout=timeout)
    with makes_sense(name):
        found: tuple[Interface, ...] = _interfaces(reply)["interfaces"]
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"not a text: {value!r:.60}")
    return " ".join(plain(value[: 4 * _LONGEST]).split())[:_LONGEST]


def _maybe(source: Mapping[str, Any], key: str) -> str | None:
    """A text that need not be there, nor say anything."""
    return (_text(source[key]) or None) if source.get(key) is not None else None


def _size(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value <= _LARGEST:
        raise ValueError(f"not a size: {value!r:.60}")
    return value


def _time(value: Any) -> float | None:
    if value is None:
        return None
    # Not so far that no calendar has it.
    if not isinstance(value, int | float) or not 0 <= value < 1e11:
        raise ValueError(f"not a time: {value!r:.60}")
    return float(value)


def _list(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise TypeError(f"not a list: {value!r:.60}")
    return [dict(item) for item in value[:MOST]]


def _os(reply: Any) -> dict[str, Any]:
    facts = dict(reply)
    return {
        "os": _maybe(facts, "pretty-name") or _maybe(facts, "name"),
        "kernel": _maybe(facts, "kernel-release"),
        "architecture": _maybe(facts, "machine"),
    }


def _host_name(reply: Any) -> dict[str, Any]:
    return {"host_name": _text(dict(reply)["host-name"]) or None}


def _interfaces(reply: Any) -> dict[str, Any]:
    return {
        "interfaces": tuple(
            Interface(
                name=_text(card["name"]),
                mac=_maybe(card, "hardware-address"),
                addresses=tuple(map(_address, _list(card.get("ip-addresses", [])))),
            )
            for card in _list(reply)
        )
    }


def _address(entry: dict[str, Any]) -> str:
    return f"{_text(entry['ip-address'])}/{_size(entry['prefix'])}"


def _file_systems(reply: Any) -> dict[str, Any]:
    return {
        "file_systems": tuple(
            FileSystem(
                mount_point=_text(one["mountpoint"]),
                type=_text(one["type"]),
                device=_maybe(one, "name"),
                size_bytes=_size(one.get("total-bytes")),
                used_bytes=_size(one.get("used-bytes")),
            )
            for one in _list(reply)
        )
    }


def _users(reply: Any) -> dict[str, Any]:
    return {
        "users": tuple(
            User(
                name=_text(one["user"]),
                login_at=_time(one.get("login-time")),
            )
            for one in _list(reply)
        )
    }


# The one that may hang, on a disk or a server that is gone, comes last.
_QUESTIONS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "guest-get-osinfo": _os,
    "guest-get-host-name": _host_name,
    "guest-network-get-interfaces": _interfaces,
    "guest-get-users": _users,
    "guest-get-fsinfo": _file_systems,
}
