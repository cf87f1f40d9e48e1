"""What else translates and filters on the host: TARGET sees the VIP all the same, and what others refuse stays so."""

import json
from collections.abc import Callable
from urllib.request import urlopen

import pytest
from lab.network import (
    CLIENT,
    DATAPLANES,
    LAN,
    TARGET,
    VIP,
    VIP2,
    Namespace,
    Network,
    eventually,
    iptables_beside,
)
from lab.replica import Replica, invoke
from lab.traffic import PORT, Conversations, Probe, answers, tcp_source, udp_source

Start = Callable[..., Replica]

CLIENTS = f"ip saddr {LAN}.0/24"
"""What the tables below masquerade."""


def masquerade(priority: int, table: str = "other") -> str:
    """Return a table of somebody's own, as in a hand-written nftables.conf."""
    chain = f"type nat hook postrouting priority {priority}; policy accept; {CLIENTS} masquerade;"
    return f"table ip {table} {{ chain post {{ {chain} }}; }}\n"


# Shapes of real ones: base chains, priorities and policies, with a rule each that would take the source.
SHAPES = {
    # docs.docker.com/engine/network/firewall-nftables, and moby, daemon/libnetwork/drivers/bridge/internal/nftabler
    "docker": f"""
table ip docker-bridges {{
    chain filter-FORWARD {{ type filter hook forward priority filter; policy accept; }}
    chain nat-prerouting-and-output {{ }}
    chain nat-PREROUTING {{ type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local counter jump nat-prerouting-and-output; }}
    chain nat-OUTPUT {{ type nat hook output priority -100; policy accept;
        ip daddr != 127.0.0.0/8 fib daddr type local counter jump nat-prerouting-and-output; }}
    chain nat-POSTROUTING {{ type nat hook postrouting priority srcnat; policy accept; {CLIENTS} counter masquerade; }}
    chain raw-PREROUTING {{ type filter hook prerouting priority raw; policy accept; }}
}}""",
    # flannel, pkg/trafficmngr/nftables
    "flannel": f"""
table ip flannel-ipv4 {{
    chain postrtg {{ type nat hook postrouting priority srcnat; policy accept;
        meta mark & 0x4000 == 0x4000 return; {CLIENTS} ip daddr {LAN}.0/24 accept;
        {CLIENTS} ip daddr != 224.0.0.0/4 masquerade fully-random; }}
    chain forward {{ type filter hook forward priority filter; policy accept; {CLIENTS} accept; }}
}}""",
    # firewalld, src/firewall/core/nftables.py
    "firewalld": f"""
table inet firewalld {{
    chain nat_PREROUTING {{ type nat hook prerouting priority dstnat + 10; policy accept; }}
    chain nat_POSTROUTING {{ type nat hook postrouting priority srcnat + 10; policy accept; {CLIENTS} masquerade; }}
    chain filter_FORWARD {{ type filter hook forward priority filter + 10; policy accept;
        ct state established,related accept; ct status dnat accept; reject with icmpx type admin-prohibited; }}
}}""",
    # libvirt, src/network/network_nftables.c
    "libvirt": f"""
table ip libvirt_network {{
    chain forward {{ type filter hook forward priority filter; policy accept; }}
    chain guest_nat {{ type nat hook postrouting priority srcnat; policy accept;
        {CLIENTS} ip daddr != {LAN}.0/24 masquerade; }}
}}""",
    # incus, internal/server/firewall/drivers/drivers_nftables_templates.go
    "incus": f"""
table inet incus {{
    chain pstrt.incusbr0 {{ type nat hook postrouting priority srcnat; policy accept;
        {CLIENTS} ip daddr != {LAN}.0/24 masquerade; }}
    chain fwd.incusbr0 {{ type filter hook forward priority filter; policy accept; }}
}}""",
    # Kubernetes, pkg/proxy/nftables/proxier.go
    "kube-proxy": f"""
table ip kube-proxy {{
    set cluster-ips {{ type ipv4_addr; elements = {{ 10.96.0.1 }}; }}
    chain services {{ }}
    chain nat-prerouting {{ type nat hook prerouting priority dstnat; policy accept; jump services; }}
    chain nat-output {{ type nat hook output priority -100; policy accept; jump services; }}
    chain nat-postrouting {{ type nat hook postrouting priority srcnat; policy accept; {CLIENTS} masquerade; }}
}}""",
}


def load(node: Namespace, ruleset: str) -> None:
    node.run("nft", "-f", "-", stdin=ruleset)


def tables(node: Namespace) -> str:
    """Return all but kevip's, which must be left alone."""
    return "\n".join(line for line in node.rules()["nftables"] if "kevip" not in line)


def sees_the_vip(network: Network, master: Namespace) -> bool:
    hosts = (network.client, network.far_client, master)
    return {(tcp_source(host, VIP), udp_source(host, VIP)) for host in hosts} == {(VIP, VIP)}


@pytest.mark.parametrize("dataplane", ["auto", "nftables"])
@pytest.mark.parametrize("priority", [99, 100, 110])
def test_the_target_sees_the_vip_whoever_masquerades(
    network: Network, start: Start, dataplane: str, priority: int
) -> None:
    """In each order, and when their table is loaded again, as at a restart of Docker."""
    node = network.nodes[0]
    load(node, masquerade(priority))
    replica = start(node, dataplane=dataplane).master()
    assert sees_the_vip(network, node)
    before = node.run("nft", "list", "table", "ip", "other")
    load(node, f"delete table ip other\n{masquerade(priority)}")
    assert sees_the_vip(network, node)
    assert node.run("nft", "list", "table", "ip", "other").splitlines()[:3] == before.splitlines()[:3]
    replica.stop()
    assert not node.has_rules("nftables")
    assert "table ip other" in str(node.rules()["nftables"])


@pytest.mark.parametrize("dataplane", DATAPLANES[1:])
def test_a_masquerade_behind_iptables_is_no_problem(network: Network, start: Start, dataplane: str) -> None:
    node = network.nodes[0]
    load(node, masquerade(110))
    replica = start(node, dataplane=dataplane).master()
    assert sees_the_vip(network, node)
    assert invoke(node, "status", f"--run-dir={replica.run_dir}").returncode == 0


@pytest.mark.parametrize("dataplane", DATAPLANES[1:])
@pytest.mark.parametrize("priority", [99, 100])
def test_rules_in_iptables_that_are_not_to_move_are_a_problem_that_is_told(
    network: Network, start: Start, dataplane: str, priority: int
) -> None:
    """It makes no host less ready than another: else none would be left."""
    node = network.nodes[0]
    replica = start(node, dataplane=dataplane, metrics="0.0.0.0:9112").master()
    load(node, masquerade(priority, "docker-bridges"))
    assert tcp_source(network.client, VIP) == f"{LAN}.11"
    with node.entered(), urlopen("http://127.0.0.1:9112/readyz") as ready:
        assert ready.status == 200
    with node.entered(), urlopen("http://127.0.0.1:9112/metrics") as metrics:
        text = metrics.read().decode()
    assert f'kevip_foreign_nat_chains{{vip="{VIP}"}} 1.0' in text
    assert f'kevip_conntrack_wrong_source{{vip="{VIP}"}} 1.0' in text
    done = invoke(node, "status", f"--run-dir={replica.run_dir}")
    assert done.returncode == 1
    told = " ".join(done.stdout.split())
    ahead = "chain post of nftables table ip docker-bridges (Docker)"
    assert f"{ahead} translates before the rules in {dataplane}" in told
    assert f"others' NAT {ahead}: before ours" in told
    assert "1 with a wrong source" in told
    told = invoke(node, "check", f"--vip={VIP}", f"--target={TARGET}", "--seconds=1", f"--dataplane={dataplane}",
                  env={"PASSWORD": "x"}).stdout  # fmt: skip
    assert f"{ahead} translates before" in " ".join(told.split())
    assert "do not have the VIP as the source that TARGET sees" in " ".join(told.split())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_target_sees_the_vip_beside_well_known_tables(network: Network, start: Start, shape: str) -> None:
    node = network.nodes[0]
    load(node, SHAPES[shape])
    before = node.rules()
    replica = start(node).master()
    assert sees_the_vip(network, node)
    assert replica.stop()[0] == 0
    assert [line for line in node.rules()["nftables"] if "counter" not in line] == [
        line for line in before["nftables"] if "counter" not in line
    ]


def test_a_master_moves_its_rules_without_anybody_noticing(network: Network, start: Start) -> None:
    node = network.nodes[0]
    replica = start(node).master()
    eventually(lambda: replica.state()["rules"], what="the first look at the rules is over")
    with Conversations(network.client, VIP, 100) as talk, Probe(network.client, VIP) as probe:
        load(node, "table ip other { chain post { type nat hook postrouting priority 100; }; }\n")
        eventually(lambda: replica.state()["dataplane"] == "nftables", within=5, what="the rules are in nftables")
        load(node, f"add rule ip other post {CLIENTS} masquerade")
        assert sees_the_vip(network, node)
        report = probe.report()
        assert (report.failed, report.sources) == (0, [VIP])
        assert talk.survivors() == 100
    assert not node.has_rules("iptables-nft")
    [told] = replica.events("drift.repaired")
    assert told["what"] == ["chain post of nftables table ip other translates before iptables-nft: nftables takes over"]
    assert replica.state()["repairs"] == {"foreign-nat": 1}


def test_a_backup_moves_before_it_takes_over(network: Network, start: Start) -> None:
    master = start(network.nodes[0], advskew=1).master()
    backup = start(network.nodes[1], advskew=20).ready()
    load(backup.node, masquerade(100))
    eventually(lambda: backup.state()["dataplane"] == "nftables", what="the backup will use nftables")
    with Probe(network.client, VIP) as probe:
        master.stop()
        backup.master()
        assert sees_the_vip(network, backup.node)
        report = probe.report()
    assert (report.failed, report.sources) == (0, [VIP])


def test_without_nft_the_rules_stay_and_check_says_what_that_means(network: Network, start: Start) -> None:
    node = network.nodes[0]
    load(node, masquerade(100))
    hide = ("unshare", "--mount", "sh", "-c", 'mount --bind /dev/null "$(command -v nft)"; exec "$@"', "sh")
    replica = start(node, wrapper=hide).master()
    assert replica.logged("daemon.started")["dataplane"] == "iptables-nft"
    told = " ".join(invoke(node, "status", f"--run-dir={replica.run_dir}").stdout.split())
    assert "PROBLEM chain post of nftables table ip other translates before the rules in iptables-nft" in told


def test_two_groups_on_one_host_each_in_a_dataplane_of_its_own(network: Network, start: Start) -> None:
    node = network.nodes[0]
    first = start(node, dataplane="nftables").master()
    second = start(node, vip=VIP2, dataplane="iptables-nft").master()
    for host in (network.client, network.far_client, node):
        assert [tcp_source(host, vip) for vip in (VIP, VIP2)] == [VIP, VIP2]
    first.stop()
    assert (tcp_source(network.client, VIP2), node.has_rules("nftables")) == (VIP2, False)
    second.stop()
    assert not node.has_rules("iptables-nft")


@pytest.mark.parametrize("dataplane", DATAPLANES)
@pytest.mark.parametrize("policy", ["ACCEPT", "DROP"])
def test_what_others_refuse_stays_refused(network: Network, start: Start, dataplane: str, policy: str) -> None:
    """As a NetworkPolicy does that forbids a pod everything: on its own node it is dropped in FORWARD."""
    node = network.nodes[0]
    kind = iptables_beside(dataplane)
    node.iptables("-P", "FORWARD", policy, backend=kind)
    node.iptables("-A", "FORWARD", "-s", CLIENT, "-j", "DROP", backend=kind)
    replica = start(node, dataplane=dataplane).master()
    assert tcp_source(network.far_client, VIP) == VIP
    assert not answers(network.client, VIP)
    node.iptables("-D", "FORWARD", "-s", CLIENT, "-j", "DROP", backend=kind)
    node.iptables("-A", "FORWARD", "-s", CLIENT, "-j", "DROP", backend=kind)  # behind ours
    if policy == "DROP":
        told = replica.logged("drift.repaired", within=8)["what"]
        assert told == ["filter FORWARD: others behind our rule"]
    assert not answers(network.client, VIP)
    replica.stop()
    assert json.loads(node.run("ip", "-json", "address", "show", "to", VIP)) == []


def test_thousands_of_networks_and_ports_take_effect_at_once(network: Network, start: Start) -> None:
    networks = ",".join([f"{LAN}.0/24", *(f"20.{n // 250}.{n % 250}.1" for n in range(10_000))])
    ports = ",".join([str(PORT), *(str(port) for port in range(10_001, 20_000, 2))])
    replica = start(network.nodes[0], dataplane="nftables", env={"ALLOW_FROM": networks, "PORTS": ports}).master()
    assert tcp_source(network.client, VIP) == VIP
    assert not answers(network.far_client, VIP)
    done = replica.logged("takeover.done")
    assert done["ms"] < 5000  # the figure is the benchmark's
