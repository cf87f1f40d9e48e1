"""The rules that proxy a VIP to its TARGET, as iptables-restore text: pure functions, nothing is run here.

::

                    mangle PREROUTING     nat PREROUTING        filter FORWARD     nat POSTROUTING
   client ── VIP ──►──────────────────────► DNAT to TARGET ──────► ACCEPT ────────► SNAT to VIP ──► TARGET
   master itself ─── nat OUTPUT: DNAT to TARGET ──────────────────────────────────► SNAT to VIP ──► TARGET
   TARGET ── VIP ──► DROP what no                    (conntrack undoes DNAT and SNAT for replies)
                     connection here expects

Each table has a chain of ours per VIP, reached by a jump from position 1 of the built-in chain: a masquerade of
somebody else's (a CNI, Docker) that came before ours would give TARGET the node's address. Every rule carries the
comment ``kevip:VIP``; that mark and the chain names are all that a clean-up needs to know.

DNAT and DROP match only while the VIP is an address of this host (``addrtype LOCAL``), SNAT and ACCEPT only
connections that came in for it: on a host that does not hold the VIP, rules that were left behind do nothing.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chain:
    """A chain of ours: its table, its name, the built-in chains that jump to it, and its rules."""

    table: str
    name: str
    hooks: tuple[str, ...]
    rules: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """What is sent to the VIP goes to the target, which sees it come from the VIP.

    With ``global_masquerade``, everything that leaves this host is masqueraded instead, as older set-ups expect.
    """

    vip: IPv4Address
    target: IPv4Address
    global_masquerade: bool = False

    def setup(self) -> str:
        """Return the text that installs all rules. To be applied where none of them is: a jump would be doubled."""
        return "".join(f"{line}\n" for table in ("mangle", "filter", "nat") for line in self._table(table))

    def _table(self, table: str) -> Iterator[str]:
        mark = f"-m comment --comment {_mark(self.vip)}"
        chains = [chain for chain in self._chains() if chain.table == table]
        yield f"*{table}"
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
        yield "COMMIT"

    def _chains(self) -> Iterator[_Chain]:
        vip, target = self.vip, self.target
        ours = f"-m conntrack --ctstate DNAT --ctorigdst {vip}"
        local = f"-d {vip} -m addrtype --dst-type LOCAL"
        guard, accept, dnat, snat = _names(vip)
        yield _Chain(
            table="mangle",
            name=guard,
            hooks=("PREROUTING",),
            rules=(f"-s {target} {local} -m conntrack --ctstate NEW,INVALID -j DROP",),
        )
        yield _Chain(table="filter", name=accept, hooks=("FORWARD",), rules=(f"{ours} -j ACCEPT",))
        yield _Chain(
            table="nat",
            name=dnat,
            hooks=("PREROUTING", "OUTPUT"),
            rules=(f"{local} -j DNAT --to-destination {target}",),
        )
        if not self.global_masquerade:
            yield _Chain(table="nat", name=snat, hooks=("POSTROUTING",), rules=(f"{ours} -j SNAT --to-source {vip}",))


def _mark(vip: IPv4Address) -> str:
    return f"kevip:{vip}"


def _names(vip: IPv4Address) -> tuple[str, str, str, str]:
    """Return the names of our chains. The kernel allows 28 characters; the longest address leaves 13."""
    return f"KEVIP-GUARD-{vip}", f"KEVIP-FWD-{vip}", f"KEVIP-DNAT-{vip}", f"KEVIP-SNAT-{vip}"


def teardown(saved: str, vip: IPv4Address) -> str:
    """Return the text that removes every rule and chain of this VIP found in ``iptables-save`` output, "" if none."""
    tables = re.findall(r"^\*.*?^COMMIT$", saved, re.MULTILINE | re.DOTALL)
    return "".join(_table_teardown(table.splitlines(), vip) for table in tables)


def _table_teardown(saved: list[str], vip: IPv4Address) -> str:
    """Remove jumps and rules in chains of others first, by their own wording, then our chains."""
    names = _names(vip)
    chains = [line.split()[0][1:] for line in saved if line.startswith(":") and line.split()[0][1:] in names]
    rules = [
        f"-D{line.removeprefix('-A')}"
        for line in saved
        if line.startswith("-A ") and line.split()[1] not in names and _is_marked(line, vip)
    ]
    if not chains and not rules:
        return ""
    flush = [f"-F {chain}" for chain in chains]
    delete = [f"-X {chain}" for chain in chains]
    return "".join(f"{line}\n" for line in (saved[0], *rules, *flush, *delete, "COMMIT"))


def _is_marked(line: str, vip: IPv4Address) -> bool:
    """Whether a saved rule carries our mark, which back ends print with or without quotes."""
    return bool(re.search(rf' --comment ("?){re.escape(_mark(vip))}\1( |$)', line))
