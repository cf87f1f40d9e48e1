"""How frames get from replica to replica: UDP past the kernel's IP, along the way that adverts go.

They go where adverts do, 224.0.0.18, by multicast or broadcast, or to each peer, with TTL 255: what lets these through
lets frames through. They are sent and heard by packet sockets: no firewall of the host is in between, and nothing
listens. They are UDP, and not of protocol 112, so that nothing else that speaks CARP or VRRP ever sees one.
"""

import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from kevip.election.packet import GROUP, GROUP_MAC, TTL, BadAdvertError, checksum, header, wrap
from kevip.host import wire
from kevip.host.interface import Placement
from kevip.host.wire import Wire
from kevip.presence.frame import FrameError

_UDP = struct.Struct("!HHHH")
_NETWORK_CONTROL = 0xC0  # the type of service that routers give to their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a group's frames go: to a port, of all, or of each of ``peers``; by multicast unless that is dropped."""

    port: int
    peers: tuple[IPv4Address, ...] = ()
    broadcast: bool = False


class Channel:
    """Sends frames from a place, and hears those of others there; raises OSError."""

    def __init__(self, place: Placement, way: Way) -> None:
        self._source, self._way = place.source, way
        self._targets: Sequence[IPv4Address] = [each for each in way.peers if each != place.source] or [GROUP]
        # Where a peer is, only its kernel knows; and a kernel does not answer what was broadcast.
        self._to = wire.BROADCAST if way.peers or way.broadcast else GROUP_MAC
        self._wire = Wire(place.interface, wire.datagrams(way.port, place.source if way.peers else GROUP))
        self.fileno, self.close = self._wire.fileno, self._wire.close
        if self._to == GROUP_MAC:
            self._wire.join(place.interface, GROUP_MAC)

    def send(self, data: bytes) -> None:
        """Send a frame; raises OSError."""
        for target in self._targets:
            length = _UDP.size + len(data)
            pseudo = self._source.packed + target.packed + struct.pack("!HH", socket.IPPROTO_UDP, length)
            fields = self._way.port, self._way.port, length
            total = checksum(pseudo + _UDP.pack(*fields, 0) + data) or 0xFFFF  # 0 would say that there is none
            packet = wrap(
                self._source,
                _UDP.pack(*fields, total) + data,
                identity=0,
                service=_NETWORK_CONTROL,
                target=target,
                protocol=socket.IPPROTO_UDP,
            )
            self._wire.send_ip(to=self._to, source=self._wire.mac, packet=packet)

    def hear(self) -> Iterator[tuple[float, IPv4Address, bytes]]:
        """Yield what came, when, and from whom, as far as it did not come through a router."""
        for at, packet in self._wire.hear():
            try:
                source, data = unwrap(wire.payload(packet))
            except FrameError:
                continue
            yield at, source, data


def unwrap(packet: bytes) -> tuple[IPv4Address, bytes]:
    """Return the sender of an IPv4 packet, and what its UDP carries; raises FrameError and nothing else."""
    try:
        head = header(packet, socket.IPPROTO_UDP)
    except BadAdvertError as error:
        raise FrameError(error.reason) from None
    body = packet[head.start : head.length]
    if head.ttl != TTL or len(body) < _UDP.size:
        raise FrameError("ttl" if head.ttl != TTL else "truncated")
    return head.source, body[_UDP.size : _UDP.unpack_from(body)[2]]
