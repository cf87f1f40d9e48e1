"""CARP adverts as ucarp 1.5.2 sends and takes them: built, parsed and verified, without a socket.

An advert is an IPv4 packet of protocol 112 with TTL 255, to 224.0.0.18. Its 36 bytes of payload are, in network order:
version 2 and type 1 in one byte, vhid, advskew, authlen 7, a zero, advbase, checksum (RFC 1071), a 64-bit counter, and
an HMAC-SHA1 over version, type, vhid, VIP and counter, keyed with the password. advbase and advskew are not covered by
it, and ucarp does not look at the counter: whoever is on the network can replay adverts, and change their timing.
"""

import hmac
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from kevip.election.packet import GROUP, TTL, BadAdvertError, checksum, header, summed, wrap

_VERSION, _TYPE, _AUTHLEN = 2, 1, 7
_KIND = _VERSION << 4 | _TYPE
_PAYLOAD = struct.Struct("!BBBBBBHQ20s")
_LOW_DELAY = 0x10  # the type of service

# The longest interval. 255 as a skew is left out: with it, a base of 255 means "never" to ucarp.
MOST_BASE, MOST_SKEW = 255, 254
UNFIT = 204  # added to the skew of a host that should be master only if no other one can

# How a goodbye is said; in seconds since its beginning, or of the stage before.
_STAGES = ((0.0, 9), (0.5, 17))  # when backups take over with a skew below that: thirds of the default range, 1 to 25
_REPEATED = 0.5  # when a stage is said again: an advert may be lost
_LAST = 1.1  # that hosts which are fit have before the others: ucarp may be that late


@dataclass(frozen=True, slots=True, order=True)
class Interval:
    """How often somebody advertises: seconds, and 1/256 s. The smaller one is preferred."""

    advbase: int
    advskew: int

    @property
    def seconds(self) -> float:
        """The interval as seconds."""
        return self.advbase + self.advskew / 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What the members of a group share: the id, the VIP, and the key made from the password."""

    vhid: int
    vip: IPv4Address
    key: bytes

    def digest(self, counter: int) -> bytes:
        """Return the HMAC of an advert."""
        message = struct.pack("!BBB4sQ", _VERSION, _TYPE, self.vhid, self.vip.packed, counter)
        return hmac.digest(self.key, message, "sha1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Advert:
    """A verified advert."""

    source: IPv4Address
    interval: Interval
    counter: int


def build(group: Group, advert: Advert) -> bytes:
    """Return an advert as an IPv4 packet."""
    interval, counter = advert.interval, advert.counter
    fields = _KIND, group.vhid, interval.advskew, _AUTHLEN, 0, interval.advbase
    body = summed(_PAYLOAD, fields, (counter, group.digest(counter)))
    return wrap(advert.source, body, identity=counter & 0xFFFF, service=_LOW_DELAY)


def parse(group: Group, packet: bytes) -> Advert | None:
    """Return the advert in an IPv4 packet, None if it is of another group; raises BadAdvertError and nothing else."""
    head = header(packet)
    source, body = head.source, packet[head.start :]
    if head.target != GROUP or body[1:2] not in (b"", group.vhid.to_bytes()):
        return None
    if _is_vrrp(body):
        raise BadAdvertError("version", source)
    if len(body) < _PAYLOAD.size:
        raise BadAdvertError("truncated", source)
    kind, _, advskew, _, _, advbase, _, counter, digest = _PAYLOAD.unpack_from(body)
    flaws = {
        "version": kind != _KIND,
        "ttl": head.ttl != TTL,
        "checksum": checksum(packet[: head.start + _PAYLOAD.size]) != 0,
        "digest": not hmac.compare_digest(digest, group.digest(counter)),
    }
    if reason := next((flaw for flaw, found in flaws.items() if found), None):
        raise BadAdvertError(reason, source, packet)
    return Advert(source=source, interval=Interval(advbase, advskew), counter=counter)


def _is_vrrp(body: bytes) -> bool:
    """Whether this is VRRP: version 3 (RFC 5798), or 2 (RFC 3768), which has the number of addresses as fourth byte."""
    first, count = body[:1], body[3:4]
    return first == b"\x31" or (first == b"\x21" and count not in (b"", bytes([_AUTHLEN])))


def signed_for(group: Group, packet: bytes, candidates: Iterable[IPv4Address]) -> IPv4Address | None:
    """Return the VIP for which an advert was signed with the group's password; None if it is none of the candidates."""
    *_, counter, digest = _PAYLOAD.unpack_from(packet, header(packet).start)
    found = (vip for vip in candidates if hmac.compare_digest(digest, replace(group, vip=vip).digest(counter)))
    return next(found, None)


Farewell = list[tuple[float, Interval]]  # adverts to say goodbye with, and how many seconds after the beginning


def farewell(
    own: Interval, dead_ratio: int, *, staged: bool, to_all: bool = True, first: int | None = None
) -> Farewell:
    """Return the adverts that make backups with our timing take over; staged, those with small skews first.

    If a fit one is said to have the skew ``first``, stages that would not reach it do. So each backup is reached as
    soon as without that, or sooner, whether it is true or not; and one that is not fit no sooner.
    A backup takes a master for dead whose next advert would come after its own patience, ``advbase * dead_ratio`` and
    its skew. So an interval of that patience and skew X moves those with a smaller skew than X; one second more moves
    all, also those that are unfit. Empty if there is no such interval: an advert's advbase is a byte.
    """
    patience = own.advbase * dead_ratio
    named = min((first or 0) + 1, UNFIT)
    stages = [(at, Interval(patience, max(below, named))) for at, below in _STAGES if staged]
    fit = len(stages) * _REPEATED
    stages += [(at, Interval(patience, UNFIT)) for at in (fit, fit + _REPEATED)]
    if to_all:
        stages += [(at, Interval(patience + 1, 0)) for at in (fit + _LAST, fit + _LAST + _REPEATED)]
    return [(at, stage) for at, stage in stages if stage.advbase <= MOST_BASE]


def keeps_backup(advert: Interval, own: Interval, dead_ratio: int) -> bool:
    """Whether an advert with this interval makes a backup with our timing stay one, but for --preempt: no goodbye."""
    return Interval(own.advbase * dead_ratio, own.advskew) >= advert
