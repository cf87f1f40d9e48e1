"""What the kernel does with the packets on their way: reverse path filter, MTU, connection tracking."""

from collections.abc import Collection, Iterator
from ipaddress import IPv4Address

from kevip.check.finding import Finding, ok, warning
from kevip.host.route import Route

_STRICT = 1
_FULL = 0.8
"""How full the table of connections may be before it is told."""


def reverse_path(interface: str, mode: int, target: Route, defaults: Collection[str]) -> Iterator[Finding]:
    """Say whose packets a strict filter on the VIP's interface drops: those whose way back is another interface."""
    victims = []
    if not target.local and target.interface != interface:
        victims.append(f"TARGET's answers to the VIP (its route is by {target.interface})")
    if elsewhere := sorted(set(defaults) - {interface}):
        victims.append(f"what clients beyond this network send (the default route is by {' and '.join(elsewhere)})")
    if mode != _STRICT or not victims:
        yield ok("rp_filter", f"{mode} on {interface}: it drops nothing of the VIP")
        return
    for victim in victims:
        yield warning(
            "rp_filter",
            f"{mode} (strict) on {interface}: it drops {victim} if they arrive on {interface}",
            f"sysctl -w net.ipv4.conf.{interface}.rp_filter=2",
        )


def mtu(interface: str, own: int, target: Route, out: int) -> Finding:
    """Say whether packets may not fit the way on: ``own`` is the MTU on the VIP's side, ``out`` TARGET's."""
    if target.local:
        return ok("MTU", f"{own} on {interface}, and TARGET is on this host")
    if own == out:
        return ok("MTU", f"{own} on {interface} and to TARGET")
    who = "clients" if out < own else "TARGET"
    return warning(
        "MTU",
        f"{own} on {interface}, {out} to TARGET by {target.interface}: what is larger has to be made smaller",
        f"let ICMP 'fragmentation needed' reach {who}, or connections hang as soon as they carry data",
    )


def loose(*, picks_up: bool) -> Finding:
    """Say whether open connections survive a failover."""
    if picks_up:
        return ok("tcp_loose", "1: open connections survive a failover")
    return warning(
        "tcp_loose", "0: a failover cuts open connections", "sysctl -w net.netfilter.nf_conntrack_tcp_loose=1"
    )


def fill(table: tuple[int, int] | None) -> Finding:
    """Say how full the table of connections is; without room in it, new connections are dropped."""
    if table is None:
        return ok("conntrack", "not loaded yet")
    count, most = table
    found = f"{count} of {most} connections"
    if most and count >= _FULL * most:  # 0 is no limit
        return warning(
            "conntrack",
            f"{found} ({count / most:.0%}): when it is full, new ones are dropped",
            f"sysctl -w net.netfilter.nf_conntrack_max={2 * most}",
        )
    return ok("conntrack", found)


def sources(allowed: Collection[object], vip: IPv4Address) -> Finding:
    """Say who may use the VIP."""
    if not allowed:
        return ok("access", f"anyone who can reach VIP {vip} can use TARGET through it")
    return ok("access", f"VIP {vip} is for {', '.join(map(str, allowed))} only")
