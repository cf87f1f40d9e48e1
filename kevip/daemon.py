"""The daemon: turns what is ready into events, and effects into calls. It decides nothing; ``kevip.core`` does.

One turn of the loop takes in all that is waiting. Its events are then stepped through in their order, a stop first, and
the effects of each are applied before the next one, and before anything that waits for an answer gets it.
"""

import signal
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import assert_never

from kevip.control import Control
from kevip.core import messages as msg
from kevip.core.instance import TICK, step
from kevip.core.messages import Do, Level
from kevip.core.states import Instance, is_over, next_due
from kevip.dataplane.announcer import Announcer
from kevip.dataplane.plane import Plane
from kevip.dataplane.survey import Drift
from kevip.election.engine import Engine
from kevip.errors import KevipError
from kevip.health.watch import Watch
from kevip.host import systemd
from kevip.log import logger
from kevip.loop import Loop
from kevip.presence.presence import Now, Presence
from kevip.status.record import Record, standby
from kevip.status.reporter import Reporter
from kevip.sync.handoff import Handoff
from kevip.sync.replication import Replication

READY = 10.0  # seconds after which systemd hears that the start is done, also out of the election: without a cable, say
STOPS = signal.SIGTERM, signal.SIGINT, signal.SIGQUIT


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a daemon works with: events come from these, and effects go to them."""

    engine: Engine
    plane: Plane
    announcer: Announcer
    handoff: Handoff
    watch: Watch
    presence: Presence
    reporter: Reporter

    def does(self) -> dict[Do, Callable[[], None]]:
        """Return what effects that are said by their name come to."""
        return {
            Do.END_ENGINE: self.engine.end,
            Do.END_FAREWELL: self.engine.end_goodbye,
            Do.OFFER: self.handoff.offer,
            Do.END_OFFER: self.handoff.end_offer,
            Do.YIELD: self.engine.yields,
            Do.ANNOUNCE: self.announcer.announce,
            Do.HUSH: self.announcer.hush,
        }


class Daemon:
    """Serves one VIP on this host until a signal says to stop. The only writer of what kevip changes on it."""

    replication: Replication | None = None
    control: Control | None = None
    is_stopping = False  # or is to, once it runs

    def __init__(self, loop: Loop) -> None:
        self._loop, self._log = loop, logger()
        self._events: deque[msg.Event] = deque()
        self.instance = Instance()

    def attach(self, parts: Parts) -> None:
        """Work with these parts."""
        self._engine, self._plane, self._announcer = parts.engine, parts.plane, parts.announcer
        self._watch, self.handoff, self._presence = parts.watch, parts.handoff, parts.presence
        self._reporter, self._log = parts.reporter, parts.reporter.log
        self._does = parts.does() | {Do.LOOK: self._look}

    def run(self) -> None:
        """Serve until it is over, then leave the host as it was; raises KevipError if something of ours is left."""
        try:
            self._loop.after(READY, partial(systemd.notify, "READY=1"))
            self._loop.after(0, self._due)
            if self.replication:
                self.replication.begin()
            self._turned()
            while not is_over(self.instance):
                self._loop.turn()
                self._settle()
        finally:
            self._leave()
        self._log.info("daemon.stopped")

    def tell(self, event: msg.Event) -> None:
        """Take in an event, to be stepped through at the end of this turn: a stop before all others."""
        if isinstance(event, msg.Stop):
            self._events.appendleft(event)
        else:
            self._events.append(event)

    def _settle(self) -> None:
        """Step through the events of this turn, and apply what comes of them."""
        if (rank := self._presence.successor()) != self.instance.successor:
            self.tell(msg.Successor(rank))
        traits, now = self._engine.traits, self._loop.now()  # one turn is one moment, however long its effects take
        while self._events:
            event = self._events.popleft()
            if isinstance(event, msg.Unfit):
                now = self._loop.now()  # a renewal that failed may have taken until after the end of the lease
            self.instance, effects = step(traits, self.instance, event, now)
            for effect in effects:
                if not self._apply(effect):
                    break  # what follows rests on it
        held, standby = self._plane.level is Level.HELD, self.instance.standby > self._loop.now()
        record, copies = self._reporter.record, self.replication.state.is_well if self.replication else None
        self._presence.update(Now(record.role, record.since, held, self.instance.reached, standby, copies))
        if self.control:
            self.control.follow(traits, self.instance, self._presence.names)
        self._loop.after(next_due(traits, self.instance) - self._loop.now(), self._due)

    def _due(self) -> None:
        self.tell(msg.Tick())

    def _turned(self) -> None:
        """Say that the loop turns."""
        self._loop.after(TICK, self._turned)
        if self.replication:
            self.replication.tend(serves=self._plane.level is Level.HELD)
        self._reporter.write()

    def on_stop(self, number: signal.Signals) -> None:
        """Stop, because of a signal."""
        self._log.info("daemon.stopping", signal=number.name)
        systemd.notify("STOPPING=1")
        self.is_stopping = True
        self.tell(msg.Stop())

    def on_hangup(self, number: signal.Signals) -> None:
        """Go on: settings are read at the start."""
        hint = "settings are read at start: restart to change them"
        self._log.warning("signal.ignored", signal=number.name, hint=hint)

    # What comes of events

    def _apply(self, effect: msg.Effect) -> bool:  # noqa: C901 - one branch for each effect
        """Have an effect applied; say whether it was."""
        match effect:
            case Do():
                self._does[effect]()
            case msg.StartEngine(run, fit):
                return self._start(run, fit=fit)
            case msg.Apply(level):
                return self._bring_to(level)
            case msg.Proceed(token):
                self._engine.proceed(token)
            case msg.Rerank(fit):
                self._engine.rerank(fit=fit)
            case msg.Pull(source, rest):
                (self.handoff.pull_rest if rest else self.handoff.pull)(source)
            case msg.Farewell(known, fit_only, rank):
                self._engine.goodbye(known=known, fit_only=fit_only, rank=rank)
            case msg.Enter(role, reason):
                self._reporter.enter(role, reason)
            case msg.Note():
                self._reporter.note(effect)
            case _:
                assert_never(effect)
        return True

    def _look(self) -> None:
        self._engine.beat()
        self._plane.look()

    def _start(self, run: int, *, fit: bool) -> bool:
        place = self._engine.start(run, fit=fit)
        if not place:
            self._events.appendleft(msg.NotStarted(run))
            return False
        self._plane.interface, self.handoff.here = place.interface, place.source
        self._presence.attach(place)
        try:
            self._announcer.attach(place.interface)
        except OSError:  # the interface went just now: the engine ends, and says so when it is started anew
            self._engine.end()
        return True

    def _bring_to(self, level: Level) -> bool:
        """Bring the host to a level, and ask TARGET from the VIP while that is here."""
        plane, begin = self._plane, self._loop.now()
        held, holds = plane.level is Level.HELD, level is Level.HELD
        if not held:
            self._engine.beat()  # else only after the lease was renewed: both end if that is not done
        try:
            plane.apply(level)
        except KevipError as error:
            if holds and held:
                self._events.appendleft(msg.Unfit(str(error)))
                return False
            if holds:
                self._log.error("takeover.failed", error=str(error))
                self._events.appendleft(msg.Failed("the takeover failed"))
                return False
            hint = "the kernel removes the address when its lease ends"
            self._reporter.warn_once("release.failed", None, error=str(error), hint=hint)
        self._engine.beat()
        if held is not holds:
            self._watch.serves(vip=holds)
            if holds and self.replication:
                self.replication.serves()
            self._report_move(self._loop.now() - begin, held=holds)
        return True

    def _report_move(self, seconds: float, *, held: bool) -> None:
        if held:
            self._reporter.record.takeovers.add(seconds)
        event = "takeover.done" if held else "release.done"
        told = partial(self._log.info, event, interface=self._plane.interface, ms=round(seconds * 1000, 1))
        self._loop.after(0, told)  # a hook waits

    # What the dataplane tells

    def cleared(self, level: Level, *, ok: bool) -> None:
        """See ``plane.Listener``."""
        self.tell(msg.Cleared(level, ok))

    def unfit(self, detail: str) -> None:
        """See ``plane.Listener``."""
        self.tell(msg.Unfit(detail))

    def drifted(self, drifts: tuple[Drift, ...]) -> None:
        """See ``plane.Listener``."""
        self._reporter.drifted([(drift.kind, str(drift)) for drift in drifts])

    # What others ask

    def is_led(self) -> bool:
        """Whether another host is heard as master, or was when this was asked last, two turns ago at most."""
        return self.instance.peers.is_led(self._loop.now() - max(self._engine.traits.patience, 2 * TICK))

    def refresh(self, record: Record) -> None:
        """Bring the record up to date with what only the daemon knows."""
        record.interface, record.dataplane = self._plane.interface or record.interface, self._plane.ruleset.backend.name
        record.rules = self._plane.rules
        record.sync = self.replication.state if self.replication else None
        record.standby = standby(self.instance.standby - self._loop.now())
        record.peers, record.claims = self.instance.peers.advertised(), self._announcer.claims
        record.members = self._presence.members

    def _leave(self) -> None:
        """Leave nothing behind, also when the loop ended with an error."""
        with ExitStack() as ends:  # each of them, whatever becomes of the others
            ends.callback(self._reporter.close)
            if self.replication:
                ends.callback(self.replication.close)  # once all else is done: copied deletions would cut connections
            for end in (self._plane.end, self._announcer.detach, self._engine.close):
                ends.callback(end)
            ends.callback(self.handoff.close)
            ends.callback(self._presence.close)
            self._watch.close()
