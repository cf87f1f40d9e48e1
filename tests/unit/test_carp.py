"""CARP adverts: against one that real ucarp sent, and against whatever else may arrive."""

import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from math import inf

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kevip.election.carp import (
    UNFIT,
    Advert,
    Group,
    Interval,
    build,
    farewell,
    keeps_backup,
    parse,
    signed_for,
)
from kevip.election.packet import BadAdvertError, checksum

GROUP = Group(vhid=100, vip=IPv4Address("10.77.0.100"), key=b"correct horse")
ADVERT = Advert(source=IPv4Address("10.77.0.11"), interval=Interval(1, 7), counter=0x0123456789ABCDEF)

UCARP = bytes.fromhex(
    "45100038c6394000ff70caa10a4d000be0000012216407070001ad90cfd83f1d0b0f238d0526e28e4f3bd4e88b60213e4a1b3928a5080bad"
)
"""What ucarp 1.5.2 sent with these settings, from its IPv4 header on."""

bytes_ = st.integers(0, 255)


def test_takes_what_real_ucarp_sent() -> None:
    assert parse(GROUP, UCARP) == Advert(
        source=IPv4Address("10.77.0.11"), interval=Interval(1, 7), counter=struct.unpack_from("!Q", UCARP, 28)[0]
    )


def test_builds_what_real_ucarp_sent_to_the_letter() -> None:
    advert = parse(GROUP, UCARP)
    assert advert
    ours = build(GROUP, advert)
    assert ours[:4] + ours[6:10] + ours[12:] == UCARP[:4] + UCARP[6:10] + UCARP[12:]  # but for the IP's id and checksum


@given(
    st.builds(Group, vhid=st.integers(1, 255), vip=st.ip_addresses(v=4), key=st.binary(min_size=1, max_size=19)),
    st.builds(
        Advert,
        source=st.ip_addresses(v=4),
        interval=st.builds(Interval, bytes_, bytes_),
        counter=st.integers(0, 2**64 - 1),
    ),
)
def test_takes_what_it_builds_itself(group: Group, advert: Advert) -> None:
    packet = build(group, advert)
    assert parse(group, packet) == advert
    assert checksum(packet[:20]) == 0


@pytest.mark.parametrize(("group", "vip"), [
    (GROUP, GROUP.vip),
    (replace(GROUP, vip=IPv4Address("10.77.0.101")), IPv4Address("10.77.0.101")),
    (replace(GROUP, vip=IPv4Address("10.78.0.1")), None),
    (replace(GROUP, key=b"another"), None),
])  # fmt: skip
def test_tells_for_which_vip_an_advert_was_signed(group: Group, vip: IPv4Address | None) -> None:
    assert signed_for(GROUP, build(group, ADVERT), IPv4Network("10.77.0.0/24")) == vip


def verdict(packet: bytes) -> str:
    """Return what becomes of a packet: taken, ignored, or the reason why it is bad; anything else raises."""
    try:
        return "taken" if parse(GROUP, packet) else "ignored"
    except BadAdvertError as error:
        return error.reason


@given(st.binary(max_size=120))
@example(b"")
@example(bytes([0x45]) + bytes(19))
def test_random_bytes_raise_nothing_but_its_own_error(packet: bytes) -> None:
    assert verdict(packet) in {"truncated", "malformed", "ignored"}


@given(st.binary(max_size=60))
def test_random_bytes_as_protocol_112_raise_nothing_but_its_own_error(body: bytes) -> None:
    assert verdict(build(GROUP, ADVERT)[:20] + body) != "taken"


@given(st.integers(0, len(UCARP) - 1), st.integers(1, 255))
def test_an_advert_with_a_changed_byte_is_never_taken(position: int, change: int) -> None:
    packet = bytearray(build(GROUP, ADVERT))
    packet[position] ^= change
    assert verdict(bytes(packet)) != "taken"


@given(st.integers(0, 55))
def test_a_truncated_advert_is_never_taken(length: int) -> None:
    with pytest.raises(BadAdvertError, match="truncated"):
        parse(GROUP, build(GROUP, ADVERT)[:length])


@pytest.mark.parametrize(("group", "reason"), [
    (replace(GROUP, key=b"wrong"), "digest"),
    (replace(GROUP, vip=IPv4Address("10.77.0.101")), "digest"),
    (replace(GROUP, vhid=101), None),
])  # fmt: skip
def test_an_advert_of_others(group: Group, reason: str | None) -> None:
    packet = build(GROUP, ADVERT)
    if reason is None:
        assert parse(group, packet) is None
        return
    with pytest.raises(BadAdvertError) as caught:
        parse(group, packet)
    assert (caught.value.reason, caught.value.source) == (reason, ADVERT.source)


def test_an_advert_that_came_through_a_router_is_told() -> None:
    packet = bytearray(build(GROUP, ADVERT))
    packet[8] -= 1
    with pytest.raises(BadAdvertError, match="ttl"):
        parse(GROUP, bytes(packet))


@pytest.mark.parametrize("vrrp", [
    bytes.fromhex("21646401 0001 0000 0a4d0064 0000000000000000"),
    bytes.fromhex("31646401 0064 0000 0a4d0064"),
    bytes.fromhex("31646401 0064 0000 0a4d0064") + bytes(34),
], ids=["version 2", "version 3", "padded"])  # fmt: skip
def test_vrrp_is_told_only_if_it_has_our_id(vrrp: bytes) -> None:
    """As keepalived sends it, for 10.77.0.100 with id 100 (RFC 3768, RFC 5798)."""
    head = build(GROUP, ADVERT)[:20]
    with pytest.raises(BadAdvertError, match="version"):
        parse(GROUP, head + vrrp)
    assert parse(GROUP, head + vrrp[:1] + b"\x63" + vrrp[2:]) is None


FIT, ALL = Interval(3, 204), Interval(4, 0)


STAGES = [(0, Interval(3, 9)), (0.5, Interval(3, 17)), (1, FIT), (1.5, FIT)]


@pytest.mark.parametrize(("own", "dead_ratio", "staged", "to_all", "expected"), [
    (Interval(1, 5), 3, True, True, [*STAGES, (2.1, ALL), (2.6, ALL)]),
    (Interval(1, 5), 3, True, False, STAGES),
    (Interval(1, 5), 3, False, True, [(0, FIT), (0.5, FIT), (1.1, ALL), (1.6, ALL)]),
    (Interval(1, 5), 3, False, False, [(0, FIT), (0.5, FIT)]),
    (Interval(51, 5), 5, True, True,
     [(0, Interval(255, 9)), (0.5, Interval(255, 17)), (1, Interval(255, 204)), (1.5, Interval(255, 204))]),
    (Interval(255, 5), 3, True, True, []),
])  # fmt: skip
def test_farewell(
    own: Interval, dead_ratio: int, staged: bool, to_all: bool, expected: list[tuple[float, Interval]]
) -> None:
    assert farewell(own, dead_ratio, staged=staged, to_all=to_all) == expected


@given(st.integers(0, 254), st.integers(0, 255) | st.none(), st.booleans(), st.booleans())
def test_a_goodbye_that_begins_with_somebody_reaches_nobody_later(
    skew: int, first: int | None, staged: bool, to_all: bool
) -> None:
    """What is said of him may be wrong."""

    def reached(first: int | None) -> float:
        stages = farewell(Interval(1, 5), 3, staged=staged, to_all=to_all, first=first)
        return next((at for at, stage in stages if not keeps_backup(stage, Interval(1, skew), 3)), inf)

    assert reached(first) <= reached(None)
    if skew >= UNFIT:
        assert reached(first) == reached(None)
    elif staged and first == skew:
        assert reached(first) == 0


def test_a_goodbye_that_begins_with_somebody_reaches_no_other_one_at_first() -> None:
    assert farewell(Interval(1, 5), 3, staged=True, first=20)[:3] == [
        (0, Interval(3, 21)),
        (0.5, Interval(3, 21)),
        (1, FIT),
    ]


@pytest.mark.parametrize(("advert", "skew", "keeps"), [
    (Interval(1, 5), 9, True),
    (Interval(1, 200), 9, True),
    (Interval(3, 9), 8, False),
    (Interval(3, 9), 9, True),
    (Interval(4, 0), 254, False),
])  # fmt: skip
def test_which_adverts_make_a_backup_stay_one(advert: Interval, skew: int, keeps: bool) -> None:
    assert keeps_backup(advert, Interval(1, skew), 3) is keeps
