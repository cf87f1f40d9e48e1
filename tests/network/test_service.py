"""A cluster-IP as TARGET on nodes as they are: firewalls, bridges, other VIPs, another mode, and hosts that die."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from lab.cluster import CLUSTER_IP, CLUSTER_IP2, MODES, WAYS, Cluster
from lab.network import CLIENT, VIP, VIP2, Namespace, eventually, run
from lab.replica import Replica
from lab.traffic import PORT, Conversations, answers, server, tcp_source, udp_source

Start = Callable[..., Replica]

in_each_mode = pytest.mark.parametrize("mode", MODES)


@contextmanager
def talk(host: Namespace, address: str, port: int = 4242) -> Iterator[Callable[[], bool]]:
    """Connect from a port that others use too; yield what asks whether the connection lives."""
    with host.entered():
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("0.0.0.0", port))  # noqa: S104 - any of its own
        client.settimeout(10)
        client.connect((address, PORT))
    with client, client.makefile("rwb") as lines:
        lines.readline()

        def lives() -> bool:
            lines.write(b"x\n")
            lines.flush()
            return lines.readline() == b"x\n"

        yield lives


@in_each_mode
@pytest.mark.parametrize("settings", WAYS, ids=["ports", "all"])
def test_firewalls_that_drop_and_strict_filters_are_passed(
    pods: Cluster, start: Start, mode: str, settings: dict[str, str]
) -> None:
    """In either iptables; what another rule refuses there stays refused."""
    pods.sync(mode, pods.service(0, 1))
    node = pods.network.nodes[0]
    for each in pods.network.nodes:
        each.sysctl("net.ipv4.conf.all.rp_filter", "1")
    for backend in ("nft", "legacy"):
        node.iptables("-P", "FORWARD", "DROP", backend=backend)
        node.iptables("-A", "FORWARD", "-s", "10.244.0.0/16", "-j", "ACCEPT", backend=backend)  # as a CNI does
    start(node, target=CLUSTER_IP, **settings).master()
    for _ in range(5):
        for ask in (tcp_source, udp_source):
            assert ask(pods.network.client, VIP)
            assert ask(pods.network.far_client, VIP)
            assert ask(pods.pods[0], VIP)
    node.iptables("-I", "FORWARD", "-d", "10.244.0.0/16", "-p", "tcp", "-j", "REJECT")
    with pytest.raises(ConnectionRefusedError):
        tcp_source(pods.network.client, VIP)


@in_each_mode
def test_pods_on_a_bridge_that_hands_packets_to_iptables(pods: Cluster, start: Start, mode: str) -> None:
    """As they are where a node has br_netfilter: a client beside the pod, and the pod itself, too."""
    node = pods.network.nodes[0]
    node.run("ip", "link", "add", "cni0", "type", "bridge")
    node.run("ip", "address", "add", "10.244.9.1/24", "dev", "cni0")
    node.run("ip", "link", "set", "cni0", "up")
    node.sysctl("net.bridge.bridge-nf-call-iptables", "1")
    first, second = (bridged(pods, node, number) for number in (2, 3))
    pods.addresses = ("10.244.9.2", *pods.addresses[1:])
    with server(first, "10.244.9.2", 8080):
        for settings in WAYS:
            pods.sync(mode, pods.service(0))
            replica = start(node, target=CLUSTER_IP, **settings).master()
            for host in (pods.network.client, pods.network.far_client, node, first, second, pods.pods[1]):
                assert tcp_source(host, VIP)
                assert udp_source(host, VIP)
            assert replica.stop()[0] == 0


def bridged(pods: Cluster, node: Namespace, number: int) -> Namespace:
    """Return a pod on a node's bridge, whose port sends back what came in by it, as CNIs have it."""
    pod = pods.network._host(f"{node.name}-cni{number}")  # noqa: SLF001 - which removes it
    port = f"veth{number}"
    run("ip", "link", "add", "eth0", "netns", pod.name, "type", "veth", "peer", "name", port, "netns", node.name)
    node.run("ip", "link", "set", port, "master", "cni0", "up")
    node.run("bridge", "link", "set", "dev", port, "hairpin", "on")
    pod.run("ip", "address", "add", f"10.244.9.{number}/24", "dev", "eth0")
    pod.run("ip", "link", "set", "eth0", "up")
    pod.run("ip", "route", "add", "default", "via", "10.244.9.1")
    return pod


@in_each_mode
def test_two_services_on_two_vips_of_one_node_and_an_egress_group_are_apart(
    pods: Cluster, start: Start, mode: str
) -> None:
    """Though a client speaks with all of them from one port."""
    pods.sync(mode, pods.service(1), pods.service(2, ip=CLUSTER_IP2))
    node, client, third = pods.network.nodes[0], pods.network.client, "10.77.0.102"
    first = start(node, target=CLUSTER_IP, **WAYS[0]).master()
    second = start(node, target=CLUSTER_IP2, vip=VIP2, **WAYS[0]).master()
    egress = start(node, vip=third).master()
    assert [tcp_source(client, vip) for vip in (VIP, VIP2, third)] == [VIP, VIP2, third]
    with talk(client, VIP) as one, talk(client, VIP2) as two, talk(client, third) as three:
        assert (one(), two(), three()) == (True, True, True)
        assert second.stop()[0] == 0
        assert (one(), three()) == (True, True)
        assert egress.stop()[0] == 0
        assert one()
    assert first.stop()[0] == 0
    assert not node.has_rules("nftables")


@in_each_mode
@pytest.mark.parametrize("settings", WAYS, ids=["ports", "all"])
def test_a_client_may_use_vip_and_cluster_ip_from_one_port(
    pods: Cluster, start: Start, mode: str, settings: dict[str, str]
) -> None:
    pods.sync(mode, pods.service(1))
    pods.network.client.run("ip", "route", "add", f"{CLUSTER_IP}/32", "via", "10.77.0.11")
    start(pods.network.nodes[0], target=CLUSTER_IP, **settings).master()
    for host in (pods.network.client, pods.pods[0], pods.pods[2]):
        for port, first, second in ((4242, VIP, CLUSTER_IP), (4243, CLUSTER_IP, VIP)):
            with talk(host, first, port) as one, talk(host, second, port) as two:
                assert (one(), two(), one()) == (True, True, True)


@in_each_mode
@pytest.mark.parametrize("settings", WAYS, ids=["ports", "all"])
def test_only_those_who_may_are_served(pods: Cluster, start: Start, mode: str, settings: dict[str, str]) -> None:
    pods.sync(mode, pods.service(1))
    start(pods.network.nodes[0], target=CLUSTER_IP, allow_from=f"{CLIENT},10.244.3.0/24", **settings).master()
    assert tcp_source(pods.network.client, VIP)
    assert udp_source(pods.network.client, VIP)
    assert tcp_source(pods.pods[2], VIP)
    for host in (pods.network.far_client, pods.pods[0], *pods.network.nodes[:2]):
        with pytest.raises(TimeoutError):
            tcp_source(host, VIP, timeout=1)
        with pytest.raises(TimeoutError):
            udp_source(host, VIP, timeout=1)


@in_each_mode
@pytest.mark.parametrize("several", [False, True])
def test_what_lives_on_after_a_crash(pods: Cluster, start: Start, mode: str, *, several: bool) -> None:
    """With one pod all connections; with several those for which the heir's kube-proxy chooses the same."""
    pods.sync(mode, pods.service(*((1, 2) if several else (2,))))
    nodes = pods.network.nodes
    start(nodes[0], target=CLUSTER_IP, advskew=1, **WAYS[0]).master()
    start(nodes[1], target=CLUSTER_IP, advskew=20, **WAYS[0]).ready()
    with Conversations(pods.network.client, VIP, 20) as near, Conversations(pods.network.far_client, VIP, 20) as far:
        pods.network.vanish(nodes[0])
        eventually(lambda: answers(pods.network.client, VIP), what="the other one serves")
        lived = near.survivors() + far.survivors()
    assert 0 < lived < 40 if several else lived == 40


@pytest.mark.parametrize(("before", "after"), [MODES, MODES[::-1]])
def test_connections_live_on_when_kube_proxy_changes_its_mode(
    pods: Cluster, start: Start, before: str, after: str
) -> None:
    pods.sync(before, pods.service(1))
    replica = start(pods.network.nodes[0], target=CLUSTER_IP, **WAYS[0]).master()
    with Conversations(pods.network.client, VIP, 10) as near, Conversations(pods.pods[2], VIP, 10) as inside:
        pods.clear(before)
        pods.sync(after, pods.service(1))
        eventually(lambda: answers(pods.network.client, VIP), what="it serves")
        assert (near.survivors(), inside.survivors()) == (10, 10)
    assert replica.role() == "master"
