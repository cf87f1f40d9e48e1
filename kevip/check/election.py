"""The election as it is heard on the wire: masters, adverts that are not of our group, and who answers ARP for the VIP.

Nothing is sent but ARP probes (RFC 5227), which say nothing of this host. Adverts come from a virtual MAC address,
00:00:5e:00:00:VHID, and ARP replies from the host's own one: who answers for the VIP is known by asking for the
addresses of those who advertise, too.
"""

import select
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from itertools import chain
from time import monotonic
from typing import Generic, TypeVar

from kevip.check.report import Finding, failed, ok, warning
from kevip.election.adverts import Adverts, CarpAdverts
from kevip.election.carp import Advert, Group, Interval, keeps_backup, signed_for
from kevip.election.packet import BadAdvertError
from kevip.host.arp import Neighbours
from kevip.host.interface import Placement
from kevip.host.wire import Wire

_AGAIN = 0.9  # seconds between ARP probes: a neighbour may miss one
_SUBNET = 1 << 16  # addresses of a subnet that are tried as a stranger's VIP, at most: 0.3 s
_SENDERS = 32  # hosts whose address is asked for at most: senders of packets can be forged
_SAME_BASE = "set --advbase to the same on all hosts"


Said = TypeVar("Said")  # an advert
Standing = TypeVar("Standing")  # what it says of its sender


@dataclass(frozen=True, slots=True, order=True)
class Stranger:
    """An advert that was none of our group: why, from whom, and for which VIP it was signed if that could be told."""

    reason: str
    source: IPv4Address | None
    vip: IPv4Address | None = None


@dataclass(slots=True, kw_only=True)
class Heard(Generic[Standing]):
    """What was heard in some seconds, on the interface with this source address."""

    seconds: float
    source: IPv4Address
    ours: bool = False  # whether this host advertises
    masters: dict[IPv4Address, Standing] = field(default_factory=dict)  # what each host that does says of itself
    strangers: set[Stranger] = field(default_factory=set)
    claims: set[str] = field(default_factory=set)  # the MAC addresses of others that answer for the VIP
    macs: dict[IPv4Address, set[str]] = field(default_factory=dict)  # of those that advertise


class Listener(ABC, Generic[Said, Standing]):
    """Hears what goes on around a candidate; raises OSError if it cannot, of the interface say."""

    def __init__(self, place: Placement, vip: IPv4Address, adverts: Adverts[Said]) -> None:
        self._interface, self._adverts = place.interface, adverts
        self._vip = Neighbours(place.interface, vip)
        self._senders: dict[IPv4Address, Neighbours] = {}
        self._heard: Heard[Standing] = Heard(seconds=0, source=place.source)

    @abstractmethod
    def _take_in(self, advert: Said) -> IPv4Address:
        """Note what a master says, and return who it is."""

    def _vip_of(self, error: BadAdvertError) -> IPv4Address | None:
        """Return the VIP that a stranger's advert is for, if that can be told."""
        del error
        return None

    def listen(self, seconds: float) -> Heard[Standing]:
        """Listen for some seconds, then close."""
        self._heard.seconds = seconds
        end, ask = monotonic() + seconds, 0.0
        try:
            while (now := monotonic()) < end:
                if now >= ask:
                    for each in self._neighbours():
                        each.ask()
                    ask = now + _AGAIN
                sources: list[Wire | Neighbours] = [self._adverts.others, self._adverts.own, *self._neighbours()]
                select.select(sources, [], [], min(ask, end) - now)
                self._take_adverts()
                self._heard.claims.update(mac for mac, _ in self._vip.claims())
                for source, neighbours in self._senders.items():
                    self._heard.macs.setdefault(source, set()).update(mac for mac, _ in neighbours.claims())
        finally:
            self._adverts.close()
            for each in self._neighbours():
                each.close()
        return self._heard

    def _neighbours(self) -> list[Neighbours]:
        return [self._vip, *self._senders.values()]

    def _take_adverts(self) -> None:
        for ours, adverts in ((True, self._adverts.sent()), (False, self._adverts.hear())):
            for _, advert in adverts:
                if isinstance(advert, BadAdvertError):
                    self._note_stranger(advert)
                elif ours:
                    self._heard.ours = True
                else:
                    self._know(self._take_in(advert))

    def _note_stranger(self, error: BadAdvertError) -> None:
        known = any((each.reason, each.source) == (error.reason, error.source) for each in self._heard.strangers)
        if known or len(self._heard.strangers) >= _SENDERS:
            return
        self._heard.strangers.add(Stranger(error.reason, error.source, self._vip_of(error)))
        if error.source:
            self._know(error.source)

    def _know(self, source: IPv4Address) -> None:
        """Ask for the MAC address of a sender."""
        if source not in self._senders and len(self._senders) < _SENDERS:
            self._senders[source] = Neighbours(self._interface, source)
            self._senders[source].ask()


class CarpListener(Listener[Advert, Interval]):
    """Hears a CARP group; ``subnets`` are where a stranger's VIP may be. A master's shortest interval counts."""

    def __init__(self, place: Placement, group: Group, subnets: Sequence[IPv4Network]) -> None:
        super().__init__(place, group.vip, CarpAdverts(place.interface, place.source, group))
        self._group = group
        self._subnets = [subnet for subnet in subnets if subnet.num_addresses <= _SUBNET]

    def _take_in(self, advert: Advert) -> IPv4Address:
        shortest = self._heard.masters.get(advert.source, advert.interval)
        self._heard.masters[advert.source] = min(shortest, advert.interval)
        return advert.source

    def _vip_of(self, error: BadAdvertError) -> IPv4Address | None:
        return signed_for(self._group, error.packet, chain(*self._subnets)) if error.reason == "digest" else None


def masters(heard: Heard[Interval], own: Interval, dead_ratio: int) -> Iterator[Finding]:
    """Say who advertises as master of this group, and whether that fits our timing."""
    return all_masters(heard, partial(_timing, own=own, dead_ratio=dead_ratio), "try --broadcast, on all hosts")


def all_masters(
    heard: Heard[Standing], judged: Callable[[IPv4Address, Standing], Finding], unheard: str
) -> Iterator[Finding]:
    """Say who advertises as master of this group, each one ``judged``; ``unheard`` is what to do if it is not heard."""
    if heard.ours:
        yield ok("election", "this host is master, and advertises")
    elif not heard.masters:
        found = f"no master of this group heard in {heard.seconds:g} s: this host would be it"
        yield ok("election", found, f"if another host is, its adverts do not come here: {unheard}")
    for source in sorted(heard.masters):
        if source == heard.source:
            yield failed("election", f"another host advertises from {source}, our own address", "give it its own one")
        else:
            yield judged(source, heard.masters[source])
    rivals = sorted(heard.masters.keys() - {heard.source})
    if len(rivals) + heard.ours > 1:
        who = " and ".join(map(str, rivals)) + " and this host" * heard.ours
        advice = "during a handover that is normal; if it stays, they do not hear each other"
        yield warning("election", f"several masters at once: {who}", advice)


def _timing(source: IPv4Address, interval: Interval, own: Interval, dead_ratio: int) -> Finding:
    found = f"{source} is master, with --advbase {interval.advbase} and --advskew {interval.advskew}"
    if not keeps_backup(interval, own, dead_ratio):
        us = f"this host, with --advbase {own.advbase} and --dead-ratio {dead_ratio}"
        found += f": {us}, waits {own.advbase * dead_ratio} s only, and would take over from it"
        return failed("election", found, f"{_SAME_BASE} (or is it leaving just now? then check again)")
    if interval.advbase != own.advbase:
        return warning("election", f"{found}; ours is {own.advbase}", _SAME_BASE)
    return ok("election", found)


def strangers(heard: Heard[Interval], group: Group) -> Iterator[Finding]:
    """Say which adverts with our id are not of our group."""
    return all_strangers(heard, group.vhid, lambda each, holds: _stranger(each, group, holds_vip=holds))


def all_strangers(
    heard: Heard[Standing], number: int, judged: Callable[[Stranger, bool], Finding]
) -> Iterator[Finding]:
    """Say which adverts with our id are not of our group, each one ``judged``, with whether its sender has the VIP."""
    for each in sorted(heard.strangers, key=str):
        if each.source == heard.source:
            yield failed("other groups", "what advertises on this host has another password", "check with its settings")
        else:
            yield judged(each, bool(each.source and heard.macs.get(each.source, set()) & heard.claims))
    if not heard.strangers:
        yield ok("other groups", f"no adverts of others with id {number}")


def _stranger(stranger: Stranger, group: Group, *, holds_vip: bool) -> Finding:
    source, vhid = stranger.source or "an unknown sender", group.vhid
    other_id = "give one of the two groups another --vip-id"
    if stranger.reason == "version":
        found = f"{source} speaks VRRP with id {vhid}: no conflict, but both log it"
        advice = f"to keep logs quiet, {other_id}"
    elif stranger.reason != "digest":
        found = f"{source} sends bad adverts with id {vhid} ({stranger.reason})"
        advice = "they are ignored; if they are a peer's, see what is between the two hosts"
    elif stranger.vip:
        found, advice = f"{source} uses id {vhid} for VIP {stranger.vip}, with our password", other_id
    elif holds_vip:
        found = f"{source} holds VIP {group.vip}, and advertises with another password"
        return failed("other groups", found, "set --password to the same on all hosts")
    else:
        found = f"{source} advertises with id {vhid} and a password that is not ours; it does not hold VIP {group.vip}"
        advice = f"if it should be a peer, set --password and --vip to the same on all hosts; if not, {other_id}"
    return warning("other groups", found, advice)


def duplicates(heard: Heard[Standing], vip: IPv4Address) -> Iterator[Finding]:
    """Say who answers ARP for the VIP, and whether that is who should."""
    rightful = {mac: source for source in heard.masters for mac in heard.macs.get(source, ())}
    known = {mac: source for source, macs in heard.macs.items() for mac in macs}
    advice = "take the VIP from that host, or take another one; if it runs kevip too, see why its adverts are not heard"
    for mac in sorted(heard.claims):
        if mac in rightful:
            yield ok("duplicates", f"{rightful[mac]} ({mac}), which is master, answers ARP for the VIP")
        else:
            who = f"{known[mac]} ({mac})" if mac in known else mac
            yield failed("duplicates", f"{who} answers ARP for VIP {vip}, and is no master of this group", advice)
    if not heard.claims and heard.masters:
        found = f"nobody answers ARP for VIP {vip}, though there is a master"
        yield warning("duplicates", found, "see the log of kevip there")
    elif not heard.claims:
        yield ok("duplicates", f"nobody else answers ARP for VIP {vip}")
