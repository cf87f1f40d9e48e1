"""TARGET is a Service's cluster-IP, which kube-proxy translates: all are served, in each of its modes."""

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import IPv4Address

import pytest
from lab.cluster import CLUSTER_IP, MODES, WAYS, Cluster, Service, clear, sync
from lab.network import LAN, VIP, Namespace, eventually
from lab.replica import Replica, invoke
from lab.traffic import PORT, Conversations, Probe, answers, pings, tcp_source, together, udp_source

from kevip.dataplane.rewrite import zone

Start = Callable[..., Replica]

in_each_mode = pytest.mark.parametrize("mode", MODES)


def sources(pods: Cluster, ask: Callable[[Namespace, str], str]) -> dict[str, str]:
    """Return whom a pod saw, or what happened, by client."""

    def told(host: Namespace) -> str:
        try:
            return ask(host, VIP)
        except OSError as error:
            return type(error).__name__

    found = pods.clients()
    return dict(zip(found, together(*(lambda host=each: told(host) for each in found.values())), strict=True))


@in_each_mode
@pytest.mark.parametrize("settings", WAYS, ids=["ports", "all"])
@pytest.mark.parametrize("pod", [0, 1])
def test_all_clients_reach_the_service(
    pods: Cluster, start: Start, mode: str, settings: dict[str, str], pod: int
) -> None:
    pods.sync(mode, pods.service(pod))
    replica = start(pods.network.nodes[0], target=CLUSTER_IP, **settings).master()
    assert replica.logged("daemon.started")["dataplane"] == "nftables"
    expected = {VIP} if settings else {"10.77.0.11", "10.244.1.1"}
    for _ in range(2):
        seen = sources(pods, tcp_source), sources(pods, udp_source)
        assert all(set(each.values()) <= expected for each in seen), seen
    assert replica.stop()[0] == 0
    assert not pods.network.nodes[0].has_rules("nftables")


@in_each_mode
@pytest.mark.parametrize("settings", WAYS, ids=["ports", "all"])
def test_what_nobody_translates_is_refused_at_once_and_does_not_leak(
    pods: Cluster, start: Start, mode: str, settings: dict[str, str]
) -> None:
    """Neither a Service without endpoints, nor one that is gone, nor a port that none has."""
    node = pods.network.nodes[0]
    pods.sync(mode, pods.service(0))
    start(node, target=CLUSTER_IP, **settings).master()
    # What is proxied by mistake would go to the default gateway.
    router = pods.network.router
    router.run("nft", "-f", "-", stdin=f"table ip leak {{ chain c {{ type filter hook prerouting priority -300; "
               f"ip daddr {CLUSTER_IP} counter; }}; }}")  # fmt: skip
    for services in ([pods.service()], []):
        pods.sync(mode, *services)
        for ask in (tcp_source, udp_source):
            told = sources(pods, ask)
            if ask is udp_source:  # the kernel says so of what is refused where it is sent, as of the cluster-IP itself
                assert told.pop("the master") in {"PermissionError", "ConnectionRefusedError"}
            assert set(told.values()) == {"ConnectionRefusedError"}, (services, ask, told)
    pods.sync(mode, pods.service(1))
    assert set(sources(pods, lambda host, vip: tcp_source(host, vip, port=PORT + 9)).values()) == {
        "ConnectionRefusedError"
    }
    assert answers(pods.network.client, VIP)
    assert all(pings(host, VIP) for host in pods.clients().values())
    assert "packets 0" in router.run("nft", "list", "table", "ip", "leak")


@in_each_mode
def test_open_connections_live_on_in_a_planned_move(pods: Cluster, start: Start, mode: str) -> None:
    """With ports, and one pod; also those on which the pod speaks."""
    pods.sync(mode, pods.service(2))
    nodes = pods.network.nodes
    master = start(nodes[0], target=CLUSTER_IP, advskew=1, **WAYS[0]).master()
    start(nodes[1], target=CLUSTER_IP, advskew=20, **WAYS[0]).ready()
    with (
        Conversations(pods.network.client, VIP, 10) as near,
        Conversations(pods.network.far_client, VIP, 10, chatty=True) as far,
        Probe(pods.network.client, VIP) as probe,
    ):
        master.stop()
        eventually(lambda: nodes[1].has(VIP), what="the other one has the VIP")
        report = probe.report()
        assert (report.failed, report.sources) == (0, [VIP])
        assert (near.survivors(), far.survivors()) == (10, 10)


@in_each_mode
@pytest.mark.parametrize("settings", WAYS, ids=["ports", "all"])
def test_what_icmp_says_of_a_connection_reaches_its_end(
    pods: Cluster, start: Start, mode: str, settings: dict[str, str]
) -> None:
    """To the pod: a path with a smaller MTU. To the client: a pod that does not listen."""
    network = pods.network
    pods.sync(mode, pods.service(1))
    start(network.nodes[0], target=CLUSTER_IP, **settings).master()
    network.router.run("ip", "link", "set", "far", "mtu", "1400")
    network.far_client.run("ip", "link", "set", "eth0", "mtu", "1400")
    route = network.far_client.run("ip", "route", "show", "default").split()
    network.far_client.run("ip", "route", "replace", *route, "advmss", "1460")  # which does not know of its own MTU
    with network.far_client.entered():
        client = socket.create_connection((VIP, PORT), 5)
    with client, client.makefile("rwb") as lines:
        lines.readline()
        for _ in range(30):
            lines.write(b"x" * 9_999 + b"\n")
            lines.flush()
            assert len(lines.readline()) == 10_000
    assert set(sources(pods, large).values()) <= {VIP, f"{LAN}.11", "10.244.1.1"}
    pods.pods[1].run("ip", "address", "add", "10.244.2.3/24", "dev", "eth0")
    pods.pods[1].sysctl("net.ipv4.icmp_ratelimit", "0")  # all clients are one to it
    pods.sync(mode, Service(CLUSTER_IP, ("10.244.2.3",)))
    for ask in (tcp_source, udp_source):
        told = sources(pods, ask)
        assert set(told.values()) == {"ConnectionRefusedError"}, told


def large(host: Namespace, vip: str) -> str:
    """Send a datagram of 4 kB from a host, and return the source address that the server saw."""
    with host.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(2)
        sender.connect((vip, PORT))
        sender.send(bytes(4000))
        return sender.recv(100).decode().split()[0]


@pytest.mark.parametrize(("before", "after"), [(None, "nftables"), (None, "iptables"), ("nftables", "iptables"),
                                               ("iptables", "nftables")])  # fmt: skip
def test_a_kube_proxy_that_starts_later_or_in_another_mode_is_followed(
    pods: Cluster, start: Start, before: str | None, after: str
) -> None:
    node = pods.network.nodes[0]
    if before:
        pods.sync(before, pods.service(0, 1))
    replica = start(node, target=CLUSTER_IP).master()
    if before:
        assert answers(pods.network.client, VIP)
        clear(node, before)
    sync(node, after, [pods.service(0, 1)])
    eventually(lambda: answers(pods.network.client, VIP), what="the VIP serves")
    eventually(lambda: replica.state()["dataplane"] == "nftables", what="the rules are in nftables")
    done = invoke(node, "status", f"--run-dir={replica.run_dir}")
    assert (done.returncode, "this host serves the VIP" in done.stdout) == (0, True)
    assert not node.has_rules("iptables-nft")


def told(node: Namespace, replica: Replica) -> str:
    """Return what status says."""
    done = invoke(node, "status", f"--run-dir={replica.run_dir}")
    assert (done.returncode == 0) == ("OK " in done.stdout)
    return " ".join(done.stdout.split())


def is_well(node: Namespace, replica: Replica, within: float = 20) -> None:
    """Wait until status says so."""
    eventually(lambda: "OK this host serves the VIP" in told(node, replica), within=within, what="all is well")


@in_each_mode
def test_status_is_not_ok_while_clients_are_refused(pods: Cluster, start: Start, mode: str) -> None:
    node = pods.network.nodes[0]
    pods.sync(mode, pods.service(0))
    replica = start(node, target=CLUSTER_IP).master()
    is_well(node, replica)
    for services in ([pods.service()], []):
        pods.sync(mode, *services)
        assert f"PROBLEM no Service is served at {CLUSTER_IP} on this node" in told(node, replica)
    pods.sync(mode, pods.service(0))
    assert "OK this host serves the VIP" in told(node, replica)


def test_status_is_not_ok_while_a_port_that_is_listed_is_refused(pods: Cluster, start: Start) -> None:
    """A port that is not listed is whoever's fault that asks for it."""
    node, other = pods.network.nodes[0], PORT + 9
    pods.sync("nftables", pods.service(0))
    for settings, problem in zip(({"port": f"{PORT},{other}"}, {}), (True, False), strict=True):
        replica = start(node, target=CLUSTER_IP, **settings).master()
        is_well(node, replica)
        with pytest.raises(ConnectionRefusedError):
            tcp_source(pods.network.client, VIP, port=other)
        assert (f"PROBLEM clients are refused at {other} of {CLUSTER_IP}" in told(node, replica)) is problem
        is_well(node, replica)
        assert replica.state()["repairs"] == {}
        assert replica.stop()[0] == 0


@in_each_mode
def test_status_is_not_ok_while_pods_do_not_answer(pods: Cluster, start: Start, mode: str) -> None:
    """As one whose node is down, or whose NetworkPolicy does not let the VIP in."""
    node, pod = pods.network.nodes[0], pods.pods[1]
    pods.sync(mode, pods.service(1))
    replica = start(node, target=CLUSTER_IP, **WAYS[0]).master()
    is_well(node, replica)
    rules = "table ip deny { chain c { type filter hook input priority 0; policy drop; }; }"
    pod.run("nft", "-f", "-", stdin=rules)
    with ThreadPoolExecutor() as pool, suppress(TimeoutError):
        asked = pool.submit(tcp_source, pods.network.client, VIP, timeout=8)
        eventually(lambda: "PROBLEM pods have not answered 1 connect of" in told(node, replica), what="it says so")
        pod.run("nft", "delete", "table", "ip", "deny")
        asked.result()
    is_well(node, replica, within=60)


def test_the_master_asks_through_the_vip(pods: Cluster, start: Start) -> None:
    """What our rules do not get there is not there for clients, though TARGET answers this host."""
    node = pods.network.nodes[0]
    pods.sync("nftables", pods.service(0))
    replica = start(node, target=CLUSTER_IP, check=f"tcp:{PORT}", check_interval=1, **WAYS[0]).master()
    is_well(node, replica)
    chain = f"chain c {{ type filter hook output priority 0; ct original zone {zone(IPv4Address(VIP))} drop; }}"
    node.run("nft", "-f", "-", stdin=f"table ip other {{ {chain}; }}")
    eventually(lambda: f"does not answer tcp:{PORT}" in told(node, replica), what="it says so")
    assert tcp_source(node, CLUSTER_IP)


def test_status_is_not_ok_while_kube_proxy_is_not_followed_yet(pods: Cluster, start: Start) -> None:
    """As in the seconds after its start, or where its rules cannot be followed: then the host gives up."""
    node = pods.network.nodes[0]
    replica = start(node, target=CLUSTER_IP, dataplane="iptables-nft").master()
    sync(node, "nftables", [pods.service(0)])
    assert "PROBLEM kube-proxy has" in told(node, replica)
    assert "only rules in nftables can come before that" in replica.logged("election.resigned")["reason"]


@in_each_mode
def test_check_sees_whether_kube_proxy_serves_the_vip(pods: Cluster, mode: str) -> None:
    """It takes an egress VIP's traffic away; a VIP that is only held needs it."""
    node = pods.network.nodes[0]

    def check(*arguments: str) -> str:
        done = invoke(node, "check", f"--vip={VIP}", "--seconds=1", *arguments, env={"PASSWORD": "x"})
        return " ".join(done.stdout.split())

    assert "serves VIP" not in check("--hold-only")
    listed = Service(CLUSTER_IP, pods.addresses[:1], (VIP,))
    sync(node, mode, [pods.service(0)])
    assert f"none of others matches VIP {VIP}" in check("--target=203.0.113.10")
    assert f"warning served kube-proxy serves VIP {VIP} at no port on this node" in check("--hold-only")
    sync(node, mode, [listed])
    assert f"none of others matches VIP {VIP}" not in check("--target=203.0.113.10")
    assert f"ok served kube-proxy serves VIP {VIP} on this node, at {PORT}, {PORT}/udp" in check("--hold-only")
    sync(node, mode, [Service(CLUSTER_IP, (), (VIP,))])
    assert f"warning served kube-proxy serves VIP {VIP} at no port on this node" in check("--hold-only")


@in_each_mode
def test_rules_of_kube_proxy_that_are_replaced_all_the_time_cut_nothing(pods: Cluster, start: Start, mode: str) -> None:
    node = pods.network.nodes[0]
    pods.sync(mode, pods.service(0, 1))
    replica = start(node, target=CLUSTER_IP, **WAYS[0]).master()
    eventually(lambda: replica.state()["rules"], what="the first look at the rules is over")
    ours = node.run("nft", "--stateless", "list", "table", "ip", f"kevip-{VIP}")
    with Conversations(pods.network.client, VIP, 20) as talk, Probe(pods.network.client, VIP) as probe:
        for number in range(12):
            sync(node, mode, [pods.service(0, 1), pods.service(2, ip=f"10.96.1.{number + 1}")])
        report = probe.report()
        assert (report.failed, report.sources) == (0, [VIP])
        assert talk.survivors() == 20
    assert node.run("nft", "--stateless", "list", "table", "ip", f"kevip-{VIP}") == ours
    assert replica.state()["repairs"] == {}
