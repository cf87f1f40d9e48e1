"""The preflight: everything about this host that would keep kevip from working, told at once. Changes nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Literal, TypeVar

from kevip.config import Config
from kevip.errors import HostError, KevipError
from kevip.host import command, firewall, interface, kernel

_Found = TypeVar("_Found")

PACKAGES = {
    "ucarp": "ucarp",
    "ip": "iproute2",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "setpriv": "util-linux",
    "bash": "bash",
}
"""The programs that kevip runs, and the Debian packages that they come in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the preflight found: where the VIP belongs, and what it takes to serve it."""

    placement: interface.Placement
    iptables: firewall.Iptables
    iptables_reason: str
    forwards: bool


def preflight(config: Config) -> Host:
    """Check this host; raises HostError with every problem found."""
    problems: list[str] = [
        f"{program} is not installed: apt-get install {package}"
        for program, package in PACKAGES.items()
        if not command.find(program)
    ]
    problems += [
        f"capability {name} is missing: run as root, in Docker with --cap-add {name}, "
        f"in Kubernetes with securityContext.capabilities.add [{name}]"
        for name in kernel.missing_capabilities()
    ]
    placement = _attempt(problems, "ip", lambda: locate(config.vip, config.interface))
    iptables = _attempt(problems, "iptables", lambda: _select(config.iptables, problems))
    forwards = kernel.forwards(placement.interface) if placement else True
    if placement and not forwards and not kernel.may_forward(placement.interface):
        problems.append(
            "IP forwarding is off and /proc/sys is read-only here: sysctl -w net.ipv4.ip_forward=1 on the host"
        )
    if problems or not placement or not iptables:
        raise HostError(*problems)
    return Host(placement=placement, iptables=iptables[0], iptables_reason=iptables[1], forwards=forwards)


def locate(vip: IPv4Address, name: str | None) -> interface.Placement:
    """Find where the VIP belongs on this host now; raises HostError, CommandError."""
    return interface.place(interface.listing(), vip, name)


def _select(wanted: firewall.Backend | Literal["auto"], problems: list[str]) -> tuple[firewall.Iptables, str] | None:
    """Select the iptables back end, unless the rules cannot be read anyway."""
    return None if any("NET_ADMIN" in problem for problem in problems) else firewall.select(wanted)


def _attempt(problems: list[str], program: str, action: Callable[[], _Found]) -> _Found | None:
    """Return what the action finds, or add its problems to the others. Without its program it is not tried."""
    if not command.find(program):
        return None
    try:
        return action()
    except KevipError as error:
        problems += error.problems
        return None
