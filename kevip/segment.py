"""The network segment around a candidate: who advertises there, who claims the VIP, and what we tell them."""

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address
from math import inf
from random import SystemRandom
from time import monotonic

from kevip.election.carp import PROTOCOL, Advert, BadAdvertError, Group, Interval, build, keeps_backup, parse
from kevip.election.ucarp import Candidacy, key
from kevip.host import wire
from kevip.host.arp import Neighbours
from kevip.host.wire import Wire
from kevip.record import Reason

LATE = 1.1
"""Seconds that ucarp may be late to know of an advert, which it gets through libpcap."""

_RECENT = 5.0
"""Seconds in which a goodbye leads to an election."""

_MANY = 64
"""Peers to remember, those heard last: an advert that is replayed with another source address passes for one."""

_MULTICAST_MAC = bytes.fromhex("01005e000012")
_CARP_MAC = bytes.fromhex("00005e0000")


class Segment:
    """Hears each advert when it comes; raises OSError if the interface is gone.

    ``advertised`` is when this host's ucarp last sent an advert, ``peers`` when each other host
    did (monotonic time), also in an earlier segment.
    """

    def __init__(self, candidacy: Candidacy, peers: Mapping[IPv4Address, float]) -> None:
        self._candidacy = candidacy
        self._group = Group(vhid=candidacy.vip_id, vip=candidacy.vip, key=key(candidacy.password))
        self.own = Interval(candidacy.advbase, candidacy.advskew)
        self.advertised = monotonic()
        self.peers = dict(peers)
        self._masters: dict[IPv4Address, tuple[float, Interval]] = {}
        self._goodbye = -inf
        self.neighbours = Neighbours(candidacy.interface, candidacy.vip)
        try:
            self._wire = Wire(candidacy.interface, wire.carries_protocol(PROTOCOL))
        except BaseException:
            self.neighbours.close()
            raise

    def fileno(self) -> int:
        """Return what to select on for adverts; ``neighbours`` has its own."""
        return self._wire.fileno()

    def listen(self) -> Iterator[Advert | BadAdvertError]:
        """Take in the adverts that came; yield those of others, and what was none."""
        for outgoing, packet in self._wire.hear():
            try:
                advert = parse(self._group, wire.payload(packet))
            except BadAdvertError as error:
                yield error
                continue
            if advert and advert.source != self._candidacy.source:
                self._note(advert)
                yield advert
            elif advert and outgoing:
                self.advertised = monotonic()

    def _note(self, advert: Advert) -> None:
        for known in (self.peers, self._masters):
            known.pop(advert.source, None)
            while len(known) >= _MANY:
                del known[next(iter(known))]
        self.peers[advert.source] = monotonic()
        if keeps_backup(advert.interval, self.own, self._candidacy.dead_ratio, preempt=False):
            self._masters[advert.source] = monotonic(), advert.interval
        else:
            self._goodbye = monotonic()
            self.peers.pop(advert.source)  # it leaves; and whoever it leaves to is heard soon

    def master(self, within: float) -> IPv4Address | None:
        """Return another host that advertised as master in the last seconds, and meant to stay it."""
        now = monotonic()
        return next((source for source, (heard, _) in self._masters.items() if now - heard <= within), None)

    def superior(self) -> IPv4Address | None:
        """Return another host that is master and stays it although this one was elected: it does not preempt it."""
        now = monotonic()
        for source, (heard, interval) in self._masters.items():
            if now - heard <= LATE and not (self._candidacy.preempt and self.own < interval):
                return source
        return None

    def reason(self) -> Reason:
        """Say why this host was elected just now."""
        if monotonic() - self._goodbye < _RECENT:
            return Reason.GOODBYE
        if not self._masters:
            return Reason.ALONE
        return Reason.PREFERRED if self.master(self.own.seconds + LATE) else Reason.SILENCE

    def yields_to(self, advert: Advert) -> bool:
        """Whether of two masters the sender of this advert is preferred: more frequent, or a lower address."""
        rank = (advert.interval, advert.source)
        return advert.source in self._masters and rank < (self.own, self._candidacy.source)

    def is_silent(self) -> bool:
        """Whether adverts of this host, as master, have stopped going out."""
        return monotonic() - self.advertised > self.own.seconds + LATE

    def advertise(self, interval: Interval) -> None:
        """Send an advert with an interval, which may be one that makes backups take over; raises OSError."""
        advert = Advert(source=self._candidacy.source, interval=interval, counter=SystemRandom().getrandbits(64))
        self._wire.send_ip(
            to=wire.BROADCAST if self._candidacy.broadcast else _MULTICAST_MAC,
            source=_CARP_MAC + self._group.vhid.to_bytes(),
            packet=build(self._group, advert),
        )

    def close(self) -> None:
        """Stop listening."""
        self._wire.close()
        self.neighbours.close()
