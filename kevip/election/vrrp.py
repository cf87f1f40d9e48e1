"""VRRP adverts, version 3 (RFC 9568) and 2 (RFC 3768): built, parsed and verified, without a socket.

An advert is an IPv4 packet of protocol 112 with TTL 255, to 224.0.0.18 or to each peer. Its payload is, in network
order: version and type 1 in one byte, id, priority, number of addresses, two bytes for authentication and seconds
(version 2) or for hundredths of a second in 12 bits (version 3), checksum, the addresses, and 8 bytes of password in
version 2. Version 3 has no authentication, and puts a pseudo header under its checksum.
"""

import hmac
import struct
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Literal

from kevip.election.packet import GROUP, PROTOCOL, TTL, BadAdvertError, Header, checksum, header, wrap

PASSWORD = 8  # bytes of a password, which version 2 sends in clear
LEAVES = 0  # the priority of a master that goes

_TYPE = 1
_NONE, _SIMPLE = 0, 1  # types of authentication
_HEAD = struct.Struct("!BBBBHH")
_ADDRESS = 4
_HUNDREDTHS, _LONGEST = 100, 0xFFF  # units of an interval in a second, and in 12 bits
_NETWORK_CONTROL = 0xC0  # the type of service that routers give to their own
_CARP = 7, 36  # the fourth byte, and the length, of what looks like version 2 otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What the members of a group share: the id, the VIP, and in version 2 the interval and, if any, the password.

    With ``peers`` they advertise to these addresses, else to all.
    """

    version: Literal[2, 3]
    vrid: int
    vip: IPv4Address
    interval: float  # seconds
    password: bytes = field(default=b"", repr=False)
    peers: tuple[IPv4Address, ...] = ()

    @property
    def authentication(self) -> int:
        """How version 2 says that it has a password, or none."""
        return _SIMPLE if self.password else _NONE

    def admits(self, authentication: int, password: bytes) -> bool:
        """Whether that is how version 2 has our password in its adverts, or none."""
        ours = self.password.ljust(PASSWORD, b"\0")
        return authentication == self.authentication and (not self.password or hmac.compare_digest(password, ours))


@dataclass(frozen=True, slots=True, kw_only=True)
class Advert:
    """A verified advert: the interval in seconds, and a priority that is LEAVES, or the higher, the more preferred."""

    source: IPv4Address
    priority: int
    interval: float


def build(group: Group, advert: Advert, target: IPv4Address = GROUP) -> bytes:
    """Return an advert as an IPv4 packet."""
    secret = b""
    if group.version == 2:  # noqa: PLR2004
        timing = group.authentication << 8 | round(advert.interval)
        secret = group.password.ljust(PASSWORD, b"\0")
    else:
        timing = min(round(advert.interval * _HUNDREDTHS), _LONGEST)
    fields = group.version << 4 | _TYPE, group.vrid, advert.priority, 1, timing
    body = _HEAD.pack(*fields, 0) + group.vip.packed + secret
    total = checksum(_pseudo(group.version, advert.source, target, len(body)) + body)
    body = _HEAD.pack(*fields, total) + body[_HEAD.size :]
    return wrap(advert.source, body, identity=0, service=_NETWORK_CONTROL, target=target)


def _pseudo(version: int, source: IPv4Address, target: IPv4Address, length: int) -> bytes:
    """Return what is under the checksum besides the payload."""
    return source.packed + target.packed + struct.pack("!HH", PROTOCOL, length) if version > 2 else b""  # noqa: PLR2004


def parse(group: Group, packet: bytes) -> Advert | None:
    """Return the advert in an IPv4 packet, None if it is of another group; raises BadAdvertError and nothing else."""
    head = header(packet)
    body = packet[head.start : head.length]  # an Ethernet frame may be padded
    if (head.target == GROUP) is bool(group.peers) or body[1:2] not in (b"", group.vrid.to_bytes()):
        return None
    if len(packet) < head.length or len(body) < _HEAD.size:
        raise BadAdvertError("truncated", head.source)
    if reason := _flaw(group, head, body):
        raise BadAdvertError(reason, head.source, packet)
    return Advert(source=head.source, priority=body[2], interval=_interval(group.version, body))


def _interval(version: int, body: bytes) -> float:
    timing: int = _HEAD.unpack_from(body)[4]
    return float(timing & 0xFF) if version == 2 else (timing & _LONGEST) / _HUNDREDTHS  # noqa: PLR2004


def _flaw(group: Group, head: Header, body: bytes) -> str | None:
    """Say what is wrong with an advert, in the order of the RFCs."""
    kind, _, _, count, timing, _ = _HEAD.unpack_from(body)
    end = _HEAD.size + count * _ADDRESS
    addresses = [body[at : at + _ADDRESS] for at in range(_HEAD.size, end, _ADDRESS)]
    older, secret = group.version == 2, body[end : end + PASSWORD]  # noqa: PLR2004
    flaws = {
        "ttl": head.ttl != TTL,
        "version": kind >> 4 != group.version or (older and (count, len(body)) == _CARP),
        "malformed": kind & 0xF != _TYPE or not count,
        "truncated": len(body) < end + older * PASSWORD,
        "checksum": checksum(_pseudo(group.version, head.source, head.target, len(body)) + body) != 0,
        "password": older and not group.admits(timing >> 8, secret),
        "address": group.vip.packed not in addresses,
        "interval": older and timing & 0xFF != group.interval,
    }
    return next((flaw for flaw, found in flaws.items() if found), None)
