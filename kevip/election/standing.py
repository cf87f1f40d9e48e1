"""The engine that is ucarp: it elects, and all in which it has to be overruled ends here.

ucarp is late (libpcap gives it an advert up to 1 s late), deaf (without a carrier it sleeps 10 s at a time), says no
goodbye, and goes on to advertise when it should not. So the daemon hears the adverts itself, looks after ucarp every
few seconds, and says goodbye in its place.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from kevip.core.instance import LOOK_AGAIN, TICK
from kevip.core.messages import Demoted, Elected, Ended, Reason
from kevip.core.states import Traits
from kevip.election.carp import MOST_SKEW, UNFIT, Interval
from kevip.election.engine import Tell, Teller
from kevip.election.segment import LATE, Segment
from kevip.election.ucarp import Candidacy, Hook, Message, Request, Ucarp, understand
from kevip.errors import KevipError
from kevip.host import interface
from kevip.host.interface import Placement
from kevip.loop import Loop

# Seconds to wait for a peer to take over, where one was heard before, and where none was: backups are silent. That is
# what a goodbye takes, with and without its first stages, until a backup has acted on it whose ucarp is late.
FAREWELL, FAREWELL_ALONE = 3.5, 2.5
GLANCE = 0.25  # seconds between looks at whether adverts go out


class _Care:
    """Looks after a ucarp that runs at a place, and has it ended where it is of no use."""

    def __init__(self, child: Ucarp, place: Placement, engine: "UcarpEngine") -> None:
        self._child, self.place, self._engine = child, place, engine
        self._loop, self._log, self._segment = engine.loop, engine.teller.log, engine.segment
        self._is_guarded = True
        self._loop.watch(child.watchdog, self._on_watchdog)
        self._loop.after(TICK, self._look_after)
        if self._segment.advertised is not None:
            self.expect_adverts()

    def end(self) -> None:
        """Look after it no more."""
        if self._is_guarded:
            self._loop.forget(self._child.watchdog)
        self._loop.cancel(self._look_after, self._glance)

    @property
    def is_linked(self) -> bool:
        """Whether the interface is up, and has a carrier."""
        return interface.is_running(self.place.interface)

    def expect_adverts(self) -> None:
        """See to it that a master advertises."""
        self._loop.after(GLANCE, self._glance)

    def _on_watchdog(self) -> None:
        """Replace a watchdog that was killed: a daemon that hangs would keep ucarp advertising."""
        self._loop.forget(self._child.watchdog)
        try:
            self._child.guard_anew()
        except (KevipError, OSError) as error:
            self._is_guarded = False
            self._log.error("ucarp.unguarded", error=str(error), hint="ucarp is ended, and started anew")
            self._engine.end()
            return
        self._log.warning("watchdog.replaced", hint="it was killed: see dmesg for memory that ran out")
        self._loop.watch(self._child.watchdog, self._on_watchdog)

    def _look_after(self) -> None:
        """End a ucarp that is of no use where it is, to have it started anew."""
        self._loop.after(TICK, self._look_after)
        child, is_master = self._child, self._segment.advertised is not None
        if child.killed:
            return
        if not is_master and child.is_frozen():
            self._log.error("ucarp.frozen", hint=f"ucarp ({child.pid}) was stopped: it is ended")
            self._engine.end()
        elif not self.is_linked:
            if not is_master:  # it would sleep for 10 s at a time, as a backup
                self._engine.end(Reason.UNLINKED)
        elif self._has_moved():
            self._log.warning("ucarp.moved", was=str(self.place.source), hint="the address of this host has changed")
            self._engine.end(Reason.MOVED)
        else:
            self._engine.rerank_if_settled()

    def _has_moved(self) -> bool:
        """Whether another address is this host's source now: ucarp would take adverts from the old one for its own."""
        if interface.first_address(self.place.interface) == self.place.source:
            return False
        try:
            return self._engine.locate() != self.place
        except KevipError:
            return False  # it has none just now: if that stays, peers hear no more of it

    def _glance(self) -> None:
        """End a ucarp that is master and does not advertise any more: a peer takes over soon anyway."""
        self._segment.hear_own()
        if self._segment.advertised is None:
            return
        if self._loop.now() - self._segment.advertised > self._segment.own.seconds + LATE:
            hint = f"ucarp ({self._child.pid}) does not advertise: it is ended"
            self._log.error("election.silent", hint=hint)
            self._engine.end()
        else:
            self.expect_adverts()


class UcarpEngine:
    """Runs ucarp on the interface where the VIP belongs; ``locate`` finds it. See ``Engine``."""

    def __init__(
        self, candidacy: Candidacy, loop: Loop, teller: Teller, tell: Tell, locate: Callable[[], Placement]
    ) -> None:
        self._candidacy, self._tell, self._log = candidacy, tell, teller.log
        self.loop, self.teller, self.locate = loop, teller, locate
        segment = self.segment = Segment(candidacy, loop, teller, tell)
        self.goodbye, self.end_goodbye, self.yields = segment.goodbye, segment.end_goodbye, segment.yields
        self.traits = Traits(
            interval=segment.own.seconds,
            patience=candidacy.advbase * candidacy.dead_ratio + candidacy.advskew / 256,
            lateness=LATE,
            farewell=FAREWELL,
            farewell_alone=FAREWELL_ALONE,
        )
        self._child: Ucarp | None = None
        self._run, self._fit, self._anew = 0, True, False
        self._ends = Reason.ENGINE
        self._asked: dict[str, Request] = {}

    def start(self, run: int, *, fit: bool) -> Placement | None:
        """See ``Engine``."""
        self._run, self._fit = run, fit
        try:
            place = self.locate()
            interface.require_carrier(place.interface)
            self.segment.own = self._deserved()
            self.segment.open(place)
            self._spawn(place)
        except (KevipError, OSError) as error:
            self.teller.warn_once("ucarp.not_started", str(error), error=str(error), retry_seconds=LOOK_AGAIN)
            return None
        return place

    def _deserved(self) -> Interval:
        """Return the interval that this host deserves: one that does not reach TARGET comes after all that do."""
        base, skew = self._candidacy.advbase, self._candidacy.advskew
        return Interval(base, skew if self._fit else min(UNFIT + skew, MOST_SKEW))

    def _spawn(self, place: Placement) -> None:
        """Start ucarp; raises CommandError, HostError, OSError."""
        candidacy = replace(
            self._candidacy, interface=place.interface, source=place.source, advskew=self.segment.own.advskew
        )
        child = self._child = Ucarp(candidacy)
        self._ends = Reason.ENGINE
        self.teller.count("ucarp_starts")
        self.loop.watch(child.channel, partial(self._on_hooks, child))
        self.loop.watch(child.stderr, partial(self._on_lines, child))
        self.loop.watch(child.pidfd, partial(self._on_exit, child))
        self._care = _Care(child, place, self)

    # What the core asks for

    def proceed(self, token: str) -> None:
        """See ``Engine``."""
        request = self._asked.pop(token, None)
        if not request or not self._child:
            return
        self._child.answer(request)
        self.segment.advertised = None
        if request.hook is Hook.UP:
            self.segment.advertised = self.loop.now()
            self._care.expect_adverts()

    def rerank(self, *, fit: bool) -> None:
        """See ``Engine``."""
        self._fit = fit
        self.rerank_if_settled()

    def rerank_if_settled(self) -> None:
        """Have ucarp stand as this host deserves; as backup only if a master is heard, for it may be about to win."""
        deserved, settled = self._deserved(), self.segment.advertised is not None or self.segment.is_led()
        if self._child and not self._child.killed and deserved != self.segment.own and settled:
            self._renew(deserved)

    def _renew(self, interval: Interval) -> None:
        """Start ucarp anew, with an interval, in the role that there is: it can change neither while it runs.

        For a master, the daemon advertises until the new ucarp is elected, which hears nobody else.
        """
        self.segment.own, self._anew = interval, True
        if self._child:
            self._child.kill()
        if self.segment.advertised is not None:
            patience = interval.advbase * self._candidacy.dead_ratio + 3 * interval.seconds
            self.segment.bridge(patience + LATE, self.end)

    def end(self, reason: Reason = Reason.ENGINE) -> None:
        """See ``Engine``; the reason is told when it has ended."""
        self.segment.advertised, self._anew = None, False
        self.segment.end_bridge()
        if self._child:
            self._ends = reason
            self._child.kill()

    def beat(self) -> None:
        """See ``Engine``."""
        if self._child:
            self._child.beat()

    def close(self) -> None:
        """See ``Engine``."""
        if self._child:
            self._care.end()
            self._child.kill()
            self._child.close()
        self.segment.close()

    # What ucarp says and does

    def _on_hooks(self, child: Ucarp) -> None:
        for request in child.requests():
            if self.segment.bridges:  # the role is known
                child.answer(request)
                if request.hook is Hook.UP:
                    self.segment.end_bridge()
                continue
            self._asked[request.token] = request
            if request.hook is Hook.DOWN and self._is_misled():
                self._log.info("election.upheld")
                self._renew(self.segment.own)
            elif request.hook is Hook.DOWN:
                self._tell(Demoted(self._run, request.token))
            elif master := self.segment.master(LATE):
                self._log.info("election.declined", master=str(master))
                self.end(Reason.LATE)  # before it can advertise; it does not know yet that another one won
            else:
                self._tell(Elected(self._run, request.token))

    def _is_misled(self) -> bool:
        """Whether ucarp, as master, gives way to one that has let go since, for it hears of all that late."""
        segment = self.segment
        has_left = not segment.is_led() and self.loop.now() - segment.left <= 2 * LATE
        return segment.advertised is not None and has_left and self._care.is_linked

    def _on_lines(self, child: Ucarp) -> None:
        for line in child.lines():
            message, text = understand(line)
            match message:
                case Message.MASTER | Message.BACKUP:
                    self._log.info(message)
                case Message.HOOK_LOST:
                    self._log.error("election.resigned", reason=text)
                    self.end()
                case Message.OTHER:
                    self.teller.warn_once(message, text, ucarp=text)
                case _:
                    self._log.debug(message, ucarp=text)

    def _on_exit(self, child: Ucarp) -> None:
        self._on_lines(child)
        self._care.end()
        for source in (child.channel, child.stderr, child.pidfd):
            self.loop.forget(source)
        status = child.close()
        self._asked.clear()
        if self._anew:
            self._anew = False
            try:
                self._spawn(self._care.place)
            except (KevipError, OSError) as error:
                self._log.error("ucarp.not_started", error=str(error))
            else:
                return
        self._child = self.segment.advertised = None
        self.segment.end_bridge()
        if not child.killed:
            hint = "it said why in ucarp.message, if it knew"
            if status < 0:
                why = "by the watchdog if kevip stalled, else see dmesg for memory that ran out"
                hint = f"ended by signal {-status}: {why}"
            self._log.error("ucarp.exited", status=status, hint=hint)
        unlinked = self._ends is Reason.ENGINE and not self._care.is_linked
        self._tell(Ended(self._run, Reason.UNLINKED if unlinked else self._ends))
