"""The pull with real kernels: an heir knows the connections of a master that leaves, and those only."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

import pytest
from lab.network import LAN, TARGET, VIP, VIP2, Namespace, Network, eventually
from lab.traffic import PORT, SPEAKS, Speaker, hears, track

from kevip.core.messages import Event, Served
from kevip.core.messages import Pulled as PulledEvent
from kevip.dataplane import conntrack
from kevip.dataplane.nftables import Nftables
from kevip.dataplane.rules import Proxy
from kevip.loop import Loop
from kevip.sync import wire
from kevip.sync.entries import Entries
from kevip.sync.offer import Offer
from kevip.sync.pull import Pulled, pull

PROXY = Proxy(vip=IPv4Address(VIP), target=IPv4Address(TARGET))
OTHER = Proxy(vip=IPv4Address(VIP2), target=IPv4Address(TARGET))
OURS = Entries([PROXY])
KEY = wire.derive("correct horse", PROXY.vip)
AT = IPv4Address(f"{LAN}.11"), wire.port(100)

SILENCE = 1.5
"""Seconds after which one who has heard nothing will not: it was said again and again by then."""


@pytest.fixture
def lab(network: Network) -> Network:
    """Give all nodes the rules of two VIPs, and the first one the addresses."""
    for node in network.nodes:
        node.sysctl("net.ipv4.ip_forward", "1")
        for proxy in (PROXY, OTHER):
            node.run("nft", "-f", "-", stdin=Nftables().setup(proxy, proxy.parts))
    for address in (VIP, VIP2):
        network.nodes[0].run("ip", "address", "add", f"{address}/32", "dev", "eth0")
    return network


@contextmanager
def offered(node: Namespace) -> Iterator[list[Event]]:
    """Have a node offer its connections while the block runs; gives what it tells."""
    told, ready, ended = list[Event](), threading.Event(), threading.Event()

    def serve() -> None:
        with node.entered():
            loop = Loop()
            offer = Offer(loop, AT, KEY, OURS, told.append)
            ready.set()
            while not ended.is_set() or offer.is_busy:
                loop.after(0.01, lambda: None)
                loop.turn()
            loop.after(0, lambda: None)
            loop.turn()
            offer.close()
            loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert ready.wait(20)
        yield told
    finally:
        ended.set()
        thread.join()


def pulled(node: Namespace, seconds: float = 20.0) -> Pulled:
    """Pull on a node."""
    with node.entered():
        return pull(AT, KEY, OURS, seconds)


def move(network: Network, address: str = VIP) -> None:
    """Move an address from the first node to the second, and let the neighbours know."""
    master, heir = network.nodes[:2]
    master.run("ip", "address", "del", f"{address}/32", "dev", "eth0")
    heir.run("ip", "address", "add", f"{address}/32", "dev", "eth0")
    for each in (network.client, network.router, master, network.nodes[2]):
        each.run("ip", "neighbour", "flush", "dev", "eth0")


@pytest.fixture
def speaker(lab: Network) -> Iterator[Speaker]:
    """Have a server that speaks when it is told to."""
    made = Speaker(lab)
    yield made
    made.close()


def tracked(node: Namespace) -> list[tuple[str, ...]]:
    """Return addresses and ports of what a node tracks, apart from the pull itself, without what changes."""
    lines = node.run("conntrack", "--dump", "--family", "ipv4").splitlines()
    found = (
        tuple(word for word in line.split() if word.startswith(("src", "dst", "sport", "dport"))) for line in lines
    )
    return sorted(each for each in found if f"dport={AT[1]}" not in each)


def test_silent_clients_hear_on_after_a_pull_and_not_without(lab: Network, speaker: Speaker) -> None:
    master, heir = lab.nodes[:2]
    clients = [speaker.connect(lab.client, sport=30000), speaker.connect(lab.far_client, sport=40000)]
    clients.append(speaker.connect(lab.far_client, sport=30000))  # which is translated to another port
    with offered(master) as told:
        result = pulled(heir)
    late = speaker.connect(lab.client, sport=30001)
    assert (result.loaded, result.refused, result.problem, told) == (3, 0, "", [PulledEvent(), Served()])
    assert tracked(heir) == [each for each in tracked(master) if "sport=30001" not in each]
    move(lab)
    speaker.speak()
    assert all(map(hears, clients))
    assert not hears(late, SILENCE)


def test_what_came_since_is_in_the_second_pull_also_from_the_heir_itself(lab: Network, speaker: Speaker) -> None:
    """Its own connection was tracked there without translation, and is loaded once that is forgotten."""
    master, heir = lab.nodes[:2]
    clients = [speaker.connect(each) for each in (lab.client, heir, lab.nodes[2])]
    with offered(master) as told:
        assert pulled(heir).problem == ""
        clients.append(speaker.connect(lab.client))
        move(lab)
        with heir.entered():
            conntrack.forget_untranslated([PROXY.vip])
        assert (pulled(heir).problem, told.count(PulledEvent())) == ("", 2)
    speaker.speak()
    assert all(map(hears, clients))


def test_connections_of_others_never_leave_nor_arrive(lab: Network, speaker: Speaker) -> None:
    """Of another VIP for the same TARGET, of the host itself to TARGET and the VIP, and of UDP that had no reply."""
    master, heir = lab.nodes[:2]
    clients = [speaker.connect(lab.client, sport=30000), speaker.connect(lab.client, VIP2)]
    clients += [speaker.connect(master, TARGET), speaker.connect(master)]
    with lab.client.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.sendto(b"?", (VIP, SPEAKS))
        asking.sendto(b"?", (str(AT[0]), SPEAKS))
    eventually(lambda: len(tracked(master)) == 6)
    before = tracked(heir)
    with offered(master):
        with master.entered():
            sent = b"".join(OURS.dump(wire.PIECE))
        assert (pulled(heir).loaded, sent.count(b"\n")) == (1, 1)
    [new] = [each for each in tracked(heir) if each not in before]
    assert {"sport=30000", f"dst={VIP}", f"src={TARGET}"} < set(new)
    for each in clients:
        each.close()


def test_datagrams_find_their_way_back_after_a_pull(lab: Network) -> None:
    master, heir = lab.nodes[:2]
    with lab.client.entered():
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with asking, lab.target.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as answering:
        asking.settimeout(10)
        answering.settimeout(10)
        answering.bind((TARGET, PORT + 3))
        asking.connect((VIP, PORT + 3))
        asking.send(b"?")
        _, back = answering.recvfrom(10)
        answering.sendto(b"first", back)
        assert asking.recv(10) == b"first"
        with offered(master):
            assert pulled(heir).loaded == 1
        move(lab)
        answering.sendto(b"second", back)
        assert asking.recv(10) == b"second"


def test_an_entry_that_is_there_stays_and_does_not_keep_others_away(lab: Network, speaker: Speaker) -> None:
    master, heir = lab.nodes[:2]
    clients = [speaker.connect(lab.client, sport=30000 + number) for number in range(5)]
    heir.run(
        *("conntrack", "--create", "--proto", "tcp", "--state", "ESTABLISHED", "--timeout", "77"),
        *("--src", "192.0.2.7", "--dst", VIP, "--sport", "7", "--dport", str(SPEAKS)),
        *("--dst-nat", f"{TARGET}:{SPEAKS}", "--src-nat", f"{VIP}:30002"),
        *("--reply-port-src", str(SPEAKS), "--reply-port-dst", "30002", "--status", "SEEN_REPLY,ASSURED"),
    )
    [before] = tracked(heir)
    with offered(master):
        for _ in range(2):
            assert pulled(heir).problem == ""
    assert before in tracked(heir)
    assert len(tracked(heir)) == 5
    move(lab)
    speaker.speak()
    assert [hears(each) for each in clients if each != clients[2]] == [True] * 4
    clients[2].close()


def test_windows_that_are_not_known_hold_nothing_up(lab: Network) -> None:
    """The heir's kernel has not seen how windows scale, and would take what is sent in a large one for invalid."""
    master, heir = lab.nodes[:2]
    size, got, goes = 30_000_000, 0, threading.Event()
    with lab.target.entered():
        server = socket.create_server((TARGET, PORT + 2))

    def push() -> None:
        with server, server.accept()[0] as accepted:
            accepted.sendall(b"x" * 1_000_000)  # so that the window is large by now
            goes.wait(60)
            accepted.sendall(b"x" * size)

    thread = threading.Thread(target=push)
    thread.start()
    with lab.client.entered():
        client = socket.create_connection((VIP, PORT + 2), 20)
    with client:
        while got < 1_000_000:
            got += len(client.recv(1 << 20))
        with offered(master):
            assert pulled(heir).loaded == 1
        move(lab)
        goes.set()
        while got < 1_000_000 + size:
            got += len(client.recv(1 << 20))
    thread.join()
    assert "counter packets 0 " in heir.run("nft", "list", "chain", "ip", f"kevip-{VIP}", "guard")
    assert int(heir.sysctl("net.netfilter.nf_conntrack_tcp_be_liberal")) == 0


def test_a_connection_has_the_state_and_the_time_that_it_had(lab: Network, speaker: Speaker) -> None:
    master, heir = lab.nodes[:2]
    with speaker.connect(lab.client), offered(master):
        pulled(heir)
        [entry] = heir.run("conntrack", "--dump", "--family", "ipv4", "--orig-dst", VIP).splitlines()
    assert entry.split()[3] == "ESTABLISHED"
    assert int(entry.split()[2]) > 400_000
    assert "[ASSURED]" in entry


def test_ten_thousand_are_pulled_those_first_that_there_is_time_for(lab: Network) -> None:
    master, heir = lab.nodes[:2]
    track(master, 10_000)
    with offered(master):
        first = pulled(heir, 0.2)
        assert first.problem in {"", "not all in time", "no answer in time"}  # this machine may be busy
        assert len(tracked(heir)) >= first.loaded
        rest = pulled(heir, 60)
    assert (rest.loaded, rest.refused, rest.problem) == (10_000, 0, "")
    assert len(tracked(heir)) == len(tracked(master)) == 10_000


def test_a_stranger_on_the_network_gets_nothing(lab: Network) -> None:
    with offered(lab.nodes[0]) as told:
        with lab.nodes[1].entered():
            assert "another password" in pull(AT, bytes(32), OURS, 20.0).problem
        with lab.far_client.entered():  # beyond the router
            assert pull(AT, KEY, OURS, 0.5).problem == "no answer in time"
        assert not told
    assert pulled(lab.nodes[1]).problem == "it offers none"
