"""``kevip check``: each fault caused on real hosts, told by the check that it is for; nothing on them changes by it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from lab.cluster import MODES, Service, sync
from lab.network import CLIENT, LAN, ROUTER, TARGET, VIP, VIP2, Namespace, Network, eventually, run
from lab.replica import PASSWORD, Replica, flags
from lab.traffic import PORT, answers, send_frame, together

from kevip.election.carp import Advert, Group, Interval, build
from kevip.election.ucarp import key

Start = Callable[..., Replica]

MULTICAST = bytes.fromhex("01005e000012")
OTHER_PASSWORD = "staple battery"  # noqa: S105 - for the lab alone
CLUSTER_IP = "10.96.0.10"
SECOND = "192.0.2.1"
"""The router's address on a second link."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a check printed as JSON, and its exit status."""

    status: int
    findings: list[dict[str, str]]

    def of(self, check: str) -> list[tuple[str, str]]:
        """Return verdicts and what was found by a check."""
        return [(each["verdict"], each["found"]) for each in self.findings if each["check"] == check]

    def bad(self) -> list[tuple[str, str, str]]:
        """Return all findings that are not well."""
        return [(each["check"], each["verdict"], each["found"]) for each in self.findings if each["verdict"] != "ok"]


Check = Callable[..., Told]


def state(node: Namespace) -> tuple[object, ...]:
    """Return what a check could change on a host."""
    return node.rules(), node.addresses(), node.run("nft", "--stateless", "list", "ruleset"), sysctls(node)


def sysctls(node: Namespace) -> dict[str, str]:
    """Return what the kernel is set to for a host's network, but for what changes by itself."""
    found = {}
    with node.entered():
        for root in ("/proc/sys/net/ipv4", "/proc/sys/net/netfilter"):
            for path in Path(root).rglob("*"):
                if path.is_file() and path.stat().st_mode & 0o400 and path.name != "nf_conntrack_count":
                    found[str(path)] = path.read_text()
    assert len(found) > 200
    return found


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Check a host, and see to it that it stays as it is and no password is told. ``after`` is shell run before it."""

    def check(
        node: Namespace,
        *arguments: str,
        after: str = "true",
        meanwhile: Callable[[], object] = lambda: None,
        **settings: Any,
    ) -> Told:
        settings = {"vip": VIP, "target": TARGET, "password": PASSWORD, "run_dir": tmp_path / "run", **settings}
        before = state(node)
        process = node.popen(
            "unshare", "--mount", "sh", "-c", f'set -e; {after}; exec "$@"', "sh",
            sys.executable, "-m", "kevip", "check", "--json", "--seconds=1.5", *arguments, *flags(settings),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        while process.poll() is None:
            meanwhile()
            time.sleep(0.05)
        stdout, stderr = process.communicate()
        assert stderr == ""
        assert not [secret for secret in (PASSWORD, OTHER_PASSWORD) if secret in stdout]
        assert state(node) == before
        assert not (tmp_path / "run").exists()
        return Told(process.returncode, json.loads(stdout)["findings"])

    return check


def stays(node: Namespace, replica: Replica, action: Callable[[], Told]) -> Told:
    """Return what a check told; the replica that runs there must not notice it."""
    events, role = replica.events(), replica.role()
    told = action()
    assert (replica.events(), replica.role()) == (events, role), node.name
    return told


# A host that is well


def test_finds_nothing_wrong_where_nothing_is(network: Network, check: Check) -> None:
    told = check(network.nodes[0], "--strict")
    assert (told.status, told.bad()) == (0, [])
    assert told.of("interface") == [("ok", f"eth0, source address {LAN}.11")]
    assert told.of("kevip") == [("ok", f"does not run here for VIP {VIP}")]
    assert told.of("election") == [("ok", "no master of this group heard in 1.5 s: this host would be it")]
    assert told.of("route") == [("ok", f"TARGET {TARGET} by eth0, gateway {ROUTER}")]
    assert told.of("access") == [("ok", f"anyone who can reach VIP {VIP} can use TARGET through it")]


def test_is_not_noticed_by_a_kevip_that_runs_there(network: Network, start: Start, check: Check) -> None:
    master = start(network.nodes[0], advskew=1).master()
    backup = start(network.nodes[1], advskew=20).ready()
    master.logged("takeover.done")
    here = stays(master.node, master, lambda: check(master.node, "--strict"))
    there = stays(backup.node, backup, lambda: check(backup.node, "--strict"))
    assert (here.status, there.status) == (0, 0)
    assert here.of("kevip") == [("ok", f"runs here for VIP {VIP}, as master")]
    assert here.of("election") == [("ok", "this host is master, and advertises")]
    assert here.of("duplicates") == [("ok", f"nobody else answers ARP for VIP {VIP}")]
    assert there.of("kevip") == [("ok", f"runs here for VIP {VIP}, as backup")]
    assert there.of("election") == [("ok", f"{LAN}.11 is master, with --advbase 1 and --advskew 1")]
    [(verdict, found)] = there.of("duplicates")
    assert verdict == "ok"
    assert found == f"{LAN}.11 ({mac(master.node)}), which is master, answers ARP for the VIP"


def mac(node: Namespace) -> str:
    """Return the MAC address of a host's eth0."""
    address: str = json.loads(node.run("ip", "-json", "link", "show", "eth0"))[0]["address"]
    return address


def test_says_what_a_killed_kevip_left(network: Network, start: Start, check: Check) -> None:
    replica = start(network.nodes[0]).master()
    replica.logged("takeover.done")
    replica.kill()
    eventually(lambda: not network.nodes[0].has(VIP), what="the lease ends")
    told = check(network.nodes[0])
    assert told.of("kevip") == [
        ("ok", f"was killed here while it served VIP {VIP}; the next start removes what is left")
    ]
    assert told.status == 0


def test_is_aligned_and_readable_at_80_columns(network: Network) -> None:
    network.client.run("ip", "address", "add", f"{VIP}/32", "dev", "eth0")
    settings = {"vip": VIP, "target": TARGET, "password": PASSWORD}
    done = subprocess.run(
        network.nodes[0].command(sys.executable, "-m", "kevip", "check", "--seconds=1", *flags(settings)),
        capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    *lines, summary = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (1, "")
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in done.stdout
    assert {line[:9].rstrip() for line in lines} == {"ok", "failed", ""}
    assert all(line[8] == line[22] == " " for line in lines)
    assert all(line[9] != " " != line[23] for line in lines if line[0] != " ")
    assert summary == "24 checks: 23 ok, 0 warnings, 1 failed"


def test_shows_the_password_to_nobody(network: Network, check: Check) -> None:
    seen: list[str] = []

    def look() -> None:
        for pid in network.nodes[0].pids():
            try:
                seen.append(Path(f"/proc/{pid}/cmdline").read_text())
            except FileNotFoundError:
                continue

    check(network.nodes[0], meanwhile=look)
    at_rest = [line for line in seen if "--password=" in line]
    hidden = [line for line in at_rest if PASSWORD not in line]
    assert hidden
    assert PASSWORD not in "".join(at_rest[at_rest.index(hidden[0]) :])


@pytest.mark.parametrize(("arguments", "message"), [
    (["--vip=x y"], "kevip: --vip (VIP): 'x y' is not an IPv4 address, such as 192.0.2.10"),
    (["--seconds=0"], "kevip: Invalid value for '--seconds': 0.0 is not in the range 1<=x<=600."),
    ([], "kevip: --vip (VIP) is missing: set it to an IPv4 address"),
])  # fmt: skip
def test_refuses_wrong_settings(host: Namespace, arguments: list[str], message: str) -> None:
    command = host.command(sys.executable, "-m", "kevip", "check", *arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]})
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_ends_quietly_when_nobody_reads(host: Namespace) -> None:
    kevip = [sys.executable, "-m", "kevip", "check", *flags({"vip": VIP, "target": TARGET, "password": PASSWORD})]
    process: Any = host.popen(*kevip, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(20) == 1


# What the start refuses


@pytest.mark.parametrize(("about", "after", "settings"), [
    ("interface", "true", {"vip": "10.9.0.1"}),
    ("interface", "ip link set eth0 down", {}),
    ("interface", "true", {"interface": "peer0"}),
    ("programs", 'mount --bind /dev/null "$(command -v ucarp)"', {}),
    ("programs", 'mount --bind /dev/null "$(readlink -f "$(command -v ip)")"', {}),
    ("run dir", "mount -t tmpfs -o ro none /mnt", {"run_dir": "/mnt"}),
    ("dataplane", 'mount --bind /dev/null "$(readlink -f "$(command -v iptables-legacy)")"',
     {"dataplane": "iptables-legacy"}),
])  # fmt: skip
def test_tells_what_the_start_refuses_in_its_words(
    host: Namespace, check: Check, tmp_path: Path, *, about: str, after: str, settings: dict[str, str]
) -> None:
    given = {"vip": VIP, "target": TARGET, "password": PASSWORD, "run_dir": tmp_path / "run", **settings}
    kevip = [sys.executable, "-m", "kevip", *flags(given)]
    command = host.command("unshare", "--mount", "sh", "-c", f'set -e; {after}; exec "$@"', "sh", *kevip)
    refused = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert refused.returncode == 3
    told = check(host, after=after.replace("ip link set eth0 down", "true"), **settings)
    failures = [f"kevip: {found}" for check, verdict, found in told.bad() if (check, verdict) == (about, "failed")]
    assert failures
    assert failures == refused.stderr.splitlines()
    assert told.status == 1


@pytest.mark.parametrize("name", ["NET_ADMIN", "NET_RAW"])
def test_tells_which_capability_is_missing(host: Namespace, name: str) -> None:
    kevip = [sys.executable, "-m", "kevip", "check", *flags({"vip": VIP, "target": TARGET, "password": PASSWORD})]
    command = host.command("setpriv", f"--bounding-set=-{name.lower()}", *kevip)
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"failed   capabilities  capability {name} is missing" in done.stdout


def test_cilium_without_kube_proxy_is_warned_of(host: Namespace, check: Check) -> None:
    """Whether TARGET is a cluster-IP is not seen there; if clients get no answer, it likely is."""
    host.run("ip", "link", "add", "cilium_host", "type", "veth", "peer", "name", "cilium_net")
    found = check(host, target=CLUSTER_IP).of("service")
    assert [(verdict, text.split(":")[0]) for verdict, text in found] == [
        ("warning", "Cilium serves Services here, without kube-proxy")
    ]
    with Replica(host, target=CLUSTER_IP) as replica:
        assert "--hold-only" in replica.logged("service.elsewhere")["hint"]
    sync(host, "nftables", [Service("10.96.0.51", ("10.244.1.5",))])
    assert check(host, target=CLUSTER_IP).of("service")[0][0] == "ok"


@pytest.mark.parametrize("mode", MODES)
def test_a_cluster_ip_needs_rules_in_nftables(host: Namespace, check: Check, mode: str) -> None:
    """That is so whatever the rules would be in otherwise; where they cannot be there, the start and check say why."""
    sync(host, mode, [Service(CLUSTER_IP, ("10.244.1.5",))])
    told = check(host, target=CLUSTER_IP)
    translated = f"TARGET {CLUSTER_IP} is a cluster-IP, which kube-proxy translates, in {mode} mode"
    assert told.of("service") == [("ok", translated)]
    assert [found.split(":")[0] for _, found in told.of("dataplane")] == ["nftables"]
    other = check(host, target="10.96.0.11")
    assert other.of("service") == [("ok", "TARGET 10.96.0.11 is no cluster-IP that this node knows of")]
    for after, dataplane in [("true", "iptables-nft"), ('mount --bind /dev/null "$(command -v nft)"', "auto")]:
        told = check(host, target=CLUSTER_IP, after=after, dataplane=dataplane)
        [(verdict, found)] = told.of("service")
        assert (verdict, told.status) == ("failed", 1)
        assert f"TARGET {CLUSTER_IP} is a cluster-IP, and kube-proxy is in {mode} mode here" in found
        assert "have nft installed (apt-get install nftables)" in found
        wrapper = ("unshare", "--mount", "sh", "-c", f'{after}; exec "$@"', "sh")
        with Replica(host, target=CLUSTER_IP, wrapper=wrapper, dataplane=dataplane) as replica:
            assert replica.process.wait(20) == 3
            assert replica.log() == f"kevip: {found}\n"


def test_a_cluster_ip_in_ipvs_mode_needs_conntrack(host: Namespace, check: Check) -> None:
    host.run("ip", "link", "add", "kube-ipvs0", "type", "bridge")
    host.run("ip", "address", "add", f"{CLUSTER_IP}/32", "dev", "kube-ipvs0")
    told = check(host, target=CLUSTER_IP)
    [(verdict, found)] = told.of("service")
    assert verdict == "failed"
    assert f"TARGET {CLUSTER_IP} is a cluster-IP, handled by IPVS without conntrack" in found
    assert told.of("route") == [("ok", f"TARGET {CLUSTER_IP} is on this host")]
    with Replica(host, target=CLUSTER_IP) as replica:
        assert replica.process.wait(20) == 3
        assert replica.log() == f"kevip: {found}\n"


# The election, and who has the VIP


def test_a_second_host_with_the_vip(network: Network, check: Check) -> None:
    network.client.run("ip", "address", "add", f"{VIP}/32", "dev", "eth0")
    told = check(network.nodes[0])
    assert told.bad() == [
        ("duplicates", "failed", f"{mac(network.client)} answers ARP for VIP {VIP}, and is no master of this group")
    ]
    assert told.status == 1


def test_a_second_host_with_the_vip_beside_the_master(network: Network, start: Start, check: Check) -> None:
    master = start(network.nodes[1]).master()
    network.client.run("ip", "address", "add", f"{VIP}/32", "dev", "eth0")
    there, here = check(network.nodes[0]), check(master.node)
    assert len(there.of("duplicates")) == 2
    for told in (there, here):
        assert (
            "duplicates",
            "failed",
            f"{mac(network.client)} answers ARP for VIP {VIP}, and is no master of this group",
        ) in (told.bad())


def test_a_master_that_does_not_hold_the_vip(network: Network, start: Start, check: Check) -> None:
    replica = start(network.nodes[1]).master()
    replica.logged("takeover.done")
    replica.process.send_signal(signal.SIGSTOP)  # it would repair it at once
    eventually(lambda: not replica.children("ip\0-json"), what="a renewal that was under way is over")
    replica.node.run("ip", "address", "delete", f"{VIP}/32", "dev", "eth0")
    told = check(network.nodes[0], "--seconds=1")
    replica.process.send_signal(signal.SIGCONT)
    assert told.of("duplicates") == [("warning", f"nobody answers ARP for VIP {VIP}, though there is a master")]


def test_a_firewall_that_keeps_an_heir_from_the_connections(network: Network, start: Start, check: Check) -> None:
    """A mere policy of DROP does not: kevip lets an heir in."""
    master, node = network.nodes[:2]
    master.iptables("-P", "INPUT", "DROP")
    start(master).master()
    fetched = ("ok", f"connections can be fetched from {LAN}.11 when it leaves (TCP port 25100)")
    eventually(lambda: check(node, "--seconds=2").of("handoff") == [fetched], what="the port is let in")
    master.iptables("-I", "INPUT", "-p", "tcp", "-j", "DROP")
    [(verdict, found)] = check(node, "--seconds=2").of("handoff")
    assert (verdict, found.partition(": ")[0]) == ("warning", f"{LAN}.11, TCP port 25100")


def test_a_replica_with_another_password(network: Network, start: Start, check: Check) -> None:
    start(network.nodes[1], password=OTHER_PASSWORD).master()
    told = check(network.nodes[0])
    assert told.of("other groups") == [("failed", f"{LAN}.12 holds VIP {VIP}, and advertises with another password")]
    assert told.status == 1


def test_a_password_that_is_not_that_of_the_kevip_here(network: Network, start: Start, check: Check) -> None:
    start(network.nodes[0]).master()
    told = check(network.nodes[0], password=OTHER_PASSWORD)
    assert told.of("other groups") == [("failed", "what advertises on this host has another password")]


def test_another_group_with_the_same_id(network: Network, start: Start, check: Check) -> None:
    start(network.nodes[1], vip=VIP2, vip_id=100).master()
    start(network.nodes[2], vip=f"{LAN}.102", vip_id=100, password=OTHER_PASSWORD).master()
    told = check(network.nodes[0])
    assert told.of("other groups") == [
        ("warning", f"{LAN}.12 uses id 100 for VIP {VIP2}, with our password"),
        ("warning", f"{LAN}.13 advertises with id 100 and a password that is not ours; it does not hold VIP {VIP}"),
    ]
    assert told.of("duplicates") == [("ok", f"nobody else answers ARP for VIP {VIP}")]
    assert told.status == 0
    assert check(network.nodes[0], vip_id=99).of("other groups") == [("ok", "no adverts of others with id 99")]


def packet(source: str, interval: Interval) -> bytes:
    """Return an advert of our group."""
    group = Group(vhid=100, vip=IPv4Address(VIP), key=key(PASSWORD))
    return build(group, Advert(source=IPv4Address(source), interval=interval, counter=1))


@pytest.mark.parametrize(("damage", "found"), [
    (lambda good: good[:20] + b"\x31" + good[21:], f"{CLIENT} speaks VRRP with id 100: no conflict, but both log it"),
    (lambda good: good[:40], f"{CLIENT} sends bad adverts with id 100 (truncated)"),
    (lambda good: good[:-1] + b"\0", f"{CLIENT} sends bad adverts with id 100 (checksum)"),
])  # fmt: skip
def test_adverts_that_are_none(network: Network, check: Check, damage: Callable[[bytes], bytes], found: str) -> None:
    bad = damage(packet(CLIENT, Interval(1, 0)))
    told = check(network.nodes[0], meanwhile=lambda: send_frame(network.client, MULTICAST, bad))
    assert told.of("other groups") == [("warning", found)]


def test_several_masters(network: Network, check: Check) -> None:
    sources = (CLIENT, f"{LAN}.51", f"{LAN}.11")

    def advertise() -> None:
        for source in sources:
            send_frame(network.client, MULTICAST, packet(source, Interval(1, 3)))

    told = check(network.nodes[0], meanwhile=advertise)
    assert ("warning", f"several masters at once: {LAN}.50 and {LAN}.51") in told.of("election")
    assert ("failed", f"another host advertises from {LAN}.11, our own address") in told.of("election")


def test_a_master_with_another_timing(network: Network, start: Start, check: Check) -> None:
    start(network.nodes[1], advbase=4, advskew=7).master()
    flaps = "and would take over from it"
    seconds, node, found = "--seconds=5", network.nodes[0], f"{LAN}.12 is master, with --advbase 4 and --advskew 7"
    settings = {"advskew": 1}, {"advbase": 2}, {"advbase": 4}
    told = together(*(partial(check, node, seconds, **each) for each in settings))
    assert [each.of("election") for each in told] == [
        [("failed", f"{found}: this host, with --advbase 1 and --dead-ratio 3, waits 3 s only, {flaps}")],
        [("warning", f"{found}; ours is 2")],
        [("ok", found)],
    ]


def test_an_interface_without_multicast(network: Network, check: Check) -> None:
    network.nodes[0].run("ip", "link", "set", "eth0", "multicast", "off")
    assert check(network.nodes[0]).of("multicast")[0][0] == "warning"
    assert check(network.nodes[0], "--broadcast").of("multicast") == [("ok", "not needed with --broadcast")]


# What filters and translates


@pytest.mark.parametrize(("fault", "found"), [
    (["nft", "add table inet corp; add chain inet corp fw { type filter hook forward priority 10; policy drop; }"],
     "the policy of chain fw of nftables table inet corp is to drop"),
])  # fmt: skip
def test_a_filter_that_ours_does_not_overrule(
    network: Network, start: Start, check: Check, fault: list[str], found: str
) -> None:
    node = network.nodes[0]
    start(node, iptables="nft").master()
    node.iptables("-P", "FORWARD", "DROP")
    node.iptables("-P", "FORWARD", "DROP", backend="legacy")
    accepts = "a master accepts what goes to TARGET, last of all"
    eventually(lambda: answers(network.client, VIP), what="it is accepted")
    assert check(node).of("FORWARD") == [("ok", f"policy DROP in iptables-nft and iptables-legacy: {accepts}")]
    node.run(*fault)
    assert check(node).of("FORWARD") == [("warning", f"{found}, and no rule of ours can be in there")]
    assert not answers(network.client, VIP)


def test_rules_of_others_before_ours(network: Network, start: Start, check: Check) -> None:
    node = network.nodes[0]
    masquerade = ("POSTROUTING", "-s", "10.9.0.0/16", "-j", "MASQUERADE")
    node.iptables("-t", "nat", "-A", *masquerade)
    assert check(node).of("POSTROUTING") == [("ok", "1 of others: a master puts its own before them")]
    replica = start(node).master()
    replica.logged("takeover.done")
    assert check(node).of("POSTROUTING")[0][0] == "ok"
    replica.process.send_signal(signal.SIGSTOP)  # it would repair it at once
    node.iptables("-t", "nat", "-I", *masquerade)
    told = check(node, "--seconds=1")
    replica.process.send_signal(signal.SIGCONT)
    assert told.of("POSTROUTING") == [
        ("warning", "others' rules stand before ours: TARGET may not see the VIP as the source")
    ]


def test_rules_of_others_that_match_the_vip(network: Network, start: Start, check: Check) -> None:
    node = network.nodes[0]
    start(node, iptables="nft").master()
    assert check(node).of("other rules") == [("ok", f"none of others matches VIP {VIP}")]
    node.iptables("-t", "nat", "-A", "PREROUTING", "-d", VIP, "-j", "DNAT", "--to-destination", "10.9.9.9")
    node.iptables("-A", "INPUT", "-d", f"{LAN}.10", "-j", "ACCEPT")
    node.iptables("-A", "INPUT", "-d", VIP, "-j", "DROP", backend="legacy")
    told = check(node)
    assert told.of("other rules") == [
        ("warning", f"a rule of others matches the VIP, in {rule}")
        for rule in (
            f"iptables-nft: nat -A PREROUTING -d {VIP}/32 -j DNAT --to-destination 10.9.9.9",
            f"iptables-legacy: filter -A INPUT -d {VIP}/32 -j DROP",
        )
    ]


# The way of the packets


@pytest.fixture
def second_way(network: Network) -> Namespace:
    """Give node1 a second link to the router, eth1."""
    node = network.nodes[0]
    run(
        "ip",
        "link",
        "add",
        "eth1",
        "netns",
        node.name,
        "type",
        "veth",
        "peer",
        "name",
        "second",
        "netns",
        network.router.name,
    )
    for host, device, address in ((node, "eth1", "192.0.2.2/24"), (network.router, "second", f"{SECOND}/24")):
        host.run("ip", "address", "add", address, "dev", device)
        host.run("ip", "link", "set", device, "up")
    return node


@pytest.mark.parametrize(("default", "target", "victims"), [
    (SECOND, SECOND, ["TARGET's answers", "what clients beyond this network"]),
    (SECOND, ROUTER, ["what clients beyond this network"]),
    (ROUTER, SECOND, ["TARGET's answers"]),
    (ROUTER, ROUTER, []),
])  # fmt: skip
def test_a_strict_reverse_path_filter(
    network: Network,
    start: Start,
    check: Check,
    second_way: Namespace,
    *,
    default: str,
    target: str,
    victims: list[str],
) -> None:
    """It is told if, and only if, it does break something."""
    node = second_way
    start(node).master()
    node.run("ip", "route", "replace", "default", "via", default)
    node.run("ip", "route", "replace", TARGET, "via", target)
    assert answers(network.client, VIP)
    assert answers(network.far_client, VIP)
    assert [verdict for verdict, _ in check(node).of("rp_filter")] == ["ok"]
    node.sysctl("net.ipv4.conf.all.rp_filter", "1")
    node.run("conntrack", "--flush")
    assert answers(network.far_client, VIP) is (not victims)
    assert answers(network.client, VIP) is (target == ROUTER)
    told = check(node)
    warnings = [found for verdict, found in told.of("rp_filter") if verdict == "warning"]
    assert len(warnings) == len(victims)
    for warning, victim in zip(warnings, victims, strict=True):
        assert f"1 (strict) on eth0: it drops {victim}" in warning
    for each in told.findings:
        if each["check"] == "rp_filter" and each["advice"]:
            node.sysctl(*each["advice"].removeprefix("sysctl -w ").split("="))
    assert answers(network.far_client, VIP)
    assert answers(network.client, VIP)


def test_no_route_to_target(network: Network, check: Check) -> None:
    network.nodes[0].run("ip", "route", "delete", "default")
    told = check(network.nodes[0])
    [(verdict, found)] = told.of("route")
    assert verdict == "failed"
    assert found.startswith(f"no route to {TARGET}: ")
    assert told.of("TARGET") == [("warning", f"{TARGET} does not answer a ping: Network is unreachable")]
    assert told.status == 1


def test_a_target_that_does_not_answer(network: Network, check: Check) -> None:
    network.target.iptables("-A", "INPUT", "-p", "icmp", "-j", "DROP")
    assert check(network.nodes[0]).status == 0
    told = check(network.nodes[0], "--strict")
    assert told.bad() == [("TARGET", "warning", f"{TARGET} does not answer a ping: no answer in time")]
    assert told.status == 1


def test_a_target_that_does_not_answer_what_it_is_asked(network: Network, check: Check) -> None:
    [(verdict, found)] = check(network.nodes[0], "--strict", f"--check=tcp:{PORT}").of("TARGET")
    assert verdict == "ok"
    assert found.startswith(f"{TARGET} answers tcp:{PORT} in ")
    told = check(network.nodes[0], f"--check=tcp:{PORT + 1}")
    assert told.bad() == [("TARGET", "failed", f"{TARGET} does not answer tcp:{PORT + 1}: Connection refused")]
    assert told.status == 1


def test_says_who_may_use_the_vip(network: Network, check: Check) -> None:
    told = check(network.nodes[0], allow_from="10.77.0.0/24,198.51.100.50/32")
    assert told.of("access") == [("ok", f"VIP {VIP} is for 10.77.0.0/24, 198.51.100.50/32 only")]


def test_looks_at_no_proxy_where_the_vip_is_held_only(network: Network, check: Check) -> None:
    node = network.nodes[0]
    node.iptables("-t", "nat", "-A", "PREROUTING", "-d", VIP, "-j", "DNAT", "--to-destination", "10.9.9.9")
    told = check(node, "--strict", "--hold-only", target=None)
    assert (told.status, told.bad()) == (0, [])
    assert told.of("service") == [("ok", "no TARGET: with --hold-only, something else on this host serves the VIP")]
    assert told.of("forwarding") == told.of("other rules") == []


@pytest.mark.parametrize(("fault", "there", "out"), [
    (["ip", "route", "add", TARGET, "via", ROUTER, "mtu", "1200"], 1500, 1200),
    (["ip", "link", "set", "eth0", "mtu", "1400"], 1400, None),
])  # fmt: skip
def test_an_mtu_that_differs(network: Network, check: Check, fault: list[str], there: int, out: int | None) -> None:
    network.nodes[0].run(*fault)
    expected = (
        ("warning", f"{there} on eth0, {out} to TARGET by eth0: what is larger has to be made smaller")
        if out
        else ("ok", f"{there} on eth0 and to TARGET")
    )
    assert check(network.nodes[0]).of("MTU") == [expected]


def test_connections_that_a_failover_would_cut(network: Network, check: Check) -> None:
    network.nodes[0].iptables("-A", "FORWARD", "-m", "conntrack", "--ctstate", "NEW")  # loads it
    network.nodes[0].sysctl("net.netfilter.nf_conntrack_tcp_loose", "0")
    assert check(network.nodes[0]).bad() == [("tcp_loose", "warning", "0: a failover cuts open connections")]


def test_a_table_of_connections_that_is_nearly_full(network: Network, check: Check, tmp_path: Path) -> None:
    """Its size is one for the whole machine, and read-only here; so another one is shown to the check."""
    node, size = network.nodes[0], tmp_path / "max"
    size.write_text("10\n")
    for port in range(1, 10):
        node.run(
            "conntrack", "--create", "--proto", "udp", "--timeout", "60", "--src", "10.9.9.1", "--dst", "10.9.9.2",
            "--sport", str(port), "--dport", "9",
        )  # fmt: skip
    told = check(node, after=f"mount --bind {size} /proc/sys/net/netfilter/nf_conntrack_max")
    assert told.bad() == [("conntrack", "warning", "9 of 10 connections (90%): when it is full, new ones are dropped")]
