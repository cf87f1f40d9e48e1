"""What kevip costs: the latency of a takeover, the time to start, CPU and memory at rest, and the traffic's speed."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Address
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from lab.network import CLIENT, LAN, TARGET, VIP, Namespace, Network, eventually, iptables_beside
from lab.replica import Replica
from lab.traffic import Probe, load, server, sink, track
from plain import HOOKS, PlainReplica

from kevip.dataplane.backend import Backend
from kevip.dataplane.rules import Proxy

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Pair:
    """The same thing measured of kevip and of what it is compared with, round by round."""

    rounds: list[tuple[float, float]]

    @property
    def kevip(self) -> float:
        """The median of kevip."""
        return median(ours for ours, _ in self.rounds)

    @property
    def plain(self) -> float:
        """The median of the other one."""
        return median(theirs for _, theirs in self.rounds)

    @property
    def ratio(self) -> float:
        """Kevip by plain: the median of each round's, for what slows a machine down lasts longer than a round."""
        return median(ours / theirs for ours, theirs in self.rounds)


def hook_latency(dataplane: str, rounds: int = 30) -> Pair:
    """Return milliseconds from the start of the up hook to rules and address in place, in turn; medians."""
    pairs = list[tuple[float, float]]()
    with Network(nodes=2) as network, Replica(network.nodes[0], dataplane=dataplane) as replica:
        replica.master()
        plain_iptables = f"iptables-{iptables_beside(dataplane)}"
        with replica.hooks() as call:
            for _ in range(rounds):
                call("vip-down")
                plain = _plain_hook(network.nodes[1], "vip-up", plain_iptables)
                _plain_hook(network.nodes[1], "vip-down", plain_iptables)
                time.sleep(1.3)  # what drained is forgotten, what a backup starts in advance is started
                pairs.append((call("vip-up") * 1000, plain * 1000))
                time.sleep(0.2)
    return Pair(pairs)


def _plain_hook(node: Namespace, name: str, iptables: str) -> float:
    env = {"PATH": os.environ["PATH"], "IPTABLES": iptables}
    with node.entered():
        begin = time.perf_counter()
        subprocess.run([HOOKS / name, "eth0", VIP, TARGET], env=env, check=True)
        return time.perf_counter() - begin


def start_to_master(rounds: int = 5) -> Pair:
    """Return seconds from the start of a process to its VIP; medians."""
    return Pair([(_start(Replica), _start(PlainReplica)) for _ in range(rounds)])


def _start(make: Callable[[Namespace], Replica | PlainReplica]) -> float:
    with Network(nodes=1) as network:
        begin = time.monotonic()
        replica = make(network.nodes[0])
        eventually(network.holders, what="a master")
        seconds = time.monotonic() - begin
        replica.kill()
        replica.remove()
    return seconds


@dataclass(frozen=True, slots=True)
class Rest:
    """What a master costs at rest: milliseconds of CPU a minute, with its children, and MiB of memory."""

    cpu: float
    rss: float


def at_rest(seconds: float = 40.0) -> Rest:
    """Measure a master that nobody uses."""
    with _as_installed() as env, Network(nodes=1) as network, Replica(network.nodes[0], env=env) as replica:
        replica.master()
        time.sleep(6)  # the announcements after a takeover are over
        before, begin = _cpu(replica.process.pid), time.monotonic()
        time.sleep(seconds)
        used = _cpu(replica.process.pid) - before
        status = Path(f"/proc/{replica.process.pid}/status").read_text()
        rss = int(status.partition("VmRSS:")[2].split()[0])
        return Rest(used * 1000 * 60 / (time.monotonic() - begin), rss / 1024)


@contextmanager
def _as_installed() -> Iterator[dict[str, str]]:
    """Give the environment of a kevip without what is here for development: rich, 6 MiB, which structlog would load."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "rich.py").write_text("raise ImportError\n")
        yield {"PYTHONPATH": folder}


def _cpu(pid: int) -> float:
    """Return the seconds of CPU that a process and its ended children have used (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def traffic(kind: str, rounds: int = 9, seconds: float = 2.0) -> Pair:
    """Return bits or connects per second through the VIP, and forwarded by the same host without NAT; medians."""
    port = 7001
    with Network(nodes=1) as network, Replica(network.nodes[0]) as replica:
        replica.master()
        _route_through(network, network.nodes[0])
        network.client.sysctl("net.ipv4.tcp_tw_reuse", "1")  # it opens more connections than it has ports
        with sink(network.target, TARGET, port):
            measure: Callable[[str], float] = lambda address: load(network.client, kind, address, port, seconds)  # noqa: E731
            return Pair([(measure(VIP), measure(TARGET)) for _ in range(rounds)])


def many_vips(kind: str, backend: Backend, number: int, rounds: int = 5, seconds: float = 1.0) -> Pair:
    """Return the same for the first of so many VIPs on a host, and forwarded by a host that has none; medians."""
    port = 7001
    with Network(nodes=2) as network:
        node, bare = network.nodes
        _route_through(network, bare)
        for each in (node, bare):
            each.sysctl("net.ipv4.ip_forward", "1")
        network.client.sysctl("net.ipv4.tcp_tw_reuse", "1")
        for vip in (IPv4Address(VIP) + n for n in range(number)):
            node.run("ip", "address", "add", f"{vip}/32", "dev", "eth0")
            with node.entered():
                proxy = Proxy(vip=vip, target=IPv4Address(TARGET))
                backend.standby().run(backend.setup(proxy, proxy.parts))
        with sink(network.target, TARGET, port):
            measure: Callable[[str], float] = lambda address: load(network.client, kind, address, port, seconds)  # noqa: E731
            return Pair([(measure(VIP), measure(TARGET)) for _ in range(rounds)])


def limits() -> float:
    """Return the seconds from a start to the rules of 10,000 networks that may use the VIP, and of 5,000 ports."""
    networks = ",".join(f"20.{n // 250}.{n % 250}.1" for n in range(10_000))
    ports = ",".join(str(port) for port in range(10_001, 20_000, 2))
    env = {"ALLOW_FROM": networks, "PORTS": ports}
    with Network(nodes=1) as network, Replica(network.nodes[0], dataplane="nftables", env=env) as replica:
        replica.logged("daemon.started")
        begin = time.monotonic()
        eventually(lambda: replica.node.has_rules("nftables"))
        return time.monotonic() - begin


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOn:
    """What came of connections in a planned stop: how many the heir knows then, after how many seconds; connects.

    ``served`` is how many seconds after the goodbye the heir served.
    """

    connections: int
    pull: float
    served: float
    tried: int
    failed: int
    gap: float


def handed_on(number: int, make: Callable[[Namespace], Replica] = Replica) -> HandedOn:
    """Measure a planned stop of a master that tracks so many connections; if they are copied, when others have them."""
    with Network() as network, server(network.target), ExitStack() as running:
        network.connect_apart()
        replicas = {node: running.enter_context(make(node)) for node in network.nodes}
        master = network.settled()
        track(master, number)
        if replicas[master].state()["sync"]:
            eventually(lambda: all(_tracked(node) >= number for node in network.nodes), within=120, what="copied")
        with Probe(network.client, VIP) as probe:
            replicas[master].stop(within=30)
            heir = replicas[network.settled()]
            heir.logged("connections.pulled")
            told = heir.events("connections.pulled")[0]  # a second one is from a host that was elected too, and yielded
            report = probe.report()
            goodbye = _moment(replicas[master].events("handover.started")[0])
            served = _moment(heir.events("takeover.done")[0]) - goodbye
    return HandedOn(
        connections=told["connections"], pull=told["ms"] / 1000, served=served, tried=report.tried,
        failed=report.failed, gap=report.longest_gap,
    )  # fmt: skip


def _moment(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["timestamp"]).timestamp()


def _tracked(node: Namespace) -> int:
    return int(node.sysctl("net.netfilter.nf_conntrack_count"))


def copying(seconds: float = 5.0) -> tuple[float, float]:
    """Return the microseconds of CPU that a connection costs a master's conntrackd, and a backup's."""
    port = 7001
    with Network(nodes=2) as network, ExitStack() as running:
        network.connect_apart()
        replicas = {
            node: running.enter_context(Replica(node, sync=True, sync_interface="eth1")) for node in network.nodes
        }
        master = network.settled()
        network.client.sysctl("net.ipv4.tcp_tw_reuse", "1")
        order = [master, *(node for node in network.nodes if node != master)]
        for node in order:
            replicas[node].logged("conntrackd.started")
        pids = [replicas[node].children("conntrackd")[0] for node in order]
        with sink(network.target, TARGET, port):
            before = [_cpu(pid) for pid in pids]
            connects = load(network.client, "connects", VIP, port, seconds) * seconds
            time.sleep(2)  # what is still under way
            used = [_cpu(pid) - earlier for pid, earlier in zip(pids, before, strict=True)]
    return used[0] / connects * 1e6, used[1] / connects * 1e6


def _route_through(network: Network, node: Namespace) -> None:
    """Let what goes between client and target past the VIP go through the node too, both ways."""
    for name in ("all", "eth0"):
        node.sysctl(f"net.ipv4.conf.{name}.send_redirects", "0")
    address = f"{LAN}.{11 + network.nodes.index(node)}"
    network.client.run("ip", "route", "add", TARGET, "via", address)
    network.router.run("ip", "route", "add", CLIENT, "via", address)
