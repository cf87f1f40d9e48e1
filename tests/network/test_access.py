"""Who may use the VIP, and for what: real TCP, UDP and ICMP, before and after a failover."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

import pytest
from lab.network import CLIENT, DATAPLANES, FAR_CLIENT, LAN, TARGET, VIP, Namespace, Network, eventually
from lab.replica import PASSWORD, Replica, invoke, on_each_engine
from lab.traffic import PORT, pings, server, tcp_source, together, udp_source

Start = Callable[..., Replica]

OTHER = PORT + 1
SSHD = 22


@pytest.fixture
def guarded(network: Network) -> Iterator[Network]:
    """Serve a second port on the target, and one on each node, that must not be reached."""
    with ExitStack() as servers:
        servers.enter_context(server(network.target, TARGET, OTHER))
        for node in network.nodes:
            servers.enter_context(server(node, "0.0.0.0", SSHD))  # noqa: S104 - in a namespace
        yield network


def fate(ask: Callable[..., str], host: Namespace, port: int = PORT) -> str:
    """Say what becomes of what a host sends to the VIP: the source that the target sees, or how it fails."""
    try:
        return ask(host, VIP, port, timeout=1.0)
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "dropped"


def tcp_and_udp(host: Namespace, port: int = PORT) -> tuple[str, str]:
    """Return the fates of TCP and UDP. A refusal of UDP may not be told: ICMP is limited, to one a second and host."""
    tcp, *udp = (fate(ask, host, port) for ask in (tcp_source, udp_source, udp_source))
    return tcp, next((each for each in udp if each != "dropped"), "dropped")


def in_both_reigns(network: Network, start: Start, **settings: object) -> Iterator[tuple[Namespace, Namespace]]:
    """Yield master and backup, first before a failover and then after it."""
    first, second = (start(node, **settings) for node in network.nodes[:2])
    master = network.settled(among=network.nodes[:2])
    backup = next(node for node in network.nodes[:2] if node != master)
    yield master, backup
    {first.node: first, second.node: second}[master].stop()
    assert network.settled(among=[backup]) == backup
    yield backup, master


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_only_allowed_sources_are_proxied_and_all_else_is_dropped(
    guarded: Network, start: Start, dataplane: str
) -> None:
    allowed = f"{CLIENT},{LAN}.12/32"
    for master, backup in in_both_reigns(guarded, start, allow_from=allowed, dataplane=dataplane):
        others, node2 = (guarded.far_client, guarded.nodes[2]), guarded.nodes[1]
        hosts = (guarded.client, *others, master, backup)
        fates = together(*(partial(tcp_and_udp, host) for host in hosts))
        for host, found in zip(hosts, fates, strict=True):
            assert found == ((VIP, VIP) if host in (guarded.client, node2) else ("dropped", "dropped"))
        assert together(*(partial(fate, tcp_source, other, SSHD) for other in others)) == ["dropped"] * 2
        assert together(*(partial(pings, other, VIP) for other in others)) == [False] * 2


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_only_listed_ports_are_proxied_and_the_rest_is_refused(guarded: Network, start: Start, dataplane: str) -> None:
    for master, backup in in_both_reigns(guarded, start, port=f"{PORT},{OTHER}/udp", dataplane=dataplane):
        hosts = (guarded.client, guarded.far_client, master, backup)
        assert together(*(partial(tcp_and_udp, host) for host in hosts)) == [(VIP, "refused")] * 4
        assert together(*(partial(tcp_and_udp, host, OTHER) for host in hosts)) == [("refused", VIP)] * 4
        assert together(*(partial(tcp_and_udp, host, SSHD) for host in hosts)) == [("refused", "refused")] * 4


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_a_range_of_ports_is_proxied(guarded: Network, start: Start, dataplane: str) -> None:
    start(guarded.nodes[0], dataplane=dataplane, port=f"{PORT}-{OTHER},{PORT}-{OTHER}/udp").master()
    assert (tcp_and_udp(guarded.client), tcp_and_udp(guarded.client, OTHER)) == ((VIP, VIP), (VIP, VIP))
    assert tcp_and_udp(guarded.client, SSHD) == ("refused", "refused")


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_both_limits_hold_together(guarded: Network, start: Start, dataplane: str) -> None:
    start(guarded.nodes[0], dataplane=dataplane, port=str(PORT), allow_from=f"{FAR_CLIENT}/32").master()
    assert (tcp_and_udp(guarded.far_client), tcp_and_udp(guarded.client)) == ((VIP, "refused"), ("dropped", "dropped"))


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_what_the_node_serves_on_its_own_address_is_not_touched(guarded: Network, start: Start, dataplane: str) -> None:
    start(guarded.nodes[0], dataplane=dataplane, port=str(PORT), allow_from=f"{FAR_CLIENT}/32").master()
    assert tcp_source(guarded.client, f"{LAN}.11", SSHD) == CLIENT


def test_a_held_vip_may_be_on_the_interface_of_kube_proxy_if_arp_is_strict(guarded: Network, start: Start) -> None:
    """In IPVS mode, kube-proxy has the addresses of Services on kube-ipvs0 of each node."""
    for node in guarded.nodes[:2]:
        node.run("ip", "link", "add", "kube-ipvs0", "type", "bridge")
        node.run("ip", "address", "add", f"{VIP}/32", "dev", "kube-ipvs0")
    refused = invoke(guarded.nodes[0], f"--vip={VIP}", "--hold-only", env={"PASSWORD": PASSWORD})
    assert (refused.returncode, "strictARP: true" in refused.stderr) == (3, True)
    for node in guarded.nodes[:2]:
        node.sysctl("net.ipv4.conf.eth0.arp_ignore", "1")
    replicas = [start(node, target=None, hold_only=True).ready() for node in guarded.nodes[:2]]
    eventually(lambda: any(each.role() == "master" for each in replicas), what="one is master")
    master = next(each for each in replicas if each.role() == "master")
    [entry] = json.loads(master.node.run("ip", "-json", "link", "show", "dev", "eth0"))
    assert tcp_source(guarded.client, VIP, SSHD) == CLIENT
    assert guarded.client.neighbour(VIP) == entry["address"]
    assert master.stop()[0] == 0
    assert (f"{VIP}/32" in str(master.node.addresses()), len(master.node.addresses())) == (True, 2)


@on_each_engine
def test_a_vip_that_is_only_held_is_served_by_the_host_and_changes_no_rule(guarded: Network, start: Start) -> None:
    before = [node.rules() for node in guarded.nodes[:2]]
    settings = {"target": None, "hold_only": True}
    first, second = (start(node, **settings) for node in guarded.nodes[:2])
    master = guarded.settled(among=guarded.nodes[:2])
    assert tcp_source(guarded.client, VIP, SSHD) == CLIENT
    assert [node.rules() for node in guarded.nodes[:2]] == before
    assert master.sysctl("net.ipv4.ip_forward") == "0"
    heir = second if master is first.node else first
    ({first, second} - {heir}).pop().stop()
    assert guarded.settled(among=guarded.nodes[:2]) == heir.node
    assert tcp_source(guarded.client, VIP, SSHD) == CLIENT
    assert heir.stop()[0] == 0
    assert [node.rules() for node in guarded.nodes[:2]] == before
    assert not guarded.holders()
