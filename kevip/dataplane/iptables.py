"""The rules in iptables: their text, what is read back of it, and which of its two back ends this host uses.

Each table has a chain of ours per VIP, reached by a jump from position 1 of the built-in chain: a masquerade of
somebody else's (a CNI, Docker) that came before ours would give TARGET the node's address. Only what is accepted in
FORWARD stands last. Every rule carries the comment ``kevip:VIP``; that mark and the chain names are all that a clean-up
needs to know.

"Saved" is what ``iptables-save`` prints; rules of it are told as it has them, after their table's name.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from socket import IPPROTO_UDP
from typing import Literal

from kevip.dataplane.backend import Changes
from kevip.dataplane.rules import OPENS, Inlet, Part, Parts, Proxy, Rule
from kevip.errors import HostError, KevipError
from kevip.host import command, nfnetlink

Kind = Literal["nft", "legacy"]
KINDS: tuple[Kind, ...] = ("nft", "legacy")

_WAIT = "--wait=4"  # seconds for another program's xtables lock: less than the watchdog does; nft has no lock
_TABLES = ("mangle", "filter", "nat")
_LEGACY_TABLES = Path("/proc/net/ip_tables_names")
_KUBERNETES = (":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY ")  # a kubelet makes them for others to find (KEP-3178)

_CHAINS = {Part.GUARD: "GUARD", Part.REFUSE: "IN", Part.SHIELD: "SYNC", Part.DNAT: "DNAT", Part.SNAT: "SNAT"}
_NAMES = (*_CHAINS.values(), "FWD")  # the last one was made by 0.1.0
_UNEXPECTED = "-m conntrack --ctstate NEW,INVALID,UNTRACKED"  # what belongs to no connection here


@dataclass(frozen=True, slots=True)
class Iptables:
    """One of the two, and what its programs begin with: ``iptables-nft``, ``iptables-legacy``, a lone ``iptables``."""

    name: str
    kind: Kind

    priorities = (nfnetlink.DSTNAT, nfnetlink.SRCNAT)

    def save(self, vip: IPv4Address | None = None, *, counters: bool = False, run: command.Runner | None = None) -> str:
        """Return all rules as ``iptables-save`` prints them; raises CommandError, HostError if it cannot read some."""
        del vip
        saved = (run or command.run_now)([f"{self.name}-save", *(["--counters"] if counters else [])])
        if unreadable := [table for table in _TABLES if f"# Table `{table}' is incompatible" in saved]:
            raise HostError(
                f"{self.name} cannot read {' and '.join(unreadable)}: rules made with nft are in there; "
                "keep them in a table of their own (nft list ruleset shows them)"
            )
        return saved

    def drops(self, name: str, chains: Sequence[nfnetlink.Chain]) -> bool:
        """Whether the policy of a chain of filter is to drop; ``chains`` are nftables'. Raises as ``save`` does."""
        if self.kind == "nft":
            return any(chain.drops and chain.path == f"ip filter {name}" for chain in chains)
        return "filter" in legacy_tables() and policy(self.save(), "filter", name) == "DROP"

    def translates(self) -> bool:
        """Whether others than kevip have rules in nat; raises as ``save`` does."""
        if self.kind == "legacy" and "nat" not in legacy_tables():
            return False
        rules = _tables(self.save()).get("nat", [])
        return any(line.startswith("-A ") and not _owner(line) for line in rules)

    def setup(self, proxy: Proxy, parts: Parts) -> str:
        """Return the text that installs all rules. To be applied where none of them is: a jump would be doubled."""
        return self._text(proxy, parts, "")

    def size(self, proxy: Proxy, parts: Parts) -> int:
        """Return how many ``rules`` there are when all are there."""
        return sum(line.startswith(("-A", "-I")) for line in self.setup(proxy, parts).splitlines())

    def standby(self) -> command.Standby:
        """Return what applies a text, a table at a time, and leaves all other rules alone."""
        return command.Standby(self._restore())

    def _restore(self) -> list[str]:
        return [f"{self.name}-restore", "--noflush", _WAIT]

    def repair(self, proxy: Proxy, parts: Parts, saved: str) -> None:
        """Replace what is saved of our rules, in one transaction per table; raises CommandError."""
        command.run_now(self._restore(), stdin=self._text(proxy, parts, saved))

    def _text(self, proxy: Proxy, parts: Parts, saved: str) -> str:
        tables, vip = _tables(saved), proxy.vip
        wanted = {chain.name for chain in _chains(proxy, parts)}
        text = ""
        for table in _TABLES:
            lines = tables.get(table, [])
            needless = [name for name in _names(lines, vip) if name not in wanted]
            removal = [
                *_deletions(lines, vip),
                *(f"-F {name}" for name in needless),
                *(f"-X {name}" for name in needless),
            ]
            text += _block(table, [*removal, *_table(proxy, parts, table)])
        return text

    def remove(self, vip: IPv4Address, saved: str, changes: Changes = nullcontext) -> bool:
        """Disarm all rules of the VIP that are saved, then delete its chains; raises KevipError.

        These are two steps, for the kernel refuses to delete a chain that somebody else jumps to.
        """
        disarm, delete = teardown(saved, vip)
        if disarm:
            with changes():
                command.run_now(self._restore(), stdin=disarm)
        if delete:
            try:
                with changes():
                    command.run_now(self._restore(), stdin=delete)
            except command.CommandError as error:
                raise KevipError(*error.problems, f"empty chains of {vip} stay: a rule of others jumps there") from None
        return bool(disarm)

    def rules(self, saved: str) -> dict[IPv4Address, list[Rule]]:
        """Return our rules by VIP, those in our chains and those with our mark."""
        found: dict[IPv4Address, list[Rule]] = {}
        for table, line in _rules(saved):
            if "KEVIP-" not in line and "kevip:" not in line:
                continue  # there may be a hundred thousand of others
            packets, octets, text = _COUNTED.fullmatch(line).groups("0")  # type: ignore[union-attr]  # any line
            if vip := _owner(text):
                rule = Rule(text=f"{table} {text}", part=_part(text), packets=int(packets), bytes=int(octets))
                found.setdefault(vip, []).append(rule)
        return found

    def misplaced(self, vip: IPv4Address, saved: str) -> Iterator[str]:
        """Say where rules of others come before our jump, or behind what lets pass; those of other VIPs may."""
        yield from (f"{chain}: others before our jump" for chain in overtaken(saved, vip))
        for name in OPENS.values():
            chain = [line for line in _tables(saved).get("filter", []) if line.startswith(f"-A {name} ")]
            ours = [number for number, line in enumerate(chain) if _owner(line) == vip and line.endswith("ACCEPT")]
            if ours and any(not _owner(line) for line in chain[ours[0] :]):
                yield f"filter {name}: others behind our rule"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chain:
    """A chain of ours: its table, its name, the built-in chains that jump to it, and its rules."""

    table: str
    name: str
    hooks: tuple[str, ...]
    rules: tuple[str, ...]


def _name(part: Part, vip: IPv4Address) -> str:
    """Return the name of our chain for a part. The kernel allows 28 characters; the longest address leaves 13."""
    return f"KEVIP-{_CHAINS[part]}-{vip}"


def _mark(vip: IPv4Address) -> str:
    return f"-m comment --comment kevip:{vip}"


def _match(inlet: Inlet) -> str:
    ends = {"-i": inlet.interface, "-s": inlet.source, "-d": inlet.destination}
    kind = "udp" if inlet.protocol == IPPROTO_UDP else "tcp"
    port = f" -m {kind} --dport {inlet.port}" if inlet.port else ""
    return " ".join([*(f"{end} {each}" for end, each in ends.items() if each), f"-p {inlet.protocol}{port}"])


def _translated(vip: IPv4Address) -> str:
    return f"-m conntrack --ctstate DNAT --ctorigdst {vip}"


def _local(vip: IPv4Address) -> str:
    return f"-d {vip} -m addrtype --dst-type LOCAL"


def _chains(proxy: Proxy, parts: Parts) -> Iterator[_Chain]:
    vip = proxy.vip
    if Part.GUARD in parts:
        yield _Chain(table="mangle", name=_name(Part.GUARD, vip), hooks=("PREROUTING",), rules=tuple(_guards(proxy)))
    if Part.REFUSE in parts and proxy.limited:
        rests = [f"{_local(each)} {_UNEXPECTED}" for each in proxy.limited]
        refusals = ("-p tcp -j REJECT --reject-with tcp-reset", "-j REJECT")
        rules = tuple(f"{rest} {refusal}" for rest in rests for refusal in refusals)
        yield _Chain(table="filter", name=_name(Part.REFUSE, vip), hooks=("INPUT",), rules=rules)
    if Part.SHIELD in parts and (channel := proxy.channel):
        peers = tuple(f"{_match(inlet)} -j RETURN" for inlet in channel.inlets)
        rest = f"-p udp -m udp --dport {channel.port} -j DROP"
        yield _Chain(table="filter", name=_name(Part.SHIELD, vip), hooks=("INPUT",), rules=(*peers, rest))
    if Part.DNAT in parts:
        yield _Chain(
            table="nat",
            name=_name(Part.DNAT, vip),
            hooks=("PREROUTING", "OUTPUT") if proxy.allows_itself else ("PREROUTING",),
            rules=tuple(_dnats(proxy)),
        )
    if Part.SNAT in parts:
        snats = tuple(f"{_translated(each)} -j SNAT --to-source {proxy.source or each}" for each in proxy.vips)
        yield _Chain(table="nat", name=_name(Part.SNAT, vip), hooks=("POSTROUTING",), rules=snats)


def _dnats(proxy: Proxy) -> Iterator[str]:
    """Yield the rules that send connections to targets: those of ports first, which have no rule of their own else."""
    for each in sorted(proxy.routes, key=lambda each: not each.ports):
        to = f"-j DNAT --to-destination {each.target}{f':{each.port}' if each.port else ''}"
        for ports in (each.ports,) if each.ports else proxy.ports or (None,):
            port = f" -p {ports.protocol} -m {ports.protocol} --dport {ports.first}:{ports.last}" if ports else ""
            yield f"{_local(each.vip)}{port} {to}"


def _guards(proxy: Proxy) -> Iterator[str]:
    """Yield the rules that drop what opens no connection that we want, or belongs to none."""
    for target, vip in proxy.returns:
        yield f"-s {target} {_local(vip)} -m conntrack --ctstate NEW,INVALID -j DROP"
    if proxy.sources:
        for vip in proxy.vips:
            alone = len(proxy.vips) == 1
            yield from [f"! -d {vip} -j RETURN"] if alone else ()
            yield from (f"-s {network}{'' if alone else f' -d {vip}'} -j RETURN" for network in proxy.sources)
            yield f"{_local(vip)} {_UNEXPECTED} -j DROP"


def _table(proxy: Proxy, parts: Parts, table: str) -> Iterator[str]:
    mark, chains = _mark(proxy.vip), [chain for chain in _chains(proxy, parts) if chain.table == table]
    for chain in chains:
        yield f":{chain.name} - [0:0]"
    for chain in chains:
        for rule in chain.rules:
            match, _, action = rule.rpartition("-j ")
            yield f"-A {chain.name} {match}{mark} -j {action}"
        for hook in chain.hooks:
            yield f"-I {hook} 1 {mark} -j {chain.name}"
    yield from (rule for place, rule in _among_others(proxy, parts) if place == table)


def _among_others(proxy: Proxy, parts: Parts) -> Iterator[tuple[str, str]]:
    """Yield the rules in built-in chains, with their tables."""
    mark = _mark(proxy.vip)
    translated = [_translated(each) for each in (proxy.targets if Part.REWRITE in parts else proxy.vips)]
    if Part.FORWARD in parts:
        yield from (("mangle", f"-I FORWARD 1 {each} {mark}") for each in translated)
    if Part.ACCEPT in parts:
        yield from (("filter", f"-A FORWARD {each} {mark} -j ACCEPT") for each in translated)
    if Part.HEAR in parts:
        yield from (("filter", f"-A INPUT {_match(inlet)} {mark} -j ACCEPT") for inlet in proxy.inlets)
    if Part.MASQUERADE in parts:
        yield "nat", f"-A POSTROUTING {mark} -j MASQUERADE"


def teardown(saved: str, vip: IPv4Address) -> tuple[str, str]:
    """Return two texts, "" if there is nothing to do: to disarm every rule of this VIP, and to delete its chains."""
    disarm = delete = ""
    for table, lines in _tables(saved).items():
        chains = _names(lines, vip)
        disarm += _block(table, [*_deletions(lines, vip), *(f"-F {chain}" for chain in chains)])
        delete += _block(table, [f"-X {chain}" for chain in chains])
    return disarm, delete


def _names(lines: list[str], vip: IPv4Address) -> list[str]:
    """Return the chains of ours that are saved."""
    names = {f":KEVIP-{name}-{vip}" for name in _NAMES}
    return [name.removeprefix(":") for line in lines if (name := line.partition(" ")[0]) in names]


def _block(table: str, lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in (f"*{table}", *lines, "COMMIT")) if lines else ""


def _deletions(lines: list[str], vip: IPv4Address) -> list[str]:
    """Return what deletes our rules in chains of others, by their own wording."""
    return [f"-D{line[2:]}" for line in lines if line.startswith("-A ") and _owner(line) == vip and not _chain(line)]


def legacy_tables() -> list[str]:
    """Return the tables of iptables-legacy that are in use, be it with no rules."""
    try:
        return _LEGACY_TABLES.read_text().split()
    except OSError:  # not even one of them is
        return []


# What is saved


def _tables(saved: str) -> dict[str, list[str]]:
    """Return the lines of each table."""
    found = re.findall(r"^\*(\w+)$(.*?)^COMMIT$", saved, re.MULTILINE | re.DOTALL)
    return {table: body.splitlines() for table, body in found}


def _rules(saved: str) -> Iterator[tuple[str, str]]:
    """Yield each rule after its table, with its counters, if it has any."""
    for table, lines in _tables(saved).items():
        yield from ((table, line) for line in lines if line.startswith(("-A ", "[")))


_COUNTED = re.compile(r"(?:\[(\d+):(\d+)\] )?(.*)")
_ADDRESS = r"(\d{1,3}(?:\.\d{1,3}){3})"
_IN_CHAIN = re.compile(rf"-A KEVIP-([A-Z]+)-{_ADDRESS} ")
_MARKED = re.compile(rf'--comment (?P<quote>"?)kevip:{_ADDRESS}(?P=quote)(?: |$)')


def _chain(rule: str) -> str:
    """Return which chain of ours a rule is in, if it is in one."""
    found = _IN_CHAIN.match(rule)
    return found[1] if found and found[1] in _NAMES else ""


@cache
def _address(text: str) -> IPv4Address | None:
    try:
        return IPv4Address(text)
    except AddressValueError:
        return None


def _owner(rule: str) -> IPv4Address | None:
    """Return the VIP that a rule is for, if it is one of ours: in our chain, or with our mark, quoted or not."""
    if _chain(rule) and (found := _IN_CHAIN.match(rule)):
        return _address(found[2])
    marked = _MARKED.search(rule) if "kevip:" in rule else None
    return _address(marked[2]) if marked else None


def _part(rule: str) -> Part | None:
    if " -j " not in rule:
        return Part.FORWARD
    action = rule.rpartition(" -j ")[2].split()[0]
    if action.startswith("KEVIP-") or action == "RETURN":
        return None
    if chain := _chain(rule):
        return next((part for part, name in _CHAINS.items() if name == chain), Part.ACCEPT)
    if action == "ACCEPT":
        return Part.HEAR if rule.startswith("-A INPUT ") else Part.ACCEPT
    return Part.MASQUERADE


def others(saved: str, vip: IPv4Address) -> list[str]:
    """Return all rules but ours, after their table's name."""
    return [f"{table} {line}" for table, line in _rules(saved) if _owner(line) != vip]


def overtaken(saved: str, vip: IPv4Address) -> Iterator[str]:
    """Yield the chains in which rules of others come before our jump; those of other VIPs may."""
    names = {_name(part, vip) for part in _CHAINS}
    foreign: set[tuple[str, str]] = set()
    for table, line in _rules(saved):
        chain, action = line.split()[1], line.rpartition(" -j ")[2]
        if action in names and (table, chain) in foreign:
            yield f"{table} {chain}"
        elif not action.startswith("KEVIP-"):
            foreign.add((table, chain))


def policy(saved: str, table: str, chain: str) -> str | None:
    """Return the policy of a built-in chain, None if its table is not in use."""
    lines = _tables(saved).get(table, [])
    return next((line.split()[1] for line in lines if line.startswith(f":{chain} ")), None)


# Which of the two


def installed() -> dict[Kind, Iptables]:
    """Return those that have programs on this host. A lone ``iptables`` says itself which one it is."""
    found: dict[Kind, Iptables] = {
        kind: Iptables(f"iptables-{kind}", kind) for kind in KINDS if command.find(f"iptables-{kind}-restore")
    }
    if not found and command.find("iptables-restore") and (kind := default()):
        found[kind] = Iptables("iptables", kind)
    return found


def default() -> Kind | None:
    """Return which one plain ``iptables`` stands for on this host, None without it; raises CommandError."""
    if not command.find("iptables"):
        return None
    return "nft" if "nf_tables" in command.run(["iptables", "--version"]) else "legacy"


def choose(saved: Mapping[Kind, str], preset: Kind | None) -> tuple[Kind, str]:
    """Choose the one that the host uses, and say why.

    Rules in the other one would work, but not in the order that we count on. ``saved`` is each one's
    ``iptables-save``; ``preset`` is what plain ``iptables`` stands for.
    """
    for kind, text in saved.items():
        if any(chain in text for chain in _KUBERNETES):
            return kind, "the kubelet uses it"
    used = [kind for kind, text in saved.items() if "\n-A " in text]
    if len(used) == 1:
        return used[0], "it has rules"
    if preset and preset in saved:
        return preset, "it is this host's default"
    return next(iter(saved)), "it is the only one that works"
