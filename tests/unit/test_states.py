"""Which request is admitted in which state: the whole table, as data."""

from __future__ import annotations

import pytest

from qemuctl.errors import StateError
from qemuctl.registry.states import (
    Accepted,
    Action,
    Denied,
    NothingToDo,
    State,
    admit,
    from_run_state,
    require,
)

# y: accepted; =: nothing to do; else denied, because
REASONS = {
    "o": "the VM is off",
    "l": "the VM is on",
    "s": "the VM is starting",
    "g": "the VM is stopping",
    "p": "the VM is paused",
    "d": "a disk's error has stopped the VM",
    "h": "the guest has stopped for good",
    "u": "QEMU does not answer",
    "n": "another command is starting it",
    "b": "another command is working on it",
    "t": "a snapshot is being made or loaded",
    "z": "its guest is asleep (ACPI S3)",
    "v": "its sockets cannot be seen from here: another /tmp, or one that was cleaned",
}
COLUMNS = (
    State.OFF,
    State.STARTING,
    State.RUNNING,
    State.PAUSED,
    State.SUSPENDED,
    State.PANICKED,
    State.IO_ERROR,
    State.CRASHED,
    State.STOPPING,
    State.UNRESPONSIVE,
    State.BUSY,
    State.SNAPSHOTTING,
    State.UNREACHABLE,
)
TABLE = {
    Action.START: "y n = = = = = = g u b = =",
    Action.STOP: "= y y y y y y y y y b t y",
    Action.KILL: "= y y y y y y y y y b y y",
    Action.PAUSE: "o s y = = h = h g u b t v",
    Action.RESUME: "o s = y y h y h g u b t v",
    Action.RESET: "o s y y y y y y g u b t v",
    Action.REBOOT: "o y y p p h d h g u b t v",
    Action.EXEC: "o y y p p h d h g u b t v",
    Action.SSH: "o y y p p h d h g u b t v",
    Action.COPY: "o y y p p h d h g u b t v",
    Action.CONSOLE: "o y y y y y y y y y b y v",
    Action.QMP: "o y y y y y y y y u b t v",
    Action.EDIT: "y y y y y y y y y y y y y",
    Action.REMOVE: "y l l l l l l l l l b l l",
    Action.RENAME: "y l l l l l l l l l b l l",
    Action.CLONE: "y l l l l l l l l l b l l",
    Action.EXPORT: "y l l l l l l l l l b l l",
    Action.RESTORE: "y l l l l l l l l l b l l",
    Action.MEASURE: "o y y y y y y y y y b y v",
    Action.MEDIUM: "o s y y y y y y g u b t v",
    Action.SCREEN: "o s y y y y y y g u b t v",
    Action.KEYS: "o s y p y h d h g u b t v",
    Action.CHANGE: "o s y p p h d h g u b t v",
    Action.SNAPSHOT: "y s y y z h d h g u b t v",
    Action.REVERT: "y s y y y y y h g u b t v",
    Action.FORGET: "y s y y y y y y g u b t v",
    Action.SAVE: "o s y y z h d h g u b t v",
    Action.MIGRATE: "o s y y z h d h g u b t v",
}
CELLS = [
    (action, state, sign)
    for action, row in TABLE.items()
    for state, sign in zip(COLUMNS, row.split(), strict=True)
]

# RunState of run-state.json, QEMU 7.2 to 10.
RUN_STATES = {
    "debug": State.PAUSED,
    "inmigrate": State.STARTING,
    "internal-error": State.CRASHED,
    "io-error": State.IO_ERROR,
    "paused": State.PAUSED,
    "postmigrate": State.PAUSED,
    "prelaunch": State.PAUSED,
    "finish-migrate": State.PAUSED,
    "restore-vm": State.PAUSED,
    "running": State.RUNNING,
    "save-vm": State.PAUSED,
    "shutdown": State.STOPPING,
    "suspended": State.SUSPENDED,
    "watchdog": State.PAUSED,
    "guest-panicked": State.PANICKED,
    "colo": State.PAUSED,
}


def test_the_table_has_every_action_and_every_state() -> None:
    assert set(TABLE) == set(Action)
    assert set(COLUMNS) == set(State)


@pytest.mark.parametrize(("action", "state", "sign"), CELLS)
def test_each_request_has_its_verdict_in_each_state(
    action: Action, state: State, sign: str
) -> None:
    verdict = admit(action, state)
    if sign == "y":
        assert verdict == Accepted()
    elif sign == "=":
        assert isinstance(verdict, NothingToDo)
        assert verdict.reason.startswith(("it is ", "a disk error"))
    else:
        assert isinstance(verdict, Denied)
        assert verdict.reason == REASONS[sign]


@pytest.mark.parametrize(("action", "state", "sign"), CELLS)
def test_require_raises_for_what_is_denied_and_names_the_vm(
    action: Action, state: State, sign: str
) -> None:
    if sign in REASONS:
        with pytest.raises(StateError) as caught:
            require(action, state, "web")
        assert caught.value.state == state
        assert caught.value.reason == REASONS[sign]
        assert str(caught.value) == f"cannot {action} web: {REASONS[sign]}"
        hint = caught.value.hint or ""
        assert "NAME" not in hint
        assert "web" in hint or sign in "sgnb"
    else:
        assert (require(action, state, "web") is None) == (sign == "y")


@pytest.mark.parametrize(("status", "state"), RUN_STATES.items())
def test_every_run_state_of_qemu_has_its_meaning(status: str, state: State) -> None:
    assert from_run_state(status) is state


def test_a_run_state_of_a_later_qemu_counts_as_running() -> None:
    assert from_run_state("dreaming") is State.RUNNING


def test_only_what_is_off_has_no_process() -> None:
    assert [state for state in State if not state.live] == [State.OFF, State.BUSY]
