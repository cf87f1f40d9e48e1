"""The rules of a VIP, in the back ends where they belong on this host: installed, looked after, and removed."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from enum import StrEnum
from ipaddress import IPv4Address
from typing import NamedTuple

from kevip.dataplane import select
from kevip.dataplane.backend import Backend, Changes, flaws, texts
from kevip.dataplane.iptables import Iptables
from kevip.dataplane.nftables import Nftables
from kevip.dataplane.rules import TRANSLATION, Part, Parts, Proxy
from kevip.errors import HostError, KevipError
from kevip.host import nfnetlink
from kevip.host.command import CommandError
from kevip.host.nfnetlink import Chain


class Kind(StrEnum):
    """What can drift. The names are labels of metrics."""

    ADDRESS = "address"
    FORWARDING = "forwarding"
    FOREIGN_NAT = "foreign-nat"
    RULES = "rules"


class Drift(NamedTuple):
    """Something that was not as it should be."""

    kind: Kind
    detail: str

    def __str__(self) -> str:
        return self.detail


Plan = dict[Backend, Parts]
"""Which rules belong into which back ends; the first of them translates."""

Whole = dict[Backend, list[str]]
"""The rules that are there when all is well, as they are saved."""


class Ruleset:
    """What ``looks`` and ``removes`` is for a thread beside the loop; all else for the loop's.

    ``follows`` says that the rules may go to nftables when others begin to translate there. ``arms`` says that a backup
    has them too. ``here`` is whether rules of ours are on the host, None for some of them, or perhaps.
    """

    def __init__(self, proxy: Proxy, backend: Backend, *, follows: bool) -> None:
        self._proxy, self._vip = proxy, proxy.vip
        self.arms = proxy.arms
        self._backends = select.installed() | {backend.name: backend}
        self._native = Nftables()
        self._follows = follows and Nftables.name in self._backends and self._native.works()
        self.backend, self._restore = backend, backend.standby()
        self.plan: Plan = {}
        self.whole: Whole = {}
        self.here: bool | None = False
        self._used: set[Backend] = set()  # where rules of ours are, or may be
        self.adopt({backend: TRANSLATION} if proxy.target else {}, {})

    def adopt(self, plan: Plan, whole: Whole) -> None:
        """Have rules where this says from now on; ``whole`` are those that are there."""
        self.whole = whole
        if any(whole.values()):
            self.here = True
        if plan == self.plan:
            return
        self.plan = plan
        self._setups = {backend: backend.setup(self._proxy, parts) for backend, parts in plan.items()}
        backend = next(iter(plan), self.backend)
        if backend != self.backend:
            self._restore.stop()
            self.backend, self._restore = backend, backend.standby()

    def stand_by(self) -> None:
        """Be ready to install them at once, if they may not be here by then; raises CommandError."""
        if self.plan and (self.here is None or not self.arms):
            self._restore.start()
        else:
            self._restore.stop()

    def stand_down(self) -> None:
        """Be ready no more."""
        self._restore.stop()

    def install(self) -> None:
        """Install all rules, if they are not here; raises CommandError."""
        if self.here or not self.plan:
            return
        self.here, self.whole = None, {}
        for backend, text in self._setups.items():
            self._used.add(backend)
            program = self._restore if backend == self.backend else backend.standby()
            program.run(text)
        self.here = True

    def looks(self, drifts: list[Drift], changes: Changes) -> tuple[Plan, Whole]:
        """Return what belongs where, and is there now; add what was not as it should be. Raises KevipError."""
        news = list[Drift]()  # told only if all is done
        plan = self.survey(news, opens=bool(self.whole))
        try:
            whole = self._mend_all(plan, drifts, changes)
        except HostError as error:  # rules of nftables are in its tables now
            if not self._can_move:
                raise
            news.append(Drift(Kind.FOREIGN_NAT, f"{error}: nftables takes over"))
            plan = {self._native: TRANSLATION}
            whole = self._mend_all(plan, drifts, changes)
        for backend in self.plan.keys() - plan.keys():
            with suppress(HostError):  # it cannot read them any more, and the end will say so
                backend.remove(self._vip, backend.save(self._vip), changes)
                self._used.discard(backend)
        drifts += news
        return plan, whole

    def _mend_all(self, plan: Plan, drifts: list[Drift], changes: Changes) -> Whole:
        whole: Whole = {}
        for backend, parts in plan.items():
            with suppress(*([HostError] if whole else [])):  # what only accepts is not worth to be unfit
                whole[backend] = self._mend(backend, parts, drifts, changes)
        return whole

    def is_overtaken(self) -> bool:
        """Whether others begin to translate before our rules, or to drop what is proxied, as can be seen at once."""
        with suppress(HostError):
            chains = nfnetlink.base_chains() if self.plan else []
            closed = [each for each in self._iptables() if each.kind == "nft" and each.drops(chains)]
            opens = any(Part.ACCEPT not in self.plan.get(each, ()) for each in closed)
            return opens or bool(self._others(select.own(chains)))
        return False

    def survey(self, drifts: list[Drift], *, opens: bool) -> Plan:
        """Return what belongs where, by what others have on this host; add what is new of that.

        ``opens`` says that a FORWARD chain whose policy is to drop is drift, if nothing was accepted there before.
        """
        if not self.plan:
            return {}
        try:
            backend, chains = self.backend, select.base_chains(self.backend)
        except HostError:  # somebody changes them all the time
            return self.plan
        if others := self._others(chains):
            drifts.append(Drift(Kind.FOREIGN_NAT, f"{others[0]} translates before {backend.name}: nftables takes over"))
            backend = self._native
        closed = [each for each in self._iptables() if self._is_closed(each, chains)]
        new = [each.name for each in closed if opens and Part.ACCEPT not in self.plan.get(each, ())]
        drifts += [Drift(Kind.FORWARDING, f"the policy of FORWARD in {name} is to drop") for name in new]
        plan = {backend: TRANSLATION} | {each: frozenset() for each in closed if each != backend}
        return {each: parts | {Part.ACCEPT} if each in closed else parts for each, parts in plan.items()}

    @property
    def _can_move(self) -> bool:
        return self._follows and self.backend != self._native

    def _iptables(self) -> list[Iptables]:
        return [each for each in self._backends.values() if isinstance(each, Iptables)]

    def _others(self, chains: list[Chain]) -> list[Chain]:
        """Return the chains before which the rules have to go."""
        if not self._can_move:
            return []
        return select.ahead(self.backend, chains, source=not self._proxy.global_masquerade)

    def _is_closed(self, each: Iptables, chains: list[Chain]) -> bool:
        """Whether what is proxied has to be accepted in an iptables, and can be."""
        with suppress(KevipError):
            return each.drops(chains) and (Part.ACCEPT in self.plan.get(each, ()) or bool(each.save()))
        return False

    def _mend(
        self, backend: Backend, parts: Parts, drifts: list[Drift], changes: Changes, *, again: bool = True
    ) -> list[str]:
        """See to it that all rules are there and nothing else; return them, none if that came to nothing."""
        saved, size = backend.save(self._vip), backend.size(self._proxy, parts)
        whole = self.whole.get(backend) if self.plan.get(backend) == parts else None
        wrong = flaws(backend, self._vip, saved, whole) if whole else []
        found = texts(backend, self._vip, saved)
        if not wrong and len(found) == size:
            return found
        try:
            with changes():
                self._used.add(backend)
                self.here = None
                backend.repair(self._proxy, parts, saved)
                self.here = True
        except CommandError:
            if not again:
                raise
            return self._mend(backend, parts, drifts, changes, again=False)  # somebody may have flushed them just now
        drifts += [Drift(Kind.RULES, flaw) for flaw in wrong]
        found = texts(backend, self._vip, backend.save(self._vip))
        return found if len(found) == size else []

    def removes(self, changes: Changes = nullcontext) -> list[str]:
        """Remove all, also what an earlier kevip left; return the names of the back ends. Raises KevipError."""

        @contextmanager
        def noted() -> Iterator[None]:
            with changes():
                self.here = None if self.here else self.here
                yield

        found = remove(self._vip, self._backends.values(), {self.backend, *self._used}, noted)
        self._used.clear()
        return found


def remove(
    vip: IPv4Address, backends: Iterable[Backend], needed: Collection[Backend], changes: Changes = nullcontext
) -> list[str]:
    """Remove all rules of the VIP; return the names of the back ends that had any.

    Back ends that do not work are passed over; in the end, raises KevipError if one of them was ``needed``.
    """
    found, problem = list[str](), None
    for each in backends:
        try:
            if each.remove(vip, each.save(vip), changes):
                found.append(each.name)
        except KevipError as error:
            problem = problem or (error if each in needed else None)
    if problem:
        raise problem
    return found
