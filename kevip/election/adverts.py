"""The adverts of a group on the wire: those of others as they come, our own as they go out, and what we send besides.

Each direction has a socket of its own: what others send, forged or not, cannot make us miss that our own went out.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from ipaddress import IPv4Address
from random import SystemRandom
from typing import Generic, TypeVar

from kevip.election import carp
from kevip.election.packet import GROUP, GROUP_MAC, PROTOCOL, BadAdvertError
from kevip.host import wire
from kevip.host.wire import Wire

_CARP_MAC = bytes.fromhex("00005e0000")

_Advert = TypeVar("_Advert")


class Adverts(Generic[_Advert]):
    """Hears and sends packets with an id on an interface, as ``parse`` reads frames; raises OSError if it is gone.

    With ``unicast`` they are to hosts, else to the group.

    ``others`` and ``own`` are what to select on. Times are of the monotonic clock.
    """

    def __init__(
        self, interface: str, number: int, parse: Callable[[bytes], _Advert | None], *, unicast: bool = False
    ) -> None:
        self._parse = parse
        filters = [wire.adverts(PROTOCOL, GROUP, number, outgoing=out, unicast=unicast) for out in (False, True)]
        with ExitStack() as parts:
            self.others, self.own = (parts.enter_context(closing(Wire(interface, each))) for each in filters)
            if not unicast:
                self.others.join(interface, GROUP_MAC)
            self.close = parts.pop_all().close

    def hear(self) -> Iterator[tuple[float, _Advert | BadAdvertError]]:
        """Yield the adverts of others that came, and what was none, with their times."""
        return self._parsed(self.others)

    def sent(self) -> Iterator[tuple[float, _Advert | BadAdvertError]]:
        """Yield those that this host has sent, likewise."""
        return self._parsed(self.own)

    def _parsed(self, packets: Wire) -> Iterator[tuple[float, _Advert | BadAdvertError]]:
        for at, packet in packets.hear():
            try:
                if advert := self._parse(packet):
                    yield at, advert
            except BadAdvertError as error:
                yield at, error

    def send(self, packet: bytes, *, source: bytes = b"", broadcast: bool = False) -> None:
        """Send a packet, from the interface's MAC address if no other one is given; raises OSError."""
        to = wire.BROADCAST if broadcast else GROUP_MAC
        self.others.send_ip(to=to, source=source or self.others.mac, packet=packet)


class CarpAdverts(Adverts[carp.Advert]):
    """Those of a CARP group; ``address`` is the source of what this host sends."""

    def __init__(self, interface: str, address: IPv4Address, group: carp.Group) -> None:
        super().__init__(interface, group.vhid, lambda frame: carp.parse(group, wire.payload(frame)))
        self._address, self._group = address, group

    def advertise(self, interval: carp.Interval, *, broadcast: bool) -> None:
        """Send an advert with an interval, which may be one that makes backups take over; raises OSError."""
        advert = carp.Advert(source=self._address, interval=interval, counter=SystemRandom().getrandbits(64))
        mac = _CARP_MAC + self._group.vhid.to_bytes()
        self.send(carp.build(self._group, advert), source=mac, broadcast=broadcast)
