"""The rules in iptables: their text, what is read back of it, and which of its two back ends this host uses.

Each table has a chain of ours per VIP, reached by a jump from position 1 of the built-in chain: a masquerade of
somebody else's (a CNI, Docker) that came before ours would give TARGET the node's address. Every rule carries the
comment ``kevip:VIP``; that mark and the chain names are all that a clean-up needs to know.

"Saved" is what ``iptables-save`` prints; rules of it are told as it has them, after their table's name.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from ipaddress import AddressValueError, IPv4Address
from typing import Literal

from kevip.dataplane.rules import Part, Proxy
from kevip.errors import HostError
from kevip.host import command

Backend = Literal["nft", "legacy"]
BACKENDS: tuple[Backend, ...] = ("nft", "legacy")

_WAIT = "--wait=4"
"""Seconds to wait for another program's xtables lock: less than the watchdog does. The nft back end has no lock."""

_TABLES = ("mangle", "filter", "nat")

_KUBERNETES = (":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY ")
"""Chains that a kubelet makes in the back end that the host uses, for others to find (KEP-3178)."""


@dataclass(frozen=True, slots=True)
class Iptables:
    """One back end, by the name that its programs begin with: ``iptables-nft``, ``iptables-legacy``, ``iptables``."""

    prefix: str

    def save(self, run: command.Runner = command.run, *, counters: bool = False) -> str:
        """Return all rules as ``iptables-save`` prints them; raises CommandError, HostError if it cannot read some."""
        saved = run([f"{self.prefix}-save", *(["--counters"] if counters else [])])
        if unreadable := [table for table in _TABLES if f"# Table `{table}' is incompatible" in saved]:
            raise HostError(
                f"{self.prefix} cannot read {' and '.join(unreadable)}: rules made with nft are in there; "
                "keep them in a table of their own (nft list ruleset shows them)"
            )
        return saved

    def apply(self, text: str) -> None:
        """Apply ``iptables-restore`` text, a table at a time, leaving all other rules alone; raises CommandError."""
        command.run_now(self._restore(), stdin=text)

    def standby(self) -> command.Standby:
        """Return what applies a text as ``apply`` does, and can be started in advance."""
        return command.Standby(self._restore())

    def _restore(self) -> list[str]:
        return [f"{self.prefix}-restore", "--noflush", _WAIT]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chain:
    """A chain of ours: its table, its name, the built-in chains that jump to it, and its rules."""

    table: str
    name: str
    hooks: tuple[str, ...]
    rules: tuple[str, ...]


_CHAINS = {
    Part.GUARD: "GUARD", Part.REFUSE: "IN", Part.FORWARD: "FWD", Part.DNAT: "DNAT", Part.SNAT: "SNAT",
}  # fmt: skip
_UNEXPECTED = "-m conntrack --ctstate NEW,INVALID,UNTRACKED"
"""What matches packets that belong to no connection here."""


def _name(part: Part, vip: IPv4Address) -> str:
    """Return the name of our chain for a part. The kernel allows 28 characters; the longest address leaves 13."""
    return f"KEVIP-{_CHAINS[part]}-{vip}"


def _mark(vip: IPv4Address) -> str:
    return f"-m comment --comment kevip:{vip}"


def _chains(proxy: Proxy) -> Iterator[_Chain]:
    vip, target = proxy.vip, proxy.target
    if not target:
        return
    translated = f"-m conntrack --ctstate DNAT --ctorigdst {vip}"
    local = f"-d {vip} -m addrtype --dst-type LOCAL"
    yield _Chain(table="mangle", name=_name(Part.GUARD, vip), hooks=("PREROUTING",), rules=tuple(_guards(proxy, local)))
    if proxy.ports:
        rest = f"{local} {_UNEXPECTED}"
        reset = f"{rest} -p tcp -j REJECT --reject-with tcp-reset"
        yield _Chain(table="filter", name=_name(Part.REFUSE, vip), hooks=("INPUT",), rules=(reset, f"{rest} -j REJECT"))
    yield _Chain(table="filter", name=_name(Part.FORWARD, vip), hooks=("FORWARD",), rules=(f"{translated} -j ACCEPT",))
    wanted = [f"{local} -p {each.protocol} -m {each.protocol} --dport {each.first}:{each.last}" for each in proxy.ports]
    yield _Chain(
        table="nat",
        name=_name(Part.DNAT, vip),
        hooks=("PREROUTING", "OUTPUT") if proxy.allows_itself else ("PREROUTING",),
        rules=tuple(f"{match} -j DNAT --to-destination {target}" for match in wanted or [local]),
    )
    if not proxy.global_masquerade:
        snat = f"{translated} -j SNAT --to-source {vip}"
        yield _Chain(table="nat", name=_name(Part.SNAT, vip), hooks=("POSTROUTING",), rules=(snat,))


def _guards(proxy: Proxy, local: str) -> Iterator[str]:
    """Yield the rules that drop what opens no connection that we want, or belongs to none."""
    yield f"-s {proxy.target} {local} -m conntrack --ctstate NEW,INVALID -j DROP"
    if proxy.sources:
        yield f"! -d {proxy.vip} -j RETURN"
        yield from (f"-s {network} -j RETURN" for network in proxy.sources)
        yield f"{local} {_UNEXPECTED} -j DROP"


def _table(proxy: Proxy, table: str) -> Iterator[str]:
    mark = _mark(proxy.vip)
    chains = [chain for chain in _chains(proxy) if chain.table == table]
    for chain in chains:
        yield f":{chain.name} - [0:0]"
    for chain in chains:
        for rule in chain.rules:
            match, _, action = rule.rpartition("-j ")
            yield f"-A {chain.name} {match}{mark} -j {action}"
        for hook in chain.hooks:
            yield f"-I {hook} 1 {mark} -j {chain.name}"
    if table == "nat" and proxy.global_masquerade:
        yield f"-A POSTROUTING {mark} -j MASQUERADE"


def setup(proxy: Proxy) -> str:
    """Return the text that installs all rules. To be applied where none of them is: a jump would be doubled."""
    return repair(proxy, "")


def repair(proxy: Proxy, saved: str) -> str:
    """Return the text that, in one transaction per table, replaces what is saved of our rules."""
    tables = _tables(saved)
    return "".join(
        _block(table, [*_deletions(tables.get(table, []), proxy.vip), *_table(proxy, table)]) for table in _TABLES
    )


def teardown(saved: str, vip: IPv4Address) -> tuple[str, str]:
    """Return two texts: to disarm every rule of this VIP that is saved, and to delete its chains.

    They are two, for the kernel refuses to delete a chain that somebody else jumps to. "" where there is nothing to do.
    """
    disarm = delete = ""
    names = {f":{_name(part, vip)}" for part in _CHAINS}
    for table, lines in _tables(saved).items():
        chains = [name.removeprefix(":") for line in lines if (name := line.partition(" ")[0]) in names]
        disarm += _block(table, [*_deletions(lines, vip), *(f"-F {chain}" for chain in chains)])
        delete += _block(table, [f"-X {chain}" for chain in chains])
    return disarm, delete


def _block(table: str, lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in (f"*{table}", *lines, "COMMIT")) if lines else ""


def _deletions(lines: list[str], vip: IPv4Address) -> list[str]:
    """Return what deletes our rules in chains of others, by their own wording."""
    return [f"-D{line[2:]}" for line in lines if (found := _ours(vip).match(line)) and not found["chain"]]


# What is saved


def _tables(saved: str) -> dict[str, list[str]]:
    """Return the lines of each table."""
    found = re.findall(r"^\*(\w+)$(.*?)^COMMIT$", saved, re.MULTILINE | re.DOTALL)
    return {table: body.splitlines() for table, body in found}


def _rules(saved: str, start: str = "-A ") -> Iterator[tuple[str, str]]:
    """Yield each rule after its table, as those that start so."""
    for table, lines in _tables(saved).items():
        yield from ((table, line) for line in lines if line.startswith(start))


@cache
def _ours(vip: IPv4Address) -> re.Pattern[str]:
    """Match the rules in our chains, and those with our mark, which back ends print with or without quotes."""
    chains = "|".join(re.escape(_name(part, vip)) for part in _CHAINS)
    return re.compile(rf'-A (?:(?P<chain>{chains}) |.* --comment ("?)kevip:{re.escape(str(vip))}\2(?: |$))')


def ours(saved: str, vip: IPv4Address) -> list[str]:
    """Return the rules in our chains and with our mark."""
    return [f"{table} {line}" for table, line in _rules(saved) if _ours(vip).match(line)]


def others(saved: str, vip: IPv4Address) -> list[str]:
    """Return all rules but ours."""
    return [f"{table} {line}" for table, line in _rules(saved) if not _ours(vip).match(line)]


def is_whole(proxy: Proxy, found: list[str]) -> bool:
    """Whether what ``ours`` found are as many rules as there should be."""
    return len(found) == sum(line.startswith(("-A", "-I")) for line in setup(proxy).splitlines())


def flaws(saved: str, vip: IPv4Address, whole: list[str]) -> list[str]:
    """Say what is wrong with our rules; ``whole`` is ``ours`` when all was well."""
    now = ours(saved, vip)
    present, wanted = set(now), set(whole)
    found = [f"{rule.split()[0]} rule missing: {rule.partition(' ')[2]}" for rule in whole if rule not in present]
    found += [f"{rule.split()[0]} rule foreign: {rule.partition(' ')[2]}" for rule in now if rule not in wanted]
    return found + [f"{hook}: others before our jump" for hook in overtaken(saved, vip)]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule of ours in the kernel, and the packets and bytes that it matched since it is there."""

    text: str
    packets: int
    bytes: int

    @property
    def part(self) -> Part | None:
        """What it is for; None for one that only leads to others."""
        _, _, chain, *_ = self.text.split()
        action = self.text.rpartition(" -j ")[2].split()[0]
        if action.startswith("KEVIP-") or action == "RETURN":
            return None
        kind = chain.split("-")[1] if chain.startswith("KEVIP-") else action
        return next((part for part, name in _CHAINS.items() if name == kind), Part.MASQUERADE)


_ADDRESS = r"(\d{1,3}(?:\.\d{1,3}){3})"
_OWNER = re.compile(rf'^-A KEVIP-[A-Z]+-{_ADDRESS} |--comment (?P<quote>"?)kevip:{_ADDRESS}(?P=quote)(?: |$)')
_COUNTED = re.compile(r"^\[(\d+):(\d+)\] (-A .*)$")


def counted(saved: str) -> dict[IPv4Address, list[Rule]]:
    """Return our rules by VIP, of what is saved with counters."""
    found: dict[IPv4Address, list[Rule]] = {}
    for table, line in _rules(saved, "["):
        if (rule := _COUNTED.match(line)) and (vip := _owner(rule[3])):
            each = Rule(text=f"{table} {rule[3]}", packets=int(rule[1]), bytes=int(rule[2]))
            found.setdefault(vip, []).append(each)
    return found


def _owner(text: str) -> IPv4Address | None:
    """Return the VIP that a rule is for, if it is one of ours."""
    match = _OWNER.search(text)
    try:
        return IPv4Address(match[1] or match[3]) if match else None
    except AddressValueError:
        return None


# Which back end


def installed() -> dict[Backend, Iptables]:
    """Return the back ends that have programs on this host. A lone ``iptables`` says itself which one it is."""
    found: dict[Backend, Iptables] = {
        backend: Iptables(f"iptables-{backend}") for backend in BACKENDS if command.find(f"iptables-{backend}-restore")
    }
    if not found and command.find("iptables-restore"):
        found[default()] = Iptables("iptables")
    return found


def save_all(*, but: Iptables | None = None) -> dict[str, str]:
    """Return what is saved in each back end that works here, by its prefix, perhaps but for one."""
    saved = {}
    for each in installed().values():
        with suppress(command.CommandError, HostError):
            if each != but:
                saved[each.prefix] = each.save(command.run_now)
    return saved


def default() -> Backend:
    """Return the back end that plain ``iptables`` stands for on this host; raises CommandError."""
    return "nft" if "nf_tables" in command.run(["iptables", "--version"]) else "legacy"


def choose(saved: Mapping[Backend, str], preset: Backend) -> tuple[Backend, str]:
    """Choose the back end that the host uses, and say why.

    Rules in the other back end would work, but not in the order that we count on. ``saved`` is each back end's
    ``iptables-save``; ``preset`` is what plain ``iptables`` stands for.
    """
    for backend, text in saved.items():
        if any(chain in text for chain in _KUBERNETES):
            return backend, "the kubelet uses it"
    used = [backend for backend, text in saved.items() if "\n-A " in text]
    if len(used) == 1:
        return used[0], "it has rules"
    if preset in saved:
        return preset, "it is this host's default"
    return next(iter(saved)), "it is the only one that works"


def select(wanted: Backend | Literal["auto"]) -> tuple[Iptables, str]:
    """Return the back end to use and why; raises HostError if it is not there."""
    found = installed()
    if not found:
        raise HostError("iptables is not installed: apt-get install iptables")
    if wanted != "auto":
        if wanted not in found:
            raise HostError(f"iptables-{wanted} is not installed: apt-get install iptables, or set --iptables to auto")
        found[wanted].save()
        return found[wanted], "--iptables says so"
    saved, errors = {}, list[str]()
    for each, iptables in found.items():
        try:
            saved[each] = iptables.save()
        except command.CommandError as error:
            errors += error.problems
    if not saved:
        raise HostError(*errors)
    backend, reason = choose(saved, default())
    return found[backend], reason
