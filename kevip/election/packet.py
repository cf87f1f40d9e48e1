"""IPv4 packets of protocol 112, which CARP and VRRP share: their header, checksum, and what can be wrong with one."""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from kevip.errors import KevipError

GROUP, GROUP_MAC = IPv4Address("224.0.0.18"), bytes.fromhex("01005e000012")
PROTOCOL = 112
TTL = 255

# What can be wrong with an advert.
FLAWS = ("truncated", "malformed", "version", "ttl", "checksum", "digest", "password", "address", "interval")

_IP = struct.Struct("!BBHHHBBH4s4s")
_DONT_FRAGMENT = 0x4000


class BadAdvertError(KevipError):
    """A packet that is no valid advert, though it may be meant for our group.

    ``reason`` is one of FLAWS: version is another protocol, or version of it, which shares the protocol number; ttl is
    that of a packet that came through a router; digest that of another password or VIP in CARP, password, address (the
    VIP is not in it) and interval what differs in VRRP. Sender and packet are given as far as they can be told.
    """

    def __init__(self, reason: str, source: IPv4Address | None = None, packet: bytes = b"") -> None:
        super().__init__(f"bad advert: {reason}")
        self.reason, self.source, self.packet = reason, source, packet


@dataclass(frozen=True, slots=True)
class Header:
    """What an IPv4 header says: ``start`` is where the payload begins, ``length`` that of the packet by its word."""

    source: IPv4Address
    target: IPv4Address
    ttl: int
    start: int
    length: int


def header(packet: bytes, wanted: int = PROTOCOL) -> Header:
    """Return the header of an IPv4 packet of the protocol that is wanted; raises BadAdvertError."""
    if len(packet) < _IP.size:
        raise BadAdvertError("truncated")
    first, _, length, _, _, ttl, protocol, _, source, target = _IP.unpack_from(packet)
    start = (first & 0xF) * 4
    if first >> 4 != 4 or protocol != wanted or start < _IP.size:  # noqa: PLR2004 - IPv4
        raise BadAdvertError("malformed")
    return Header(IPv4Address(source), IPv4Address(target), ttl, start, length)


def wrap(  # noqa: PLR0913 - the fields of a header
    source: IPv4Address,
    body: bytes,
    *,
    identity: int,
    service: int,
    target: IPv4Address = GROUP,
    protocol: int = PROTOCOL,
) -> bytes:
    """Return a packet, to the group if to nobody else, with its identity and type of service."""
    fields = 0x45, service, _IP.size + len(body), identity, _DONT_FRAGMENT, TTL, protocol
    return summed(_IP, fields, (source.packed, target.packed)) + body


def summed(form: struct.Struct, before: tuple[int, ...], behind: tuple[int | bytes, ...]) -> bytes:
    """Pack fields with the checksum over all of them in between."""
    return form.pack(*before, checksum(form.pack(*before, 0, *behind)), *behind)


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of the data; 0 if the data holds a right one."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total > 0xFFFF:  # noqa: PLR2004 - 16 bits
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
