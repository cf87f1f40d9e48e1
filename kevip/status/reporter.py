"""What the daemon tells others: the log, the runtime file, and systemd."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Literal

from kevip.core.messages import Note, Reason, Role, What
from kevip.host import systemd
from kevip.log import logger
from kevip.status.notifier import Notifier
from kevip.status.record import PROSE, Record
from kevip.status.runfile import StateFile

QUIET = 60.0  # seconds in which the same warning is logged once
MANY = 10  # subjects of the same warning that are logged in that time: senders of packets can be forged

# What the core has to tell, as events of the log: level, name, and what else is said.
_EVENTS: dict[What, tuple[str, str, Callable[[Note, Record], dict[str, object]]]] = {
    What.YIELDED: ("warning", "election.yielded", lambda note, _: {"to": str(note.who)}),
    What.RESIGNED: ("error", "election.resigned", lambda note, _: {"reason": note.detail}),
    What.LEAVING: ("info", "handover.started", lambda note, record: {
        "reason": PROSE[note.reason] if note.reason else note.detail, "peers": [str(each) for each in record.peers],
    }),
    What.FOLLOWED: ("info", "handover.done", lambda note, _: {"to": str(note.who), "seconds": round(note.seconds, 3)}),
    What.NOBODY: ("warning", "handover.nobody", lambda note, _: {
        "seconds": round(note.seconds, 3), "hint": "no peer took over: nobody holds the VIP now",
    }),
    What.KEPT: ("warning", "handover.declined", lambda _, __: {
        "hint": "nobody that should have it took over: the VIP stays here",
    }),
    What.RETRY: ("error", "engine.ended", lambda note, _: {"retry_seconds": note.seconds}),
    What.BROKEN: ("error", "core.broken", lambda note, _: {"error": note.detail}),
}  # fmt: skip

Refresh = Callable[[Record], None]  # brings up to date what only the daemon knows
Clock = Callable[[], float]  # the one of the record's times


class Reporter:
    """Tells what the record says, at each change of role, and whenever ``write`` is called."""

    def __init__(self, record: Record, state: StateFile, refresh: Refresh, clock: Clock = monotonic) -> None:
        self.record = record
        self.log: Any = logger(vip=str(record.vip))
        self._state, self._refresh, self._clock = state, refresh, clock
        self.notifier: Notifier | None = None
        self._quiet: dict[tuple[str, object], float] = {}

    def warn_once(self, event: str, subject: object, **context: object) -> None:
        """Warn of something about a subject, unless that was done a short while ago, or of many such subjects."""
        now = self._clock()
        self._quiet = {each: end for each, end in self._quiet.items() if end > now}
        if (event, subject) not in self._quiet and sum(each == event for each, _ in self._quiet) < MANY:
            self._quiet[event, subject] = now + QUIET
            self.log.warning(event, **context)

    def enter(self, role: Role, reason: Reason) -> None:
        """Tell the role from now on, and why."""
        record = self.record
        if role is not record.role:
            record.role, record.reason, record.since = role, reason, self._clock()
            record.transitions += 1
            record.entered.setdefault(role, Counter())[reason] += 1
            if self.notifier:
                self.notifier.tell(record)
            self.write()

    def note(self, note: Note) -> None:
        """Tell what the core has to tell."""
        if note.what is What.RIVAL:
            self.warn_once("election.rival", note.who, source=str(note.who), hint="we keep the VIP")
            return
        if note.what is What.LEAVING:
            self._refresh(self.record)
        elif note.what is What.FOLLOWED:
            self.record.handovers.add(note.seconds)
        level, event, context = _EVENTS[note.what]
        getattr(self.log, level)(event, **context(note, self.record))

    def answered(self, *, up: bool, seconds: float, problem: str) -> None:
        """Tell what came of asking TARGET the last time, and the verdict if that is another one now."""
        if not (health := self.record.health):
            return
        health.round_trip_ms, health.problem = None if problem else round(seconds * 1000, 3), problem
        if up is health.up:
            return
        health.up, health.since = up, self._clock()
        if up:
            self.log.info("target.up", check=health.check)
        else:
            self.log.warning("target.down", check=health.check, problem=problem)

    def write(self) -> None:
        """Tell how things are, and that the loop turns."""
        record = self.record
        record.turned = self._clock()
        record.notify_failures = self.notifier.failures if self.notifier else 0
        self._refresh(record)
        try:
            self._state.write(record, record.turned)
        except OSError as error:
            self.warn_once("state.not_written", None, path=str(self._state.path), error=str(error))
        ready = ["READY=1"] if record.role in {Role.BACKUP, Role.MASTER} else []
        systemd.notify("WATCHDOG=1", f"STATUS={record.role}: {record.vip} on {record.interface}", *ready)

    def count(self, what: Literal["bad_adverts", "engine_starts"], kind: str = "") -> None:
        """Count one more of what an engine sees."""
        if what == "bad_adverts":
            self.record.bad_adverts[kind] += 1
        else:
            self.record.engine_starts += 1

    def drifted(self, drifts: Sequence[tuple[str, str]]) -> None:
        """Tell what others changed, by kind, and that it was repaired."""
        self.record.repairs.update(kind for kind, _ in drifts)
        what = [detail for _, detail in drifts]
        self.log.warning("drift.repaired", what=what, repairs=self.record.repairs.total())

    def close(self) -> None:
        """Remove the runtime file, and have the last role told."""
        with suppress(OSError):
            self._state.remove()
        if self.notifier:
            self.notifier.close()
