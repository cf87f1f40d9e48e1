"""Packets on an interface's Ethernet, past the kernel's IP: CARP adverts and ARP, heard at once and sent."""

import ctypes
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from ipaddress import IPv4Address

BROADCAST = b"\xff" * 6

_ETH_P_ALL, _ETH_P_IP, _ETH_P_ARP = 0x0003, 0x0800, 0x0806
_SO_ATTACH_FILTER = 26
_ETHERNET_HEADER = 14
_ENOUGH = 2048
"""More bytes than a packet that interests us has."""

_AT_ONCE = 512
"""Packets to hear before other things have their turn: more than the socket's buffer holds."""

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, operand: classic BPF (linux/filter.h)."""

_LOAD_BYTE, _LOAD_HALF, _LOAD_WORD, _JUMP_EQUAL, _RETURN = 0x30, 0x28, 0x20, 0x15, 0x06


def carries_protocol(protocol: int) -> list[Instruction]:
    """Return the filter for IPv4 packets of a protocol."""
    return [
        (_LOAD_HALF, 0, 0, 12),
        (_JUMP_EQUAL, 0, 3, _ETH_P_IP),
        (_LOAD_BYTE, 0, 0, 23),
        (_JUMP_EQUAL, 0, 1, protocol),
        (_RETURN, 0, 0, _ENOUGH),
        (_RETURN, 0, 0, 0),
    ]


def arp_from(address: IPv4Address) -> list[Instruction]:
    """Return the filter for ARP packets, requests and replies, whose sender says that it has an address."""
    return [
        (_LOAD_HALF, 0, 0, 12),
        (_JUMP_EQUAL, 0, 3, _ETH_P_ARP),
        (_LOAD_WORD, 0, 0, 28),
        (_JUMP_EQUAL, 0, 1, int(address)),
        (_RETURN, 0, 0, _ENOUGH),
        (_RETURN, 0, 0, 0),
    ]


class Wire:
    """A packet socket on an interface: hears what a filter lets through, also what this host sends; raises OSError.

    Unlike libpcap, which gives ucarp an advert up to 1 s late, it hears each packet when it comes.
    """

    def __init__(self, interface: str, instructions: Sequence[Instruction]) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        try:
            self._attach(instructions)
            self._socket.bind((interface, _ETH_P_ALL))
        except BaseException:
            self._socket.close()
            raise

    def _attach(self, instructions: Sequence[Instruction]) -> None:
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in instructions))
        program = struct.pack("HL", len(instructions), ctypes.addressof(code))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    @property
    def mac(self) -> bytes:
        """The interface's MAC address as it is now: that of a bond may change."""
        mac: bytes = self._socket.getsockname()[4]
        return mac

    def fileno(self) -> int:
        """Return what to select on."""
        return self._socket.fileno()

    def hear(self) -> Iterator[tuple[bool, bytes]]:
        """Yield packets that came, from their Ethernet header on, and whether this host sent them.

        If there is no end of them, the rest is for the next call.
        """
        with suppress(OSError):  # no more of them, or the interface went down
            for _ in range(_AT_ONCE):
                packet, sender = self._socket.recvfrom(_ENOUGH)
                yield sender[2] == socket.PACKET_OUTGOING, packet

    def send(self, *, to: bytes, source: bytes, kind: int, payload: bytes) -> None:
        """Send an Ethernet frame; raises OSError."""
        self._socket.send(to + source + struct.pack("!H", kind) + payload)

    def send_ip(self, *, to: bytes, source: bytes, packet: bytes) -> None:
        """Send an IPv4 packet in an Ethernet frame; raises OSError."""
        self.send(to=to, source=source, kind=_ETH_P_IP, payload=packet)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def payload(packet: bytes) -> bytes:
    """Return what a packet holds behind its Ethernet header."""
    return packet[_ETHERNET_HEADER:]
