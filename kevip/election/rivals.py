"""The other hosts of a VRRP group: who advertises, and who serves already.

A master advertises before it serves, for keepalived waits for nobody. What shows that it serves is ARP for the VIP from
the same MAC address: it claims the VIP, and answers when asked.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address

from kevip.core.messages import Heard, Says
from kevip.election.adverts import Adverts
from kevip.election.engine import Tell, Teller
from kevip.election.packet import GROUP, BadAdvertError
from kevip.election.vrrp import LEAVES, Advert, Group, build, parse
from kevip.host.arp import Neighbours
from kevip.host.interface import Placement
from kevip.host.wire import payload
from kevip.loop import Action, Loop

_MANY = 64  # hosts to remember, those heard last: an advert with a forged source passes for one
_ASK = 0.05  # seconds between questions who has the VIP, at least
_UNTOLD = 0.5  # seconds for which this host may advertise before keepalived has said that it is master
_SURELY = 0.9  # of the time after which keepalived takes a master for dead: heard since, it cannot have done so
_MAC = slice(6, 12)  # of the sender, in an Ethernet frame
_HINTS = {
    "password": "its password is not ours: compare --password, --engine and --advert-interval on all replicas, or give "
    "this group another --vip-id",
    "address": "another group uses our id for its VIP: give this group another --vip-id",
    "interval": "version 2 of VRRP wants the same on all: compare --advert-interval on all replicas",
    "version": "CARP, or another version of VRRP, with our id: compare --engine, --vrrp-version and --advert-interval "
    "on all replicas, or give this group another --vip-id",
    "ttl": "it came through a router: VRRP must not",
}

_Sighting = tuple[str, Advert]  # the sender's MAC address, and what it said


@dataclass(slots=True)
class _Reign:
    """Another host as master: since when and until when it was heard; whether it serves, and is preferred to us."""

    mac: str
    since: float
    last: float
    interval: float
    serves: bool
    preferred: bool = False


class Rivals:
    """Tells Heard, of hosts that serve. ``advertised`` is when this host, as master, last did, else None.

    ``patience`` is how long keepalived waits for an advert of one that has our interval; ``priority`` is its own.
    ``serves`` says that this host does: then another one that advertises has to show it. ``untold`` is
    called where this host advertises for a while, and keepalived has not said that it is master.
    """

    def __init__(self, group: Group, patience: float, loop: Loop, teller: Teller, tell: Tell) -> None:
        self._group, self._missed = group, patience / group.interval
        self._loop, self._teller, self._tell = loop, teller, tell
        self.untold: Action | None = None
        self.reign(begins=False)
        self.serves, self.priority = False, 0
        self.place: Placement | None = None
        self._adverts: Adverts[_Sighting] | None = None
        self._neighbours: Neighbours | None = None
        self._reigns: dict[IPv4Address, _Reign] = {}
        self._asked = 0.0

    def open(self, place: Placement) -> None:
        """Hear what goes on where the VIP belongs: that may be another interface than it was. Raises OSError."""
        self.close()
        adverts = self._adverts = Adverts(
            place.interface, self._group.vrid, self._parse, unicast=bool(self._group.peers)
        )
        neighbours = self._neighbours = Neighbours(place.interface, self._group.vip)
        self.place = place
        self._loop.watch(adverts.others, partial(self._on_adverts, adverts, place.source))
        self._loop.watch(adverts.own, self.hear_own)
        self._loop.watch(neighbours, partial(self._on_claims, neighbours))

    def close(self) -> None:
        """Hear no more."""
        if self._adverts:
            self._loop.forget(self._adverts.others)
            self._loop.forget(self._adverts.own)
            self._adverts.close()
        if self._neighbours:
            self._loop.forget(self._neighbours)
            self._neighbours.close()
        self._adverts = self._neighbours = None
        self._reigns.clear()

    def _parse(self, frame: bytes) -> _Sighting | None:
        advert = parse(self._group, payload(frame))
        return (frame[_MAC].hex(":"), advert) if advert else None

    def _on_adverts(self, adverts: Adverts[_Sighting], here: IPv4Address) -> None:
        for at, heard in adverts.hear():
            if isinstance(heard, BadAdvertError):
                reason, source = heard.reason, str(heard.source or "unknown")
                hint = _HINTS.get(reason, "damaged or forged")
                self._teller.count("bad_adverts", reason)
                self._teller.warn_once("election.bad_advert", source, reason=reason, source=source, hint=hint)
            elif heard[1].source != here:
                self._on_advert(at, *heard, here)

    def _on_advert(self, at: float, mac: str, advert: Advert, here: IPv4Address) -> None:
        reign = self._reigns.pop(advert.source, None)
        if advert.priority == LEAVES:
            self._tell(Heard(advert.source, Says.LEAVES, at))
            return
        if not reign or at - reign.last > self._missed * reign.interval:
            reign = _Reign(mac, at, at, advert.interval, serves=not self.serves)
        reign.mac, reign.last, reign.interval = mac, at, advert.interval
        reign.preferred = (advert.priority, advert.source) > (self.priority, here)
        self._reigns = dict([*self._reigns.items(), (advert.source, reign)][-_MANY:])
        if reign.serves:
            self._tell(Heard(advert.source, Says.STAYS, at, reign.preferred))
        else:
            self._ask()

    def _ask(self) -> None:
        """Ask who has the VIP: who advertises may serve already, and have said so when nobody heard it."""
        if self._neighbours and self._loop.now() - self._asked >= _ASK:
            self._asked = self._loop.now()
            with suppress(OSError):  # the interface is down: nobody would answer
                self._neighbours.ask()

    def _on_claims(self, neighbours: Neighbours) -> None:
        claims = {mac for mac, _ in neighbours.claims()}
        for source, reign in self._reigns.items():
            if reign.mac in claims and not reign.serves:
                reign.serves = True
                self._tell(Heard(source, Says.STAYS, self._loop.now(), preferred=True))

    def unheard(self) -> IPv4Address | None:
        """Return a preferred master for which keepalived, that is elected now, must be deaf: it is heard here."""
        now = self._loop.now()
        for source, reign in self._reigns.items():
            not_new = now - reign.since > reign.interval
            if reign.preferred and not_new and now - reign.last < _SURELY * self._missed * reign.interval:
                return source
        return None

    def reign(self, *, begins: bool) -> None:
        """Take in that keepalived says that it is master, or is not any more."""
        self._told = self._loop.now()
        self.advertised: float | None = self._told if begins else None
        self._strays: float | None = None  # since when it advertises all the same

    def hear_own(self) -> None:
        """Take in that adverts of a master went out."""
        for at, heard in self._adverts.sent() if self._adverts else ():
            if isinstance(heard, BadAdvertError) or heard[1].priority == LEAVES:
                continue
            if self.advertised is not None:
                self.advertised = max(self.advertised, at)
            elif not self._strays and at > self._told:
                self._strays = self._loop.now()
            elif self._strays and at > self._strays + _UNTOLD:
                self._strays = None
                if self.untold:
                    self.untold()

    def goodbye(self) -> None:
        """Say that this host leaves, in keepalived's place."""
        if self._adverts and self.place:
            advert = Advert(source=self.place.source, priority=LEAVES, interval=self._group.interval)
            others = [peer for peer in self._group.peers if peer != self.place.source]
            with suppress(OSError):  # the interface is down: nobody would hear it
                for target in others or [GROUP]:  # where a peer is on the network is its kernel's business
                    self._adverts.send(build(self._group, advert, target), broadcast=bool(others))
