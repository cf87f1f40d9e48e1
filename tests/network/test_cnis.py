"""What CNIs have on a node, as rules: TARGET sees the VIP from each pod; who passes --allow-from behind them."""

from collections.abc import Callable

import pytest
from lab.cluster import PODS, Cluster, cluster
from lab.network import LAN, VIP, Namespace, Network, eventually
from lab.replica import Replica, invoke
from lab.traffic import Conversations, answers, tcp_source, together, udp_source

Start = Callable[..., Replica]


def iptables(chain: str, jump: str, *rules: str) -> str:
    """Return for iptables-restore a chain of nat with rules, and a jump to it from POSTROUTING."""
    lines = [f"-A {chain} {rule}" for rule in rules]
    return "\n".join(["*nat", f":{chain} - [0:0]", f"{jump} -j {chain}", *lines, "COMMIT\n"])


NOT_PODS = f"-s {PODS} ! -d {PODS}"
# What leaves the cluster is masqueraded; where the jump is put, how it is chosen, and from which chain and priority.
SHAPES = {
    # felix/rules/static.go, felix/rules/nat.go; chainInsertMode is Insert by default
    "calico-insert": iptables("cali-POSTROUTING", "-I POSTROUTING 1", f"{NOT_PODS} -j MASQUERADE --random-fully"),
    "calico-append": iptables("cali-POSTROUTING", "-A POSTROUTING", f"{NOT_PODS} -j MASQUERADE --random-fully"),
    # felix/nftables/table.go
    "calico-nftables": f"""
table ip calico {{
    chain nat-cali-POSTROUTING {{ ip saddr {PODS} ip daddr != {PODS} masquerade fully-random; }}
    chain nat-POSTROUTING {{ type nat hook postrouting priority srcnat; jump nat-cali-POSTROUTING; }}
}}""",
    # pkg/trafficmngr/iptables; the shape of pkg/trafficmngr/nftables is in test_foreign.py
    "flannel": iptables(
        "FLANNEL-POSTRTG",
        "-A POSTROUTING",
        f"-s {PODS} -d {PODS} -j RETURN",
        f"-s {PODS} ! -d 224.0.0.0/4 -j MASQUERADE --random-fully",
        f"! -s {PODS} -d {PODS} -j MASQUERADE --random-fully",
    ),
    # images/kindnetd/cmd/kindnetd/masq.go
    "kindnet": iptables(
        "KIND-MASQ-AGENT", "-A POSTROUTING -m addrtype ! --dst-type LOCAL", f"-d {PODS} -j RETURN", "-j MASQUERADE"
    ),
    # pkg/datapath/iptables, beside kube-proxy and without masquerading in BPF
    "cilium": iptables("CILIUM_POST_nat", "-I POSTROUTING 1", f"{NOT_PODS} -o eth0 -j MASQUERADE"),
}


def load(node: Namespace, shape: str) -> None:
    if shape.startswith("*nat"):
        node.run("iptables-nft-restore", "--noflush", stdin=shape)
    else:
        node.run("nft", "-f", "-", stdin=shape)


def sources(pods: Cluster) -> set[str]:
    """Return the sources that TARGET sees of all pods and nodes, by TCP and UDP."""
    hosts = [*pods.pods, *pods.network.nodes]
    return {ask(host, VIP) for host in hosts for ask in (tcp_source, udp_source)}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_target_sees_the_vip_from_each_pod(network: Network, start: Start, shape: str) -> None:
    with cluster(network) as pods:
        for node in network.nodes:
            load(node, SHAPES[shape])
        start(network.nodes[0]).master()
        assert sources(pods) == {VIP}


@pytest.mark.parametrize("dataplane", ["auto", "nftables"])
def test_who_takes_position_1_again_and_again_wins_nothing_in_nftables(
    network: Network, start: Start, dataplane: str
) -> None:
    """Calico looks at its jump every few minutes, and puts it on top again; in iptables kevip has to do the same."""
    node = network.nodes[0]
    with cluster(network) as pods:
        load(node, SHAPES["calico-insert"])
        replica = start(node, dataplane=dataplane).master()
        on_master = pods.pods[0]
        with Conversations(on_master, VIP, 20) as talk:
            node.iptables("-D", "POSTROUTING", "-t", "nat", "-j", "cali-POSTROUTING")
            node.iptables("-I", "POSTROUTING", "1", "-t", "nat", "-j", "cali-POSTROUTING")
            if dataplane == "nftables":
                assert tcp_source(on_master, VIP) == VIP
                assert replica.events("drift.repaired") == []
            else:
                assert tcp_source(on_master, VIP) == f"{LAN}.11"
                eventually(lambda: tcp_source(on_master, VIP) == VIP, within=60, what="kevip is on top again")
            assert talk.survivors() == 20


@pytest.mark.parametrize("shape", ["calico-append", "calico-nftables", "flannel"])
def test_allow_from_needs_the_nodes_and_the_pods(network: Network, start: Start, shape: str) -> None:
    """Behind a CNI that masquerades, pods of other nodes come with their node's address, those of the master not."""
    with cluster(network) as pods:
        for node in network.nodes:
            load(node, SHAPES[shape])
        master = start(network.nodes[0], allow_from=f"{LAN}.8/29").master()
        assert together(*(lambda pod=pod: answers(pod, VIP) for pod in pods.pods)) == [False, True, True]
        master.stop()
        start(network.nodes[0], allow_from=f"{LAN}.8/29,{PODS}").master()
        assert [answers(pod, VIP) for pod in pods.pods] == [True, True, True]
        assert not answers(network.client, VIP)


def test_a_cni_that_translates_before_everybody_is_told(network: Network, start: Start) -> None:
    """As kindnet does in nftables, at srcnat - 10: TARGET sees the node, and nothing of kevip's can be before that."""
    node = network.nodes[0]
    with cluster(network) as pods:
        rules = f"fib daddr type local accept; ip daddr {{ {PODS}, {LAN}.0/24 }} accept; masquerade;"
        chain = f"type nat hook postrouting priority srcnat - 10; ct state established,related accept; {rules}"
        load(node, f"table inet kindnet-ipmasq {{ chain postrouting {{ {chain} }}; }}")
        replica = start(node).master()
        assert tcp_source(pods.pods[0], VIP) == f"{LAN}.11"
        told = " ".join(invoke(node, "status", f"--run-dir={replica.run_dir}").stdout.split())
        assert "PROBLEM chain postrouting of nftables table inet kindnet-ipmasq translates before the rules in" in told
