"""The adverts of a group on the wire: those of others as they come, our own as they go out, and what we send besides.

Each direction has a socket of its own: what others send, forged or not, cannot make us miss that our own went out.
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from ipaddress import IPv4Address
from random import SystemRandom

from kevip.election.carp import Advert, Group, Interval, build, parse
from kevip.election.packet import GROUP, PROTOCOL, BadAdvertError
from kevip.host import wire
from kevip.host.wire import Wire

_MULTICAST_MAC = bytes.fromhex("01005e000012")
_CARP_MAC = bytes.fromhex("00005e0000")


class Adverts:
    """Hears and sends adverts on an interface, with a source address of this host; raises OSError if it is gone.

    ``others`` and ``own`` are what to select on. Times are of the monotonic clock.
    """

    def __init__(self, interface: str, source: IPv4Address, group: Group) -> None:
        self._source, self._group = source, group
        with ExitStack() as parts:
            self.others, self.own = (
                parts.enter_context(closing(Wire(interface, wire.adverts(PROTOCOL, GROUP, group.vhid, outgoing=out))))
                for out in (False, True)
            )
            self.close = parts.pop_all().close

    def hear(self) -> Iterator[tuple[float, Advert | BadAdvertError]]:
        """Yield the adverts of others that came, and what was none, with their times."""
        return self._parsed(self.others)

    def sent(self) -> Iterator[tuple[float, Advert | BadAdvertError]]:
        """Yield those that this host has sent, likewise."""
        return self._parsed(self.own)

    def _parsed(self, packets: Wire) -> Iterator[tuple[float, Advert | BadAdvertError]]:
        for at, packet in packets.hear():
            try:
                if advert := parse(self._group, wire.payload(packet)):
                    yield at, advert
            except BadAdvertError as error:
                yield at, error

    def send(self, interval: Interval, *, broadcast: bool) -> None:
        """Send an advert with an interval, which may be one that makes backups take over; raises OSError."""
        advert = Advert(source=self._source, interval=interval, counter=SystemRandom().getrandbits(64))
        self.others.send_ip(
            to=wire.BROADCAST if broadcast else _MULTICAST_MAC,
            source=_CARP_MAC + self._group.vhid.to_bytes(),
            packet=build(self._group, advert),
        )
