"""Copies of connections, made by conntrackd all the time: silent ones outlive a master that crashes."""

from collections.abc import Callable

import pytest
from lab.network import VIP, Namespace, Network, eventually
from lab.replica import Replica, on_each_engine
from lab.traffic import Conversations, Speaker, hears, speaker

SYNC = "10.78.0"

Start = Callable[..., Replica]


@pytest.fixture(autouse=True)
def apart(network: Network) -> Network:
    """Connect the nodes by a network of their own, too."""
    network.switch.run("ip", "link", "add", "br1", "type", "bridge", "mcast_snooping", "0")
    network.switch.run("ip", "link", "set", "br1", "up")
    for number, node in enumerate(network.nodes, 1):
        network.plug(node, f"{SYNC}.{10 + number}/24", port=f"sync{number}", device="eth1")
        network.switch.run("ip", "link", "set", f"sync{number}", "master", "br1")
    return network


def several(network: Network, start: Start, number: int, **settings: object) -> dict[Namespace, Replica]:
    """Start replicas that copy connections; return them when they have a master, and conntrackd runs on each."""
    settings = {"sync": True, "sync_interface": "eth1", **settings}
    replicas = {node: start(node, **settings).ready() for node in network.nodes[:number]}
    eventually(network.holders, what="a master is elected")
    network.settled()
    for replica in replicas.values():
        replica.logged("conntrackd.started")
    return replicas


def tracked(node: Namespace) -> int:
    """Return how many connections of silent clients a node knows."""
    listed = node.run("conntrack", "-L", "-p", "tcp", "-d", VIP, "--dport", "7001")
    return listed.count("ESTABLISHED")


def silent_ones(speaks: Speaker, network: Network, number: int) -> list[socket.socket]:
    """Connect so many clients, half of them from afar."""
    return [speaks.connect(network.client if each % 2 else network.far_client) for each in range(number)]


@on_each_engine
@pytest.mark.parametrize("number", [2, 3])
def test_a_crash_cuts_no_connection_on_which_the_client_is_silent(network: Network, start: Start, number: int) -> None:
    replicas = several(network, start, number)
    master = network.settled()
    others = [node for node in replicas if node != master]
    with speaker(network) as speaks, Conversations(network.client, VIP, 50) as talk:
        silent = silent_ones(speaks, network, 50)
        eventually(lambda: [tracked(node) for node in others] == [50] * len(others), what="all know the connections")
        network.cut(master)
        replicas[master].kill()
        network.settled(others)
        speaks.speak()
        assert [hears(each) for each in silent] == [True] * 50
        assert talk.survivors() == 50
