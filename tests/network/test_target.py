"""A master that does not reach TARGET: who serves then, and that the VIP neither vanishes nor wanders."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from lab.network import CLIENT, DATAPLANES, ROUTER, TARGET, VIP, Namespace, Network, eventually
from lab.replica import Replica, on_each_engine
from lab.traffic import PORT, Probe, tcp_source

Start = Callable[..., Replica]

CHECK = {"check": f"tcp:{PORT}", "check_interval": 1, "check_fall": 2, "check_rise": 2}


@contextmanager
def cut_off(network: Network, *nodes: Namespace) -> Iterator[None]:
    """Let nothing through from nodes to the target; all nodes if none is named. Clients are not concerned."""
    rules = [["-d", TARGET, "-m", "mac", "--mac-source", node.mac, "-j", "DROP"] for node in nodes or network.nodes]
    for rule in rules:
        network.router.iptables("-I", "FORWARD", *rule)
    yield
    for rule in rules:
        network.router.iptables("-D", "FORWARD", *rule)


def health(replica: Replica) -> bool | None:
    """Return what a replica thinks of the target."""
    found = replica.state().get("health")
    return found["up"] if found else None


def takeovers(*replicas: Replica) -> int:
    """Return how often the VIP was taken over."""
    return sum(len(replica.events("takeover.done")) for replica in replicas)


@on_each_engine
def test_a_master_that_alone_is_cut_off_hands_over_and_stays_backup(network: Network, start: Start) -> None:
    replicas = {node: start(node, **CHECK).ready() for node in network.nodes}
    master = network.settled()
    with cut_off(network, master):
        assert replicas[master].logged("target.down")["problem"] == "no answer in time"
        assert replicas[master].logged("handover.done")["to"]
        heir = network.settled()
        assert heir != master
        assert tcp_source(network.client, VIP) == VIP
        replicas[heir].stop()
        third = network.settled()
        assert third not in {master, heir}
    eventually(lambda: health(replicas[master]), what="the target is reached again")
    eventually(lambda: replicas[master].role() == "backup", what="it stands for election as before")
    assert network.settled() == third


DRIPS = """
import asyncio, contextlib

async def drip(_, writer):
    with contextlib.suppress(OSError):
        while True:
            writer.write(b"H")
            await writer.drain()
            await asyncio.sleep(0.3)

async def main():
    async with await asyncio.start_server(drip, port=8080) as server:
        await server.serve_forever()

asyncio.run(main())
"""


def test_a_target_that_answers_drop_by_drop_is_down(network: Network, start: Start) -> None:
    server = network.target.popen(sys.executable, "-c", DRIPS)
    try:
        alone = start(network.nodes[0], **{**CHECK, "check": f"http://{TARGET}:8080/"}).master()
        assert alone.logged("target.down")["problem"] == "no answer in time"
    finally:
        server.kill()
        server.wait()


@on_each_engine
def test_a_stop_hands_over_to_a_peer_that_reaches_the_target(network: Network, start: Start) -> None:
    first, second, third = (
        start(node, advskew=skew, **CHECK).ready() for node, skew in zip(network.nodes, (1, 5, 20), strict=True)
    )
    assert network.settled() == first.node
    with cut_off(network, second.node):
        eventually(lambda: health(second) is False and second.role() == "backup", what="it knows")
        first.stop()
        assert network.settled() == third.node
        third.stop()
        assert network.settled() == second.node  # better than nobody


@on_each_engine
def test_where_no_peer_reaches_the_target_the_vip_stays(network: Network, start: Start) -> None:
    replicas = [start(node, **CHECK).ready() for node in network.nodes]
    network.settled()
    before = takeovers(*replicas)
    with cut_off(network):
        eventually(lambda: all(health(each) is False for each in replicas), what="all know")
        if replicas[0].engine == "ucarp":  # with keepalived, nobody has to be asked
            eventually(lambda: any(each.events("handover.declined") for each in replicas), what="nobody took over")
        for _ in range(100):
            assert network.holders()
            time.sleep(0.02)
        assert takeovers(*replicas) - before <= 2
    assert len(network.holders()) == 1
    assert tcp_source(network.client, VIP) == VIP


@on_each_engine
def test_without_a_route_to_the_target_on_any_host_the_vip_stays_and_serves_when_it_is_back(
    network: Network, start: Start
) -> None:
    replicas = [start(node).ready() for node in network.nodes]
    network.settled()
    before = takeovers(*replicas)
    for node in network.nodes:
        node.run("ip", "route", "delete", "default")
    end = time.monotonic() + 15
    while time.monotonic() < end:
        assert network.holders()
        time.sleep(0.02)
    assert takeovers(*replicas) - before <= 2
    holders = network.holders()
    for node in network.nodes:
        node.run("ip", "route", "add", "default", "via", ROUTER)
    if replicas[0].engine == "ucarp":  # with keepalived, the first that reaches the target may take it
        assert network.holders() == holders
    assert tcp_source(network.client, VIP) == VIP
    assert network.settled() == holders[0] or replicas[0].engine == "keepalived"


def test_a_master_without_peers_keeps_the_vip_and_says_so(network: Network, start: Start) -> None:
    alone = start(network.nodes[0], **CHECK).master()
    with cut_off(network):
        alone.logged("handover.declined")
        assert (alone.role(), alone.state()["reason"]) == ("master", "kept")
        assert (len(alone.events("takeover.done")), network.holders()) == (1, [alone.node])
    eventually(lambda: health(alone), what="the target is reached again")
    assert (alone.role(), tcp_source(network.client, VIP)) == ("master", VIP)
    status, seconds = alone.stop()
    assert (status, seconds < 6) == (0, True)


@on_each_engine
def test_a_target_that_flaps_does_not_make_the_vip_wander(network: Network, start: Start) -> None:
    replicas = [start(node, **CHECK).ready() for node in network.nodes[:2]]
    network.settled(among=network.nodes[:2])
    before = takeovers(*replicas)
    for _ in range(3):
        with cut_off(network):
            eventually(lambda: all(health(each) is False for each in replicas), what="both know")
        eventually(lambda: all(health(each) for each in replicas), what="both know again")
    assert takeovers(*replicas) - before <= 2  # each may try the other one once
    network.settled(among=network.nodes[:2])
    assert tcp_source(network.client, VIP) == VIP


def test_a_handover_for_the_targets_sake_fails_no_connect_of_those_that_it_answers(
    network: Network, start: Start
) -> None:
    """The target refuses the check only; what goes through the VIP is served all the time."""
    replicas = {node: start(node, **{**CHECK, "check": "tcp:7999"}).ready() for node in network.nodes[:2]}
    network.settled(among=network.nodes[:2])
    with Probe(network.client, VIP) as probe:
        eventually(lambda: any(each.events("handover.declined") for each in replicas.values()), within=40)
        report = probe.report()
    assert (report.failed, report.sources) == (0, [VIP])


def test_a_stop_while_the_master_waits_for_its_own_election_ends_in_time(network: Network, start: Start) -> None:
    alone = start(network.nodes[0], **CHECK).master()
    with cut_off(network):
        alone.logged("handover.started")
        status, seconds = alone.stop()
    assert (status, seconds < 8) == (0, True)
    assert (network.holders(), alone.node.rules()) == ([], {dataplane: [] for dataplane in DATAPLANES})


@pytest.mark.parametrize("check", ["icmp", f"tcp:{PORT}"])
def test_the_master_asks_from_the_vip(network: Network, start: Start, check: str) -> None:
    """A target may let only the VIP in."""
    network.target.iptables("-A", "INPUT", "!", "-s", VIP, "-j", "DROP")
    alone = start(network.nodes[0], **{**CHECK, "check": check, "check_fall": 3}).master()
    eventually(lambda: (alone.state().get("health") or {}).get("round_trip_ms"), what="the target answered")
    assert not alone.events("handover.started")
    with pytest.raises(TimeoutError):
        tcp_source(network.client, TARGET, timeout=0.5)
    assert tcp_source(network.client, VIP) == VIP != CLIENT
