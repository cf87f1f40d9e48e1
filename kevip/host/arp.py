"""ARP for the VIP: telling neighbours where it is now, and asking who else claims to have it."""

import struct
from ipaddress import IPv4Address

from kevip.host.wire import BROADCAST, ETH_P_ARP, Wire, arp_from, payload

_REQUEST, _REPLY = 1, 2
_PACKET = struct.Struct("!HHBBH6s4s6s4s")
_NOBODY = bytes(6)


def build(operation: int, mac: bytes, sender: IPv4Address, target_mac: bytes, target: IPv4Address) -> bytes:
    """Return an ARP packet for IPv4 over Ethernet (RFC 826)."""
    return _PACKET.pack(1, 0x0800, 6, 4, operation, mac, sender.packed, target_mac, target.packed)


class Neighbours:
    """The neighbours on an interface, as far as they care who has the VIP; raises OSError."""

    def __init__(self, interface: str, vip: IPv4Address) -> None:
        self._vip = vip
        self._wire = Wire(interface, arp_from(vip))
        self.fileno, self.close = self._wire.fileno, self._wire.close

    def announce(self) -> None:
        """Say that the VIP is here (gratuitous ARP): as a request (RFC 5227) and as a reply."""
        self._send(_REQUEST, self._vip, _NOBODY)
        self._send(_REPLY, self._vip, self._wire.mac)

    def ask(self) -> None:
        """Ask who has the VIP, without saying anything of ourselves (a probe, RFC 5227)."""
        self._send(_REQUEST, IPv4Address(0), _NOBODY)

    def _send(self, operation: int, sender: IPv4Address, target_mac: bytes) -> None:
        mac = self._wire.mac
        packet = build(operation, mac, sender, target_mac, self._vip)
        self._wire.send(to=BROADCAST, source=mac, kind=ETH_P_ARP, payload=packet)

    def claims(self) -> list[str]:
        """Return the MAC addresses of others that have claimed the VIP since the last call."""
        senders = [payload(packet)[8:14] for _, packet in self._wire.hear()]
        return [sender.hex(":") for sender in senders if sender != self._wire.mac]
