"""What traffic sees: real TCP, UDP and ICMP through a master."""

from collections.abc import Callable

import pytest
from lab.network import (
    CLIENT,
    DATAPLANES,
    FAR_CLIENT,
    LAN,
    TARGET,
    VIP,
    VIP2,
    Namespace,
    Network,
    eventually,
    iptables_beside,
)
from lab.replica import Replica
from lab.traffic import pings, server, tcp_source, udp_source

Start = Callable[..., Replica]


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_the_target_sees_the_vip_whoever_the_client_is(network: Network, start: Start, dataplane: str) -> None:
    """A client on the same subnet, one behind a router, one on a backup, one on the master itself; TCP, UDP, ICMP."""
    master = start(network.nodes[0], dataplane=dataplane).master()
    assert network.nodes[0].has_rules(dataplane)
    for host in (network.client, network.far_client, network.nodes[1], master.node):
        assert (tcp_source(host, VIP), udp_source(host, VIP), pings(host, VIP)) == (VIP, VIP, True)


def test_a_vip_outside_all_subnets_belongs_where_the_settings_say(network: Network, start: Start) -> None:
    vip = "10.88.0.9"
    start(network.nodes[0], vip=vip, interface="eth0").master()
    network.router.run("ip", "route", "add", vip, "dev", "eth0")
    network.client.run("ip", "route", "add", vip, "dev", "eth0")
    assert (tcp_source(network.client, vip), tcp_source(network.far_client, vip)) == (vip, vip)


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_icmp_is_answered_by_the_target_not_by_the_master(network: Network, start: Start, dataplane: str) -> None:
    start(network.nodes[0], dataplane=dataplane).master()
    network.target.sysctl("net.ipv4.icmp_echo_ignore_all", "1")
    assert not pings(network.client, VIP)


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_other_traffic_keeps_its_source(network: Network, start: Start, dataplane: str) -> None:
    """The host's own connections to the target, and what the host routes for others, are not touched."""
    start(network.nodes[0], dataplane=dataplane).master()
    network.client.run("ip", "route", "add", TARGET, "via", f"{LAN}.11")
    assert tcp_source(network.nodes[0], TARGET) == f"{LAN}.11"
    assert tcp_source(network.client, TARGET) == CLIENT


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_serves_although_the_forward_policy_is_drop(network: Network, start: Start, dataplane: str) -> None:
    network.nodes[0].iptables("-P", "FORWARD", "DROP", backend=iptables_beside(dataplane))
    start(network.nodes[0], dataplane=dataplane).master()
    assert tcp_source(network.client, VIP) == VIP
    assert udp_source(network.far_client, VIP) == VIP


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_a_masquerade_that_was_there_first_does_not_take_the_source(
    network: Network, start: Start, dataplane: str
) -> None:
    network.nodes[0].iptables("-t", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE", backend=iptables_beside(dataplane))
    start(network.nodes[0], dataplane=dataplane).master()
    for host in (network.client, network.far_client, network.nodes[0]):
        assert (tcp_source(host, VIP), udp_source(host, VIP)) == (VIP, VIP)


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_two_vips_for_one_target_on_one_host_are_each_their_own_source(
    network: Network, start: Start, dataplane: str
) -> None:
    start(network.nodes[0], dataplane=dataplane).master()
    start(network.nodes[0], dataplane=dataplane, vip=VIP2).master()
    for host in (network.client, network.far_client, network.nodes[0]):
        for vip in (VIP, VIP2):
            assert (tcp_source(host, vip), udp_source(host, vip)) == (vip, vip)


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_global_masquerade_gives_the_target_the_masters_address(network: Network, start: Start, dataplane: str) -> None:
    """And all other traffic that leaves the host, too."""
    start(network.nodes[0], dataplane=dataplane, global_masquerade=True).master()
    network.client.run("ip", "route", "add", TARGET, "via", f"{LAN}.11")
    assert tcp_source(network.client, VIP) == f"{LAN}.11"
    assert udp_source(network.far_client, VIP) == f"{LAN}.11"
    assert tcp_source(network.client, TARGET) == f"{LAN}.11"


def test_ingress_reaches_a_target_that_only_the_nodes_can_reach(network: Network, start: Start) -> None:
    """A pod's address behind the master, as a Service would have it; the client is outside."""
    pod = Namespace(f"{network.nodes[0].name}-pod")
    try:
        network.nodes[0].run("ip", "link", "add", "pod0", "type", "veth", "peer", "name", "eth0", "netns", pod.name)
        network.nodes[0].run("ip", "address", "add", "10.244.0.1/24", "dev", "pod0")
        network.nodes[0].run("ip", "link", "set", "pod0", "up")
        pod.run("ip", "address", "add", "10.244.0.7/24", "dev", "eth0")
        pod.run("ip", "link", "set", "eth0", "up")
        pod.run("ip", "route", "add", "default", "via", "10.244.0.1")
        start(network.nodes[0], target="10.244.0.7").master()
        with server(pod, "10.244.0.7"):
            assert tcp_source(network.far_client, VIP) == VIP
            assert udp_source(network.client, VIP) == VIP
    finally:
        pod.remove()


def test_rules_left_on_a_host_without_the_vip_do_nothing(network: Network, start: Start) -> None:
    """Killed master, live backup: through the old master's rules, traffic still reaches the VIP where it is now."""
    old = start(network.nodes[0], advskew=1).master()
    new = start(network.nodes[1], advskew=20).ready()
    old.kill()
    new.master()
    eventually(lambda: network.holders() == [new.node], what="the old master's lease ends")
    assert old.node.has_rules("iptables-nft")
    assert tcp_source(old.node, VIP) == VIP
    network.far_client.run("ip", "route", "get", FAR_CLIENT)
    assert tcp_source(network.far_client, VIP) == VIP
