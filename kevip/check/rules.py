"""Packet filter rules of others that stand in the way, from what ``iptables-save`` and ``nft`` print."""

import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address

from kevip.check.report import Finding, ok, warning
from kevip.dataplane.backend import Backend
from kevip.dataplane.iptables import others, overtaken, policy
from kevip.dataplane.nftables import Nftables
from kevip.dataplane.select import ahead, closed, strangers
from kevip.host.kubernetes import nftables_ports
from kevip.host.nfnetlink import Chain

_SHOWN = 3  # rules of others that are shown; there may be thousands
_OF_IPTABLES = "ip filter FORWARD"  # what iptables-nft makes, and shows, itself
_REFUSES = re.compile(r"^-A INPUT -j (DROP|REJECT)\b", re.MULTILINE).search
_LETS_IN = re.compile(r"^-A \S+ (.* )?-p (112|vrrp|carp) .*-j ACCEPT$", re.MULTILINE).search


def forwarding(saved: Mapping[str, str], vip: IPv4Address, chains: Sequence[Chain]) -> Iterator[Finding]:
    """Say what may drop forwarded packets: ours are accepted in the FORWARD chains of iptables, and nowhere else.

    ``chains`` are the base chains of nftables, those of iptables-nft among them.
    """
    closed = [name for name, text in saved.items() if policy(text, "filter", "FORWARD") == "DROP"]
    dropping = [each for each in chains if each.hook == "forward" and each.drops]
    droppers = [each for each in dropping if each.path != _OF_IPTABLES or not closed]
    for each in droppers:
        yield warning(
            "FORWARD",
            f"the policy of {each} is to drop, and no rule of ours can be in there",
            f"nft insert rule {each.path} ct status dnat ct original ip daddr {vip} accept",
        )
    if not droppers:
        found = f"policy DROP in {' and '.join(closed)}: a master accepts what goes to TARGET, last of all"
        yield ok("FORWARD", found if closed else "policy ACCEPT")


def hearing(saved: Mapping[str, str], chains: Sequence[Chain]) -> Iterator[Finding]:
    """Say whether INPUT lets adverts in, which keepalived hears behind it: where the policy is to drop, kevip does."""
    dropping = [name for name, text in saved.items() if policy(text, "filter", "INPUT") == "DROP"]
    refusing = [name for name, text in saved.items() if _REFUSES(text) and not _LETS_IN(text)]
    for name in refusing:
        yield warning(
            "INPUT",
            f"{name} refuses what no rule accepts, and none lets IP protocol 112 in: keepalived may hear no master",
            f"{name} -I INPUT -p 112 -j ACCEPT, or what does that in your firewall",
        )
    droppers = closed(chains)
    for each in droppers:
        yield warning(
            "INPUT",
            f"the policy of {each} is to drop: keepalived may hear no master",
            f"if it has no such rule: nft insert rule {each.path} ip protocol 112 accept",
        )
    if not (refusing or droppers):
        found = f"policy DROP in {' and '.join(dropping)}: kevip lets adverts in, last of all"
        yield ok("INPUT", found if dropping else "nothing is seen that keeps adverts from keepalived")


def translating(backend: Backend, chains: Sequence[Chain], *, movable: bool) -> Iterator[Finding]:
    """Say which others translate in nftables, and whether before our rules, which can move there if ``nft`` is here."""
    first, last = ahead(backend, chains), max(backend.priorities)
    for each in first:
        advice = "leave --dataplane at auto, and have nft installed: apt-get install nftables"
        yield warning(
            "NAT",
            f"{each} translates before the rules in {backend.name}: TARGET may not see the VIP",
            f"give it a priority above {last}" if backend.name == Nftables.name else advice,
        )
    if not first:
        names = ", ".join(sorted({each.origin for each in strangers(chains)}))
        found = f"behind our rules: {names}" if names else "nobody else translates in nftables"
        lacks = "" if movable else "; without nft, kevip could not go before one that comes: apt-get install nftables"
        yield ok("NAT", found + lacks)


def sources(tracked: int, wrong: int) -> Finding:
    """Say whether TARGET sees the VIP, by what the kernel has recorded of connections: no rule can tell as much."""
    if not wrong:
        return ok("source", f"TARGET sees the VIP, in {tracked} tracked connection{'s' * (tracked != 1)}")
    return warning(
        "source",
        f"{wrong} of {tracked} tracked connections do not have the VIP as the source that TARGET sees",
        "see who else translates (NAT, POSTROUTING); those that are open stay as they are until they end",
    )


def postrouting(saved: str, vip: IPv4Address, *, runs: bool) -> Finding:
    """Say whether rules of others come before ours, if kevip runs here; what a killed one left does nothing."""
    if runs and "nat POSTROUTING" in overtaken(saved, vip):
        found = "others' rules stand before ours: TARGET may not see the VIP as the source"
        advice = "kevip repairs that in seconds; if it comes back, see who inserts them"
        return warning("POSTROUTING", found, f"{advice} (Calico: chainInsertMode: Append)")
    foreign = [rule for rule in others(saved, vip) if rule.startswith("nat -A POSTROUTING ") and "KEVIP-" not in rule]
    if not foreign:
        return ok("POSTROUTING", "no rules of others")
    return ok("POSTROUTING", f"{len(foreign)} of others: a master puts its own before them")


def matching(saved: Mapping[str, str], vips: Sequence[IPv4Address]) -> Iterator[Finding]:
    """Say which rules of others match a VIP of a group."""
    vip, address = vips[0], f"({'|'.join(re.escape(str(each)) for each in vips)})"
    matches = re.compile(rf" (-[sd] {address}/32|--to-(destination|source) {address})( |$)").search
    found = [f"{prefix}: {rule}" for prefix, text in saved.items() for rule in others(text, vip) if matches(rule)]
    for rule in found[:_SHOWN]:
        yield warning("other rules", f"a rule of others matches the VIP, in {rule}", "remove it, or take another VIP")
    if len(found) > _SHOWN:
        yield warning("other rules", f"and {len(found) - _SHOWN} more", "iptables-save shows them")
    services = {each: ports for each in vips if (ports := nftables_ports(each))}
    for each, ports in services.items():
        there = (
            f"kube-proxy serves VIP {each} for a Service, at {', '.join(ports)} (map service-ips of its nftables table)"
        )
        advice = "take the VIP out of that Service (status, externalIPs), or take another one"
        yield warning("other rules", there, advice)
    if not found and not services:
        more = f", nor one of {len(vips) - 1} more" if len(vips) > 1 else ""
        yield ok("other rules", f"none of others matches VIP {vip}{more}")
