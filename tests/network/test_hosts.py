"""What docs/hosts.md says of firewalls: its nftables.conf lets through what is needed, and what needs nothing of it."""

from collections.abc import Callable

from lab.documents import recipe
from lab.network import LAN, VIP, Network, eventually
from lab.replica import Replica, on_each_engine
from lab.traffic import Conversations, Probe, tcp_source

Start = Callable[..., Replica]


def nftables_conf() -> str:
    """Return the file, with the hosts of the lab."""
    return recipe("hosts.md", "Firewalls", "nft").replace("192.0.2.", f"{LAN}.")


@on_each_engine
def test_behind_the_firewall_that_is_shown_a_move_goes_unnoticed(network: Network, start: Start) -> None:
    for node in network.nodes[:2]:
        node.run("nft", "-f", "-", stdin=nftables_conf())
    master = start(network.nodes[0], advskew=1).master()
    backup = start(network.nodes[1], advskew=20).ready()
    eventually(lambda: master.state()["members"], what="the master knows of the backup")
    with Conversations(network.client, VIP, 20) as talk, Probe(network.client, VIP) as probe:
        assert master.stop()[0] == 0
        backup.master()
        assert backup.logged("connections.pulled")
        report = probe.report()
        assert (report.failed, report.sources, talk.survivors()) == (0, [VIP], 20)


def test_carp_needs_nothing_of_a_firewall(network: Network, start: Start) -> None:
    """Adverts are read from packet sockets, before any filter."""
    closed = "\n".join(line for line in nftables_conf().splitlines() if "saddr" not in line)
    for node in network.nodes[:2]:
        node.run("nft", "-f", "-", stdin=closed)
    replicas = [start(node) for node in network.nodes[:2]]
    assert network.settled(among=network.nodes[:2])
    assert {each.role() for each in replicas} == {"backup", "master"}
    assert tcp_source(network.client, VIP) == VIP
