"""What becomes of packets on their way: TARGET and its route, and what the kernel does."""

import errno
import os
from collections.abc import Collection, Iterator, Sequence
from ipaddress import IPv4Address

from kevip.check.report import Finding, failed, ok, warning
from kevip.health.ask import Answer, Check
from kevip.host.kubernetes import CILIUM, CILIUM_ADVICE, Mode
from kevip.host.route import Route

_STRICT = 1  # as a reverse path filter
_FULL = 0.8  # how full the table of connections may be before it is told


def route(target: IPv4Address, way: Route) -> Finding:
    """Say which way packets for TARGET go."""
    if way.local:
        return ok("route", f"TARGET {target} is on this host")
    return ok("route", f"TARGET {target} by {way.interface}{f', gateway {way.gateway}' if way.gateway else ''}")


def service(target: IPv4Address, mode: Mode | None, *, cilium: bool = False) -> Finding:
    """Say how a cluster-IP is handled; any other way than these is a problem that the start refuses."""
    if cilium:
        return warning("service", CILIUM, f"if TARGET {target} is a cluster-IP: {CILIUM_ADVICE}")
    if mode is None:
        return ok("service", f"TARGET {target} is no cluster-IP that this node knows of")
    if mode.translates:
        return ok("service", f"TARGET {target} is a cluster-IP, which kube-proxy translates, in {mode} mode")
    return ok("service", f"TARGET {target} is a cluster-IP, handled by {mode} with conntrack")


def redirects(interface: str) -> Finding:
    """Say that ICMP redirects cannot be switched off."""
    found = (
        f"ICMP redirects are on, for all interfaces, and /proc/sys is read-only here: of clients on {interface}, busy "
    )
    found += "ones may not hear that a UDP port is refused"
    return warning("redirects", found, "sysctl -w net.ipv4.conf.all.send_redirects=0 on the host")


def served(vip: IPv4Address, ports: Sequence[str]) -> Finding:
    """Say whether kube-proxy serves a VIP that is only held."""
    if ports:
        return ok("served", f"kube-proxy serves VIP {vip} on this node, at {', '.join(ports)}")
    found = f"kube-proxy serves VIP {vip} at no port on this node"
    advice = "list it in the status of a Service; with externalTrafficPolicy: Local, have a ready pod here"
    return warning("served", found, advice)


def answer(check: Check | None, target: IPv4Address | None, answer: Answer) -> Finding:
    """Say whether TARGET, or what serves a VIP that is only held, answered: what the settings ask, else a ping."""
    subject, question = target or "what serves the VIP here", check or "a ping"
    if not answer.problem:
        return ok("TARGET", f"{subject} answers {question} in {answer.seconds * 1000:.1f} ms")
    found = f"{subject} does not answer {question}: {answer.problem}"
    if check:
        return failed("TARGET", found, "see whether it is up, and whether it takes what comes from this host")
    return warning("TARGET", found, "if a firewall drops that, all is well; else see whether it is up")


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
        found = f"{mode} (strict) on {interface}: it drops {victim} if they arrive on {interface}"
        yield warning("rp_filter", found, f"sysctl -w net.ipv4.conf.{interface}.rp_filter=2")


def mtu(interface: str, own: int, target: Route, out: int) -> Finding:
    """Say whether packets may not fit the way on: ``own`` is the MTU on the VIP's side, ``out`` TARGET's."""
    if target.local:
        return ok("MTU", f"{own} on {interface}, and TARGET is on this host")
    if own == out:
        return ok("MTU", f"{own} on {interface} and to TARGET")
    who = "clients" if out < own else "TARGET"
    found = f"{own} on {interface}, {out} to TARGET by {target.interface}: what is larger has to be made smaller"
    advice = f"let ICMP 'fragmentation needed' reach {who}, or connections hang as soon as they carry data"
    return warning("MTU", found, advice)


def loose(*, picks_up: bool) -> Finding:
    """Say whether open connections survive a failover."""
    if picks_up:
        return ok("tcp_loose", "1: open connections survive a failover")
    advice = "sysctl -w net.netfilter.nf_conntrack_tcp_loose=1"
    return warning("tcp_loose", "0: a failover cuts open connections", advice)


def fill(table: tuple[int, int] | None) -> Finding:
    """Say how full the table of connections is; without room in it, new connections are dropped."""
    if table is None:
        return ok("conntrack", "not loaded yet")
    count, most = table
    found = f"{count} of {most} connections"
    if not most or count < _FULL * most:  # 0 is no limit
        return ok("conntrack", found)
    found += f" ({count / most:.0%}): when it is full, new ones are dropped"
    return warning("conntrack", found, f"sysctl -w net.netfilter.nf_conntrack_max={2 * most}")


def handoff(master: IPv4Address, port: int, answer: Answer) -> Finding:
    """Say whether a master's port for connections is reached: it refuses them while it does not leave."""
    if answer.problem in {"", os.strerror(errno.ECONNREFUSED)}:
        return ok("handoff", f"connections can be fetched from {master} when it leaves (TCP port {port})")
    found = f"{master}, TCP port {port}: {answer.problem}: in a planned move, silent connections will hang"
    return warning("handoff", found, f"let TCP port {port} in there, from the hosts of this group")


def sources(allowed: Collection[object], vip: IPv4Address) -> Finding:
    """Say who may use the VIP."""
    if not allowed:
        return ok("access", f"anyone who can reach VIP {vip} can use TARGET through it")
    return ok("access", f"VIP {vip} is for {', '.join(map(str, allowed))} only")
