"""A master that rewrites what comes in sends no ICMP redirects, and leaves them as they were."""

import sys
import time
from collections.abc import Callable

import pytest
from lab.cluster import CLUSTER_IP, WAYS, Cluster
from lab.network import VIP, VIP2, Namespace, eventually
from lab.replica import PASSWORD, READ_ONLY_SYSCTL, Replica, invoke
from lab.traffic import PORT, Conversations, udp_source

Start = Callable[..., Replica]

_NAMES = ("all", "eth0")
OFF, ON = ("0", "0"), ("1", "1")


def redirects(node: Namespace) -> tuple[str, ...]:
    """Return whether they are on, of all interfaces and of the VIP's."""
    return tuple(node.sysctl(f"net.ipv4.conf.{name}.send_redirects") for name in _NAMES)


def master(pods: Cluster, start: Start, **settings: object) -> Replica:
    """Start one that serves a pod on another node, and wait until it sends no redirects."""
    pods.sync("nftables", pods.service(1))
    replica = start(pods.network.nodes[0], target=CLUSTER_IP, **settings)
    replica.master()
    eventually(lambda: redirects(replica.node) == OFF, what="they are off")
    return replica


@pytest.mark.parametrize("before", [ON, ("0", "1"), ("1", "0")])
def test_they_are_off_while_it_is_master_only(pods: Cluster, start: Start, before: tuple[str, str]) -> None:
    node = pods.network.nodes[0]
    for name, value in zip(_NAMES, before, strict=True):
        node.sysctl(f"net.ipv4.conf.{name}.send_redirects", value)
    replica = master(pods, start, advskew=1)
    node.sysctl("net.ipv4.conf.eth0.send_redirects", before[1])
    eventually(lambda: redirects(node) == OFF, what="they are off again")
    start(pods.network.nodes[1], target=CLUSTER_IP).ready()
    assert invoke(node, "move", f"--vip={VIP}", f"--run-dir={replica.run_dir}").returncode == 0
    eventually(lambda: redirects(node) == before, what="a backup has them as they were")
    assert replica.stop()[0] == 0
    assert redirects(node) == before
    assert not node.has_rules("nftables")


def test_two_on_one_host_leave_them_as_they_were(pods: Cluster, start: Start) -> None:
    node = pods.network.nodes[0]
    first = master(pods, start)
    second = start(node, target=CLUSTER_IP, vip=VIP2).master()
    assert first.stop()[0] == 0
    eventually(lambda: redirects(node) == OFF, what="the other one switches them off again")
    assert second.stop()[0] == 0
    assert redirects(node) == ON


@pytest.mark.parametrize("again", ["start", "cleanup"])
def test_what_a_killed_one_switched_off_is_switched_on(pods: Cluster, start: Start, again: str) -> None:
    replica = master(pods, start)
    replica.kill()
    assert redirects(replica.node) == OFF
    if again == "cleanup":
        done = invoke(replica.node, "cleanup", f"--vip={VIP}", f"--run-dir={replica.run_dir}")
        assert "removed ban on ICMP redirects\n" in done.stdout
    else:
        start(replica.node, advskew=200).logged("leftovers.removed")  # this one proxies to an address as others are
    assert redirects(replica.node) == ON
    assert "redirecting" not in replica.node.run("nft", "list", "ruleset")


def test_a_client_with_much_traffic_hears_what_is_refused(pods: Cluster, start: Start) -> None:
    master(pods, start, **WAYS[1])
    with Conversations(pods.network.client, VIP, 5):
        for _ in range(8):
            begin = time.monotonic()
            with pytest.raises(ConnectionRefusedError):
                udp_source(pods.network.client, VIP, PORT + 9)
            while time.monotonic() < begin + 1:  # one a second is what the kernel grants
                time.sleep(0.1)


def test_where_they_cannot_be_switched_off_check_says_so(pods: Cluster, start: Start) -> None:
    node = pods.network.nodes[0]
    pods.sync("nftables", pods.service(1))
    replica = start(node, target=CLUSTER_IP, wrapper=READ_ONLY_SYSCTL).master()
    eventually(lambda: replica.state()["rules"], what="the first look is over")
    assert redirects(node) == ON
    arguments = f"--vip={VIP}", f"--target={CLUSTER_IP}", "--seconds=1"
    said = node.run(
        "env", f"PASSWORD={PASSWORD}", *READ_ONLY_SYSCTL, sys.executable, "-m", "kevip", "check", *arguments
    )
    said = " ".join(said.split())
    assert "warning redirects ICMP redirects are on" in said
    assert "sysctl -w net.ipv4.conf.all.send_redirects=0 on the host" in said
