"""What others have on this host, and where rules of ours belong by that."""

from collections.abc import Collection, Iterator
from contextlib import suppress
from enum import StrEnum
from itertools import product
from typing import NamedTuple

from kevip.dataplane import select
from kevip.dataplane.backend import Backend
from kevip.dataplane.iptables import Iptables, legacy_tables
from kevip.dataplane.nftables import Nftables
from kevip.dataplane.rules import OPENS, Part, Parts, Proxy, rewriting
from kevip.errors import HostError, KevipError
from kevip.host import command, interface, kubernetes, nfnetlink
from kevip.host.command import CommandError
from kevip.host.nfnetlink import Chain


class Kind(StrEnum):
    """What can drift. The names are labels of metrics."""

    ADDRESS = "address"
    FORWARDING = "forwarding"
    HEARING = "hearing"
    FOREIGN_NAT = "foreign-nat"
    SERVICE = "service"
    RULES = "rules"


_KINDS = {Part.ACCEPT: Kind.FORWARDING, Part.HEAR: Kind.HEARING}


class Drift(NamedTuple):
    """Something that was not as it should be."""

    kind: Kind
    detail: str

    def __str__(self) -> str:
        return self.detail


Plan = dict[Backend, Parts]
"""Which rules belong into which back ends; the first of them translates."""


class Survey:
    """Looks at what others have, for a proxy; ``follows``: its rules may go to nftables when others begin to translate.

    It is asked with the back end that translates now, and with the plan that there is.
    """

    def __init__(self, proxy: Proxy, backends: Collection[Backend], *, follows: bool) -> None:
        self.proxy, self.native = proxy, Nftables()
        self._iptables = [each for each in backends if isinstance(each, Iptables)]
        self._follows = follows and self.native in backends and self.native.works()

    def can_move(self, backend: Backend) -> bool:
        """Whether rules may go from a back end to nftables."""
        return self._follows and backend != self.native

    def seen(self) -> tuple[int, bool] | None:
        """Return what is another one after others have changed something; None if nothing tells that."""
        generation = _generation()
        return None if generation is None else (generation, any(map(kubernetes.in_ipvs, self.proxy.targets)))

    def is_overtaken(self, backend: Backend, plan: Plan) -> bool:
        """Whether others begin to translate before our rules, or to drop what is proxied, as can be seen at once."""
        with suppress(HostError):
            chains = nfnetlink.base_chains()
            closed = [each for each in self._closed(chains) if each[0].kind == "nft"]
            overtaken = _new(closed, plan) or self._others(backend, select.own(chains))
            return bool(overtaken or self._is_taken(plan))
        return False

    def _is_taken(self, plan: Plan) -> bool:
        """Whether kube-proxy begins to translate TARGET in nftables."""
        return not rewrites(plan) and any(map(kubernetes.in_nftables, self.proxy.targets))

    def plan(self, backend: Backend, was: Plan, drifts: list[Drift], parts: Parts, *, opens: bool) -> Plan:
        """Return what belongs where, with the parts that translate, by what others have here; add what is new of that.

        ``opens`` says that a chain whose policy is to drop is drift, if nothing of ours was accepted there before.
        Raises KevipError if TARGET cannot be followed.
        """
        try:
            chains = select.base_chains(backend)
        except HostError:  # somebody changes them all the time
            return was
        base = frozenset[Part]()
        if self._is_rewritten(backend, was, drifts):
            backend, parts, base = self.native, rewriting(parts), frozenset({Part.REWRITE})
        elif others := self._others(backend, chains):
            drifts.append(Drift(Kind.FOREIGN_NAT, f"{others[0]} translates before {backend.name}: nftables takes over"))
            backend = self.native
        closed = [(each, part) for each, part in self._closed(chains) if _can_open(each, part, was)]
        for each, part in _new(closed, was) if opens else ():
            drifts.append(Drift(_KINDS[part], f"the policy of {OPENS[part]} in {each.name} is to drop"))
        plan: Plan = {backend: parts} if self.proxy.routes else {}
        for each, part in closed:
            plan[each] = plan.get(each, base) | {part}
        return plan

    def _is_rewritten(self, backend: Backend, was: Plan, drifts: list[Drift]) -> bool:
        """Return whether somebody else translates TARGET; raises KevipError if that cannot be followed.

        Whoever did so and is not seen any more may come back: what is refused until then would leak otherwise.
        """
        if self.proxy.forwards:
            saved = list(self._saved())
            if problems := kubernetes.services(self.proxy.targets, interface.listing(command.run_now), saved):
                raise HostError(*problems)
        if self.proxy.forwards or not (target := self.proxy.target):
            return False
        mode = kubernetes.mode_now(target, self._saved())
        if mode is None:
            return rewrites(was)
        if problem := kubernetes.problem(target, mode, rewrites=self._follows or backend == self.native):
            raise HostError(problem)
        if mode.translates != rewrites(was):
            drifts.append(Drift(Kind.SERVICE, f"kube-proxy has TARGET in {mode} mode"))
        return mode.translates

    def _saved(self) -> Iterator[str]:
        """Yield what others have in each iptables that can be read; raises CommandError if a program hangs."""
        for each in self._iptables:
            try:
                yield each.save()
            except KevipError as error:
                if isinstance(error, CommandError) and error.exit_status is None:
                    raise  # whoever looks has so much time only once

    def _others(self, backend: Backend, chains: list[Chain]) -> list[Chain]:
        """Return the chains before which the rules have to go."""
        if not self.can_move(backend):
            return []
        return select.ahead(backend, chains, source=not self.proxy.global_masquerade)

    def _closed(self, chains: list[Chain]) -> list[tuple[Iptables, Part]]:
        """Return where something of ours has to be accepted, and what."""
        found = list[tuple[Iptables, Part]]()
        for each, part in product(self._iptables, sorted(self.proxy.opens)):
            with suppress(KevipError):
                found += [(each, part)] if each.drops(OPENS[part], chains) else []
        return found


def rewrites(plan: Plan) -> bool:
    """Whether somebody else translates TARGET, by what was known when that was planned."""
    return any(Part.REWRITE in parts for parts in plan.values())


def _new(closed: list[tuple[Iptables, Part]], plan: Plan) -> list[tuple[Iptables, Part]]:
    return [(each, part) for each, part in closed if part not in plan.get(each, ())]


def _can_open(each: Iptables, part: Part, plan: Plan) -> bool:
    with suppress(KevipError):
        return part in plan.get(each, ()) or bool(each.save())
    return False


def _generation() -> int | None:
    """Return the generation of all rules; iptables-legacy has none."""
    return None if legacy_tables() else nfnetlink.generation()
