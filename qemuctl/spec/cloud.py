"""What a guest is told at its first boot, through cloud-init."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Any

from qemuctl.spec.base import Model
from qemuctl.spec.document import typed
from qemuctl.spec.scalars import Text
from qemuctl.typed.marks import Before, Check, setting

# useradd(8)'s idea of a portable name.
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_HOSTNAME_MAX = 253
_PACKAGE = re.compile(r"[A-Za-z0-9][^\s]*")
# A line of authorized_keys (sshd(8)): options if any, type, key, comment.
_KEY = re.compile(
    r"(?:^|\s)((?:sk-)?(?:ssh|ecdsa)-[a-z0-9@.-]+)[ \t]+"
    r"([A-Za-z0-9+/]{16,}={0,3})(?:\s|$)"
)


FILES = ("user_data", "meta_data", "network_config")
"""The fields that name a file of the user's own, or have its text."""


def is_text(value: str) -> bool:
    """Whether one of `FILES` is the text itself: it has several lines, or begins as
    ``#cloud-config`` and scripts do."""
    return "\n" in value or value.startswith("#")


def key_is_path(key: str) -> bool:
    """Whether an entry of `ssh_keys` names a file; the others are keys."""
    return _KEY.search(key) is None


def check_key(key: str) -> str:
    """A public key as a line of authorized_keys. Raises ValueError."""
    if "PRIVATE KEY-----" in key:
        raise ValueError("a private key, which must stay secret: give the public one")
    key = key.strip()
    match = _KEY.search(key)
    if match is None or len(key.splitlines()) != 1:
        raise ValueError("not a public key, which is one line: ssh-ed25519 AAAA… name")
    kind, text = match.groups()
    try:
        blob = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("a public key that is cut off or damaged") from error
    # RFC 4253, 6.6: the key repeats its type, with the length before it.
    if not blob.startswith(len(kind).to_bytes(4, "big") + kind.encode()):
        raise ValueError(f"a public key that is not of its own type: {kind}")
    return key


def check_hostname(name: str) -> str:
    """A host's name as RFC 1123 has it, with or without a domain.

    Raises ValueError.
    """
    labels = name.split(".")
    if len(name) > _HOSTNAME_MAX or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError(
            f"not a host name: {name!r} (letters, digits and '-', 63 characters at "
            "most between dots)"
        )
    return name


def _check_user(value: str) -> str:
    if not _USER.fullmatch(value):
        raise ValueError(
            f"not a user name: {value!r} (lower-case letters, digits, '_' and '-', "
            "starting with a letter or '_', 32 characters at most)"
        )
    return value


def _check_keys(value: tuple[str, ...]) -> tuple[str, ...]:
    for key in value:
        words = key.strip()
        if "\n" in words or "PRIVATE KEY" in words or not key_is_path(key):
            check_key(key)
    return value


def _check_packages(value: tuple[str, ...]) -> tuple[str, ...]:
    for package in value:
        if not _PACKAGE.fullmatch(package):
            raise ValueError(f"not a package's name: {package!r}")
    return value


_OWN = "path of a file of your own, or its text: several lines, or one with # in front"


class CloudInit(Model, plain="enabled"):
    """What goes into the NoCloud seed, which the guest reads from a small disk.

    Either the fields above `user_data`, or files of the user's own. An image
    that has cloud-init gets a seed also without any of this.
    """

    enabled: bool = True
    hostname: Annotated[Text, Check(check_hostname)] | None = setting(
        default=None, description="default: the VM's name"
    )
    user: Annotated[Text, Check(_check_user)] | None = setting(
        default=None, description="default: the image's own user"
    )
    ssh_keys: Annotated[tuple[Text, ...], Check(_check_keys)] = setting(
        default=(),
        description="public keys, or paths of their files, beside qemuctl's own",
    )
    packages: Annotated[tuple[Text, ...], Check(_check_packages)] = ()
    run: tuple[Text | tuple[Text, ...], ...] = setting(
        default=(), description="commands, as lines for a shell or as lists of words"
    )
    network: Annotated[dict[str, Any] | None, Before(typed)] = setting(
        default=None,
        description="network configuration, version 1 or 2, as cloud-init has it",
    )
    user_data: Text | None = setting(default=None, description=_OWN)
    meta_data: Text | None = setting(default=None, description=_OWN)
    network_config: Text | None = setting(default=None, description=_OWN)

    def __post_init__(self) -> None:
        if self.user_data is not None and (
            self.user or self.ssh_keys or self.packages or self.run
        ):
            raise ValueError(
                "user_data takes the place of user, ssh_keys, packages and run"
            )
        if self.meta_data is not None and self.hostname is not None:
            raise ValueError("meta_data takes the place of hostname")
        if self.network_config is not None and self.network is not None:
            raise ValueError("network_config takes the place of network")

    @property
    def files(self) -> dict[str, str]:
        """The paths of files that this needs, by their keys: `ssh_keys[0]`."""
        given = {key: getattr(self, key) for key in FILES}
        files = {key: name for key, name in given.items() if name and not is_text(name)}
        keys = enumerate(self.ssh_keys)
        return files | {f"ssh_keys[{n}]": key for n, key in keys if key_is_path(key)}
