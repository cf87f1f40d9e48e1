"""Planned moves of the VIP, and connections that outlive the master."""

import os
import signal
import time
from collections.abc import Callable

import pytest
from lab.network import LAN, TARGET, VIP, Namespace, Network, eventually
from lab.replica import Replica, on_each_engine
from lab.traffic import Conversations, Flow, Probe, hears, speaker, tcp_source

Start = Callable[..., Replica]


def three(network: Network, start: Start, **settings: object) -> dict[Namespace, Replica]:
    """Start a replica on each node; return them when they have a master."""
    replicas = {node: start(node, **settings).ready() for node in network.nodes}
    eventually(network.holders, what="a master is elected")
    network.settled()
    return replicas


@on_each_engine
def test_a_planned_stop_fails_no_connect_and_cuts_no_connection(network: Network, start: Start) -> None:
    replicas = three(network, start)
    master = network.settled()
    with Conversations(network.client, VIP, 100) as talk, Probe(network.client, VIP) as probe:
        assert replicas[master].stop()[0] == 0
        assert network.settled() != master
        report = probe.report()
        assert (report.failed, report.sources) == (0, [VIP])
        assert talk.survivors() == 100
    assert replicas[master].logged("handover.done")["to"] == f"{LAN}.{10 + network.nodes.index(network.settled()) + 1}"


def _stop(replica: Replica) -> None:
    assert replica.stop()[0] == 0


def _kill_engine(replica: Replica) -> None:
    os.kill(replica.engine_pid(), signal.SIGKILL)


def _unroute(replica: Replica) -> None:
    replica.node.run("ip", "route", "delete", "default")


@on_each_engine
@pytest.mark.parametrize(
    ("dataplane", "move"),
    [("iptables-nft", _stop), ("nftables", _stop), ("iptables-legacy", _kill_engine), ("iptables-nft", _unroute)],
)
def test_a_planned_move_cuts_no_connection_on_which_the_client_is_silent(
    network: Network, start: Start, dataplane: str, move: Callable[[Replica], None]
) -> None:
    for node in network.nodes:
        node.iptables("-P", "INPUT", "DROP")
        node.iptables("-A", "INPUT", "-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "ACCEPT")
    replicas = three(network, start, dataplane=dataplane)
    master = network.settled()
    with speaker(network) as speaks:
        ports = range(30000, 30050)  # two clients with each of them
        silent = [speaks.connect(each, sport=port) for each in (network.client, network.far_client) for port in ports]
        with Conversations(network.client, VIP, 50) as talk, Flow(network.client, network.target) as flow:
            move(replicas[master])
            heir = network.settled([node for node in network.nodes if node is not master])
            replicas[heir].logged("connections.pulled")
            told = replicas[heir].events("connections.pulled")[0]  # there may be those of one that yielded, too
            speaks.speak()
            assert [hears(each) for each in silent] == [True] * 100
            assert talk.survivors() == 50
            assert flow.is_answered()
    assert (told["source"], told["refused"], told["incomplete"]) == (f"{LAN}.{11 + network.nodes.index(master)}", 0, "")
    assert told["connections"] >= 151


@on_each_engine
def test_only_one_backup_takes_over_at_a_goodbye(network: Network, start: Start) -> None:
    replicas = three(network, start)
    master = network.settled()
    before = {node: len(replica.events("takeover.done")) for node, replica in replicas.items()}
    replicas[master].stop()
    network.settled()
    took = [node for node, replica in replicas.items() if len(replica.events("takeover.done")) > before[node]]
    assert len(took) == 1


@on_each_engine
def test_a_rolling_restart_of_all_replicas_fails_no_connect_and_cuts_no_connection(
    network: Network, start: Start
) -> None:
    replicas = three(network, start)
    with speaker(network) as speaks, Probe(network.client, VIP) as probe:
        silent = [speaks.connect(network.client) for _ in range(20)]
        for node in network.nodes:
            assert replicas[node].stop()[0] == 0
            replicas[node] = start(node).ready()
            network.settled()
        report = probe.report()
        speaks.speak()
        assert [hears(each) for each in silent] == [True] * 20
    assert (report.failed, report.sources) == (0, [VIP])


@on_each_engine
def test_a_move_back_at_once_cuts_no_connection(network: Network, start: Start) -> None:
    one, other = network.nodes[:2]
    first, second = start(one).master(), start(other).ready()
    with speaker(network) as speaks:
        silent = [speaks.connect(network.client) for _ in range(20)]
        first.stop()
        second.master()
        again = start(one).ready()
        second.stop()
        again.master()
        speaks.speak()
        assert [hears(each) for each in silent] == [True] * 20


@on_each_engine
def test_a_crash_cuts_no_connection_on_which_the_client_speaks(network: Network, start: Start) -> None:
    replicas = three(network, start)
    master = network.settled()
    with Conversations(network.client, VIP, 100) as talk, Conversations(network.far_client, VIP, 20) as far:
        network.cut(master)
        replicas[master].kill()
        network.settled([node for node in network.nodes if node != master])
        assert (talk.survivors(), far.survivors()) == (100, 20)


@on_each_engine
def test_a_target_that_speaks_first_on_the_new_master_does_not_cut_the_connection(
    network: Network, start: Start
) -> None:
    """Its packets find no connection there: they draw no reset, and open no wrong entry.

    Both ends back off while their packets are lost, so it may take TCP a while to find out that all is well.
    """
    replicas = three(network, start)
    master = network.settled()
    with Conversations(network.client, VIP, 10, chatty=True, patience=60) as talk:
        network.cut(master)
        replicas[master].kill()
        network.settled([node for node in network.nodes if node != master])
        assert talk.survivors() == 10


@on_each_engine
def test_a_process_on_the_new_master_keeps_its_connection(network: Network, start: Start) -> None:
    """It was tracked there, untranslated, as a connection to the VIP elsewhere."""
    old, new = start(network.nodes[0], advskew=1).master(), start(network.nodes[1], advskew=20).ready()
    with Conversations(new.node, VIP, 5) as talk:
        old.stop()
        new.master()
        assert talk.survivors() == 5


@on_each_engine
def test_a_stop_without_peers_does_not_wait_for_them_without_end(network: Network, start: Start) -> None:
    replica = start(network.nodes[0]).master()
    assert replica.stop()[0] == 0
    replica.logged("handover.nobody")


@on_each_engine
def test_neighbours_are_told_several_times_where_the_vip_is(network: Network, start: Start) -> None:
    """Also a neighbour that missed the first announcements learns it."""
    old, new = start(network.nodes[0], advskew=1).master(), start(network.nodes[1], advskew=20).ready()
    assert tcp_source(network.client, VIP) == VIP
    mac = network.client.neighbour(VIP)
    network.cut(network.client)
    network.cut(old.node)
    old.kill()
    new.logged("takeover.done")
    time.sleep(0.2)  # long enough for the first announcements, ucarp's among them
    network.mend(network.client)
    eventually(lambda: network.client.neighbour(VIP) not in (mac, None), within=6, what="the client learns the new MAC")


@on_each_engine
def test_connections_are_forgotten_after_a_release(network: Network, start: Start) -> None:
    replica = start(network.nodes[0]).master()
    assert tcp_source(network.client, VIP) == VIP
    assert f"dst={VIP}" in network.nodes[0].run("conntrack", "-L", "-d", VIP)
    replica.stop()
    assert f"dst={VIP}" not in network.nodes[0].run("conntrack", "-L", "-d", VIP)


def test_strict_connection_tracking_is_warned_about(network: Network, start: Start) -> None:
    network.nodes[0].sysctl("net.netfilter.nf_conntrack_tcp_loose", "0")
    assert "nf_conntrack_tcp_loose=1" in start(network.nodes[0]).logged("conntrack.strict")["hint"]
    assert TARGET
