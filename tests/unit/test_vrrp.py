"""VRRP adverts: against scapy's both ways, against ones that real keepalived sent, and against whatever may arrive."""

from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.vrrp import VRRP, VRRPv3

from kevip.election.carp import Advert as CarpAdvert
from kevip.election.carp import Group as CarpGroup
from kevip.election.carp import Interval
from kevip.election.carp import build as build_carp
from kevip.election.packet import BadAdvertError
from kevip.election.vrrp import LEAVES, Advert, Group, build, parse

VIP, SOURCE = IPv4Address("10.77.0.100"), IPv4Address("10.77.0.11")
THREE = Group(version=3, vrid=100, vip=VIP, interval=0.1)
TWO = Group(version=2, vrid=100, vip=VIP, interval=1, password=b"correct")

KEEPALIVED_3 = bytes.fromhex("45c0002000010000ff70d0420a4d000be000001231649601000a42f80a4d0064")
KEEPALIVED_2 = bytes.fromhex("45c0002800010000ff70d03a0a4d000be00000122164960101018da20a4d0064636f727265637400")
"""What keepalived 2.2.7 sent with these settings and priority 150, from its IPv4 header on."""

groups = st.builds(
    Group,
    version=st.just(3),
    vrid=st.integers(1, 255),
    vip=st.ip_addresses(v=4),
    interval=st.integers(1, 4095).map(lambda hundredths: hundredths / 100),
) | st.builds(
    Group,
    version=st.just(2),
    vrid=st.integers(1, 255),
    vip=st.ip_addresses(v=4),
    interval=st.integers(1, 255).map(float),
    password=st.binary(max_size=8).filter(lambda password: not password.endswith(b"\0")),
)
priorities = st.integers(0, 255)
sources = st.ip_addresses(v=4)


def verdict(packet: bytes, group: Group) -> str:
    """Return what becomes of a packet: taken, ignored, or the reason why it is bad; anything else raises."""
    try:
        return "taken" if parse(group, packet) else "ignored"
    except BadAdvertError as error:
        return error.reason


def by_scapy(group: Group, source: IPv4Address, priority: int, **changes: Any) -> bytes:
    """Return an advert as scapy builds it."""
    head = IP(src=str(source), dst="224.0.0.18", ttl=changes.pop("ttl", 255), proto=112)
    addresses = {"addrlist": changes.pop("addrlist", [str(group.vip)])}
    common = {"vrid": group.vrid, "priority": priority, "type": changes.pop("type", 1), **addresses}
    if group.version == 3:
        return bytes(head / VRRPv3(**({"adv": round(group.interval * 100)} | common | changes)))
    halves = [int.from_bytes(group.password.ljust(8, b"\0")[at : at + 4]) for at in (0, 4)]
    told = {"authtype": int(bool(group.password)), "auth1": halves[0], "auth2": halves[1], "adv": int(group.interval)}
    return bytes(head / VRRP(version=2, **(told | common | changes)))


@pytest.mark.parametrize(("group", "packet"), [(THREE, KEEPALIVED_3), (TWO, KEEPALIVED_2)])
def test_takes_what_real_keepalived_sent(group: Group, packet: bytes) -> None:
    assert parse(group, packet) == Advert(source=SOURCE, priority=150, interval=group.interval)


@pytest.mark.parametrize(("group", "packet"), [(THREE, KEEPALIVED_3), (TWO, KEEPALIVED_2)])
def test_builds_the_payload_that_real_keepalived_sent_to_the_letter(group: Group, packet: bytes) -> None:
    assert build(group, Advert(source=SOURCE, priority=150, interval=group.interval))[20:] == packet[20:]


@given(groups, sources, priorities)
def test_takes_what_it_builds_itself_also_with_the_padding_of_ethernet(
    group: Group, source: IPv4Address, priority: int
) -> None:
    advert = Advert(source=source, priority=priority, interval=group.interval)
    assert parse(group, build(group, advert).ljust(46, b"\0")) == advert


@given(groups, sources, priorities)
def test_takes_what_scapy_builds(group: Group, source: IPv4Address, priority: int) -> None:
    found = parse(group, by_scapy(group, source, priority))
    assert found == Advert(source=source, priority=priority, interval=group.interval)


@given(groups, sources, priorities)
def test_scapy_reads_what_it_builds(group: Group, source: IPv4Address, priority: int) -> None:
    read = IP(build(group, Advert(source=source, priority=priority, interval=group.interval)))
    payload = read[VRRPv3] if group.version == 3 else read[VRRP]
    assert (payload.version, payload.type, payload.vrid, payload.priority) == (group.version, 1, group.vrid, priority)
    assert payload.addrlist == [str(group.vip)]
    assert payload.adv == (round(group.interval * 100) if group.version == 3 else group.interval)
    told = payload.chksum
    del payload.chksum, read.chksum
    assert IP(bytes(read)).payload.chksum == told


@pytest.mark.parametrize(("group", "changes", "expected"), [
    (THREE, {}, "taken"),
    (THREE, {"addrlist": ["192.0.2.1", str(VIP)]}, "taken"),
    (THREE, {"ttl": 254}, "ttl"),
    (THREE, {"type": 2}, "malformed"),
    (THREE, {"addrlist": []}, "malformed"),
    (THREE, {"ipcount": 2}, "truncated"),
    (THREE, {"chksum": 1}, "checksum"),
    (THREE, {"addrlist": ["192.0.2.1"]}, "address"),
    (THREE, {"adv": 4095}, "taken"),
    (THREE, {"res": 15}, "taken"),
    (TWO, {}, "taken"),
    (TWO, {"ttl": 1}, "ttl"),
    (TWO, {"type": 0}, "malformed"),
    (TWO, {"addrlist": [str(VIP), "192.0.2.1"]}, "taken"),
    (TWO, {"ipcount": 3}, "truncated"),
    (TWO, {"chksum": 1}, "checksum"),
    (TWO, {"auth2": 7}, "password"),
    (TWO, {"authtype": 0}, "password"),
    (TWO, {"addrlist": ["192.0.2.1"]}, "address"),
    (TWO, {"adv": 2}, "interval"),
    (replace(TWO, password=b""), {"auth1": 7}, "taken"),
    (replace(TWO, password=b""), {"authtype": 1}, "password"),
])  # fmt: skip
def test_what_becomes_of_an_advert(group: Group, changes: dict[str, Any], expected: str) -> None:
    assert verdict(by_scapy(group, SOURCE, 150, **changes), group) == expected


@pytest.mark.parametrize(("packet", "group", "expected"), [
    (KEEPALIVED_3, TWO, "version"),
    (KEEPALIVED_2, THREE, "version"),
    (KEEPALIVED_3, replace(THREE, vrid=101), "ignored"),
    (KEEPALIVED_3[:16] + bytes([224, 0, 0, 19]) + KEEPALIVED_3[20:], THREE, "ignored"),
    (KEEPALIVED_3[:19], THREE, "truncated"),
    (KEEPALIVED_3[:22], THREE, "truncated"),
    (KEEPALIVED_3[:31], THREE, "truncated"),
    (b"\x46" + KEEPALIVED_3[1:], THREE, "ignored"),
    (b"\x44" + KEEPALIVED_3[1:], THREE, "malformed"),
    (b"\x65" + KEEPALIVED_3[1:], THREE, "malformed"),
])  # fmt: skip
def test_what_becomes_of_another_packet(packet: bytes, group: Group, expected: str) -> None:
    assert verdict(packet, group) == expected


@pytest.mark.parametrize("group", [TWO, THREE])
def test_carp_with_our_id_is_another_protocol(group: Group) -> None:
    carp = CarpGroup(vhid=100, vip=VIP, key=b"x")
    packet = build_carp(carp, CarpAdvert(source=SOURCE, interval=Interval(1, 7), counter=1))
    assert verdict(packet, group) == "version"


@given(groups, st.binary(max_size=80))
@example(TWO, b"")
def test_no_packet_raises_anything_else(group: Group, packet: bytes) -> None:
    verdict(packet, group)
    verdict(KEEPALIVED_2[:20] + packet, group)


@given(groups, sources, st.data())
def test_a_damaged_bit_is_found(group: Group, source: IPv4Address, data: st.DataObject) -> None:
    packet = bytearray(build(group, Advert(source=source, priority=LEAVES, interval=group.interval)))
    bit = data.draw(st.integers(20 * 8, len(packet) * 8 - 1))
    packet[bit // 8] ^= 1 << bit % 8
    assert verdict(bytes(packet), group) != "taken"


@given(groups, sources, priorities)
def test_a_group_with_peers_takes_what_is_sent_to_hosts_and_no_other(
    group: Group, source: IPv4Address, priority: int
) -> None:
    advert, target = Advert(source=source, priority=priority, interval=group.interval), IPv4Address("10.77.0.12")
    apart = replace(group, peers=(target,))
    assert parse(apart, build(apart, advert, target)) == advert
    assert parse(apart, build(apart, advert)) is None
    assert parse(group, build(group, advert, target)) is None


def test_a_password_is_not_shown() -> None:
    assert "correct" not in repr(TWO)
