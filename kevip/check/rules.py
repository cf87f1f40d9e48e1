"""Packet filter rules of others that stand in the way, from what ``iptables-save`` and ``nft`` print."""

import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address

from kevip.check.finding import Finding, ok, warning
from kevip.dataplane.iptables import others, overtaken, policy
from kevip.host.nftables import Chain

_SHOWN = 3
"""Rules of others that are shown; there may be thousands."""

_IPTABLES_CHAIN = ("ip", "filter", "FORWARD")
"""What iptables-nft makes, and shows, itself."""


def forwarding(saved: Mapping[str, str], chosen: str, chains: Sequence[Chain]) -> Iterator[Finding]:
    """Say what may drop forwarded packets: our rule accepts in the FORWARD chain of our back end, and nowhere else.

    ``chains`` are those of nftables, of iptables-nft among them.
    """
    policies = {prefix: policy(text, "filter", "FORWARD") or "ACCEPT" for prefix, text in saved.items()}
    droppers = [f"FORWARD of {prefix}" for prefix, what in policies.items() if what == "DROP" and prefix != chosen]
    droppers += [
        f"chain {chain.name} of nftables table {chain.family} {chain.table}"
        for chain in chains
        if chain.drops and (chain.family, chain.table, chain.name) != _IPTABLES_CHAIN
    ]
    for dropper in droppers:
        yield warning(
            "FORWARD",
            f"the policy of {dropper} is to drop, and our rule is not in there",
            "accept there what is DNATed",
        )
    if not droppers:
        own = policies.get(chosen, "ACCEPT")
        yield ok(
            "FORWARD", f"policy {own}" if own == "ACCEPT" else f"policy {own}: our rule accepts what goes to TARGET"
        )


def postrouting(saved: str, vip: IPv4Address, *, runs: bool) -> Finding:
    """Say whether rules of others come before ours, if kevip runs here; what a killed one left does nothing."""
    if runs and "nat POSTROUTING" in overtaken(saved, vip):
        return warning(
            "POSTROUTING",
            "others' rules stand before ours: TARGET may not see the VIP as the source",
            "kevip repairs that in seconds; if it comes back, see who inserts them (Calico: chainInsertMode: Append)",
        )
    foreign = [rule for rule in others(saved, vip) if rule.startswith("nat -A POSTROUTING ") and "KEVIP-" not in rule]
    if not foreign:
        return ok("POSTROUTING", "no rules of others")
    return ok("POSTROUTING", f"{len(foreign)} of others: a master puts its own before them")


def matching(saved: Mapping[str, str], vip: IPv4Address) -> Iterator[Finding]:
    """Say which rules of others match the VIP."""
    pattern = re.compile(rf" (-[sd] {re.escape(str(vip))}/32|--to-(destination|source) {re.escape(str(vip))})( |$)")
    found = [
        f"{prefix}: {rule}" for prefix, text in saved.items() for rule in others(text, vip) if pattern.search(rule)
    ]
    for rule in found[:_SHOWN]:
        yield warning("other rules", f"a rule of others matches the VIP, in {rule}", "remove it, or take another VIP")
    if len(found) > _SHOWN:
        yield warning("other rules", f"and {len(found) - _SHOWN} more", "iptables-save shows them")
    if not found:
        yield ok("other rules", f"none of others matches VIP {vip}")
