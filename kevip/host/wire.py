"""Packets on an interface's Ethernet, past the kernel's IP: adverts, presence and ARP, heard at once and sent."""

import ctypes
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from time import monotonic, time

BROADCAST = b"\xff" * 6
ETH_P_IP, ETH_P_ARP = 0x0800, 0x0806

_ETH_P_ALL, _SOL_PACKET = 0x0003, 263
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 26, 33, 35
_PACKET_ADD_MEMBERSHIP, _PACKET_MR_MULTICAST, _MEMBERSHIP = 1, 0, struct.Struct("@iHH8s")  # packet(7)
_TIMESPEC = struct.Struct("@ll")
_ETHERNET_HEADER = 14
_ENOUGH = 2048  # more bytes than a packet that interests us has
_BUFFER = 4 << 20  # bytes that wait to be heard: a flood must not hide what counts. The default holds some 200 packets
_AT_ONCE = 64  # packets to hear before other things have their turn

Instruction = tuple[int, int, int, int]  # classic BPF (linux/filter.h): code, jump if true, jump if false, operand
Test = tuple[list[Instruction], int, int, bool]  # what loads a value, how to compare it, with what, what must come out

_LOAD_BYTE, _LOAD_HALF, _LOAD_WORD, _RETURN = 0x30, 0x28, 0x20, 0x06
# Remember the IP header's length; load a byte, or a half-word, that far behind an offset.
_LOAD_LENGTH, _LOAD_BEHIND, _LOAD_HALF_BEHIND = 0xB1, 0x50, 0x48
_EQUAL, _ANY_BIT, _AND = 0x15, 0x45, 0x54
_FRAGMENT = 0x3FFF  # bits of the IP header's fourth half-word: more fragments, and the offset of this one
_PACKET_TYPE, _VLAN_TAG_PRESENT = 0xFFFFF004, 0xFFFFF030  # offsets of what the kernel knows of a packet (SKF_AD_OFF)


def _load(code: int, offset: int) -> Instruction:
    return code, 0, 0, offset


def _filter(*tests: Test, outgoing: bool = False) -> list[Instruction]:
    """Return the filter for what this host sends, or receives, and passes all tests: each that fails jumps to the end.

    What has a VLAN tag is of another network.
    """
    ours: list[Test] = [
        ([_load(_LOAD_BYTE, _PACKET_TYPE)], _EQUAL, socket.PACKET_OUTGOING, outgoing),
        ([_load(_LOAD_BYTE, _VLAN_TAG_PRESENT)], _EQUAL, 0, True),
    ]
    program: list[Instruction] = [(_RETURN, 0, 0, _ENOUGH), (_RETURN, 0, 0, 0)]
    for loads, compare, operand, wanted in reversed([*ours, *tests]):
        away = len(program) - 1
        jump = (compare, 0, away, operand) if wanted else (compare, away, 0, operand)
        program = [*loads, jump, *program]
    return program


def adverts(
    protocol: int, group: IPv4Address, vhid: int, *, outgoing: bool, unicast: bool = False
) -> list[Instruction]:
    """Return the filter for whole packets of an IPv4 protocol to a group, with an id as second byte of their payload.

    With ``unicast``, for those to anybody else.

    The kernel does that for us: whoever is on the network can send any number of others.
    """
    return _filter(
        ([_load(_LOAD_HALF, 12)], _EQUAL, ETH_P_IP, True),
        ([_load(_LOAD_BYTE, 23)], _EQUAL, protocol, True),
        ([_load(_LOAD_WORD, 30)], _EQUAL, int(group), not unicast),
        ([_load(_LOAD_HALF, 20)], _ANY_BIT, _FRAGMENT, False),
        ([_load(_LOAD_LENGTH, _ETHERNET_HEADER), _load(_LOAD_BEHIND, _ETHERNET_HEADER + 1)], _EQUAL, vhid, True),
        outgoing=outgoing,
    )


def datagrams(port: int, target: IPv4Address) -> list[Instruction]:
    """Return the filter for whole UDP packets of others to an address and a port."""
    return _filter(
        ([_load(_LOAD_HALF, 12)], _EQUAL, ETH_P_IP, True),
        ([_load(_LOAD_BYTE, 23)], _EQUAL, socket.IPPROTO_UDP, True),
        ([_load(_LOAD_WORD, 30)], _EQUAL, int(target), True),
        ([_load(_LOAD_HALF, 20)], _ANY_BIT, _FRAGMENT, False),
        ([_load(_LOAD_LENGTH, _ETHERNET_HEADER), _load(_LOAD_HALF_BEHIND, _ETHERNET_HEADER + 2)], _EQUAL, port, True),
    )


def arp_from(network: IPv4Network) -> list[Instruction]:
    """Return the filter for ARP packets of others, requests and replies, whose sender says it has one of its addresses.

    Which of them, is for who hears it: a filter has no room for hundreds.
    """
    masked = [_load(_LOAD_WORD, 28), (_AND, 0, 0, int(network.netmask))]
    return _filter(
        ([_load(_LOAD_HALF, 12)], _EQUAL, ETH_P_ARP, True),
        (masked, _EQUAL, int(network.network_address), True),
    )


class Wire:
    """A packet socket on an interface: hears what a filter lets through; raises OSError.

    Unlike libpcap, which gives ucarp an advert up to 1 s late, it hears each packet when it comes.
    """

    def __init__(self, interface: str, instructions: Sequence[Instruction]) -> None:
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in instructions))
        program = struct.pack("HL", len(instructions), ctypes.addressof(code))
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            with suppress(OSError):  # who may not have more has what all have
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            self._socket.bind((interface, _ETH_P_ALL))
        except BaseException:
            self._socket.close()
            raise
        self.fileno, self.close = self._socket.fileno, self._socket.close

    @property
    def mac(self) -> bytes:
        """The interface's MAC address as it is now: that of a bond may change."""
        mac: bytes = self._socket.getsockname()[4]
        return mac

    def join(self, interface: str, group: bytes) -> None:
        """Have the network card take frames to a multicast address, while this is open; raises OSError."""
        index = socket.if_nametoindex(interface)
        wanted = _MEMBERSHIP.pack(index, _PACKET_MR_MULTICAST, len(group), group)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, wanted)

    def hear(self) -> Iterator[tuple[float, bytes]]:
        """Yield packets from their Ethernet header on, with the time at which they went by, by the monotonic clock.

        If there is no end of them, the rest is for the next call.
        """
        with suppress(OSError):  # no more of them, or the interface went down
            for _ in range(_AT_ONCE):
                packet, told, _, _ = self._socket.recvmsg(_ENOUGH, socket.CMSG_SPACE(_TIMESPEC.size))
                yield monotonic() - _age(told), packet

    def send(self, *, to: bytes, source: bytes, kind: int, payload: bytes) -> None:
        """Send an Ethernet frame; raises OSError."""
        self._socket.send(to + source + struct.pack("!H", kind) + payload)

    def send_ip(self, *, to: bytes, source: bytes, packet: bytes) -> None:
        """Send an IPv4 packet in an Ethernet frame; raises OSError."""
        self.send(to=to, source=source, kind=ETH_P_IP, payload=packet)


def payload(packet: bytes) -> bytes:
    """Return what a packet holds behind its Ethernet header."""
    return packet[_ETHERNET_HEADER:]


def _age(told: Sequence[tuple[int, int, bytes]]) -> float:
    """Return how many seconds ago the kernel saw a packet; a wall clock set meanwhile must not make that negative."""
    for level, kind, data in told:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = _TIMESPEC.unpack(data)
            age: float = time() - seconds - nanoseconds / 1e9
            return max(age, 0.0)
    return 0.0
