"""Floods from any host on the network: they may cost CPU, but neither the VIP nor the time in which kevip stops."""

import time
from collections.abc import Callable

import pytest
from lab.network import VIP, Network
from lab.replica import Replica
from lab.traffic import flood, tcp_source

Start = Callable[..., Replica]

TO_ALL = "01:00:5e:00:00:12"


@pytest.mark.parametrize("kind", ["digest", "fragments"])
def test_bad_adverts_do_not_move_the_vip(network: Network, start: Start, kind: str) -> None:
    master, backup = start(network.nodes[0], advskew=1).master(), start(network.nodes[1], advskew=20).ready()
    ucarps = master.engine_pid(), backup.engine_pid()
    with flood(network.client, kind, TO_ALL, 30_000, 6) as program:
        while program.poll() is None:
            assert network.holders() == [master.node]
            time.sleep(0.05)
        assert int(program.stdout.readline()) >= 20_000
    assert (master.engine_pid(), backup.engine_pid()) == ucarps
    assert [len(each.events("takeover.done")) for each in (master, backup)] == [1, 0]
    assert not master.events("election.silent")
    assert bool(master.events("election.bad_advert")) is (kind == "digest")
    assert tcp_source(network.client, VIP) == VIP


def test_a_hundred_thousand_connections_do_not_keep_it_from_stopping(network: Network, start: Start) -> None:
    """They expire while they are deleted: what is not there any more was not left."""
    node = network.nodes[0]
    rules = node.rules()
    node.sysctl("net.netfilter.nf_conntrack_udp_timeout", "5")
    replica = start(node).master()
    with flood(network.client, "flows", node.mac, 120_000, 4) as program:
        assert program.stdout.readline()
    assert int(node.sysctl("net.netfilter.nf_conntrack_count")) > 80_000
    status, seconds = replica.stop(within=12)
    assert (status, seconds < 8) == (0, True)  # of which 2.5 s are to find out that nobody takes over
    assert not replica.events("release.failed")
    assert "are left on this host" not in replica.log()
    assert node.rules() == rules
