"""What is heard on the wire: adverts of our group and network that are whole, and each direction by itself."""

import socket
import struct
import time
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest
from lab.network import CLIENT, VIP, Namespace, Network, eventually
from lab.traffic import send_frame

from kevip.election.adverts import CarpAdverts
from kevip.election.carp import Advert, Group, Interval, build
from kevip.election.packet import BadAdvertError

GROUP = Group(vhid=100, vip=IPv4Address(VIP), key=b"key")
TO_ALL = bytes.fromhex("01005e000012")
BROADCAST = b"\xff" * 6

SLACK = 0.05
"""Seconds by which a time may be wrong: it is told on another clock."""


def advert(**changes: int) -> bytes:
    """Return an advert of the client as a packet, some of its bytes changed, by their place."""
    packet = bytearray(build(GROUP, Advert(source=IPv4Address(CLIENT), interval=Interval(1, 7), counter=1)))
    for place, value in changes.items():
        packet[int(place.removeprefix("byte"))] = value
    return bytes(packet)


@pytest.fixture
def ear(network: Network) -> Iterator[CarpAdverts]:
    """Give what the first node hears."""
    with network.nodes[0].entered():
        adverts = CarpAdverts("eth0", IPv4Address("10.77.0.11"), GROUP)
    yield adverts
    adverts.close()


def heard(ear: CarpAdverts) -> list[str]:
    """Return who was heard, or what was wrong."""
    return [each.reason if isinstance(each, BadAdvertError) else str(each.source) for _, each in ear.hear()]


def test_hears_adverts_of_others_with_their_times(network: Network, ear: CarpAdverts) -> None:
    begin = time.monotonic()
    send_frame(network.client, TO_ALL, advert())
    time.sleep(1)
    later = time.monotonic()
    send_frame(network.client, TO_ALL, advert())
    time.sleep(1)  # they are read later than they came
    [(at, each), (again, _)] = ear.hear()
    assert isinstance(each, Advert)
    assert begin - SLACK < at < later < again + SLACK
    assert again < time.monotonic() - 0.5
    assert not list(ear.sent())


def test_hears_its_own_adverts_apart(network: Network, ear: CarpAdverts) -> None:
    begin = time.monotonic()
    ear.advertise(Interval(1, 7), broadcast=False)
    [(at, _)] = eventually(lambda: list(ear.sent()))
    assert begin - SLACK < at < time.monotonic() + SLACK
    assert heard(ear) == []
    assert network


def tagged(host: Namespace, vlan: int, packet: bytes) -> None:
    """Send a packet with a VLAN tag (IEEE 802.1Q)."""
    with host.entered():
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with sender:
        sender.bind(("eth0", 0))
        sender.send(TO_ALL + sender.getsockname()[4] + struct.pack("!HHH", 0x8100, vlan, 0x0800) + packet)


def test_does_not_hear_what_is_of_another_network_or_group_or_in_pieces(network: Network, ear: CarpAdverts) -> None:
    client = network.client
    tagged(client, 5, advert())
    send_frame(client, BROADCAST, advert(byte21=101))  # another id
    send_frame(client, BROADCAST, advert(byte19=19))  # another target
    send_frame(client, BROADCAST, advert(byte6=0x20))  # more fragments
    send_frame(client, BROADCAST, advert(byte7=1))  # a later fragment
    send_frame(client, BROADCAST, advert(byte9=17))  # another protocol
    send_frame(client, BROADCAST, advert(byte30=9))  # the last one is heard, and told
    assert eventually(lambda: heard(ear)) == ["checksum"]


def test_a_flood_does_not_make_it_miss_its_own(network: Network, ear: CarpAdverts) -> None:
    for _ in range(300):
        send_frame(network.client, TO_ALL, advert(byte30=9))
    ear.advertise(Interval(1, 7), broadcast=False)
    for _ in range(300):
        send_frame(network.client, TO_ALL, advert(byte30=9))
    assert eventually(lambda: list(ear.sent()))
    counted = len(heard(ear))
    assert 0 < counted <= 64  # the rest is for the next turn
    assert sum(len(heard(ear)) for _ in range(10)) == 600 - counted
