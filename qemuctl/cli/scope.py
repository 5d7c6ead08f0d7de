"""What a change is made to: the flags ``--live``, ``--config`` and ``--both``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from qemuctl.cli.declare import Option
from qemuctl.cli.running import run_async

if TYPE_CHECKING:
    from qemuctl.registry.scope import Scope
    from qemuctl.vm.vm import Vm

Live = Annotated[bool, Option("--live", help="only the VM that runs")]
Config = Annotated[bool, Option("--config", help="only its next start")]
Both = Annotated[
    bool, Option("--both", help="both (default while it runs, else --config)")
]


def scope(live: bool, config: bool, both: bool) -> Scope | None:
    """The scope that the flags name; None when there is none of them.

    Raises UsageError for two of them.
    """
    from qemuctl.errors import UsageError
    from qemuctl.registry.scope import Scope

    flags = {Scope.LIVE: live, Scope.CONFIG: config, Scope.BOTH: both}
    wanted = [scope for scope, given in flags.items() if given]
    if len(wanted) > 1:
        given = " and ".join(f"--{scope}" for scope in wanted)
        raise UsageError(f"only one of them makes sense: {given}")
    return wanted[0] if wanted else None


class Changed(Protocol):
    """What every change of a disk or card tells: what it was made to."""

    @property
    def live(self) -> bool: ...

    @property
    def configured(self) -> bool: ...


def changed(
    name: str,
    wanted: Scope | None,
    off: Callable[[], Any],
    on: Callable[[Vm, Scope], Awaitable[Any]],
) -> Any:
    """Makes a change where it is wanted: of the spec alone, or of what runs too."""
    from qemuctl.registry.scope import scope_of

    where = scope_of(name, wanted)
    if not where.live:
        return off()

    async def change() -> Any:
        from qemuctl.registry.states import Action
        from qemuctl.vm.attach import attach

        async with await attach(name, Action.CHANGE) as vm:
            return await on(vm, where)

    return run_async(change())


def words_of(done: Changed) -> str:
    """What a user has to know of a change that was not made to both."""
    if done.live and not done.configured:
        return " (until it stops)"
    return " (from its next start)" if not done.live else ""
