"""What a guest is told at its first boot, through cloud-init."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from qemuctl.spec.base import Model
from qemuctl.spec.scalars import Text

_SWITCHES = {"true": True, "false": False}


def _typed(value: Any) -> Any:
    """Numbers and switches, which a spec's reader leaves as text, for cloud-init."""
    if isinstance(value, dict):
        return {key: _typed(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_typed(inner) for inner in value]
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    return _SWITCHES.get(value, value) if isinstance(value, str) else value


class CloudInit(Model):
    """What goes into the NoCloud seed, which the guest reads from a small disk.

    Either the fields above `user_data`, or files of the user's own. An image
    that has cloud-init gets a seed also without any of this.
    """

    enabled: bool = True
    hostname: Text | None = Field(None, description="default: the VM's name")
    user: Text | None = Field(None, description="default: the image's own user")
    ssh_keys: tuple[Text, ...] = Field(
        (), description="public keys, or paths of their files, beside qemuctl's own"
    )
    packages: tuple[Text, ...] = ()
    run: tuple[Text | tuple[Text, ...], ...] = Field(
        (), description="commands, as lines for a shell or as lists of words"
    )
    network: Annotated[dict[str, Any] | None, BeforeValidator(_typed)] = Field(
        None, description="network configuration, version 1 or 2, as cloud-init has it"
    )
    user_data: Text | None = Field(None, description="path of a file of your own")
    meta_data: Text | None = Field(None, description="path of a file of your own")
    network_config: Text | None = Field(None, description="path of a file of your own")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
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
        return self
