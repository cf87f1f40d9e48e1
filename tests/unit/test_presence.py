"""Presence: what replicas say of themselves, as bytes; what is known of a group; and when something is said."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sim.network import accepts

from kevip.config import Config
from kevip.core.messages import Role
from kevip.election.packet import GROUP, PROTOCOL, wrap
from kevip.health.ask import parse_checks
from kevip.host.interface import Placement
from kevip.host.wire import Instruction
from kevip.presence import channel, presence
from kevip.presence.channel import Channel, Way, unwrap
from kevip.presence.frame import MOST, Frame, FrameError, Said, Seal
from kevip.presence.group import _FORGET, MANY, SHOULD, SILENT, Group
from kevip.presence.presence import EVERY, Now, Presence
from kevip.sync import wire

VIP = IPv4Address("10.77.0.100")
KEY = wire.derive("correct horse", VIP)
SEAL = Seal(KEY, 100)
CONFIG = Config(vip=VIP, target=IPv4Address("203.0.113.10"), password="correct horse")  # noqa: S106 - for the tests alone
RUN, NEXT_RUN = b"1" * 8, b"2" * 8
NODE2 = Said(
    source=IPv4Address("10.77.0.12"), name="node2", version="0.1.0", engine="ucarp", rank=20, role=Role.BACKUP,
    since=12.5, target=True, settings=SEAL.digests(CONFIG.alike()),
)  # fmt: skip

words = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=24)
maybe = st.none() | st.booleans()
everything_said = st.builds(
    Said,
    source=st.ip_addresses(v=4), name=words, version=words, engine=words, rank=st.integers(0, 255),
    role=st.sampled_from(Role), since=st.floats(0, 1e9), holds=st.booleans(), target=maybe, copies=maybe,
    standby=st.booleans(), stopped=st.booleans(), settings=st.dictionaries(words, words, max_size=3),
)  # fmt: skip


def frame(number: int, run: bytes = RUN, **changes: Any) -> Frame:
    return Frame(run, number, replace(NODE2, **changes))


def signed(said: object, seal: Seal = SEAL) -> bytes:
    """Return a frame that a replica of the group has signed, whatever it says."""
    with mock.patch.object(json, "dumps", return_value=said if isinstance(said, str) else json.dumps(said)):
        return seal.build(frame(1))


# Frames


@given(everything_said, st.binary(min_size=8, max_size=8), st.integers(1, 2**64 - 1))
def test_what_is_said_is_what_is_read(said: Said, run: bytes, number: int) -> None:
    built = SEAL.build(Frame(run, number, said))
    if len(built) <= MOST:
        assert SEAL.parse(built) == Frame(run, number, said)


def test_the_largest_frame_that_is_sent_fits() -> None:
    settings = {**CONFIG.alike(), "PEERS": ",".join(f"10.0.0.{number}" for number in range(256))}
    largest = replace(NODE2, name="\U0001f600" * 16, rank=255, since=1e9, settings=SEAL.digests(settings))
    assert SEAL.parse(SEAL.build(Frame(RUN, 2**64 - 1, largest))).said == largest
    assert len(SEAL.build(frame(1))) <= MOST - 200  # room for settings to come


@given(st.binary(max_size=MOST + 50) | st.binary(max_size=200).map(b"kevip\1".__add__))
def test_what_strangers_send_is_refused_in_one_way(data: bytes) -> None:
    with pytest.raises(FrameError):
        SEAL.parse(data)


@given(st.integers(0, 2**20), st.integers(1, 255))
def test_no_byte_of_a_frame_can_be_changed(at: int, change: int) -> None:
    data = bytearray(SEAL.build(frame(1)))
    data[at % len(data)] ^= change
    with pytest.raises(FrameError):
        SEAL.parse(bytes(data))


@pytest.mark.parametrize("seal", [
    Seal(wire.derive("another", VIP), 100), Seal(wire.derive("correct horse", VIP + 1), 100), Seal(KEY, 101),
], ids=["password", "VIP", "id"])  # fmt: skip
def test_a_frame_is_worth_nothing_in_another_group(seal: Seal) -> None:
    with pytest.raises(FrameError, match="signature"):
        SEAL.parse(seal.build(frame(1)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
SOUND = json.loads(SEAL.build(frame(1))[22:-32])


@given(st.sampled_from(sorted(SOUND)), json_values)
def test_what_a_replica_says_wrongly_is_refused_in_one_way(name: str, value: object) -> None:
    """Who knows the password may still have a bug."""
    with suppress(FrameError):
        assert SEAL.parse(signed(SOUND | {name: value})).said.name.isprintable()


@pytest.mark.parametrize("text", [
    "[" * 1100, "{}", "null", "[]", '"x"', "\xff", "9" * 1000,
    *(json.dumps(SOUND | change) for change in list[dict[str, Any]]((
        {"name": "a\x1b[2J"}, {"name": "x" * 65}, {"since": -1}, {"since": 1e300}, {"rank": True}, {"rank": 256},
        {"role": "king"}, {"source": 5}, {"source": "node2"}, {"holds": 1}, {"settings": []}, {"settings": {"A": 1}},
        {"settings": {str(each): "" for each in range(33)}},
    ))),
    json.dumps(SOUND).replace("12.5", "NaN"),
])  # fmt: skip
def test_a_signed_frame_has_to_make_sense_all_the_same(text: str) -> None:
    with pytest.raises(FrameError, match="malformed"):
        SEAL.parse(signed(text))


def test_a_setting_that_this_version_does_not_know_is_no_harm() -> None:
    told = signed(SOUND | {"more": 1, "settings": SOUND["settings"] | {"MORE": "x"}})
    group = Group(SEAL.digests(CONFIG.alike()))
    assert group.take_in(SEAL.parse(told), 0)
    assert group.members[NODE2.source].differs == []


# Settings

OTHER: dict[str, Any] = {
    "target": IPv4Address("203.0.113.11"), "engine": "keepalived", "advert_interval": 2.0, "broadcast": True,
    "allow_from": ("x",), "ports": ("y",), "global_masquerade": True, "hold_only": True, "peers": (VIP + 1,),
    "check": parse_checks("icmp"), "check_any": True, "check_interval": 6, "check_fall": 4, "check_rise": 3,
    "dead_ratio": 4, "preempt": True, "forwards": ("z",), "source": VIP + 2, "expect": 3, "sync": True,
    "sync_peers": (VIP + 1,),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_each_setting_that_differs_is_told_by_its_name(name: str) -> None:
    other = replace(CONFIG)
    changed = {"advbase": 2} if name == "advert_interval" else {name: OTHER[name]}
    for each, value in changed.items():
        object.__setattr__(other, each, value)  # not all of them fit together
    group = Group(SEAL.digests(CONFIG.alike()))
    group.take_in(frame(1, settings=SEAL.digests(other.alike())), 0)
    member = group.members[NODE2.source]
    also = {"engine": ["ADVERT_INTERVAL"]}.get(name, [])
    assert member.differs == sorted([name.upper(), *also])
    assert member.unlike == ([] if name.upper() in SHOULD else member.differs)


def test_all_settings_are_told_but_those_of_one_host() -> None:
    assert CONFIG.alike().keys() == {name.upper() for name in OTHER}
    assert CONFIG.password not in str(SEAL.digests(CONFIG.alike()))


def test_the_order_of_a_list_is_no_difference() -> None:
    one, two = (replace(CONFIG, engine="keepalived", peers=(VIP + each, VIP + 3 - each)) for each in (1, 2))
    assert one.alike() == two.alike()
    assert one.alike()["ADVERT_INTERVAL"] == replace(one, advert_interval=0.1).alike()["ADVERT_INTERVAL"]


# The group


@pytest.fixture
def group() -> Group:
    return Group(NODE2.settings)


def test_a_replica_is_known_by_what_it_said_last(group: Group) -> None:
    assert group.take_in(frame(1), 100)
    assert not group.take_in(frame(2, role=Role.MASTER, since=1.0, holds=True), 105)
    [member] = group.members.values()
    assert (member.name, member.role, member.since, member.heard, member.holds) == ("node2", "master", 104, 105, True)
    assert member.is_here(105 + SILENT)
    assert not member.is_here(105.1 + SILENT)


def test_clocks_do_not_matter(group: Group) -> None:
    """Nothing in a frame is a date: two hosts that are days apart tell each other seconds."""
    group.take_in(frame(1, since=3 * 86400.0), 50)
    assert group.members[NODE2.source].since == 50 - 3 * 86400


@given(st.lists(st.integers(1, 20), max_size=30))
def test_a_frame_that_was_heard_before_changes_nothing(numbers: Sequence[int]) -> None:
    group, most = Group({}), 0
    for at, number in enumerate(numbers):
        group.take_in(frame(number, rank=number), at)
        most = max(most, number)
        assert group.members[NODE2.source].rank == most


def test_a_recorded_run_does_not_displace_one_that_is_alive(group: Group) -> None:
    group.take_in(frame(1), 0)
    assert not group.take_in(frame(9, NEXT_RUN, role=Role.MASTER), SILENT)
    assert group.members[NODE2.source].role is Role.BACKUP
    assert not group.take_in(frame(2), SILENT)
    assert group.members[NODE2.source].heard == SILENT


@pytest.mark.parametrize(("stopped", "after"), [(True, 0.1), (False, SILENT + 0.1)])
def test_a_replica_that_is_started_again_is_heard(group: Group, stopped: bool, after: float) -> None:
    group.take_in(frame(5), 0)
    group.take_in(frame(6, stopped=stopped), 1)
    assert group.take_in(frame(1, NEXT_RUN), 1 + after)
    assert not group.take_in(frame(5), 2 + after + SILENT), "what its last run said is known"
    assert not group.take_in(frame(2, NEXT_RUN), 2 + after)


def test_a_replica_with_another_address_is_the_same(group: Group) -> None:
    group.take_in(frame(1), 0)
    assert group.take_in(frame(2, source=VIP + 1), 1)
    assert list(group.members) == [VIP + 1]
    assert not group.take_in(frame(1), 2)
    assert group.take_in(frame(1, NEXT_RUN, source=VIP + 2), 3 + SILENT), "it was restarted with a third one"
    assert list(group.members) == [VIP + 2]


def test_64_replicas_are_known_and_no_more_than_can_be_kept(group: Group) -> None:
    for number in range(MANY + 1):
        run = number.to_bytes(8)
        assert group.take_in(frame(1, run, source=VIP + 1 + number, name=f"node{number}"), number)
        assert len(group.members) == min(number + 1, MANY)
    assert VIP + 1 not in group.members
    for number in range(1000):
        group.take_in(frame(1, bytes(4) + number.to_bytes(4), stopped=True), 100 + number)
    assert len(group.members) == MANY


def test_who_is_silent_for_a_day_is_forgotten_once_another_one_joins(group: Group) -> None:
    group.take_in(frame(1), 0)
    group.take_in(frame(1, NEXT_RUN, source=VIP + 1, name="node3"), _FORGET + 1)
    assert list(group.members) == [VIP + 1]


@pytest.mark.parametrize(("engine", "best"), [("ucarp", 5), ("keepalived", 20)])
def test_the_successor_is_the_backup_of_the_best_rank(group: Group, engine: str, best: int) -> None:
    assert group.successor(engine, 0) is None
    for number, rank in enumerate((20, 5, 9)):
        group.take_in(frame(1, bytes([number] * 8), source=VIP + number + 1, rank=rank, engine=engine), number)
    assert group.successor(engine, 3) == best
    assert group.successor({"ucarp": "keepalived", "keepalived": "ucarp"}[engine], 3) is None


@pytest.mark.parametrize("changes", [
    {"role": Role.INIT}, {"role": Role.MASTER}, {"role": Role.LEAVING}, {"target": False}, {"standby": True},
    {"stopped": True},
])  # fmt: skip
def test_who_would_not_take_over_is_no_successor(group: Group, changes: dict[str, Any]) -> None:
    group.take_in(frame(1, target=None), 0)
    assert group.successor("ucarp", SILENT) == NODE2.rank
    assert group.successor("ucarp", SILENT + 0.1) is None
    group.take_in(frame(2, **changes), 1)
    assert group.successor("ucarp", 1) is None


# Packets


class Ether:
    """Packet sockets on one network, in the order in which they were opened."""

    def __init__(self) -> None:
        self.wires: list[Any] = []

    def open(self, interface: str, instructions: Sequence[Instruction]) -> Any:
        """Stand for ``kevip.host.wire.Wire``."""
        wire = SimpleNamespace(mac=bytes([2] * 6), fileno=lambda: -1, close=mock.Mock(), join=mock.Mock(), waiting=[])
        wire.hear = lambda: iter([(0.0, wire.waiting.pop(0)) for _ in list(wire.waiting)])

        def send_ip(*, to: bytes, source: bytes, packet: bytes) -> None:
            data = to + source + b"\x08\x00" + packet
            for each in self.wires:
                if each is not wire and accepts(each.instructions, data, outgoing=False):
                    each.waiting.append(data)

        wire.send_ip, wire.instructions, wire.interface = send_ip, instructions, interface
        self.wires.append(wire)
        return wire


@pytest.fixture
def ether() -> Iterator[Ether]:
    made = Ether()
    with mock.patch.object(channel, "Wire", made.open):
        yield made


def place(number: int) -> Placement:
    return Placement(interface="eth0", source=IPv4Address(f"10.77.0.{number}"))


PEERS = tuple(place(number).source for number in (11, 12, 13))


@pytest.mark.parametrize("way", [
    Way(port=25100), Way(port=25100, broadcast=True), Way(port=25100, peers=PEERS),
], ids=["multicast", "broadcast", "peers"])  # fmt: skip
def test_all_others_of_the_group_hear_each_frame_once(ether: Ether, way: Way) -> None:
    channels = [Channel(place(number), way) for number in (11, 12, 13)]
    other = Channel(place(14), replace(way, port=25101))
    channels[0].send(b"hello")
    assert [[data for _, _, data in each.hear()] for each in channels] == [[], [b"hello"], [b"hello"]]
    assert list(other.hear()) == []
    assert all(each.join.called is (way == Way(port=25100)) for each in ether.wires[:3])


@given(st.binary(max_size=60))
def test_what_is_no_packet_is_refused_in_one_way(packet: bytes) -> None:
    with pytest.raises(FrameError):
        unwrap(packet[:9] + b"\x11" + packet[10:])


def test_a_packet_that_came_through_a_router_is_none() -> None:
    sound = wrap(VIP, b"\0" * 6 + b"\0\x0c\0\0" + b"data", identity=0, service=0, protocol=17)
    assert unwrap(sound)[0] == VIP
    for packet in (sound[:8] + b"\xfe" + sound[9:], wrap(VIP, b"\0" * 12, identity=0, service=0), sound[:24]):
        with pytest.raises(FrameError):
            unwrap(packet)
    assert (IPv4Address("224.0.0.18"), 112) == (GROUP, PROTOCOL)


# Saying and hearing


class Clock:
    """A loop whose time is a number."""

    def __init__(self) -> None:
        self.time, self.due, self.watched = 1000.0, dict[Any, float](), dict[Any, Any]()
        self.cancel = lambda action: self.due.pop(action, None)
        self.watch = self.watched.__setitem__
        self.forget = self.watched.pop

    def now(self) -> float:
        """Return it."""
        return self.time

    def after(self, seconds: float, action: Any) -> None:
        """Have an action called in some seconds."""
        self.due[action] = self.time + seconds

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.time + seconds
        while self.due and min(self.due.values()) <= end:
            action = min(self.due, key=lambda each: self.due[each])
            self.time = max(self.time, self.due.pop(action))
            action()
        self.time = end


class Told:
    """A presence, what it has sent, and what it warned of."""

    def __init__(self, clock: Clock, number: int, seal: Seal = SEAL) -> None:
        self.warned: list[str] = []
        own = replace(NODE2, source=place(number).source, name=f"node{number}")
        self.presence = Presence(
            clock,  # type: ignore[arg-type]
            seal,
            Way(port=25100),
            own,
            lambda *_, **context: self.warned.append(context["reason"]),
        )
        self.presence.attach(place(number))
        self.hear = list(clock.watched.values())[-1] if clock.watched else int

    def hears(self) -> list[str]:
        """Take in what came, and return who is known."""
        self.hear()
        return [each.name for each in self.presence.members.values()]


def test_it_is_said_every_few_seconds_and_at_once_when_something_changes(ether: Ether) -> None:
    clock = Clock()
    one, two = Told(clock, 11), Told(clock, 12)
    heard = ether.wires[1].waiting
    clock.run(0)
    assert len(heard) == 1
    clock.run(EVERY - 0.1)
    assert len(heard) == 1
    one.presence.update(Now(Role.MASTER, clock.time, standby=True))
    clock.run(0)
    one.presence.update(Now(Role.MASTER, clock.time))
    assert len(heard) == 2
    for _ in range(100):  # it flaps
        one.presence.update(Now(Role.BACKUP, clock.time))
        one.presence.update(Now(Role.MASTER, clock.time))
        clock.run(0.01)
    assert len(heard) <= 2 + 1 / 0.1 + 1
    assert two.hears() == ["node11"]
    assert two.presence.members[place(11).source].role is Role.MASTER


def test_who_joins_is_known_and_told_at_once(ether: Ether) -> None:
    clock = Clock()
    one = Told(clock, 11)
    clock.run(2)
    two = Told(clock, 12)
    clock.run(0)
    assert one.hears() == ["node12"]
    clock.run(0.2)
    assert two.hears() == ["node11"]
    two.presence.close()
    one.hears()
    assert one.presence.members[place(12).source].stopped
    assert len(clock.watched) == 1
    assert ether.wires[1].close.called


def test_a_way_that_is_lost_makes_one_silent_and_not_the_other(ether: Ether) -> None:
    clock = Clock()
    one, two = Told(clock, 11), Told(clock, 12)
    ether.wires[0].instructions = [(6, 0, 0, 0)]  # the first hears nothing
    clock.run(EVERY)
    assert (one.hears(), two.hears()) == ([], ["node11"])


def test_who_has_another_password_or_pretends_to_be_another_host_is_not_heard(ether: Ether) -> None:
    assert ether.wires == []
    clock = Clock()
    one, stranger = Told(clock, 11), Told(clock, 12, Seal(wire.derive("another", VIP), 100))
    liar = Channel(place(13), Way(port=25100))
    liar.send(SEAL.build(frame(1)))
    clock.run(0)
    assert (one.hears(), stranger.hears()) == ([], [])
    assert (one.warned, set(stranger.warned)) == (["signature"], {"signature"})


def test_an_interface_that_is_gone_is_no_harm() -> None:
    clock = Clock()
    with mock.patch.object(channel, "Wire", side_effect=OSError):
        one = Told(clock, 11)
        one.presence.update(Now(Role.MASTER))
        clock.run(EVERY)
        assert one.hears() == []
        one.presence.close()
    assert presence.EVERY * 3 == SILENT
