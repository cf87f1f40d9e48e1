"""What the daemon tells others: the log, the runtime file, and systemd."""

from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

from kevip.host import systemd
from kevip.log import logger
from kevip.record import Reason, Record, Role
from kevip.runtime import StateFile

QUIET = 60.0
"""Seconds in which the same warning is logged once."""

MANY = 10
"""Subjects about which the same warning is logged in that time: senders of packets can be forged."""


class Reporter:
    """Tells what the record says, at each change of role, and whenever ``write`` is called.

    ``refresh`` brings up to date what only the daemon knows.
    """

    def __init__(self, record: Record, state: StateFile, refresh: Callable[[Record], None]) -> None:
        self.record = record
        self.log: Any = logger(vip=str(record.vip))
        self._state = state
        self._refresh = refresh
        self._quiet: dict[tuple[str, object], float] = {}

    def warn_once(self, event: str, subject: object, **context: object) -> None:
        """Warn of something about a subject, unless that was done a short while ago, or of many such subjects."""
        self._quiet = {each: end for each, end in self._quiet.items() if end > monotonic()}
        if (event, subject) not in self._quiet and sum(each == event for each, _ in self._quiet) < MANY:
            self._quiet[event, subject] = monotonic() + QUIET
            self.log.warning(event, **context)

    def enter(self, role: Role, reason: Reason) -> None:
        """Tell the role from now on, and why."""
        if self.record.enter(role, reason):
            self.write()

    def turn(self) -> None:
        """Tell that the loop turns."""
        self.record.turned = monotonic()
        self.write()

    def write(self) -> None:
        """Tell how things are."""
        record = self.record
        self._refresh(record)
        try:
            self._state.write(record)
        except OSError as error:
            self.warn_once("state.not_written", None, path=str(self._state.path), error=str(error))
        ready = ["READY=1"] if record.role in {Role.BACKUP, Role.MASTER} else []
        systemd.notify("WATCHDOG=1", f"STATUS={record.role}: {record.vip} on {record.interface}", *ready)

    def close(self) -> None:
        """Remove the runtime file."""
        with suppress(OSError):
            self._state.remove()
