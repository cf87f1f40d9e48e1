"""The rules that proxy a VIP to its TARGET, as iptables-restore text: pure functions, nothing is run here.

::

                    mangle PREROUTING     nat PREROUTING        filter FORWARD     nat POSTROUTING
   client ── VIP ──►──────────────────────► DNAT to TARGET ──────► ACCEPT ────────► SNAT to VIP ──► TARGET
   master itself ─── nat OUTPUT: DNAT to TARGET ──────────────────────────────────► SNAT to VIP ──► TARGET
   TARGET ── VIP ──► DROP what no                    (conntrack undoes DNAT and SNAT for replies)
                     connection here expects
   others ── VIP ──► DROP unless allowed
                                             ports not listed:  filter INPUT: REJECT

Each table has a chain of ours per VIP, reached by a jump from position 1 of the built-in chain: a masquerade of
somebody else's (a CNI, Docker) that came before ours would give TARGET the node's address. Every rule carries the
comment ``kevip:VIP``; that mark and the chain names are all that a clean-up needs to know.

DNAT and DROP match only while the VIP is an address of this host (``addrtype LOCAL``), SNAT and ACCEPT only
connections that came in for it: on a host that does not hold the VIP, rules that were left behind do nothing.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import Literal

_UNEXPECTED = "-m conntrack --ctstate NEW,INVALID,UNTRACKED"
"""What matches packets that belong to no connection here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chain:
    """A chain of ours: its table, its name, the built-in chains that jump to it, and its rules."""

    table: str
    name: str
    hooks: tuple[str, ...]
    rules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP or UDP ports, from the first to the last of them."""

    protocol: Literal["tcp", "udp"]
    first: int
    last: int

    def __str__(self) -> str:
        numbers = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return numbers if self.protocol == "tcp" else f"{numbers}/{self.protocol}"

    @property
    def match(self) -> str:
        """What matches packets to these ports."""
        return f"-p {self.protocol} -m {self.protocol} --dport {self.first}:{self.last}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """What is sent to the VIP goes to the target, which sees it come from the VIP.

    With ``global_masquerade``, everything that leaves this host is masqueraded instead, as older set-ups expect. With
    ``ports``, what is sent to others is refused. With ``allow_from``, what others send is dropped; ``here`` is this
    host's address there, for its own processes send to the VIP from the VIP. Without a target there are no rules.
    """

    vip: IPv4Address
    target: IPv4Address | None
    here: IPv4Address | None = None
    global_masquerade: bool = False
    ports: tuple[Ports, ...] = ()
    allow_from: tuple[IPv4Network, ...] = ()

    def setup(self) -> str:
        """Return the text that installs all rules. To be applied where none of them is: a jump would be doubled."""
        return self.repair("")

    def repair(self, saved: str) -> str:
        """Return the text that, in one transaction per table, replaces what ``iptables-save`` printed of our rules."""
        tables = _tables(saved)
        return "".join(
            _block(table, [*_deletions(tables.get(table, []), self.vip), *self._table(table)])
            for table in ("mangle", "filter", "nat")
        )

    def flaws(self, saved: str, whole: list[str]) -> list[str]:
        """Say what is wrong with our rules in ``iptables-save`` output; ``whole`` is ``ours`` when all was well."""
        now = ours(saved, self.vip)
        found = [f"{rule.split()[0]} rule missing: {rule.partition(' ')[2]}" for rule in whole if rule not in now]
        found += [f"{rule.split()[0]} rule foreign: {rule.partition(' ')[2]}" for rule in now if rule not in whole]
        return found + [f"{hook}: others before our jump" for hook in overtaken(saved, self.vip)]

    def rules(self) -> int:
        """Return how many rules there are, jumps included."""
        return sum(line.startswith(("-A", "-I")) for line in self.setup().splitlines())

    def _table(self, table: str) -> Iterator[str]:
        mark = f"-m comment --comment {_mark(self.vip)}"
        chains = [chain for chain in self._chains() if chain.table == table]
        for chain in chains:
            yield f":{chain.name} - [0:0]"
        for chain in chains:
            for rule in chain.rules:
                match, _, action = rule.rpartition("-j ")
                yield f"-A {chain.name} {match}{mark} -j {action}"
            for hook in chain.hooks:
                yield f"-I {hook} 1 {mark} -j {chain.name}"
        if table == "nat" and self.global_masquerade:
            yield f"-A POSTROUTING {mark} -j MASQUERADE"

    def _chains(self) -> Iterator[_Chain]:
        if not self.target:
            return
        vip = self.vip
        ours = f"-m conntrack --ctstate DNAT --ctorigdst {vip}"
        local = f"-d {vip} -m addrtype --dst-type LOCAL"
        guard, refuse, accept, dnat, snat = _names(vip)
        yield _Chain(table="mangle", name=guard, hooks=("PREROUTING",), rules=tuple(self._guards(local)))
        if self.ports:
            rest = f"{local} {_UNEXPECTED}"
            reset = f"{rest} -p tcp -j REJECT --reject-with tcp-reset"
            yield _Chain(table="filter", name=refuse, hooks=("INPUT",), rules=(reset, f"{rest} -j REJECT"))
        yield _Chain(table="filter", name=accept, hooks=("FORWARD",), rules=(f"{ours} -j ACCEPT",))
        wanted = [f"{local} {each.match}" for each in self.ports] or [local]
        yield _Chain(
            table="nat",
            name=dnat,
            hooks=("PREROUTING", "OUTPUT") if self._allows_itself() else ("PREROUTING",),
            rules=tuple(f"{match} -j DNAT --to-destination {self.target}" for match in wanted),
        )
        if not self.global_masquerade:
            yield _Chain(table="nat", name=snat, hooks=("POSTROUTING",), rules=(f"{ours} -j SNAT --to-source {vip}",))

    def _allows_itself(self) -> bool:
        """Whether processes of this host may use the VIP; what they then send is not seen by the guard."""
        return not self.allow_from or any(self.here in network for network in self.allow_from if self.here)

    def _guards(self, local: str) -> Iterator[str]:
        """Yield the rules that drop what opens no connection that we want, or belongs to none."""
        yield f"-s {self.target} {local} -m conntrack --ctstate NEW,INVALID -j DROP"
        if self.allow_from:
            allowed = [*self.allow_from, *([IPv4Network(self.vip)] if self._allows_itself() else [])]
            yield f"! -d {self.vip} -j RETURN"
            yield from (f"-s {network} -j RETURN" for network in allowed)
            yield f"{local} {_UNEXPECTED} -j DROP"


def _mark(vip: IPv4Address) -> str:
    return f"kevip:{vip}"


def _names(vip: IPv4Address) -> tuple[str, str, str, str, str]:
    """Return the names of our chains. The kernel allows 28 characters; the longest address leaves 13."""
    guard, refuse, accept, dnat, snat = (f"KEVIP-{kind}-{vip}" for kind in ("GUARD", "IN", "FWD", "DNAT", "SNAT"))
    return guard, refuse, accept, dnat, snat


def teardown(saved: str, vip: IPv4Address) -> tuple[str, str]:
    """Return two texts: to disarm every rule of this VIP in ``iptables-save`` output, and to delete its chains.

    They are two, for the kernel refuses to delete a chain that somebody else jumps to. "" where there is nothing to do.
    """
    disarm = delete = ""
    for table, lines in _tables(saved).items():
        chains = [chain for line in lines if (chain := line.partition(" ")[0].removeprefix(":")) in _names(vip)]
        disarm += _block(table, [*_deletions(lines, vip), *(f"-F {chain}" for chain in chains)])
        delete += _block(table, [f"-X {chain}" for chain in chains])
    return disarm, delete


def _block(table: str, lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in (f"*{table}", *lines, "COMMIT")) if lines else ""


def ours(saved: str, vip: IPv4Address) -> list[str]:
    """Return the rules in our chains and with our mark, as ``iptables-save`` prints them, after their table's name."""
    return [
        f"{table} {line}"
        for table, lines in _tables(saved).items()
        for line in lines
        if line.startswith("-A ") and (line.split()[1] in _names(vip) or _is_marked(line, vip))
    ]


def others(saved: str, vip: IPv4Address) -> list[str]:
    """Return all rules but ours, in the same form."""
    mine = set(ours(saved, vip))
    rules = [f"{table} {line}" for table, lines in _tables(saved).items() for line in lines if line.startswith("-A ")]
    return [rule for rule in rules if rule not in mine]


def policy(saved: str, table: str, chain: str) -> str | None:
    """Return the policy of a built-in chain in ``iptables-save`` output, None if its table is not in use."""
    lines = _tables(saved).get(table, [])
    return next((line.split()[1] for line in lines if line.startswith(f":{chain} ")), None)


def _tables(saved: str) -> dict[str, list[str]]:
    """Return the lines of each table in ``iptables-save`` output."""
    found = re.findall(r"^\*(\w+)$(.*?)^COMMIT$", saved, re.MULTILINE | re.DOTALL)
    return {table: body.splitlines() for table, body in found}


def _deletions(lines: list[str], vip: IPv4Address) -> list[str]:
    """Return what deletes our rules in chains of others, by their own wording."""
    return [
        f"-D{line.removeprefix('-A')}"
        for line in lines
        if line.startswith("-A ") and line.split()[1] not in _names(vip) and _is_marked(line, vip)
    ]


def overtaken(saved: str, vip: IPv4Address) -> Iterator[str]:
    """Yield the chains in which rules of others come before our jump; those of other VIPs may."""
    for table, lines in _tables(saved).items():
        foreign: set[str] = set()
        for line in (line for line in lines if line.startswith("-A ")):
            chain, action = line.split()[1], line.rpartition(" -j ")[2]
            if action in _names(vip) and chain in foreign:
                yield f"{table} {chain}"
            elif not action.startswith("KEVIP-"):
                foreign.add(chain)


def _is_marked(line: str, vip: IPv4Address) -> bool:
    """Whether a saved rule carries our mark, which back ends print with or without quotes."""
    return bool(re.search(rf' --comment ("?){re.escape(_mark(vip))}\1( |$)', line))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule of ours in the kernel, as ``ours`` has it, and the packets and bytes that it matched since it is there."""

    text: str
    packets: int
    bytes: int

    @property
    def part(self) -> str | None:
        """What it does, which says what it counts; None for one that only leads to others."""
        _, _, chain, *_ = self.text.split()
        action = self.text.rpartition(" -j ")[2].split()[0]
        if action.startswith("KEVIP-") or action == "RETURN":
            return None
        kind = chain.split("-")[1] if chain.startswith("KEVIP-") else action
        return _PARTS.get(kind, kind.lower())


_PARTS = {"FWD": "forward", "IN": "refuse"}

_ADDRESS = r"(\d{1,3}(?:\.\d{1,3}){3})"
_OWNER = re.compile(rf'^-A KEVIP-[A-Z]+-{_ADDRESS} |--comment (?P<quote>"?)kevip:{_ADDRESS}(?P=quote)(?: |$)')
_COUNTED = re.compile(r"^\[(\d+):(\d+)\] (-A .*)$")


def _owner(text: str) -> IPv4Address | None:
    """Return the VIP that a rule is for, if it is one of ours."""
    match = _OWNER.search(text)
    try:
        return IPv4Address(match[1] or match[3]) if match else None
    except AddressValueError:
        return None


def counted(saved: str) -> dict[IPv4Address, list[Rule]]:
    """Return the rules of each VIP in the output of ``iptables-save --counters``."""
    found: dict[IPv4Address, list[Rule]] = {}
    for table, lines in _tables(saved).items():
        for line in lines:
            if (rule := _COUNTED.match(line)) and (vip := _owner(rule[3])):
                each = Rule(text=f"{table} {rule[3]}", packets=int(rule[1]), bytes=int(rule[2]))
                found.setdefault(vip, []).append(each)
    return found
