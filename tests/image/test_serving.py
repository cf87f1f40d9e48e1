"""Two containers with no rights but the two capabilities: they elect, serve, and hand over."""

import os
import signal
import subprocess
from collections.abc import Callable

import pytest
from lab.container import Container
from lab.network import TARGET, VIP, Namespace, Network, eventually
from lab.traffic import Conversations, Probe, tcp_source, udp_source

Start = Callable[..., Container]

LEASE = 6.0
"""Seconds after which the kernel ends the address of a daemon that is gone."""


def test_the_master_serves_and_the_target_sees_the_vip(network: Network, start: Start) -> None:
    for node in network.nodes:
        start(node)
    network.settled()
    assert tcp_source(network.client, VIP) == VIP
    assert udp_source(network.far_client, VIP) == VIP
    assert tcp_source(network.client, TARGET) != VIP


def test_switches_forwarding_on_although_sysctls_are_read_only_in_it(
    network: Network, node: Namespace, start: Start
) -> None:
    node.sysctl("net.ipv4.ip_forward", "0")
    assert start(node).master().events("forwarding.enabled")
    assert tcp_source(network.client, VIP) == VIP
    assert node.sysctl("net.ipv4.ip_forward") == "0"


def test_a_stop_hands_over_without_a_failed_connect(network: Network, start: Start) -> None:
    before = {node: _host(node) for node in network.nodes}
    containers = {node: start(node).ready() for node in network.nodes}
    first = network.settled()
    with Conversations(network.client, VIP, 10) as talks, Probe(network.client, VIP) as probe:
        assert containers[first].stop() == 0
        second = network.settled()
        report = probe.report()
        assert talks.survivors() == 10
    assert second is not first
    assert (report.failed, report.sources) == (0, [VIP])
    assert report.tried > 100
    assert _host(first) == before[first]
    assert containers[second].stop() == 0
    assert _host(second) == before[second]


def test_keepalived_elects_in_containers_too(network: Network, start: Start) -> None:
    containers = {node: start(node, ENGINE="keepalived").ready() for node in network.nodes}
    first = network.settled()
    with Conversations(network.client, VIP, 10) as talks, Probe(network.client, VIP) as probe:
        assert containers[first].stop() == 0
        second = network.settled()
        assert probe.report().failed == 0
        assert talks.survivors() == 10
    assert second is not first
    asked = ["podman", "exec", containers[second].id, "chrt", "--rr", "1", "true"]
    status = subprocess.run(second.command(*asked), capture_output=True, check=False).returncode
    assert status in {0, 1}  # where the kernel schedules groups, a container may have no time of that kind
    assert bool(containers[second].events("election.not_realtime")) is bool(status)


def _host(node: Namespace) -> tuple[object, ...]:
    return node.addresses(), node.rules(), node.sysctl("net.ipv4.ip_forward")


def test_a_kill_leaves_no_second_holder_after_the_lease(network: Network, start: Start) -> None:
    containers = {node: start(node).ready() for node in network.nodes}
    first = network.settled()
    with Conversations(network.client, VIP, 10) as talks:
        containers[first].kill()
        eventually(lambda: not first.has(VIP), within=LEASE + 1, what="the lease ends")
        second = network.settled()
        assert second is not first
        assert tcp_source(network.client, VIP) == VIP
        assert talks.survivors() == 10


def test_a_container_started_again_removes_what_a_killed_one_left(node: Namespace, start: Start) -> None:
    before = _host(node)
    killed = start(node).master()
    killed.kill()
    assert _host(node) != before
    again = start(node).master()
    assert again.events("leftovers.removed")
    assert again.stop() == 0
    assert _host(node) == before


def test_a_second_container_for_the_same_vip_is_refused(node: Namespace, start: Start) -> None:
    start(node).ready()
    second = start(node)
    eventually(lambda: second.inspect()["State"]["Status"] == "exited", what="it ends")
    assert second.inspect()["State"]["ExitCode"] == 4


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_takes_the_back_end_that_has_rules(node: Namespace, start: Start, backend: str) -> None:
    other = {"nft": "legacy", "legacy": "nft"}[backend]
    node.iptables("-A", "INPUT", "-s", "192.0.2.77", "-j", "ACCEPT", backend=backend)
    before = node.rules()
    container = start(node).master()
    assert f"kevip:{VIP}" in str(node.rules()[f"iptables-{backend}"])
    assert node.rules()[f"iptables-{other}"] == []
    assert container.stop() == 0
    assert node.rules() == before


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_takes_the_back_end_of_the_kubelet(node: Namespace, start: Start, backend: str) -> None:
    other = {"nft": "legacy", "legacy": "nft"}[backend]
    node.iptables("-A", "INPUT", "-s", "192.0.2.77", "-j", "ACCEPT", backend=other)
    node.iptables("-t", "mangle", "-N", "KUBE-KUBELET-CANARY", backend=backend)
    before = node.rules()
    container = start(node).master()
    assert f"kevip:{VIP}" in str(node.rules()[f"iptables-{backend}"])
    assert node.rules()[f"iptables-{other}"] == before[f"iptables-{other}"]
    assert container.stop() == 0
    assert node.rules() == before


def test_the_health_check_fails_for_a_daemon_that_hangs(node: Namespace, start: Start) -> None:
    container = start(node).ready()
    assert container.healthcheck()
    os.kill(container.daemon(), signal.SIGSTOP)
    eventually(lambda: not container.healthcheck(), within=25, what="it is unhealthy")


def test_translates_in_nftables_where_others_do(node: Namespace, start: Start) -> None:
    chain = "type nat hook postrouting priority srcnat; ip saddr 10.9.0.0/24 masquerade"
    node.run("nft", "-f", "-", stdin=f"table ip other {{ chain post {{ {chain}; }}; }}\n")
    before = node.rules()
    container = start(node).master()
    assert f"kevip:{VIP}" in str(node.rules()["nftables"])
    assert container.stop() == 0
    assert node.rules() == before
