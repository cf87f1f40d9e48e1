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
_IPVS_SERVICES = Path("/proc/net/ip_vs")
# Where kube-proxy in nftables mode has them, and address . protocol . port of all that it serves
# (its pkg/proxy/nftables/proxier.go).
_NFTABLES_SET, _NFTABLES_MAP = ("kube-proxy", "cluster-ips"), ("kube-proxy", "service-ips")
_PROTOCOLS = {17: "/udp", 132: "/sctp"}  # as --port has them; TCP's is left out


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


def in_ipvs(address: IPv4Address) -> bool:
    """Whether the kernel's IPVS has a service of the address."""
    try:
        return has_ipvs_service(address, _IPVS_SERVICES.read_text())
    except OSError:  # the kernel has no IPVS, or has not loaded it
        return False


def in_nftables(address: IPv4Address) -> bool:
    """Whether kube-proxy in nftables mode has the address as a cluster-IP, as far as that is seen at once."""
    return nfnetlink.contains(*_NFTABLES_SET, address)


def nftables_ports(address: IPv4Address) -> list[str]:
    """Return at which ports it serves the address: a cluster-IP, or one that others may use."""
    keys = (key for key in nfnetlink.keys(*_NFTABLES_MAP) if key[:4] == address.packed)
    return sorted(f"{int.from_bytes(key[8:10])}{_PROTOCOLS.get(key[4], '')}" for key in keys)


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
