"""Floods, as a program: ``python -m lab.flood KIND MAC NUMBER SECONDS``; prints how many packets it sent.

KIND is ``digest`` (adverts with a wrong digest), ``fragments`` (pieces of adverts) or ``flows`` (UDP, each packet of
another connection). They go from the client's eth0 to a MAC address, NUMBER of them, spread over so many seconds.
"""

import socket
import struct
import sys
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from itertools import cycle

from kevip.election.carp import Advert, Group, Interval, build
from kevip.election.packet import checksum
from lab.network import CLIENT, VIP

PORTS = 1024, 65536


def _adverts(source: IPv4Address, vip: IPv4Address, *, fragments: bool) -> Iterator[bytes]:
    group = Group(vhid=100, vip=vip, key=b"wrong")
    packet = bytearray(build(group, Advert(source=source, interval=Interval(1, 0), counter=1)))
    if fragments:
        packet[6] |= 0x20
        packet[10:12] = bytes(2)
        packet[10:12] = checksum(bytes(packet[:20])).to_bytes(2)
    return cycle([bytes(packet)])


def _flows(source: IPv4Address, vip: IPv4Address) -> Iterator[bytes]:
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 29, 0, 0, 64, 17, 0, source.packed, vip.packed)
    header = header[:10] + checksum(header).to_bytes(2) + header[12:]
    for port in range(7001, 7100):
        for own in range(*PORTS):
            yield header + struct.pack("!HHHHc", own, port, 9, 0, b"?")


def main(kind: str, mac: str, number: str, seconds: str) -> int:
    """Send them; return how many it were."""
    hosts = IPv4Address(CLIENT), IPv4Address(VIP)
    packets = _flows(*hosts) if kind == "flows" else _adverts(*hosts, fragments=kind == "fragments")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("eth0", 0))
        ethernet = bytes.fromhex(mac.replace(":", "")) + sender.getsockname()[4] + b"\x08\x00"
        begin, sent = time.monotonic(), 0
        while sent < int(number) and (passed := time.monotonic() - begin) < float(seconds) + 5:
            for _ in range(min(int(passed / float(seconds) * int(number)) + 1, int(number)) - sent):
                sender.send(ethernet + next(packets))
                sent += 1
            time.sleep(0.001)
    return sent


if __name__ == "__main__":
    print(main(*sys.argv[1:]))  # noqa: T201 - the answer
