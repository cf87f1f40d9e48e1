"""Who translates a Service's cluster-IP on this node: the kernel's IPVS, or kube-proxy's rules in nat."""

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from ipaddress import IPv4Address
from pathlib import Path

from kevip.host import command, interface, kernel, nfnetlink
from kevip.host.interface import Interface

# Where kube-proxy in IPVS mode puts all cluster-IPs, and the load-balancer IPs of Services, on each node.
IPVS_INTERFACE = "kube-ipvs0"
_CILIUM_INTERFACE = "cilium_host"  # which Cilium has on each node (its documentation, "Networking Concepts")
_IPVS_SERVICES = Path("/proc/net/ip_vs")
# Where kube-proxy in nftables mode has them, and address . protocol . port of all that it serves
# (its pkg/proxy/nftables/proxier.go).
_NFTABLES_SET, _NFTABLES_MAP = ("kube-proxy", "cluster-ips"), ("kube-proxy", "service-ips")
_NFTABLES_REFUSED = "kube-proxy", "no-endpoint-services"
_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}
# The rules of kube-proxy in iptables mode for a port of an address: in nat, and in filter without endpoints here.
_PORT = (
    r"^(?:\[\d+:\d+\] )?-A KUBE-(?:EXTERNAL-)?SERVICES -d {}/32 -p (?P<protocol>\w+) .*--dport (?P<port>\d+)"
    r" .*-j (?:(?P<served>KUBE-\S+)|REJECT|DROP)"
)


class Mode(StrEnum):
    """The modes of kube-proxy."""

    IPVS = "IPVS"
    IPTABLES = "iptables"
    NFTABLES = "nftables"

    @property
    def translates(self) -> bool:
        """Whether it does so in nat, where a connection is translated once."""
        return self is not Mode.IPVS


def mode_of(address: IPv4Address, interfaces: Sequence[Interface], saved: Iterable[str]) -> Mode | None:
    """Return how this node handles an address, if it is a cluster-IP. ``saved`` is from each ``iptables-save``."""
    if on_ipvs_interface(address, interfaces) or in_ipvs(address):
        return Mode.IPVS
    if in_nftables(address) or nftables_ports(address):
        return Mode.NFTABLES
    return Mode.IPTABLES if any(has_kube_services_rule(address, text) for text in saved) else None


def mode_now(address: IPv4Address, saved: Iterable[str]) -> Mode | None:
    """Do so with the interfaces that there are; raises CommandError."""
    return mode_of(address, interface.listing(command.run_now), saved)


def problem(target: IPv4Address, mode: Mode | None, *, rewrites: bool) -> str:
    """Say why a cluster-IP cannot be TARGET here, "" if it can; ``rewrites`` says that the rules may be in nftables."""
    if mode and mode.translates and not rewrites:
        return (
            f"TARGET {target} is a cluster-IP, and kube-proxy is in {mode} mode here: it translates, and a packet is "
            "translated once; only rules in nftables can come before that: leave --dataplane at auto, and have nft "
            "installed (apt-get install nftables)"
        )
    if mode is Mode.IPVS and not kernel.ipvs_tracks():
        return (
            f"TARGET {target} is a cluster-IP, handled by IPVS without conntrack, so its connections would not get the "
            "VIP as their source, and replies not find back: sysctl -w net.ipv4.vs.conntrack=1"
        )
    return ""


def services(targets: Iterable[IPv4Address], interfaces: Sequence[Interface], saved: Sequence[str]) -> list[str]:
    """Say which of several targets cannot be here, because of what kube-proxy does for them."""
    found = list[str]()
    for each in targets:
        mode = mode_of(each, interfaces, saved)
        if mode and mode.translates:
            alone = "a TARGET that others translate needs a group of its own, with nothing but --target"
            found.append(f"target {each} is a cluster-IP, and kube-proxy is in {mode} mode here: {alone}")
        else:
            found += filter(None, [problem(each, mode, rewrites=True)])
    return found


def in_ipvs(address: IPv4Address) -> bool:
    """Whether the kernel's IPVS has a service of the address."""
    return has_ipvs_service(address, _ipvs_services())


def _ipvs_services() -> str:
    try:
        return _IPVS_SERVICES.read_text()
    except OSError:  # the kernel has no IPVS, or has not loaded it
        return ""


def in_nftables(address: IPv4Address) -> bool:
    """Whether kube-proxy in nftables mode has the address as a cluster-IP, as far as that is seen at once."""
    return nfnetlink.contains(*_NFTABLES_SET, address)


def ports(address: IPv4Address, saved: Iterable[str]) -> list[str]:
    """Return at which ports, as ``--port`` has them, a Service is served on this node that has the address.

    That is a cluster-IP, or one that its status lists. ``saved`` is from each ``iptables-save``. Raises HostError.
    """
    found, refused = set(nftables_ports(address)), set(nftables_ports(address, _NFTABLES_REFUSED))
    for text in saved:
        for rule in re.finditer(_PORT.format(re.escape(str(address))), text, re.MULTILINE):
            (found if rule["served"] else refused).add(_port(rule["protocol"], int(rule["port"])))
    services = re.findall(rf"^(\w+)\s+{int(address):08X}:(\w+)", _ipvs_services(), re.MULTILINE)
    found.update(_port(protocol.lower(), int(port, 16)) for protocol, port in services)
    return sorted(found - refused)


def is_here(interfaces: Sequence[Interface], saved: Iterable[str]) -> bool:
    """Whether kube-proxy serves any Service on this node; raises HostError."""
    on_interface = any(each.name == IPVS_INTERFACE for each in interfaces)
    return on_interface or bool(nfnetlink.keys(*_NFTABLES_SET)) or any("-A KUBE-SERVICES " in text for text in saved)


def cilium_alone(interfaces: Sequence[Interface], saved: Iterable[str]) -> bool:
    """Whether Cilium serves the Services on this node, without kube-proxy; raises HostError."""
    return any(each.name == _CILIUM_INTERFACE for each in interfaces) and not is_here(interfaces, saved)


CILIUM = (
    "Cilium serves Services here, without kube-proxy: it translates cluster-IPs where packets come in, before kevip's "
    "rules, and in the sockets of this host; so if TARGET is one, it answers this host, and no client of the VIP"
)
CILIUM_ADVICE = "--hold-only, without TARGET, and list the VIP in the status of a Service of type LoadBalancer"


def nftables_ports(address: IPv4Address, where: tuple[str, str] = _NFTABLES_MAP) -> list[str]:
    """Return at which ports kube-proxy in nftables mode serves the address, or refuses it; raises HostError."""
    keys = (key for key in nfnetlink.keys(*where) if key[:4] == address.packed)
    return sorted(port_of(key[4], int.from_bytes(key[8:10])) for key in keys)


def port_of(protocol: int, number: int) -> str:
    """Return a port of an IP protocol as ``--port`` has it."""
    return _port(_PROTOCOLS.get(protocol, "?"), number)


def _port(protocol: str, number: int) -> str:
    return str(number) if protocol == "tcp" else f"{number}/{protocol}"


def on_ipvs_interface(address: IPv4Address, interfaces: Sequence[Interface]) -> bool:
    """Whether the address is one of kube-proxy's in IPVS mode."""
    holding = [each.name for each in interfaces if address in {held.ip.ip for held in each.addresses}]
    return IPVS_INTERFACE in holding


def has_ipvs_service(address: IPv4Address, table: str) -> bool:
    """Whether ``/proc/net/ip_vs`` lists a service of the address: ``TCP  0A60000A:01BB rr``."""
    return bool(re.search(rf"^(TCP|UDP|SCTP)\s+{int(address):08X}:", table, re.MULTILINE))


def has_kube_services_rule(address: IPv4Address, saved: str) -> bool:
    """Whether kube-proxy in iptables mode handles the address; in filter it is if the Service has no endpoints."""
    return bool(re.search(rf"^(?:\[\d+:\d+\] )?-A KUBE-SERVICES -d {re.escape(str(address))}/32 ", saved, re.MULTILINE))
