"""The host on the segment of its group: what it hears there, and what it says besides its ucarp.

ucarp says no goodbye, cannot yield at once, and hears of an advert up to a second late: all that is done here.
"""

from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address
from math import inf

from kevip.core.messages import Heard, Says
from kevip.election.adverts import CarpAdverts
from kevip.election.carp import MOST_BASE, Advert, Farewell, Group, Interval, farewell, keeps_backup
from kevip.election.engine import Tell, Teller
from kevip.election.packet import BadAdvertError
from kevip.election.ucarp import Candidacy, key
from kevip.host.interface import Placement
from kevip.loop import Loop

LATE = 1.1  # seconds that ucarp may be late to know of an advert, which it gets through libpcap
_ASK = 1.0  # seconds between goodbyes that last
_FORGET = 5.0  # seconds after which a master that was not heard is of no interest
_HINTS = {
    "digest": "its password or VIP is not ours, or another group uses our id: compare --password and --vip on all "
    "replicas, or give this group another --vip-id",
    "version": "VRRP with our id: give this group another --vip-id",
    "ttl": "it came through a router: CARP must not",
}


class Segment:
    """Tells Heard. ``own`` is the interval of this host; ``advertised`` when, as master, it last did, else None.

    ``left`` is when another master said last that it lets go.
    """

    def __init__(self, candidacy: Candidacy, loop: Loop, teller: Teller, tell: Tell) -> None:
        self._candidacy, self._loop, self._teller, self._tell = candidacy, loop, teller, tell
        self.own = Interval(candidacy.advbase, candidacy.advskew)
        self.advertised: float | None = None
        self.left = -inf
        self.place: Placement | None = None
        self._adverts: CarpAdverts | None = None
        self._superiors: dict[IPv4Address, float] = {}
        self._farewell: Farewell = []
        self._is_lasting = False
        self._give_up: tuple[float, Callable[[], None]] | None = None

    def open(self, place: Placement) -> None:
        """Hear the adverts where ucarp will: the interface may be another one than it was. Raises OSError."""
        self._shut()
        group = Group(vhid=self._candidacy.vip_id, vip=self._candidacy.vip, key=key(self._candidacy.password))
        adverts = self._adverts = CarpAdverts(place.interface, place.source, group)
        self.place = place
        self._loop.watch(adverts.others, self.hear)
        self._loop.watch(adverts.own, self.hear_own)

    def close(self) -> None:
        """Hear and say no more."""
        self.end_goodbye()
        self.end_bridge()
        self._shut()

    def _shut(self) -> None:
        if self._adverts:
            self._loop.forget(self._adverts.others)
            self._loop.forget(self._adverts.own)
            self._adverts.close()
            self._adverts = None

    # What is heard

    def master(self, within: float) -> IPv4Address | None:
        """Return a host that was heard in these last seconds as a master that stays it although this one is elected."""
        since = self._loop.now() - within
        return next((source for source, at in self._superiors.items() if at >= since), None)

    def is_led(self) -> bool:
        """Whether such a host is heard now, as far as can be told."""
        return bool(self.master(self.own.seconds + LATE))

    def hear(self) -> None:
        """Take in what others have said by now."""
        for at, heard in self._adverts.hear() if self._adverts else ():
            if isinstance(heard, BadAdvertError):
                reason, source = heard.reason, str(heard.source or "unknown")
                hint = _HINTS.get(reason, "damaged or forged")
                self._teller.count("bad_adverts", reason)
                self._teller.warn_once("election.bad_advert", source, reason=reason, source=source, hint=hint)
            elif self.place and heard.source != self.place.source:
                self._on_advert(at, heard, self.place.source)

    def _on_advert(self, at: float, advert: Advert, here: IPv4Address) -> None:
        says = self._meaning(advert.interval)
        known = self._superiors.pop(advert.source, None)
        if known and says is not Says.STAYS:
            self.left = at
        if says is Says.STAYS and not (self._candidacy.preempt and self.own < advert.interval):
            self._superiors = {who: when for who, when in self._superiors.items() if at - when < _FORGET}
            self._superiors[advert.source] = at
        interval = self.own if says is Says.LEAVES else advert.interval  # a goodbye has another one than its sender
        self._tell(Heard(advert.source, says, at, preferred=(interval, advert.source) < (self.own, here)))

    def _meaning(self, interval: Interval) -> Says:
        """Return what its sender says of itself with an interval; with a dead ratio of 1, long ones look like any."""
        if interval == self._yielding():
            return Says.YIELDS
        ratio = self._candidacy.dead_ratio
        if ratio > 1 and interval.advbase >= self.own.advbase * ratio:
            return Says.LEAVES  # whether that is for us or not
        return Says.STAYS if keeps_backup(interval, self.own, ratio) else Says.LEAVES

    def hear_own(self) -> None:
        """Take in that adverts of a master went out."""
        for at, advert in self._adverts.sent() if self._adverts else ():
            if self.advertised is not None and isinstance(advert, Advert):
                self.advertised = max(self.advertised, at)

    # What is said

    def goodbye(self, *, known: bool, fit_only: bool, rank: int | None) -> None:
        """Make a peer take over; to those that are fit it is said until the end, so that others hear who leaves."""
        self._farewell = farewell(self.own, self._candidacy.dead_ratio, staged=known, to_all=not fit_only, first=rank)
        self._is_lasting = fit_only
        self._say_goodbye()

    def _say_goodbye(self) -> None:
        if self._farewell:
            (at, interval), *rest = self._farewell
            self._send(interval)
            self._farewell = rest or ([(at + _ASK, interval)] if self._is_lasting else [])
            if self._farewell:
                self._loop.after(self._farewell[0][0] - at, self._say_goodbye)

    def end_goodbye(self) -> None:
        """Say no more goodbyes."""
        self._farewell = []
        self._loop.cancel(self._say_goodbye)

    def yields(self) -> None:
        """Say once that this host lets go. No other one has such an interval; with a dead ratio of 1 there is none."""
        self._send(self._yielding() or self.own)

    def _yielding(self) -> Interval | None:
        ratio = self._candidacy.dead_ratio
        return Interval(self.own.advbase * ratio, 0) if ratio > 1 else None

    @property
    def bridges(self) -> bool:
        """Whether this host advertises in ucarp's place."""
        return self._give_up is not None

    def bridge(self, seconds: float, give_up: Callable[[], None]) -> None:
        """Advertise in ucarp's place, from now on; for so many seconds at most, then ``give_up`` is called."""
        self._give_up = self._loop.now() + seconds, give_up
        self._bridge()

    def _bridge(self) -> None:
        if self._give_up and self._loop.now() > self._give_up[0]:
            self._give_up[1]()
        else:
            self._send(self.own)
            self._loop.after(self.own.seconds, self._bridge)

    def end_bridge(self) -> None:
        """Leave it to ucarp to advertise."""
        self._give_up = None
        self._loop.cancel(self._bridge)

    def _send(self, interval: Interval) -> None:
        with suppress(OSError):  # the interface is down: nobody would hear it
            if self._adverts and interval.advbase <= MOST_BASE:
                self._adverts.advertise(interval, broadcast=self._candidacy.broadcast)
