"""Who translates a Service's cluster-IP on this node: the kernel's IPVS, or kube-proxy's rules in nat."""

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from ipaddress import IPv4Address
from pathlib import Path

from kevip.host import nfnetlink
from kevip.host.interface import Interface

# Where kube-proxy in IPVS mode puts all cluster-IPs, and the load-balancer IPs of Services, on each node.
IPVS_INTERFACE = "kube-ipvs0"
_IPVS_SERVICES = Path("/proc/net/ip_vs")
# The table and the set in which kube-proxy in nftables mode has them (its pkg/proxy/nftables/proxier.go).
_NFTABLES_SET = "kube-proxy", "cluster-ips"


class Mode(StrEnum):
    """The modes of kube-proxy."""

    IPVS = "IPVS"
    IPTABLES = "iptables"
    NFTABLES = "nftables"


def mode_of(address: IPv4Address, interfaces: Sequence[Interface], saved: Iterable[str]) -> Mode | None:
    """Return how this node handles an address, if it is a cluster-IP. ``saved`` is from each ``iptables-save``."""
    try:
        services = _IPVS_SERVICES.read_text()
    except OSError:
        services = ""  # the kernel has no IPVS, or has not loaded it
    if on_ipvs_interface(address, interfaces) or has_ipvs_service(address, services):
        return Mode.IPVS
    if any(has_kube_services_rule(address, text) for text in saved):
        return Mode.IPTABLES
    return Mode.NFTABLES if nfnetlink.contains(*_NFTABLES_SET, address) else None


def on_ipvs_interface(address: IPv4Address, interfaces: Sequence[Interface]) -> bool:
    """Whether the address is one of kube-proxy's in IPVS mode."""
    holding = [each.name for each in interfaces if address in {held.ip.ip for held in each.addresses}]
    return IPVS_INTERFACE in holding


def has_ipvs_service(address: IPv4Address, table: str) -> bool:
    """Whether ``/proc/net/ip_vs`` lists a service of the address: ``TCP  0A60000A:01BB rr``."""
    return bool(re.search(rf"^(TCP|UDP|SCTP)\s+{int(address):08X}:", table, re.MULTILINE))


def has_kube_services_rule(address: IPv4Address, saved: str) -> bool:
    """Whether kube-proxy in iptables mode handles the address; in filter it is if the Service has no endpoints."""
    return bool(re.search(rf"^-A KUBE-SERVICES -d {re.escape(str(address))}/32 ", saved, re.MULTILINE))
