"""The engine that is ucarp: it elects, and all in which it has to be overruled ends here.

ucarp is late (libpcap gives it an advert up to 1 s late), deaf (without a carrier it sleeps 10 s at a time), says no
goodbye, and goes on to advertise when it should not. So the daemon hears the adverts itself, looks after ucarp every
few seconds, and says goodbye in its place.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from typing import Any, Literal, Protocol

from kevip.core.instance import LOOK_AGAIN, TICK
from kevip.core.messages import Demoted, Elected, Ended, Heard, Reason, Says
from kevip.core.states import Traits
from kevip.election.adverts import Adverts
from kevip.election.carp import (
    MOST_BASE,
    MOST_SKEW,
    UNFIT,
    Advert,
    BadAdvertError,
    Farewell,
    Group,
    Interval,
    farewell,
    keeps_backup,
)
from kevip.election.engine import Tell
from kevip.election.ucarp import Candidacy, Hook, Message, Request, Ucarp, key, understand
from kevip.errors import KevipError
from kevip.host import interface
from kevip.host.interface import Placement
from kevip.loop import Loop

LATE = 1.1
"""Seconds that ucarp may be late to know of an advert."""

FAREWELL, FAREWELL_ALONE = 3.5, 2.5
"""Seconds to wait for a peer to take over: where one was heard before, and where none was.

Backups are silent, so none heard does not mean that none is there. That is what a goodbye takes, with and without its
first stages, until a backup has acted on it whose ucarp is late.
"""

GLANCE = 0.25
"""Seconds between looks at whether adverts go out."""

_BAD_ADVERTS = {
    "digest": "its password or VIP is not ours, or another group uses our id: compare --password and --vip on all "
    "replicas, or give this group another --vip-id",
    "version": "VRRP with our id: give this group another --vip-id",
    "ttl": "it came through a router: CARP must not",
}


class Teller(Protocol):
    """Where an engine says what people should know, and counts what it sees."""

    log: Any

    def warn_once(self, event: str, subject: object, **context: object) -> None:
        """Warn of something about a subject, unless that was done a short while ago."""
        ...

    def count(self, what: Literal["bad_adverts", "ucarp_starts"], kind: str = "") -> None:
        """Count one more of that."""
        ...


class UcarpEngine:
    """Runs ucarp on the interface where the VIP belongs; ``locate`` finds it. See ``Engine``."""

    def __init__(
        self, candidacy: Candidacy, loop: Loop, teller: Teller, tell: Tell, locate: Callable[[], Placement]
    ) -> None:
        self._candidacy = candidacy
        self._loop = loop
        self._teller = teller
        self._log = teller.log
        self._tell = tell
        self._locate = locate
        own = Interval(candidacy.advbase, candidacy.advskew)
        self.traits = Traits(
            interval=own.seconds,
            patience=candidacy.advbase * candidacy.dead_ratio + candidacy.advskew / 256,
            lateness=LATE,
            farewell=FAREWELL,
            farewell_alone=FAREWELL_ALONE,
        )
        self._own = own
        self._place: Placement | None = None
        self._adverts: Adverts | None = None
        self._child: Ucarp | None = None
        self._run = 0
        self._ends = Reason.UCARP
        self._asked: dict[str, Request] = {}
        self._advertised: float | None = None
        self._superiors: dict[IPv4Address, float] = {}
        self._farewell: Farewell = []
        self._fit = True
        self._anew = False
        self._bridge_until = self._elected = 0.0

    def start(self, run: int, *, fit: bool) -> Placement | None:
        """See ``Engine``."""
        self._fit, self._run = fit, run
        try:
            place = self._locate()
            interface.require_carrier(place.interface)
            self._own = Interval(self._candidacy.advbase, self._skew())
            self._open(place)
            self._spawn(place)
        except (KevipError, OSError) as error:
            self._teller.warn_once("ucarp.not_started", str(error), error=str(error), retry_seconds=LOOK_AGAIN)
            return None
        return place

    def _skew(self) -> int:
        """Return the skew that this host deserves: one that does not reach TARGET comes after all that do."""
        skew = self._candidacy.advskew
        return skew if self._fit else min(UNFIT + skew, MOST_SKEW)

    def _spawn(self, place: Placement) -> None:
        """Start ucarp; raises CommandError, HostError, OSError."""
        candidacy = replace(self._candidacy, interface=place.interface, source=place.source, advskew=self._own.advskew)
        child = self._child = Ucarp(candidacy)
        self._ends = Reason.UCARP
        self._teller.count("ucarp_starts")
        self._loop.watch(child.channel, partial(self._on_hooks, child))
        self._loop.watch(child.stderr, partial(self._on_lines, child))
        self._loop.watch(child.pidfd, partial(self._on_exit, child))
        self._loop.watch(child.watchdog, partial(self._on_watchdog, child))
        self._loop.after(TICK, self._look_after)

    def _open(self, place: Placement) -> None:
        """Hear the adverts where ucarp will; the interface may be another one than it was."""
        self._shut()
        group = Group(vhid=self._candidacy.vip_id, vip=self._candidacy.vip, key=key(self._candidacy.password))
        adverts = self._adverts = Adverts(place.interface, place.source, group)
        self._place = place
        self._loop.watch(adverts.others, self._on_adverts)
        self._loop.watch(adverts.own, self._on_own)

    def _shut(self) -> None:
        if self._adverts:
            self._loop.forget(self._adverts.others)
            self._loop.forget(self._adverts.own)
            self._adverts.close()
            self._adverts = None

    # What the core asks for

    def proceed(self, token: str) -> None:
        """See ``Engine``."""
        request = self._asked.pop(token, None)
        if not request or not self._child:
            return
        self._child.answer(request)
        self._advertised = self._loop.now() if request.hook is Hook.UP else None
        if request.hook is Hook.UP:
            self._elected = self._loop.now()
            self._loop.after(GLANCE, self._glance)

    def rerank(self, *, fit: bool) -> None:
        """See ``Engine``."""
        self._fit = fit
        self._rerank()

    def _rerank(self) -> None:
        """Have ucarp stand as this host deserves; as backup only if a master is heard, for it may be about to win."""
        skew, settled = self._skew(), self._advertised is not None or self._is_led()
        if self._child and not self._child.killed and skew != self._own.advskew and settled:
            self._renew(Interval(self._candidacy.advbase, skew))

    def _renew(self, interval: Interval) -> None:
        """Start ucarp anew, with an interval, in the role that there is: it can change neither while it runs.

        For a master, the daemon advertises until the new ucarp is elected, which hears nobody else.
        """
        self._own, self._anew = interval, True
        if self._child:
            self._child.kill()
        if self._advertised is not None:
            patience = interval.advbase * self._candidacy.dead_ratio + 3 * interval.seconds
            self._bridge_until = self._loop.now() + patience + LATE
            self._bridge()

    def _is_misled(self) -> bool:
        """Whether ucarp, as a new master, gives way to one that has left since, for it hears of all that late."""
        if self._advertised is None or not self._place or self._is_led():
            return False
        return self._loop.now() - self._elected <= 2 * LATE and interface.is_running(self._place.interface)

    def _master(self, within: float) -> IPv4Address | None:
        """Return a host that was heard in these last seconds as a master that stays it although this one is elected."""
        since = self._loop.now() - within
        return next((source for source, at in self._superiors.items() if at >= since), None)

    def _is_led(self) -> bool:
        return bool(self._master(self._own.seconds + LATE))

    def _bridge(self) -> None:
        """Advertise in ucarp's place."""
        if self._loop.now() > self._bridge_until:
            self._end(Reason.UCARP)
            return
        self._send(self._own)
        self._loop.after(self._own.seconds, self._bridge)

    def end(self) -> None:
        """See ``Engine``."""
        self._end(Reason.UCARP)

    def _end(self, reason: Reason) -> None:
        """End ucarp at once, for a reason that is told when it has ended."""
        self._advertised, self._anew = None, False
        self._loop.cancel(self._bridge)
        if self._child:
            self._ends = reason
            self._child.kill()

    def goodbye(self, *, known: bool, fit_only: bool) -> None:
        """See ``Engine``."""
        self._farewell = farewell(self._own, self._candidacy.dead_ratio, staged=known, to_all=not fit_only)
        self._say_goodbye()

    def _say_goodbye(self) -> None:
        if self._farewell:
            (at, interval), *self._farewell = self._farewell
            self._send(interval)
            if self._farewell:
                self._loop.after(self._farewell[0][0] - at, self._say_goodbye)

    def end_goodbye(self) -> None:
        """See ``Engine``."""
        self._farewell = []
        self._loop.cancel(self._say_goodbye)

    def yields(self) -> None:
        """See ``Engine``. No other host has such an interval; with a dead ratio of 1, there is none to say it with."""
        self._send(self._yielding() or self._own)

    def _yielding(self) -> Interval | None:
        ratio = self._candidacy.dead_ratio
        return Interval(self._own.advbase * ratio, 0) if ratio > 1 else None

    def _send(self, interval: Interval) -> None:
        with suppress(OSError):  # the interface is down: nobody would hear it
            if self._adverts and interval.advbase <= MOST_BASE:
                self._adverts.send(interval, broadcast=self._candidacy.broadcast)

    def beat(self) -> None:
        """See ``Engine``."""
        if self._child:
            self._child.beat()

    def close(self) -> None:
        """See ``Engine``."""
        self.end_goodbye()
        self._loop.cancel(self._glance, self._look_after, self._bridge)
        if self._child:
            self._child.kill()
            self._child.close()
        self._shut()

    # What ucarp says and does

    def _on_hooks(self, child: Ucarp) -> None:
        for request in child.requests():
            if self._loop.awaits(self._bridge):  # the role is known
                child.answer(request)
                if request.hook is Hook.UP:
                    self._loop.cancel(self._bridge)
                continue
            self._asked[request.token] = request
            if request.hook is Hook.DOWN and self._is_misled():
                self._log.info("election.upheld")
                self._renew(self._own)
            elif request.hook is Hook.DOWN:
                self._tell(Demoted(self._run, request.token))
            elif master := self._master(LATE):
                self._log.info("election.declined", master=str(master))
                self._end(Reason.LATE)  # before it can advertise; it does not know yet that another one won
            else:
                self._tell(Elected(self._run, request.token))

    def _on_lines(self, child: Ucarp) -> None:
        for line in child.lines():
            message, text = understand(line)
            match message:
                case Message.MASTER | Message.BACKUP:
                    self._log.info(message)
                case Message.HOOK_LOST:
                    self._log.error("election.resigned", reason=text)
                    self._end(Reason.UCARP)
                case Message.OTHER:
                    self._teller.warn_once(message, text, ucarp=text)
                case _:
                    self._log.debug(message, ucarp=text)

    def _on_exit(self, child: Ucarp) -> None:
        self._on_lines(child)
        for source in (child.channel, child.stderr, child.pidfd, child.watchdog):
            self._loop.forget(source)
        status = child.close()
        self._asked.clear()
        if self._anew and self._place:
            self._anew = False
            try:
                self._spawn(self._place)
            except (KevipError, OSError) as error:
                self._log.error("ucarp.not_started", error=str(error))
            else:
                return
        self._child = self._advertised = None
        self._loop.cancel(self._look_after, self._glance, self._bridge)
        if not child.killed:
            self._log.error("ucarp.exited", status=status, hint=_hint_at_end(status))
        if self._ends is Reason.UCARP and self._place and not interface.is_running(self._place.interface):
            self._ends = Reason.UNLINKED
        self._tell(Ended(self._run, self._ends))

    def _on_watchdog(self, child: Ucarp) -> None:
        """Replace a watchdog that was killed: a daemon that hangs would keep ucarp advertising."""
        self._loop.forget(child.watchdog)
        try:
            child.guard_anew()
        except (KevipError, OSError) as error:
            self._log.error("ucarp.unguarded", error=str(error), hint="ucarp is ended, and started anew")
            self._end(Reason.UCARP)
            return
        self._log.warning("watchdog.replaced", hint="it was killed: see dmesg for memory that ran out")
        self._loop.watch(child.watchdog, partial(self._on_watchdog, child))

    def _look_after(self) -> None:
        """End a ucarp that is of no use where it is, to have it started anew."""
        self._loop.after(TICK, self._look_after)
        child, place = self._child, self._place
        if not child or not place or child.killed:
            return
        if self._advertised is None and child.is_frozen():
            self._log.error("ucarp.frozen", hint=f"ucarp ({child.pid}) was stopped: it is ended")
            self._end(Reason.UCARP)
        elif not interface.is_running(place.interface):
            if self._advertised is None:  # it would sleep for 10 s at a time, as a backup
                self._end(Reason.UNLINKED)
        elif self._has_moved(place):
            self._log.warning("ucarp.moved", was=str(place.source), hint="the address of this host has changed")
            self._end(Reason.MOVED)
        else:
            self._rerank()

    def _has_moved(self, place: Placement) -> bool:
        """Whether another address is this host's source now: ucarp would take adverts from the old one for its own."""
        if interface.first_address(place.interface) == place.source:
            return False
        try:
            return self._locate() != place
        except KevipError:
            return False  # it has none just now: if that stays, peers hear no more of it

    # What is heard on the wire

    def _on_adverts(self) -> None:
        if not self._adverts:
            return
        for at, heard in self._adverts.hear():
            if isinstance(heard, BadAdvertError):
                hint = _BAD_ADVERTS.get(heard.reason, "damaged or forged")
                source = str(heard.source or "unknown")
                self._teller.count("bad_adverts", heard.reason)
                self._teller.warn_once("election.bad_advert", source, reason=heard.reason, source=source, hint=hint)
            elif self._place and heard.source != self._place.source:
                self._on_advert(at, heard, self._place.source)

    def _on_advert(self, at: float, advert: Advert, here: IPv4Address) -> None:
        says = self._meaning(advert.interval)
        self._superiors.pop(advert.source, None)
        if says is Says.STAYS and not (self._candidacy.preempt and self._own < advert.interval):
            self._superiors = {who: when for who, when in self._superiors.items() if at - when < FAREWELL}
            self._superiors[advert.source] = at
        preferred = (advert.interval, advert.source) < (self._own, here)
        self._tell(Heard(advert.source, says, at, preferred))

    def _meaning(self, interval: Interval) -> Says:
        """Return what its sender says of itself with an interval; with a dead ratio of 1, long ones look like any."""
        if interval == self._yielding():
            return Says.YIELDS
        ratio = self._candidacy.dead_ratio
        if ratio > 1 and interval.advbase >= self._own.advbase * ratio:
            return Says.LEAVES  # whether that is for us or not
        return Says.STAYS if keeps_backup(interval, self._own, ratio, preempt=False) else Says.LEAVES

    def _on_own(self) -> None:
        for at, advert in self._adverts.sent() if self._adverts else ():
            if self._advertised is not None and isinstance(advert, Advert):
                self._advertised = max(self._advertised, at)

    def _glance(self) -> None:
        """End a ucarp that is master and does not advertise any more: a peer takes over soon anyway."""
        self._on_own()
        if self._advertised is None or not self._child:
            return
        if self._loop.now() - self._advertised > self._own.seconds + LATE:
            hint = f"ucarp ({self._child.pid}) does not advertise: it is ended"
            self._log.error("election.silent", hint=hint)
            self._end(Reason.UCARP)
        else:
            self._loop.after(GLANCE, self._glance)


def _hint_at_end(status: int) -> str:
    """Say what an exit status, or a signal that is negative, tells of a ucarp that was not ended by kevip."""
    if status < 0:
        return f"ended by signal {-status}: by the watchdog if kevip stalled, else see dmesg for memory that ran out"
    return "it said why in ucarp.message, if it knew"
