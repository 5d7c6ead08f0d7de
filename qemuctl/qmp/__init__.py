"""Session, typed commands and events, flight recorder: the only room that
imports qemu.qmp."""

from qemuctl.qmp.commands import Command
from qemuctl.qmp.events import Event
from qemuctl.qmp.recorder import Recorder
from qemuctl.qmp.session import Session, Subscription

__all__ = ["Command", "Event", "Recorder", "Session", "Subscription"]
