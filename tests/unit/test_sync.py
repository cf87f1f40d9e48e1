"""The pull without a kernel: which lines are a group's, what both sides say, and what comes of everything else."""

import io
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kevip.core.messages import Event, Served
from kevip.core.messages import Pulled as PulledEvent
from kevip.dataplane.rules import Forward, Ports, Proxy
from kevip.errors import HostError
from kevip.host import command
from kevip.host.command import CommandError
from kevip.loop import Loop
from kevip.sync import wire
from kevip.sync.entries import Entries, load
from kevip.sync.offer import _STRANGERS, Offer
from kevip.sync.pull import Pulled, pull
from kevip.sync.wire import Session, WireError

HERE = IPv4Address("127.0.0.1")
VIP, TARGET = IPv4Address("10.77.0.100"), IPv4Address("203.0.113.10")
KEY, OTHER_KEY = b"k" * 32, b"o" * 32
OURS = Entries([Proxy(vip=VIP, target=TARGET)])

TCP = (
    b"-A -t 431999 -u SEEN_REPLY,ASSURED -s 198.51.100.50 -d 10.77.0.100 -g 203.0.113.10 -n 10.77.0.100 -p tcp"
    b" --sport 24048 --dport 7000 --reply-port-src 7000 --reply-port-dst 64638 --state ESTABLISHED\n"
)
UDP = (
    b"-A -t 29 -u SEEN_REPLY -s 10.77.0.50 -d 10.77.0.100 -g 203.0.113.10 -n 10.77.0.100 -p udp"
    b" --sport 30956 --dport 7000 --reply-port-src 7000 --reply-port-dst 30956\n"
)
"""What conntrack 1.4.7 saved of real connections; two clients had the first one's source port."""


ZONED = Proxy(vip=VIP, target=IPv4Address("10.96.0.50"), ports=(Ports("tcp", 7000, 7000), Ports("udp", 7000, 7000)))
REWRITTEN = (
    b"-A -t 431999 -u SEEN_REPLY,ASSURED --orig-zone 39655 -s 10.77.0.50 -d 10.96.0.50 -g 10.244.3.2 -n 10.77.0.100"
    b" -p tcp --sport 27666 --dport 7000 --reply-port-src 8080 --reply-port-dst 27666 --state ESTABLISHED\n"
)
"""The same where kube-proxy translates, in the zone of the VIP."""


# Which connections


def test_takes_what_real_conntrack_saved() -> None:
    assert OURS.own(TCP + UDP) == TCP + UDP


def test_gives_a_kernel_the_ports_that_the_connections_were_translated_to() -> None:
    tcp, udp = OURS.loadable(TCP + UDP)
    assert tcp == TCP.replace(b"-g 203.0.113.10 -n 10.77.0.100", b"-g 203.0.113.10:7000 -n 10.77.0.100:64638")
    assert udp == UDP.replace(b"-g 203.0.113.10 -n 10.77.0.100", b"-g 203.0.113.10:7000 -n 10.77.0.100:30956")


@pytest.mark.parametrize("state", [b"ESTABLISHED", b"FIN_WAIT", b"CLOSE_WAIT", b"LAST_ACK"])
def test_takes_what_may_still_be_spoken_on(state: bytes) -> None:
    assert len(OURS.loadable(TCP.replace(b"ESTABLISHED", state))) == 1


@pytest.mark.parametrize(
    ("what", "instead"),
    [
        (b"ESTABLISHED", b"SYN_RECV"),
        (b"ESTABLISHED", b"TIME_WAIT"),
        (b"ESTABLISHED", b"CLOSE"),
        (b" --state ESTABLISHED", b""),
        (b"SEEN_REPLY,ASSURED", b"UNSET"),
        (b"SEEN_REPLY,ASSURED", b"SEEN_REPLY,ASSURED,EXPECTED"),
        (b"-u SEEN_REPLY,ASSURED", b"-u SEEN_REPLY,ASSURED -w 5"),
        (b"-d 10.77.0.100", b"-d 10.77.0.101"),
        (b"-d 10.77.0.100", b"-d 10.77.0.1"),
        (b"-d 10.77.0.100", b"-d 010.77.0.100"),
        (b"-g 203.0.113.10", b"-g 203.0.113.11"),
        (b"-g 203.0.113.10", b"-r 203.0.113.10"),
        (b"-n 10.77.0.100", b"-n 10.77.0.11"),  # --global-masquerade
        (b"-n 10.77.0.100", b"-q 10.77.0.100"),
        (b"-s 198.51.100.50", b"-s 10.77.0.100"),  # a process of the leaving host
        (b"-s 198.51.100.50", b"-s 198.51.100.256"),
        (b"-s 198.51.100.50", b"-s 2001:db8::1"),
        (b"--reply-port-src 7000", b"--reply-port-src 7001"),
        (b"--reply-port-dst 64638", b"--reply-port-dst 65536"),
        (b"--sport 24048", b"--sport 0"),
        (b"-p tcp", b"-p udp"),
        (b"-p tcp", b"-p sctp"),
        (b"-A ", b"-D "),
        (b"-t 431999", b"-t 43199999"),
        (b"-t 431999", b"-t -1"),
        (b"ESTABLISHED\n", b"ESTABLISHED -m 7\n"),
        (b"ESTABLISHED\n", b"ESTABLISHED\r\n"),
        (b"-A ", b" -A "),
    ],
)
def test_takes_no_other(what: bytes, instead: bytes) -> None:
    changed = TCP.replace(what, instead)
    assert changed != TCP
    assert OURS.own(UDP + changed + UDP) == UDP + UDP


def test_takes_those_that_kube_proxy_has_translated_to_a_pod() -> None:
    udp = REWRITTEN.replace(b",ASSURED", b"").replace(b"-p tcp", b"-p udp").replace(b" --state ESTABLISHED", b"")
    assert Entries([ZONED]).loadable(REWRITTEN + udp) == [
        each.replace(b"10.244.3.2 -n 10.77.0.100", b"10.244.3.2:8080 -n 10.77.0.100:27666") for each in (REWRITTEN, udp)
    ]


@pytest.mark.parametrize(
    ("what", "instead"),
    [
        (b" --orig-zone 39655", b""),  # a connection of somebody to TARGET itself
        (b"--orig-zone 39655", b"--orig-zone 39656"),
        (b"--orig-zone 39655", b"--zone 39655"),
        (b"-d 10.96.0.50", b"-d 10.96.0.51"),
        (b"-d 10.96.0.50", b"-d 10.77.0.100"),
        (b"-n 10.77.0.100", b"-n 10.77.0.11"),  # without ports
        (b"-s 10.77.0.50", b"-s 10.77.0.100"),
        (b"--dport 7000", b"--dport 7001"),
        (b"--reply-port-src 8080", b"--reply-port-src 65536"),
    ],
)
def test_takes_no_others_that_kube_proxy_has_translated(what: bytes, instead: bytes) -> None:
    changed = REWRITTEN.replace(what, instead)
    assert changed != REWRITTEN
    assert Entries([ZONED]).own(changed) == b""


def test_looks_for_those_that_kube_proxy_translates_only_where_it_does() -> None:
    for rewrites in (True, False):
        with mock.patch("kevip.host.command.stream", side_effect=lambda argv: iter([str(argv).encode()])) as asked:
            list(Entries([ZONED], lambda: rewrites).dump(1000))  # noqa: B023 - it is called now
        assert [call.args[0][4:6] for call in asked.call_args_list] == [
            ["--orig-dst", "10.77.0.100"], ["--orig-zone", "39655"],
        ][: 1 + rewrites]  # fmt: skip


def test_takes_only_what_the_settings_of_this_host_allow() -> None:
    networks = IPv4Network("198.51.100.0/25"), IPv4Network("198.51.100.128/25"), IPv4Network("192.0.2.0/24")
    of_some = Entries([Proxy(vip=VIP, target=TARGET, allow_from=networks)])
    assert of_some.own(TCP + UDP) == TCP
    assert of_some.own(TCP.replace(b"198.51.100.50", b"198.51.101.0")) == b""
    assert of_some.own(TCP.replace(b"198.51.100.50", b"1.1.1.1")) == b""
    for_some = Entries([Proxy(vip=VIP, target=TARGET, ports=(Ports("udp", 7000, 7010), Ports("tcp", 443, 443)))])
    assert for_some.own(TCP + UDP) == UDP


def test_takes_those_of_each_vip_with_its_own_target_only() -> None:
    two = Entries([Proxy(vip=VIP, target=TARGET), Proxy(vip=HERE, target=VIP), Proxy(vip=TARGET, target=None)])
    crossed = TCP.replace(b"10.77.0.100", b"127.0.0.1")
    assert two.own(TCP + crossed) == TCP
    assert two.own(crossed.replace(b"203.0.113.10", b"10.77.0.100").replace(b"198.51.100.50", b"1.2.3.4")) != b""


fields = st.sampled_from([*re.findall(rb"\S+|\s", TCP + UDP), b"-D", b"-F", b"--help", b"10.77.0.1", b"65536", b"\n-F"])
_LOADED = re.compile(
    rb"-A -t [0-9]+ -u SEEN_REPLY(,ASSURED)? -s [0-9.]+ -d 10\.77\.0\.100"
    rb" -g 203\.0\.113\.10:(\d+) -n 10\.77\.0\.100:(\d+)"
    rb" -p (tcp|udp) --sport \d+ --dport \2 --reply-port-src \2 --reply-port-dst \3( --state [A-Z_]+)?\n"
)


@given(st.binary() | st.lists(fields).map(b"".join) | st.tuples(st.just(TCP), st.binary(), st.just(UDP)).map(b"".join))
@example(TCP[:-1])
@example(TCP[:-1] + b" -F\n")
@example(TCP.replace(b"\n", b"\x0b-F\n"))
def test_whatever_it_is_given_only_the_groups_own_go_to_a_kernel(lines: bytes) -> None:
    for each in OURS.loadable(lines):
        assert _LOADED.fullmatch(each)
        assert b"10.77.0.100 -g" in each


octets = st.ip_addresses(v=4).filter(lambda address: address != VIP)
numbers = st.integers(1, 65535)


@given(octets, numbers, numbers, numbers, st.integers(0, 9_999_999))
def test_a_connection_of_any_client_is_taken_as_it_is(
    source: IPv4Address, sport: int, dport: int, translated: int, timeout: int
) -> None:
    line = (
        f"-A -t {timeout} -u SEEN_REPLY -s {source} -d {VIP} -g {TARGET} -n {VIP} -p tcp --sport {sport} "
        f"--dport {dport} --reply-port-src {dport} --reply-port-dst {translated} --state FIN_WAIT\n"
    ).encode()
    assert OURS.own(line) == line


def test_a_dump_comes_in_pieces_of_whole_lines() -> None:
    pieces = [TCP[:50], TCP[50:] + UDP + b"garbage\n" + TCP, UDP[:3], UDP[3:]]
    with mock.patch("kevip.host.command.stream", return_value=iter(pieces)) as stream:
        found = list(OURS.dump(100))
    assert stream.call_args.args[0][-4:] == ["--orig-dst", "10.77.0.100", "--output", "save"]
    assert b"".join(found) == TCP + UDP + TCP + UDP
    assert len(found) > 2
    assert OURS.own(found[0]) == found[0]


@pytest.mark.parametrize(("count", "most", "fits"), [(88, 100, True), (89, 100, False)])
def test_a_kernel_with_little_room_is_given_nothing(count: int, most: int, *, fits: bool) -> None:
    fill = mock.patch("kevip.dataplane.conntrack.fill", return_value=(count, most))
    with fill, mock.patch("kevip.host.command.run_now") as run:
        with suppress(HostError):
            load(OURS.loadable(TCP + UDP), 1.0)
        assert run.called is fits


# What is said


def sessions() -> tuple[Session, Session]:
    """Return both sides of a session."""
    master, heir = os.urandom(wire.NONCE), os.urandom(wire.NONCE)
    return Session(KEY, master, heir), Session(KEY, master, heir)


def received(session: Session, stream: bytes) -> list[bytes]:
    """Return the texts that are received; raises what ``receive`` does."""
    data = io.BytesIO(stream)

    def read(length: int) -> bytes:
        said = data.read(length)
        if len(said) < length:
            raise EOFError
        return said

    return list(session.receive(read))


@given(st.lists(st.binary(min_size=1, max_size=200)))
def test_what_was_sealed_is_received(texts: list[bytes]) -> None:
    master, heir = sessions()
    assert received(heir, b"".join(map(master.seal, [*texts, b""]))) == texts


@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=4), st.data())
def test_what_was_changed_cut_off_or_forged_is_not_received(texts: list[bytes], data: st.DataObject) -> None:
    master, heir = sessions()
    frames = [master.seal(each) for each in (*texts, b"")]
    stream = b"".join(frames)
    at = data.draw(st.integers(0, len(stream) - 1))
    changed = data.draw(
        st.sampled_from(
            [
                stream[:at] + bytes([stream[at] ^ 1 << at % 8]) + stream[at + 1 :],
                stream[:at],
                frames[0] + stream,
                b"".join(frames[1:]),
                b"".join(sessions()[0].seal(each) for each in (*texts, b"")),
            ]
        )
    )
    got = list[bytes]()
    with pytest.raises((WireError, EOFError)):
        got += received(heir, changed)
    assert not got


@given(st.binary(max_size=300))
def test_whatever_is_said_instead_is_not_received(stream: bytes) -> None:
    with pytest.raises((WireError, EOFError)):
        received(sessions()[1], stream)


def test_more_than_a_frame_has_is_not_waited_for() -> None:
    with pytest.raises(WireError):
        received(sessions()[1], (1 << 31).to_bytes(4))


def test_a_proof_is_worth_nothing_elsewhere() -> None:
    master, heir = os.urandom(16), os.urandom(16)
    session = Session(KEY, master, heir)
    assert session.proves(Session(KEY, master, heir).proof)
    for other in (
        Session(OTHER_KEY, master, heir), Session(KEY, os.urandom(16), heir),
        Session(KEY, master, os.urandom(16)), Session(KEY, heir, master),
    ):  # fmt: skip
        assert not session.proves(other.proof)
    assert session.proof not in session.seal(b"")


@given(st.binary(min_size=wire.HELLO, max_size=wire.HELLO) | st.binary())
@example(b"kevip")
@example(wire.hello(bytes(16))[:-1])
@example(wire.hello(bytes(16)))
def test_a_hello_is_that_or_nothing(said: bytes) -> None:
    try:
        nonce = wire.nonce_in(said)
    except WireError:
        return
    assert wire.hello(nonce) == said[: wire.HELLO]


def test_the_key_is_of_the_password_and_the_vip() -> None:
    keys = {wire.derive(*each) for each in [("one", VIP), ("two", VIP), ("one", TARGET), ("\udcff", VIP)]}
    assert {len(key) for key in keys} == {32}
    assert len(keys) == 4


def test_ports_are_below_those_that_clients_and_services_get() -> None:
    assert (wire.port(1), wire.port(255)) == (25001, 25255)


# Both sides, over TCP


@contextmanager
def turning(loop: Loop) -> Iterator[None]:
    """Turn a loop in a thread while the block runs."""
    ended = threading.Event()

    def turn() -> None:
        while not ended.is_set():
            loop.after(0.01, lambda: None)
            loop.turn()

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def stranger(at: tuple[IPv4Address, int], ttl: int = wire.TTL, patience: float = 20.0) -> socket.socket:
    """Connect as who knows no password; raises OSError."""
    made = socket.socket()
    made.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
    made.settimeout(patience)
    try:
        made.connect((str(at[0]), at[1]))
    except OSError:
        made.close()
        raise
    return made


class Side:
    """An offer of some saved lines on a port of this host, and what it told."""

    def __init__(self, lines: bytes = TCP + UDP) -> None:
        self.loop, self.told = Loop(), list[Event]()
        with socket.create_server((str(HERE), 0)) as unused:
            self.at = HERE, unused.getsockname()[1]
        pieces = [lines[at : at + 50_000] for at in range(0, len(lines), 50_000)]
        self.dump = mock.patch("kevip.host.command.stream", side_effect=lambda _: iter(pieces))
        self.loaded = list[bytes]()
        self.load: Any = mock.patch("kevip.sync.pull.load", side_effect=lambda lines, _: self.loaded.extend(lines))

    @property
    def pulls(self) -> int:
        """How many heirs it has told of."""
        return self.told.count(PulledEvent())

    def pull(self, key: bytes = KEY, seconds: float = 5.0) -> Pulled:
        """Pull from this side."""
        return pull(self.at, key, OURS, seconds)

    @contextmanager
    def opened(self) -> Iterator[Offer]:
        """Have it open while the block runs."""
        offer = Offer(self.loop, self.at, KEY, OURS, self.told.append)
        try:
            with self.dump, self.load, turning(self.loop):
                yield offer
                for each in list(offer._heirs.values()):  # noqa: SLF001 - what was patched is used until they end
                    each.join()
        finally:
            offer.close()
            self.loop.close()


def test_an_heir_gets_the_connections_and_the_master_knows() -> None:
    side = Side()
    with side.opened() as offer:
        for number in (1, 2):
            pulled = side.pull()
            assert (pulled.loaded, pulled.refused, pulled.problem) == (2, 0, "")
            assert (side.pulls, offer.refused) == (number, 0)
    assert side.loaded == OURS.loadable(TCP + UDP) * 2
    assert side.pull().problem == "it offers none"


def test_connections_that_are_none_of_the_groups_neither_leave_nor_arrive() -> None:
    canary = TCP.replace(b"-d 10.77.0.100", b"-d 10.77.0.7").replace(b"-n 10.77.0.100", b"-n 10.77.0.7")
    side = Side(canary + TCP)
    with side.opened():
        assert side.pull().loaded == 1
        with mock.patch.object(Entries, "own", lambda _, lines: lines):  # a master that sends all that it has
            pulled = side.pull()
    assert (pulled.loaded, pulled.refused, pulled.problem) == (1, 1, "")
    assert side.loaded == OURS.loadable(TCP) * 2


def test_who_has_another_password_gets_nothing_and_ends_no_farewell() -> None:
    side = Side()
    with side.opened() as offer:
        assert "another password" in side.pull(OTHER_KEY).problem
        with stranger(side.at) as replaying:
            assert len(replaying.recv(100)) == wire.HELLO
            replaying.sendall(wire.hello(bytes(16)) + bytes(32))
            assert replaying.recv(1) == b""
        assert (offer.refused, side.pulls) == (2, 0)
    assert not side.loaded


def test_what_one_heir_said_is_worth_nothing_when_another_says_it() -> None:
    side, said = Side(), bytearray()
    with side.opened() as offer, socket.create_server((str(HERE), 0)) as between:

        def relay() -> None:
            with between.accept()[0] as heir, stranger(side.at) as master:
                heir.sendall(master.recv(wire.HELLO))
                while len(said) < wire.ANSWER:
                    said.extend(heir.recv(wire.ANSWER))

        thread = threading.Thread(target=relay)
        thread.start()
        assert pull((HERE, between.getsockname()[1]), KEY, OURS, 5.0).problem
        thread.join()
        with stranger(side.at) as replaying:
            replaying.sendall(said)
            assert replaying.recv(wire.HELLO)
            assert replaying.recv(1) == b""
        assert (side.pulls, offer.refused) == (0, 1)


def test_an_heir_is_served_among_many_who_say_nothing_or_say_it_slowly() -> None:
    side = Side()
    with side.opened():
        crowd = [stranger(side.at) for _ in range(_STRANGERS + 50)]
        for each in crowd:
            with suppress(OSError):  # the first have been let go
                each.send(wire.hello(bytes(16))[:7])
        assert side.pull().loaded == 2
    for each in crowd:
        each.close()


@pytest.mark.parametrize(
    "said", [b"", b"kevip", b"kevip\x02" + bytes(48), wire.hello(bytes(16)), b"GET / HTTP/1.1\r\n"]
)
def test_who_says_something_else_and_hangs_up_is_let_go(said: bytes) -> None:
    side = Side()
    with side.opened() as offer:
        with stranger(side.at) as other:
            other.sendall(said)
            other.shutdown(socket.SHUT_WR)
            assert len(other.recv(100)) == wire.HELLO
            assert other.recv(1) == b""
        assert (offer.refused, side.pulls) == (bool(said), 0)
        assert side.pull().loaded == 2


def test_an_heir_that_leaves_is_served_no_more() -> None:
    side = Side(b"".join([TCP] * 100_000))
    with side.opened() as offer:
        with mock.patch("kevip.sync.pull.load", side_effect=HostError("the kernel's table is nearly full")):
            assert side.pull().problem == "the kernel's table is nearly full"
        deadline = time.monotonic() + 20
        while offer.is_busy and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not offer.is_busy


def test_nobody_beyond_a_router_is_heard() -> None:
    side = Side()
    with side.opened(), pytest.raises(TimeoutError):
        stranger(side.at, ttl=wire.TTL - 1, patience=0.3)


def test_a_master_serves_two_at_a_time() -> None:
    side, enough = Side(), threading.Event()
    side.dump = mock.patch("kevip.host.command.stream", side_effect=lambda _: iter([enough.wait(30) and b""]))
    with side.opened() as offer:
        waiting = [threading.Thread(target=side.pull, kwargs={"seconds": 30.0}) for _ in range(2)]
        for each in waiting:
            each.start()
        deadline = time.monotonic() + 20
        while side.pulls < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert offer.is_busy
        assert "too much to do" in side.pull().problem
        assert Served() not in side.told
        enough.set()
        for each in waiting:
            each.join()
        while Served() not in side.told and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (side.pulls, side.told[-1]) == (2, Served())
    assert not offer.is_busy


def test_a_port_that_is_taken_is_an_error() -> None:
    with socket.create_server((str(HERE), 0)) as taken, pytest.raises(HostError, match="cannot listen on 127"):
        Offer(Loop(), (HERE, taken.getsockname()[1]), KEY, OURS, lambda _: None)


@contextmanager
def saying(*said: bytes, stays: bool = False) -> Iterator[tuple[IPv4Address, int]]:
    """Say something to whoever connects, and hang up unless it ``stays``."""
    ended = threading.Event()
    with socket.create_server((str(HERE), 0)) as server:

        def serve() -> None:
            with suppress(OSError), server.accept()[0] as client:
                for each in said:
                    client.sendall(each)
                    time.sleep(0.01)
                if stays:
                    ended.wait(60)
                client.shutdown(socket.SHUT_WR)
                while client.recv(1000):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield HERE, server.getsockname()[1]
        finally:
            ended.set()
            thread.join()


@pytest.mark.parametrize(
    ("said", "stays", "problem"),
    [
        ((), False, "refused: it has another password, or too much to do"),
        ((), True, "no answer in time"),
        ((b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n",), False, "no kevip"),
        ((b"kevip\x02" + bytes(16),), True, "another version"),
        ((wire.hello(bytes(16))[:8],), True, "no answer in time"),
        ((wire.hello(bytes(16)),), True, "no answer in time"),
        ((wire.hello(bytes(16)), b"\0\0\0\0" + bytes(32)), True, "forged"),
        ((wire.hello(bytes(16)), b"\xff" * 100), True, "forged"),
    ],
)
def test_an_heir_is_neither_late_nor_misled(said: tuple[bytes, ...], *, stays: bool, problem: str) -> None:
    begin = time.monotonic()
    with saying(*said, stays=stays) as at, mock.patch("kevip.sync.pull.load") as loading:
        pulled = pull(at, KEY, OURS, 0.2 if "time" in problem else 10.0)
        assert time.monotonic() - begin < 5
    assert (pulled.loaded, pulled.problem) == (0, problem)
    assert not loading.called


@given(st.sampled_from([[], [wire.hello(bytes(16))]]), st.lists(st.binary(max_size=100), max_size=3))
def test_whatever_a_master_says_an_heir_goes_on(begun: list[bytes], said: list[bytes]) -> None:
    with saying(*begun, *said) as at, mock.patch("kevip.sync.pull.load") as loading:
        pulled = pull(at, KEY, OURS, 5.0)
    assert pulled.problem
    assert not loading.called


def test_a_pull_of_what_is_none_of_the_groups_here_loads_nothing() -> None:
    side = Side()
    with side.opened(), mock.patch.object(Entries, "loadable", return_value=[]):
        pulled = side.pull()
    assert (pulled.loaded, pulled.refused, pulled.problem) == (0, 2, "")
    assert not side.loaded


def test_a_pull_that_is_cut_off_keeps_what_came() -> None:
    def texts(*_: Any) -> Iterator[bytes]:
        yield TCP
        raise EOFError

    with mock.patch("kevip.sync.pull._texts", texts), mock.patch("kevip.sync.pull.load"):
        pulled = pull((HERE, 1), KEY, OURS, 5.0)
    assert (pulled.loaded, pulled.problem) == (1, "cut off")


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (CommandError(["conntrack"], None, "stopped after 0.1 s"), "not all in time"),
        (CommandError(["conntrack"], 127, "No such file"), "conntrack: exit status 127: No such file"),
        (
            HostError("the kernel's table of connections is nearly full"),
            "the kernel's table of connections is nearly full",
        ),
        (OSError(24, "Too many open files"), "Too many open files"),
    ],
)
def test_what_this_host_cannot_do_is_told(error: Exception, problem: str) -> None:
    side = Side()
    side.load = mock.patch("kevip.sync.pull.load", side_effect=error)
    with side.opened():
        assert (side.pull().problem, side.pulls) == (problem, 1)


def test_an_heir_whose_kernel_is_slow_is_not_late(tmp_path: Path) -> None:
    (tmp_path / "conntrack").write_text("#!/bin/sh\nsleep 60\n")
    (tmp_path / "conntrack").chmod(0o755)
    side, begin = Side(), time.monotonic()
    side.load = mock.patch.dict(command.ENVIRONMENT, PATH=f"{tmp_path}:{os.environ['PATH']}")
    with side.opened():
        pulled = side.pull(seconds=0.5)
        assert time.monotonic() - begin < 10
    assert (pulled.loaded, pulled.problem) == (0, "not all in time")


CLASHES = CommandError(["conntrack"], 1, "Operation failed: Operation not supported")
"""What conntrack 1.4.8 says of an entry that is there already."""


@pytest.mark.parametrize(
    "here",
    [
        TCP,
        TCP.replace(b"--sport 24048", b"--sport 24049"),  # of another client, with that port at TARGET
        TCP.replace(b"-g 203.0.113.10 -n 10.77.0.100", b"-r 10.77.0.100 -q 198.51.100.50"),  # not translated
    ],
)
def test_what_is_here_already_is_left_out_where_conntrack_would_end_at_it(here: bytes) -> None:
    tcp, udp = OURS.loadable(TCP + UDP)
    side, loads = Side(), list[list[bytes]]()

    def load(lines: list[bytes], _: float) -> None:
        loads.append(list(lines))
        if tcp in lines:
            raise CLASHES

    side.load = mock.patch("kevip.sync.pull.load", side_effect=load)
    with side.opened(), mock.patch("kevip.host.command.run_now", return_value=here.decode()):
        pulled = side.pull()
    assert loads == [[tcp, udp], [udp]]
    assert (pulled.loaded, pulled.problem) == (2, "")


@pytest.mark.parametrize("here", [TCP, UDP])
def test_where_all_are_here_there_is_nothing_to_load(here: bytes) -> None:
    side = Side(here)
    side.load = mock.patch("kevip.sync.pull.load", side_effect=CLASHES)
    with side.opened(), mock.patch("kevip.host.command.run_now", return_value=here.decode()):
        assert side.pull().problem == ""


def test_where_conntrack_fails_for_another_reason_it_is_told() -> None:
    side = Side()
    side.load = mock.patch("kevip.sync.pull.load", side_effect=CLASHES)
    other = TCP.replace(b"24048", b"24049").replace(b"64638", b"64639").decode()
    with side.opened(), mock.patch("kevip.host.command.run_now", return_value=other):
        assert side.pull().problem == "conntrack: exit status 1: Operation failed: Operation not supported"


# Groups of several VIPs and targets


OTHER, ELSEWHERE = IPv4Address("10.0.0.101"), IPv4Address("192.0.2.10")
MAPPED = Forward(OTHER, ELSEWHERE, Ports("tcp", 443, 443), 8443)


def line(vip: object, target: object, sees: object, port: int, answers: int) -> bytes:
    """Return what is saved of a connection."""
    return (
        f"-A -t 431999 -u SEEN_REPLY,ASSURED -s 10.0.0.9 -d {vip} -g {target} -n {sees} -p tcp --sport 40000"
        f" --dport {port} --reply-port-src {answers} --reply-port-dst 40000 --state ESTABLISHED\n"
    ).encode()


@pytest.mark.parametrize("source", [None, VIP])
def test_connections_of_each_forward_are_known_by_where_they_lead(source: IPv4Address | None) -> None:
    group = Entries([Proxy(vip=VIP, target=TARGET, forwards=(MAPPED,), source=source)])
    ours = line(VIP, TARGET, VIP, 80, 80) + line(OTHER, ELSEWHERE, source or OTHER, 443, 8443)
    others = (
        line(OTHER, ELSEWHERE, source or OTHER, 80, 80)
        + line(OTHER, ELSEWHERE, source or OTHER, 443, 443)
        + line(OTHER, TARGET, source or OTHER, 443, 8443)
        + line(VIP, ELSEWHERE, VIP, 80, 80)
        + line(OTHER, ELSEWHERE, TARGET, 443, 8443)
    )
    assert group.own(ours + others) == ours
    assert b"-g 192.0.2.10:8443 -n " in group.loadable(ours)[1]


def test_connections_to_where_a_name_led_before_are_still_the_groups() -> None:
    group = Entries([Proxy(vip=VIP, target=TARGET)])
    now = line(VIP, ELSEWHERE, VIP, 80, 80)
    assert group.own(now) == b""
    group.also(Proxy(vip=VIP, target=ELSEWHERE))
    assert group.own(now + line(VIP, TARGET, VIP, 80, 80)) == now + line(VIP, TARGET, VIP, 80, 80)
