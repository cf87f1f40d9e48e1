"""ARP for the VIP: telling neighbours where it is now, and asking who else claims to have it."""

import struct
from ipaddress import IPv4Address

from kevip.host.wire import BROADCAST, Wire, arp_from, payload

_KIND = 0x0806
_REQUEST, _REPLY = 1, 2
_PACKET = struct.Struct("!HHBBH6s4s6s4s")
_NOBODY = b"\0" * 6


def build(operation: int, mac: bytes, sender: IPv4Address, target_mac: bytes, target: IPv4Address) -> bytes:
    """Return an ARP packet for IPv4 over Ethernet (RFC 826)."""
    return _PACKET.pack(1, 0x0800, 6, 4, operation, mac, sender.packed, target_mac, target.packed)


class Neighbours:
    """The neighbours on an interface, as far as they care who has the VIP; raises OSError."""

    def __init__(self, interface: str, vip: IPv4Address) -> None:
        self._vip = vip
        self._wire = Wire(interface, arp_from(vip))

    def fileno(self) -> int:
        """Return what to select on."""
        return self._wire.fileno()

    def announce(self) -> None:
        """Say that the VIP is here (gratuitous ARP): as a request (RFC 5227) and as a reply."""
        mac = self._wire.mac
        for operation, target_mac in ((_REQUEST, _NOBODY), (_REPLY, mac)):
            packet = build(operation, mac, self._vip, target_mac, self._vip)
            self._wire.send(to=BROADCAST, source=mac, kind=_KIND, payload=packet)

    def ask(self) -> None:
        """Ask who has the VIP, without saying anything of ourselves (a probe, RFC 5227)."""
        mac = self._wire.mac
        packet = build(_REQUEST, mac, IPv4Address(0), _NOBODY, self._vip)
        self._wire.send(to=BROADCAST, source=mac, kind=_KIND, payload=packet)

    def claims(self) -> list[str]:
        """Return the MAC addresses of others that have claimed the VIP since the last call."""
        senders = [payload(packet)[8:14] for _, packet in self._wire.hear()]
        return [sender.hex(":") for sender in senders if sender != self._wire.mac]

    def close(self) -> None:
        """Stop listening."""
        self._wire.close()
