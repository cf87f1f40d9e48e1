"""The daemon: turns what is ready into events, and effects into calls. It decides nothing; ``kevip.core`` does.

One turn of the loop takes in all that is waiting. Its events are then stepped through in their order, a stop first, and
the effects of each are applied before the next one, and before anything that waits for an answer gets it.
"""

import signal
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from typing import assert_never

from kevip.core.instance import TICK, step
from kevip.core.messages import (
    Announce,
    Apply,
    Cleared,
    Effect,
    EndEngine,
    EndFarewell,
    Enter,
    Event,
    Failed,
    Farewell,
    Hush,
    Level,
    Look,
    Note,
    NotStarted,
    Proceed,
    Rerank,
    StartEngine,
    Stop,
    Tick,
    Unfit,
    Yield,
)
from kevip.core.states import Instance, is_over, next_due
from kevip.dataplane.announcer import Announcer
from kevip.dataplane.plane import Drift, Plane
from kevip.election.engine import Engine
from kevip.errors import KevipError
from kevip.health.watch import Watch
from kevip.host import systemd
from kevip.loop import Loop
from kevip.status.record import Record
from kevip.status.reporter import Reporter

READY = 10.0
"""Seconds after which systemd is told that the start is done, also out of the election: a cable may be unplugged."""

STOPS = signal.SIGTERM, signal.SIGINT, signal.SIGQUIT


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What events come from, and effects go to."""

    engine: Engine
    plane: Plane
    announcer: Announcer
    watch: Watch
    reporter: Reporter


class Daemon:
    """Serves one VIP on this host until a signal says to stop. The only writer of what kevip changes on it."""

    def __init__(self, loop: Loop, vip: IPv4Address) -> None:
        self._loop = loop
        self._vip = vip
        self._events: deque[Event] = deque()
        self.instance = Instance()

    def attach(self, parts: Parts) -> None:
        """Work with these parts, which tell this daemon what happens."""
        self._parts = parts
        self._traits = parts.engine.traits
        self._reporter, self._log = parts.reporter, parts.reporter.log

    def run(self) -> None:
        """Serve until it is over, then leave the host as it was; raises KevipError if something of ours is left."""
        try:
            self.begin()
            while not is_over(self.instance):
                self._loop.turn()
                self.settle()
        finally:
            self._leave()
        self._log.info("daemon.stopped")

    def begin(self) -> None:
        """Have what repeats begin."""
        self._loop.after(READY, partial(systemd.notify, "READY=1"))
        self._loop.after(0, self._due)
        self._turned()

    def tell(self, event: Event) -> None:
        """Take in an event, to be stepped through at the end of this turn: a stop before all others."""
        if isinstance(event, Stop):
            self._events.appendleft(event)
        else:
            self._events.append(event)

    def settle(self) -> None:
        """Step through the events of this turn, and apply what comes of them."""
        now = self._loop.now()  # one turn is one moment, whatever it takes to apply what comes of it
        while self._events:
            event = self._events.popleft()
            self.instance, effects = step(self._traits, self.instance, event, now)
            for effect in effects:
                if not self._apply(effect):
                    break  # what follows rests on it
        self._loop.after(next_due(self._traits, self.instance) - self._loop.now(), self._due)

    def _due(self) -> None:
        self.tell(Tick())

    def _turned(self) -> None:
        """Say that the loop turns."""
        self._loop.after(TICK, self._turned)
        self._reporter.write()

    def on_stop(self, number: signal.Signals) -> None:
        """Stop, because of a signal."""
        self._log.info("daemon.stopping", signal=number.name)
        systemd.notify("STOPPING=1")
        self.tell(Stop())

    def on_hangup(self, number: signal.Signals) -> None:
        """Go on: settings are read at the start."""
        hint = "settings are read at start: restart to change them"
        self._log.warning("signal.ignored", signal=number.name, hint=hint)

    # What comes of events

    def _apply(self, effect: Effect) -> bool:  # noqa: C901, PLR0912 - one branch for each effect
        """Have an effect applied; say whether it was."""
        engine, announcer = self._parts.engine, self._parts.announcer
        match effect:
            case StartEngine(run, fit):
                return self._start(run, fit=fit)
            case Apply(level):
                return self._bring_to(level)
            case Proceed(token):
                engine.proceed(token)
            case EndEngine():
                engine.end()
            case Rerank(fit):
                engine.rerank(fit=fit)
            case Farewell(known, fit_only):
                engine.goodbye(known=known, fit_only=fit_only)
            case EndFarewell():
                engine.end_goodbye()
            case Yield():
                engine.yields()
            case Announce():
                announcer.announce()
            case Hush():
                announcer.hush()
            case Look():
                engine.beat()
                self._parts.plane.look()
            case Enter(role, reason):
                self._reporter.enter(role, reason)
            case Note():
                self._reporter.note(effect)
            case _:
                assert_never(effect)
        return True

    def _start(self, run: int, *, fit: bool) -> bool:
        place = self._parts.engine.start(run, fit=fit)
        if not place:
            self._events.appendleft(NotStarted(run))
            return False
        self._parts.plane.interface = place.interface
        try:
            self._parts.announcer.attach(place.interface)
        except OSError:  # the interface went just now: the engine ends, and says so when it is started anew
            self._parts.engine.end()
        return True

    def _bring_to(self, level: Level) -> bool:
        """Bring the host to a level, and ask TARGET from the VIP while that is here."""
        plane, begin = self._parts.plane, self._loop.now()
        held = plane.level is Level.HELD
        if not held:
            self._parts.engine.beat()  # else only after the lease was renewed: both end if that is not done
        try:
            plane.apply(level)
        except KevipError as error:
            if level is Level.HELD:
                if not held:
                    self._log.error("takeover.failed", error=str(error))
                self._events.appendleft(Failed(held, str(error) if held else "the takeover failed"))
                return False
            hint = "the kernel removes the address when its lease ends"
            self._reporter.warn_once("release.failed", None, error=str(error), hint=hint)
        self._parts.engine.beat()
        holds = level is Level.HELD
        if held is not holds:
            seconds = self._loop.now() - begin
            self._parts.watch.serves(vip=holds)
            if holds:
                self._reporter.record.takeovers.add(seconds)
            event = "takeover.done" if holds else "release.done"
            told = partial(self._log.info, event, interface=plane.interface, ms=round(seconds * 1000, 1))
            self._loop.after(0, told)  # a hook waits
        return True

    # What the dataplane tells

    def cleared(self, *, ok: bool) -> None:
        """See ``plane.Listener``."""
        self.tell(Cleared(ok))

    def unfit(self, detail: str) -> None:
        """See ``plane.Listener``."""
        self.tell(Unfit(detail))

    def drifted(self, drifts: tuple[Drift, ...]) -> None:
        """See ``plane.Listener``."""
        self._reporter.drifted([(drift.kind, str(drift)) for drift in drifts])

    # What others ask

    def is_led(self) -> bool:
        """Whether another host is heard as master, or was when this was asked last, two turns ago at most."""
        return self.instance.peers.is_led(self._loop.now() - max(self._traits.patience, 2 * TICK))

    def refresh(self, record: Record) -> None:
        """Bring the record up to date with what only the daemon knows."""
        plane = self._parts.plane
        record.interface, record.dataplane = plane.interface or record.interface, plane.backend
        record.rules = plane.rules
        record.peers, record.claims = self.instance.peers.advertised(), self._parts.announcer.claims

    def _leave(self) -> None:
        """Leave nothing behind, also when the loop ended with an error."""
        parts = self._parts
        with ExitStack() as ends:  # each of them, whatever becomes of the others
            for end in (parts.reporter.close, parts.plane.end, parts.announcer.detach, parts.engine.close):
                ends.callback(end)
            parts.watch.close()
