"""A cluster: pods as namespaces behind nodes, and on each node the rules that kube-proxy 1.36 has there.

They are what its documentation and tests say of names, sets, maps, priorities and order; kube-proxy is not here.
"""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from lab.network import LAN, Namespace, Network
from lab.traffic import PORT, server

CLUSTER_IP, CLUSTER_IP2 = "10.96.0.50", "10.96.0.51"
PODS = "10.244.0.0/16"
POD_PORT = 8080

MODES = ("nftables", "iptables")

WAYS: tuple[dict[str, str], ...] = ({"port": f"{PORT},{PORT}/udp"}, {})
"""With ports, pods see the VIP; without, the node."""


@dataclass(frozen=True, slots=True)
class Service:
    """A Service of TCP and UDP: its cluster-IP, its endpoints, and the addresses that its status lists."""

    ip: str
    endpoints: tuple[str, ...]
    external: tuple[str, ...] = ()
    port: int = PORT

    @property
    def tag(self) -> str:
        """What names of its chains end in."""
        return f"{zlib.crc32(self.ip.encode()):08X}"


def clear(node: Namespace, mode: str) -> None:
    """Remove what kube-proxy has there, as it does itself when it starts in another mode."""
    if mode == "nftables":
        node.run("nft", "-f", "-", stdin="table ip kube-proxy\ndelete table ip kube-proxy\n")
        return
    saved = node.run("iptables-nft-save")
    text = ""
    for part in saved.split("COMMIT\n"):
        table = next((line for line in part.splitlines() if line.startswith("*")), "")
        chains = [line[1:].split()[0] for line in part.splitlines() if line.startswith(":KUBE-")]
        jumps = [f"-D{line[2:]}" for line in part.splitlines() if "-j KUBE-" in line and "-A KUBE-" not in line]
        text += "\n".join([table, *jumps, *(f"-F {chain}" for chain in chains), *(f"-X {chain}" for chain in chains)])
        text += "\nCOMMIT\n" if table else ""
    node.run("iptables-nft-restore", "--noflush", stdin=text)


def sync(node: Namespace, mode: str, services: Sequence[Service]) -> None:
    """Have all rules for these services, as after a full sync."""
    if mode == "nftables":
        node.run("nft", "-f", "-", stdin=nftables(services))
    else:
        node.run("iptables-nft-restore", "--noflush", stdin=iptables(services, first="KUBE" not in str(node.rules())))


def nftables(services: Sequence[Service]) -> str:
    """Return kube-proxy's table, to be replaced as a whole."""
    ips, served, none, chains = list[str](), list[str](), list[str](), list[str]()
    for each in services:
        ips.append(each.ip)
        for protocol in ("tcp", "udp"):
            name, key = f"{each.tag}-default/web/{protocol}/p{each.port}", f"{protocol} . {each.port}"
            if not each.endpoints:
                none += [f"{ip} . {key} : goto reject-chain" for ip in (each.ip, *each.external)]
                continue
            served.append(f"{each.ip} . {key} : goto service-{name}")
            served += [f"{ip} . {key} : goto external-{name}" for ip in each.external]
            ends = [
                f"endpoint-{each.tag}-default/web/{protocol}/p{each.port}__{end}/{POD_PORT}" for end in each.endpoints
            ]
            chains += [
                f"chain {chain} {{ ip saddr {end} jump mark-for-masquerade; "
                f"meta l4proto {protocol} dnat to {end}:{POD_PORT}; }}"
                for chain, end in zip(ends, each.endpoints, strict=True)
            ]
            choice = ", ".join(f"{number} : goto {end}" for number, end in enumerate(ends))
            chains.append(
                f"chain service-{name} {{ ip daddr {each.ip} {protocol} dport {each.port} ip saddr != {PODS} "
                f"jump mark-for-masquerade; numgen random mod {len(ends)} vmap {{ {choice} }}; }}"
            )
            chains.append(f"chain external-{name} {{ jump mark-for-masquerade; goto service-{name}; }}")

    def elements(each: list[str]) -> str:
        return f"elements = {{ {', '.join(each)} }}" if each else ""

    return f"""
table ip kube-proxy
delete table ip kube-proxy
table ip kube-proxy {{
    comment "rules for kube-proxy"
    set cluster-ips {{ type ipv4_addr; {elements(ips)}; }}
    set nodeport-ips {{ type ipv4_addr; }}
    map firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
    map no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict; {elements(none)}; }}
    map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; {elements(served)}; }}
    map service-nodeports {{ type inet_proto . inet_service : verdict; }}
    chain mark-for-masquerade {{ meta mark set meta mark or 0x4000; }}
    chain masquerading {{
        meta mark & 0x4000 == 0 return; meta mark set meta mark ^ 0x4000; masquerade fully-random; }}
    chain reject-chain {{ reject; }}
    {chr(10).join(chains)}
    chain services {{
        ip daddr . meta l4proto . th dport vmap @service-ips
        ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
    }}
    chain firewall-check {{ ip daddr . meta l4proto . th dport vmap @firewall-ips; }}
    chain service-endpoints-check {{ ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
    chain cluster-ips-check {{ ip daddr @cluster-ips reject; }}
    chain filter-prerouting {{ type filter hook prerouting priority -110; ct state new jump firewall-check; }}
    chain filter-input {{ type filter hook input priority -110; ct state new jump service-endpoints-check; }}
    chain filter-forward {{ type filter hook forward priority -110;
        ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }}
    chain filter-output {{ type filter hook output priority -110;
        ct state new jump service-endpoints-check; ct state new jump firewall-check; }}
    chain filter-output-post-dnat {{ type filter hook output priority -90; ct state new jump cluster-ips-check; }}
    chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}
    chain nat-output {{ type nat hook output priority -100; jump services; }}
    chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading; }}
}}
"""


_JUMPS = {
    "filter": """\
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" \
-j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" \
-j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
""",
    "nat": """\
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
""",
}


def iptables(services: Sequence[Service], *, first: bool) -> str:
    """Return what kube-proxy gives iptables-restore; the jumps to its chains are made at the first time only."""
    no_endpoints, portals, chains = list[str](), list[str](), list[str]()
    for each in services:
        for p in ("tcp", "udp"):
            name, to = f"default/web:{p}", f"-p {p} -m {p} --dport {each.port}"
            if not each.endpoints:
                no_endpoints.append(
                    f'-A KUBE-SERVICES -d {each.ip}/32 {to} -m comment --comment "{name} has no endpoints" -j REJECT'
                )
                continue
            chain = f"KUBE-SVC-{each.tag}{p.upper()}"
            portals.append(f'-A KUBE-SERVICES -d {each.ip}/32 {to} -m comment --comment "{name} cluster IP" -j {chain}')
            portals += [f"-A KUBE-SERVICES -d {ip}/32 {to} -j KUBE-EXT-{chain[9:]}" for ip in each.external]
            chains += [
                f"-A KUBE-EXT-{chain[9:]} -j KUBE-MARK-MASQ", f"-A KUBE-EXT-{chain[9:]} -j {chain}",
                f"-A {chain} ! -s {PODS} -d {each.ip}/32 {to} -j KUBE-MARK-MASQ",
            ]  # fmt: skip
            for number, end in enumerate(each.endpoints):
                sep, left = f"KUBE-SEP-{each.tag}{p.upper()}{number}", len(each.endpoints) - number
                chance = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
                chains += [
                    f"-A {chain} {chance}-j {sep}", f"-A {sep} -s {end}/32 -j KUBE-MARK-MASQ",
                    f"-A {sep} -p {p} -m {p} -j DNAT --to-destination {end}:{POD_PORT}",
                ]  # fmt: skip
    names = dict.fromkeys(line.split()[1] for line in chains)
    filters = "NODEPORTS", "SERVICES", "EXTERNAL-SERVICES", "FORWARD", "PROXY-FIREWALL"
    lines = [
        "*filter",
        *(f":KUBE-{name} - [0:0]" for name in filters),
        *([_JUMPS["filter"].strip()] if first else []),
        *no_endpoints,
        "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
        "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
        "-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "COMMIT", "*nat",
        *(f":KUBE-{name} - [0:0]" for name in ("NODEPORTS", "SERVICES", "POSTROUTING", "MARK-MASQ", "KUBELET-CANARY")),
        *(f":{name} - [0:0]" for name in names),
        *([_JUMPS["nat"].strip()] if first else []),
        *portals,
        "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
        "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
        "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
        "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
        *chains,
        "COMMIT\n",
    ]  # fmt: skip
    return "\n".join(lines)


class Cluster:
    """Pods, one on each node; on the nodes there are no rules yet."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.pods: list[Namespace] = []
        for number, node in enumerate(network.nodes, 1):
            node.sysctl("net.ipv4.ip_forward", "1")
            for other in range(1, len(network.nodes) + 1):
                if other != number:
                    node.run("ip", "route", "add", f"10.244.{other}.0/24", "via", f"{LAN}.{10 + other}")
            self.pods.append(network.pod(node, f"10.244.{number}"))
        self.addresses = tuple(f"10.244.{number}.2" for number in range(1, len(self.pods) + 1))

    def clients(self) -> dict[str, Namespace]:
        """Return those that ask for a VIP which the first node has, by where they are."""
        network = self.network
        return {
            "on the L2": network.client,
            "behind the router": network.far_client,
            "the master": network.nodes[0],
            "a node with a pod": network.nodes[1],
            "a node without": network.nodes[2],
            "the pod on the master": self.pods[0],
            "a pod on another node": self.pods[1],
            "another pod": self.pods[2],
        }

    def service(self, *numbers: int, ip: str = CLUSTER_IP) -> Service:
        """Return a Service of the pods on nodes of these numbers, from 0 on."""
        return Service(ip, tuple(self.addresses[number] for number in numbers))

    def sync(self, mode: str, *services: Service) -> None:
        """Have kube-proxy's rules on all nodes."""
        for node in self.network.nodes:
            sync(node, mode, services)

    def clear(self, mode: str) -> None:
        """Have them nowhere."""
        for node in self.network.nodes:
            clear(node, mode)


@contextmanager
def cluster(network: Network) -> Iterator[Cluster]:
    """Make a cluster of a network's nodes."""
    made = Cluster(network)
    with ExitStack() as stack:
        for pod, address in zip(made.pods, made.addresses, strict=True):
            stack.enter_context(server(pod, address, POD_PORT))
        yield made
