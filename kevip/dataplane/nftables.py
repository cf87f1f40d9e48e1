"""The rules in nftables: one table of our own for each VIP, whose NAT comes before that of others.

Of all NAT chains of a hook, those of iptables among them, the one with the lowest priority translates; of those with
the same one, the last that was made. So ours have priorities below the usual ones. What a packet costs does not grow
with the number of networks and ports: they are in sets. "Saved" is what ``nft list table`` prints of our tables.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import AddressValueError, IPv4Address, IPv4Network

from kevip.dataplane import rewrite
from kevip.dataplane.backend import Changes
from kevip.dataplane.rules import Forward, Part, Parts, Ports, Proxy, Rule, rewriting
from kevip.host import command, nfnetlink

_NFT = ["nft", "-f", "-"]
PREFIX = "kevip-"
_AHEAD = 5  # how far our priorities are below the usual ones
_MANGLE, _FILTER = -150, 0
_UNEXPECTED = "ct state invalid,new,untracked"  # what belongs to no connection here

# What the rules of a chain are for; keywords, as "masquerade", are no names.
_PARTS = {
    "guard": Part.GUARD,
    "forward": Part.FORWARD,
    "refuse": Part.REFUSE,
    "shield": Part.SHIELD,
    "prerouting": Part.DNAT,
    "output": Part.DNAT,
    "postrouting": Part.SNAT,
    "leaving": Part.MASQUERADE,
    "admit": Part.GUARD,
    "stray": Part.GUARD,
    "rewrite": Part.REWRITE,
    "own": Part.REWRITE,
    "undone": Part.UNDONE,
    "unsent": Part.UNDONE,
}


@dataclass(frozen=True, slots=True)
class Nftables:
    """The rules of nftables itself."""

    name = "nftables"
    priorities = (nfnetlink.DSTNAT - _AHEAD, nfnetlink.SRCNAT - _AHEAD)

    def save(self, vip: IPv4Address | None = None, *, counters: bool = True) -> str:
        """Return our tables, or that of one VIP; raises CommandError. Counters are always there."""
        del counters
        try:
            return _listed(vip)
        except command.CommandError as error:
            if "No such file" not in error.stderr:
                raise
        return _listed(vip)  # a table went while it was to be listed

    def setup(self, proxy: Proxy, parts: Parts) -> str:
        """Return the text that makes the table of a VIP, in one transaction. Where it is, rules would be doubled.

        It deletes none in advance: the kernel would wait for a grace period, five times as long as all else takes.
        """
        blocks = "\n".join([*_sets(proxy, parts), *_chains(proxy, parts)])
        return f'table ip {PREFIX}{proxy.vip} {{\n\tcomment "kevip:{proxy.vip}"\n{blocks}\n}}\n'

    def size(self, proxy: Proxy, parts: Parts) -> int:
        """Return how many ``rules`` there are when all are there."""
        return len(list(_rules(self.setup(proxy, parts))))

    def standby(self) -> command.Standby:
        """Return what applies a text."""
        return command.Standby(_NFT)

    def repair(self, proxy: Proxy, parts: Parts, saved: str) -> None:
        """Replace the table in one transaction, also if it went meanwhile; raises CommandError."""
        del saved
        table = f"table ip {PREFIX}{proxy.vip}\n"
        command.run_now(_NFT, stdin=f"{table}delete {table}{self.setup(proxy, parts)}")

    def works(self) -> bool:
        """Whether program and kernel take such rules as ours."""
        somewhere, ports = IPv4Address("192.0.2.1"), Ports("tcp", 1, 2)
        networks, forwards = (IPv4Network(somewhere),), (Forward(somewhere, somewhere, ports, 1),)
        proxy = Proxy(vip=somewhere, target=somewhere, ports=(ports,), allow_from=networks, forwards=forwards)
        text = self.setup(proxy, proxy.parts) + self.setup(proxy, rewriting(proxy.parts))
        try:
            command.run_now([*_NFT, "--check"], stdin=text)
        except command.CommandError:
            return False
        return True

    def remove(self, vip: IPv4Address, saved: str, changes: Changes = nullcontext) -> bool:
        """Delete the table, if it is saved; raises CommandError."""
        if vip not in self.rules(saved):
            return False
        with changes():
            command.run_now(_NFT, stdin=f"delete table ip {PREFIX}{vip}\n")
        return True

    def rules(self, saved: str) -> dict[IPv4Address, list[Rule]]:
        """Return our rules by VIP, with what is in their sets, as a digest."""
        found: dict[IPv4Address, list[Rule]] = {}
        for table in re.findall(rf"^table ip {PREFIX}(.*?)^}}$", saved, re.MULTILINE | re.DOTALL):
            address, _, body = table.partition(" {\n")
            try:
                vip = IPv4Address(address)
            except AddressValueError:
                continue
            if f'comment "kevip:{vip}"' in body:
                found[vip] = list(_rules(body))
        return found

    def misplaced(self, vip: IPv4Address, saved: str) -> Iterator[str]:
        """Say nothing: a table of our own holds no rules of others."""
        del vip, saved
        yield from ()


def _listed(vip: IPv4Address | None) -> str:
    names = {chain.table for chain in nfnetlink.base_chains()}
    tables = sorted(names & {f"{PREFIX}{vip}"} if vip else filter(re.compile(PREFIX).match, names))
    return command.run_now(_NFT, stdin="".join(f"list table ip {each}\n" for each in tables)) if tables else ""


def _sets(proxy: Proxy, parts: Parts) -> Iterator[str]:
    if proxy.sources:
        yield _set("set sources", "ipv4_addr; flags interval; auto-merge", proxy.sources)
    if proxy.ports:
        ports = (f"{each.protocol} . {each.first}-{each.last}" for each in _merged(proxy.ports))
        yield _set("set ports", "inet_proto . inet_service; flags interval", ports)
    if len(proxy.vips) > 1:
        yield _set("set vips", "ipv4_addr", proxy.vips)
    if proxy.limited and proxy.limited != proxy.vips:
        yield _set("set limited", "ipv4_addr", proxy.limited)
    if len(proxy.returns) > 1:
        yield _set("set returns", "ipv4_addr . ipv4_addr", (f"{target} . {vip}" for target, vip in proxy.returns))
    if Part.UNDONE in parts:
        yield f"\tset {rewrite.REFUSED} {{\n\t\ttype {rewrite.REFUSED_TYPE}\n\t}}"
    if Part.DNAT in parts:
        yield from _maps(proxy)


def _maps(proxy: Proxy) -> Iterator[str]:
    """Yield where connections go, and what of them the maps hold, which no rule can ask a map."""
    for name, (kind, data) in _DESTINATIONS.items():
        if found := {key: to for each, key, to in _destinations(proxy) if each == name}:
            flags = "" if name == "whole" else "; flags interval"
            if flags or len(found) < len(proxy.vips):  # else it is all
                yield _set(f"set {name}", kind + flags, found)
            yield _set(f"map {_map(name)}", f"{kind} : {data}{flags}", [f"{key} : {to}" for key, to in found.items()])


_NAMED = "ipv4_addr . inet_proto . inet_service"
# How a connection finds its target: by address and port, with the target's port or its own; or by address alone.
_DESTINATIONS = {
    "mapped": (_NAMED, "ipv4_addr . inet_service"),
    "named": (_NAMED, "ipv4_addr"),
    "whole": ("ipv4_addr", "ipv4_addr"),
}


def _destinations(proxy: Proxy) -> Iterator[tuple[str, str, str]]:
    """Yield in which of the maps each forward is, under which key, and what it finds there."""
    for each in proxy.routes:
        if not each.ports:
            yield "whole", str(each.vip), str(each.target)
            continue
        key = f"{each.vip} . {each.ports.protocol} . {each.ports.first}-{each.ports.last}"
        yield ("mapped", key, f"{each.target} . {each.port}") if each.port else ("named", key, str(each.target))


def _map(name: str) -> str:
    return "targets" if name == "whole" else f"{name}_targets"


def refused(vip: IPv4Address) -> list[tuple[int, int]]:
    """Return the protocols and ports at which what was rewritten was refused lately; raises HostError."""
    return [(key[0], int.from_bytes(key[4:6])) for key in nfnetlink.keys(f"{PREFIX}{vip}", rewrite.REFUSED)]


def _merged(ports: Iterable[Ports]) -> Iterator[Ports]:
    """Yield them without overlaps, which a set of intervals refuses."""
    last: Ports | None = None
    for each in sorted(ports, key=lambda each: (each.protocol, each.first)):
        if last and last.protocol == each.protocol and each.first <= last.last:
            last = Ports(last.protocol, last.first, max(last.last, each.last))
            continue
        if last:
            yield last
        last = each
    if last:
        yield last


def _set(name: str, kind: str, elements: Iterable[object]) -> str:
    return f"\t{name} {{\n\t\ttype {kind}\n\t\telements = {{ {', '.join(map(str, elements))} }}\n\t}}"


def _local(vips: Sequence[IPv4Address], name: str) -> str:
    """Return what matches packets to one of these while it is an address of this host."""
    return f"ip daddr {vips[0] if len(vips) == 1 else f'@{name}'} fib daddr type local"


def _chains(proxy: Proxy, parts: Parts) -> Iterator[str]:
    local, of_vips = _local(proxy.vips, "vips"), proxy.vip if len(proxy.vips) == 1 else "@vips"
    rewrites = Part.REWRITE in parts
    translated = rewrite.tag(proxy.vip) if rewrites else f"ct status dnat ct original ip daddr {of_vips}"
    if Part.GUARD in parts:
        answers = f"ip saddr {proxy.targets[0]}" if len(proxy.returns) == 1 else "ip saddr . ip daddr @returns"
        guards = [] if rewrites else [f"{answers} {local} ct state invalid,new counter drop"]
        guards += [f"{local} {_UNEXPECTED} ip saddr != @sources counter drop"] if proxy.sources else []
        yield from [_chain("guard", "filter hook prerouting", _MANGLE - _AHEAD, *guards)] if guards else []
    if Part.FORWARD in parts:
        yield _chain("forward", "filter hook forward", _MANGLE - _AHEAD, f"{translated} counter")
    yield from _inputs(proxy, parts)
    if Part.MASQUERADE in parts:  # behind the rules of others, as it is in iptables
        yield _chain("leaving", "nat hook postrouting", nfnetlink.SRCNAT + _AHEAD, "counter masquerade")
    if rewrites:
        ports, srcnat = list(_merged(proxy.ports)), Nftables.priorities[1]
        for each in rewrite.chains(proxy, parts, ports, srcnat):
            yield _chain(each.name, each.hook, each.priority, *each.rules)
    else:
        yield from _translating(proxy, parts, local, translated)


def _translating(proxy: Proxy, parts: Parts, local: str, translated: str) -> Iterator[str]:
    dstnat, srcnat = Nftables.priorities
    if Part.DNAT in parts:
        dnats = list(_dnats(proxy, local))
        for hook in ("prerouting", "output") if proxy.allows_itself else ("prerouting",):
            yield _chain(hook, f"nat hook {hook}", dstnat, *dnats)
    if Part.SNAT in parts:
        same = proxy.vip if len(proxy.vips) == 1 else "ct original ip daddr"
        yield _chain(
            "postrouting", "nat hook postrouting", srcnat, f"{translated} counter snat to {proxy.source or same}"
        )


def _dnats(proxy: Proxy, local: str) -> Iterator[str]:
    """Yield the rules that send connections to targets: those of ports first."""
    wanted, key = Counter(name for name, _, _ in _destinations(proxy)), "ip daddr . meta l4proto . th dport"
    if "mapped" in wanted:  # nft wants to see a protocol that has ports
        to = f"meta l4proto {{ tcp, udp }} counter dnat ip to {key} map @{_map('mapped')}"
        yield f"{local} {key} @mapped {to}"
    if "named" in wanted:
        yield f"{local} {key} @named counter dnat to {key} map @{_map('named')}"
    if "whole" in wanted:
        ports = "meta l4proto . th dport @ports " if proxy.ports else ""
        some = "" if wanted["whole"] == len(proxy.vips) else "ip daddr @whole "
        yield f"{local} {some}{ports}counter dnat to ip daddr map @{_map('whole')}"


def _inputs(proxy: Proxy, parts: Parts) -> Iterator[str]:
    if Part.REFUSE in parts and (limited := proxy.limited):
        local = _local(limited, "vips" if limited == proxy.vips else "limited")
        reset = f"{local} {_UNEXPECTED} meta l4proto tcp counter reject with tcp reset"
        rest = f"{local} {_UNEXPECTED} counter reject"
        yield _chain("refuse", "filter hook input", _FILTER - _AHEAD, *rewrite.pings(local, parts), reset, rest)
    if Part.SHIELD in parts and (channel := proxy.channel):
        heard, peers = f"udp dport {channel.port}", ", ".join(map(str, channel.peers))
        strangers = [f'{heard} iifname != "{channel.interface}" counter drop']
        strangers += [f"{heard} ip saddr != {{ {peers} }} counter drop"] if peers else []
        yield _chain("shield", "filter hook input", _FILTER - _AHEAD, *strangers)


def _chain(name: str, kind: str, priority: int, *rules: str) -> str:
    head = f"\tchain {name} {{\n\t\ttype {kind} priority {priority}; policy accept;\n"
    return head + "".join(f"\t\t{rule}\n" for rule in rules) + "\t}"


def _rules(body: str) -> Iterator[Rule]:
    """Yield the rules in a table, after their chains' names, and a digest of what is in each set."""
    for kind, name, block in re.findall(r"^\t(chain|set|map) (\w+) {\n(.*?)^\t}$", body, re.MULTILINE | re.DOTALL):
        if name == rewrite.REFUSED:  # the kernel's
            continue
        if kind != "chain":
            digest = sha256(block.encode()).hexdigest()
            yield Rule(text=f"{kind} {name} {digest[:16]}", part=None)
            continue
        for line in block.splitlines()[1:]:
            counted = _COUNTERS.search(line)  # somebody else's rule may have none
            packets, octets = counted.groups() if counted else (0, 0)
            text = f"{name} {_COUNTERS.sub('counter', line.strip())}"
            yield Rule(text=text, part=_PARTS.get(name), packets=int(packets), bytes=int(octets))


_COUNTERS = re.compile(r"counter packets (\d+) bytes (\d+)")
