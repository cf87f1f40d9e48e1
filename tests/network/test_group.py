"""A group of several VIPs and targets, taken and left as one: real TCP and UDP through every form of a forward."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from ipaddress import IPv4Address
from typing import Self

import pytest
from lab.network import DATAPLANES, TARGET, VIP, Namespace, Network, eventually
from lab.replica import PASSWORD, Replica, invoke, on_each_engine
from lab.traffic import PORT, server, tcp_source, udp_source

Start = Callable[..., Replica]

VIP2, VIP3 = "10.77.0.101", "10.77.0.102"
TARGET2, TARGET3 = "203.0.113.11", "203.0.113.12"
FORWARDS = f"""
    {VIP2}={TARGET2}          # all of it
    :7001={TARGET2}           # a port of the first one
    :7100-7101={TARGET3}      # some ports
    {VIP3}:7443={TARGET3}:8443,{VIP3}:7053/udp={TARGET3}
"""
SERVED = [(TARGET2, PORT), (TARGET2, 7001), (TARGET3, 7101), (TARGET3, 8443), (TARGET3, 7053)]


@pytest.fixture
def targets(network: Network) -> Iterator[Network]:
    """Have two more targets, which serve some ports."""
    with ExitStack() as servers:
        for address in (TARGET2, TARGET3):
            network.target.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
        for address, port in SERVED:
            servers.enter_context(server(network.target, address, port))
        yield network


def fate(ask: Callable[..., str], network: Network, vip: str, port: int) -> str:
    """Return the source that a target sees, or how that fails."""
    try:
        return ask(network.client, vip, port, timeout=1.0)
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "dropped"


ROUTES = [
    (VIP, PORT, "tcp"), (VIP, PORT, "udp"), (VIP, 7001, "tcp"), (VIP, 7101, "tcp"),
    (VIP2, PORT, "tcp"), (VIP2, PORT, "udp"), (VIP2, 7001, "udp"), (VIP3, 7443, "tcp"), (VIP3, 7053, "udp"),
]  # fmt: skip
NOWHERE = [(VIP, 7100, "tcp"), (VIP3, 8443, "tcp"), (VIP3, 7053, "tcp"), (VIP3, PORT, "tcp")]


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_each_forward_goes_to_its_target_which_sees_the_vip_before_and_after_a_failover(
    targets: Network, start: Start, dataplane: str
) -> None:
    replicas = [start(node, dataplane=dataplane, forward=FORWARDS) for node in targets.nodes[:2]]
    for _ in range(2):
        master = targets.settled(among=[each.node for each in replicas])
        assert all(master.has(vip) for vip in (VIP, VIP2, VIP3))
        for vip, port, protocol in ROUTES:
            ask = tcp_source if protocol == "tcp" else udp_source
            assert (vip, port, protocol, fate(ask, targets, vip, port)) == (vip, port, protocol, vip)
        for vip, port, _protocol in NOWHERE:
            assert (vip, port, fate(tcp_source, targets, vip, port)) == (vip, port, "refused")
        [leaver] = [each for each in replicas if each.node == master]
        before = leaver.node.rules()
        assert leaver.stop()[0] == 0
        assert not any(leaver.node.has(vip) for vip in (VIP, VIP2, VIP3))
        assert before != leaver.node.rules()
        replicas.remove(leaver)


@on_each_engine
def test_targets_see_one_of_the_vips_for_all(targets: Network, start: Start) -> None:
    start(targets.nodes[0], forward=FORWARDS, source=VIP2).master()
    found = {fate(tcp_source if kind == "tcp" else udp_source, targets, vip, port) for vip, port, kind in ROUTES}
    assert found == {VIP2}


@pytest.mark.parametrize("source", [None, VIP2])
@on_each_engine
def test_silent_connections_of_each_forward_outlive_a_planned_move(
    targets: Network, start: Start, source: str | None
) -> None:
    settings = {"forward": FORWARDS, **({"source": source} if source else {})}
    replicas = [start(node, **settings) for node in targets.nodes[:2]]
    leaver = next(each for each in replicas if each.node == targets.settled(among=targets.nodes[:2]))
    with ExitStack() as connections:
        silent = [connections.enter_context(Silent(targets, vip, port)) for vip, port, kind in ROUTES if kind == "tcp"]
        assert leaver.stop()[0] == 0
        targets.settled(among=[each.node for each in replicas if each is not leaver])
        assert [each.hears() for each in silent] == [True] * len(silent)


class Silent:
    """A connection on which only the target speaks; a context manager."""

    def __init__(self, network: Network, vip: str, port: int) -> None:
        with network.client.entered():
            self._connection = socket.create_connection((vip, port), 10)
        self._connection.sendall(b"chat\n")

    def hears(self) -> bool:
        """Whether the target is still heard, what it said before aside."""
        self._connection.settimeout(0)
        with suppress(BlockingIOError):
            while self._connection.recv(1 << 16):
                pass
        self._connection.settimeout(20)
        return bool(self._connection.recv(1))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def test_one_address_of_many_that_was_deleted_is_added_again(targets: Network, start: Start) -> None:
    replica = start(targets.nodes[0], forward=FORWARDS).master()
    replica.node.run("ip", "address", "delete", f"{VIP3}/32", "dev", "eth0")
    said = replica.logged("drift.repaired")
    assert said["what"] == [f"address {VIP3} missing on eth0"]
    eventually(lambda: replica.node.has(VIP3), what="it is there again")


def test_connections_that_nobody_translated_are_forgotten_for_each_vip(targets: Network, start: Start) -> None:
    """A process of a host that used a VIP while that was nowhere would get a reset, once it is here."""
    node = targets.nodes[0]
    with node.entered(), pytest.raises(OSError, match=r"refused|No route|timed out"):
        socket.create_connection((VIP2, PORT), timeout=3)
    start(node, forward=FORWARDS).master()
    assert tcp_source(node, VIP2, PORT) == VIP2


def test_a_vip_of_the_group_that_another_host_has_too_is_told(targets: Network, start: Start) -> None:
    replica = start(targets.nodes[0], forward=FORWARDS).master()
    stranger = targets.nodes[2]
    stranger.run("ip", "address", "add", f"{VIP3}/24", "dev", "eth0")
    said = replica.logged("address.duplicate", within=60)
    assert said["mac"] == f"{stranger.mac} ({VIP3})"
    status = partial(invoke, targets.nodes[0], "status", f"--run-dir={replica.run_dir}")
    eventually(lambda: "answers ARP" in status().stdout, what="status says so")


def test_two_groups_cannot_both_have_a_vip(targets: Network, start: Start) -> None:
    start(targets.nodes[0], forward=FORWARDS).ready()
    refused = invoke(targets.nodes[0], f"--vip={VIP2}", f"--target={TARGET2}", env={"PASSWORD": PASSWORD})
    assert (refused.returncode, f"serves VIP {VIP2} on this host already" in refused.stderr) == (4, True)


@pytest.mark.parametrize("any_counts", [False, True])
def test_the_target_of_each_vip_is_asked(targets: Network, start: Start, *, any_counts: bool) -> None:
    settings: dict[str, object] = {"check": f"tcp:{PORT} {VIP2}=tcp:7001 {VIP3}=tcp:7443", "check_interval": 1}
    settings |= {"check_any": True} if any_counts else {}
    replicas = [start(node, forward=FORWARDS, **settings).ready() for node in targets.nodes[:2]]
    master = targets.settled(among=targets.nodes[:2])
    [first] = [each for each in replicas if each.node == master]
    eventually(lambda: first.state()["health"]["round_trip_ms"], what="it is up")
    master.iptables("-A", "OUTPUT", "-d", TARGET3, "-j", "DROP")
    if any_counts:
        for _ in range(80):
            assert first.state()["health"]["up"]
            time.sleep(0.1)
        master.iptables("-A", "OUTPUT", "-p", "tcp", "-j", "DROP")
    problem = first.logged("target.down")["problem"]
    assert (f"{VIP3}=tcp:7443: no answer in time" in problem, f"{VIP2}=" in problem) == (True, any_counts)
    assert targets.settled(among=[each for each in targets.nodes[:2] if each != master]) != master


def has_all(host: Namespace, vips: list[str]) -> bool:
    """Whether a host has all of them."""
    return all(host.has(each) for each in vips)


@on_each_engine
def test_two_hundred_and_fifty_vips_move_together(network: Network, start: Start) -> None:
    many = [str(IPv4Address(VIP2) + each) for each in range(9, 149)] + [f"10.77.1.{each}" for each in range(1, 110)]
    network.router.run("ip", "address", "add", "10.77.0.1/23", "dev", "eth0")
    for host in (*network.nodes[:2], network.client):
        own = host.addresses()[0][1].partition("/")[0]
        host.run("ip", "address", "add", f"{own}/23", "dev", "eth0")
    forwards = " ".join(f"{each}={TARGET}" for each in many)
    replicas = [start(node, forward=forwards, dataplane="nftables") for node in network.nodes[:2]]
    for _ in range(2):
        master = network.settled(among=[each.node for each in replicas])
        eventually(partial(has_all, master, many), what="it has them all")
        for vip in (many[0], many[138], many[-1], VIP):
            assert tcp_source(network.client, vip, PORT) == vip
        [leaver] = [each for each in replicas if each.node == master]
        assert leaver.stop()[0] == 0
        assert not any(leaver.node.has(each) for each in (VIP, *many))
        replicas.remove(leaver)
        if replicas:
            assert not replicas[0].events("takeover.incomplete")


def test_commands_take_any_vip_of_a_group(targets: Network, start: Start) -> None:
    replicas = [start(node, forward=FORWARDS) for node in targets.nodes[:2]]
    master = targets.settled(among=targets.nodes[:2])
    [first] = [each for each in replicas if each.node == master]
    place = f"--vip={VIP3}", f"--run-dir={first.run_dir}"
    shown = eventually(
        lambda: (found := invoke(master, "status", *place)).returncode == 0 and found, what="all is well"
    )
    assert shown.stdout.startswith(f"{VIP}\n")
    moved = invoke(master, "move", *place)
    assert (moved.returncode, "took over" in moved.stdout) == (0, True)
    assert not any(master.has(vip) for vip in (VIP, VIP2, VIP3))
    first.kill()
    assert f"/{VIP}.json" in invoke(master, "cleanup", *place).stdout
