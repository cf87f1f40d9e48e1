"""ARP for VIPs: telling neighbours where they are now, and asking who else claims to have them."""

import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from kevip.host.wire import BROADCAST, ETH_P_ARP, Wire, arp_from, payload

_REQUEST, _REPLY = 1, 2
_PACKET = struct.Struct("!HHBBH6s4s6s4s")
_NOBODY = bytes(6)


def build(operation: int, mac: bytes, sender: IPv4Address, target_mac: bytes, target: IPv4Address) -> bytes:
    """Return an ARP packet for IPv4 over Ethernet (RFC 826)."""
    return _PACKET.pack(1, 0x0800, 6, 4, operation, mac, sender.packed, target_mac, target.packed)


class Neighbours:
    """The neighbours on an interface, as far as they care who has certain addresses; raises OSError."""

    def __init__(self, interface: str, *vips: IPv4Address) -> None:
        self._vips = frozenset(vips)
        around = IPv4Network(min(vips))
        while max(vips) not in around:
            around = around.supernet()
        self._wire = Wire(interface, arp_from(around))
        self.fileno, self.close = self._wire.fileno, self._wire.close

    def announce(self, vips: Iterable[IPv4Address]) -> None:
        """Say that VIPs are here (gratuitous ARP): as a request (RFC 5227) and as a reply."""
        for vip in vips:
            self._send(_REQUEST, vip, _NOBODY, vip)
            self._send(_REPLY, vip, self._wire.mac, vip)

    def ask(self) -> None:
        """Ask who has the addresses, without saying anything of ourselves (a probe, RFC 5227)."""
        for vip in self._vips:
            self._send(_REQUEST, IPv4Address(0), _NOBODY, vip)

    def _send(self, operation: int, sender: IPv4Address, target_mac: bytes, target: IPv4Address) -> None:
        mac = self._wire.mac
        packet = build(operation, mac, sender, target_mac, target)
        self._wire.send(to=BROADCAST, source=mac, kind=ETH_P_ARP, payload=packet)

    def claims(self) -> list[tuple[str, IPv4Address]]:
        """Return the MAC addresses of others that have claimed an address since the last call, and which."""
        said = [payload(packet) for _, packet in self._wire.hear()]
        found = [(each[8:14], IPv4Address(each[14:18])) for each in said]
        return [(mac.hex(":"), vip) for mac, vip in found if mac != self._wire.mac and vip in self._vips]
