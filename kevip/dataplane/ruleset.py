"""The rules of a VIP, in the back ends where they belong on this host: installed, looked after, and removed."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from ipaddress import IPv4Address
from typing import NamedTuple

from kevip.dataplane import select
from kevip.dataplane.backend import Backend, Changes, flaws, texts
from kevip.dataplane.iptables import Iptables
from kevip.dataplane.nftables import Nftables
from kevip.dataplane.rules import TRANSLATION, Part, Parts, Proxy
from kevip.errors import KevipError
from kevip.host import nfnetlink


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

    ``follows`` says that the rules may go to nftables when others begin to translate there. ``here`` is whether rules
    of ours are on the host, None for some of them, or perhaps.
    """

    def __init__(self, proxy: Proxy, backend: Backend, *, follows: bool) -> None:
        self._proxy, self._vip = proxy, proxy.vip
        self._backends = select.installed() | {backend.name: backend}
        self._follows = follows and Nftables.name in self._backends
        self.backend, self._restore = backend, backend.standby()
        self.plan: Plan = {}
        self.whole: Whole = {}
        self.here: bool | None = False
        self.adopt({backend: TRANSLATION} if proxy.target else {}, {})

    def adopt(self, plan: Plan, whole: Whole) -> None:
        """Have rules where this says from now on."""
        self.whole = whole
        if plan == self.plan:
            return
        self.plan = plan
        self._setups = {backend: backend.setup(self._proxy, parts) for backend, parts in plan.items()}
        backend = next(iter(plan), self.backend)
        if backend != self.backend:
            self._restore.stop()
            self.backend, self._restore = backend, backend.standby()

    def stand_by(self) -> None:
        """Be ready to install them at once; raises CommandError."""
        if self.plan:
            self._restore.start()

    def stand_down(self) -> None:
        """Be ready no more."""
        self._restore.stop()

    def install(self) -> None:
        """Install all rules, if they are not here; raises CommandError."""
        if self.here or not self.plan:
            return
        self.here, self.whole = None, {}
        for backend, text in self._setups.items():
            program = self._restore if backend == self.backend else backend.standby()
            program.run(text)
        self.here = True

    def looks(self, drifts: list[Drift], changes: Changes, *, is_new: bool) -> tuple[Plan, Whole]:
        """Return what belongs where, and is there now; add what was not as it should be. Raises KevipError."""
        plan = self.survey(drifts, opens=not is_new)
        whole = {backend: self._mend(backend, parts, drifts, changes) for backend, parts in plan.items()}
        for backend in self.plan.keys() - plan.keys():
            backend.remove(self._vip, backend.save(self._vip), changes)
        return plan, whole

    def survey(self, drifts: list[Drift], *, opens: bool) -> Plan:
        """Return what belongs where, by what others have on this host; add what is new of that.

        ``opens`` says that a FORWARD chain whose policy is to drop is drift, if nothing was accepted there before.
        """
        if not self.plan:
            return {}
        chains, backend = nfnetlink.base_chains(), self.backend
        if self._follows and backend.name != Nftables.name and (others := select.ahead(backend, chains)):
            drifts.append(Drift(Kind.FOREIGN_NAT, f"{others[0]} translates before {backend.name}: nftables takes over"))
            backend = self._backends[Nftables.name]
        closed = [each for each in self._backends.values() if isinstance(each, Iptables) and each.drops(chains)]
        new = [each.name for each in closed if opens and Part.ACCEPT not in self.plan.get(each, ())]
        drifts += [Drift(Kind.FORWARDING, f"the policy of FORWARD in {name} is to drop") for name in new]
        plan = {backend: TRANSLATION} | {each: frozenset() for each in closed if each != backend}
        return {each: parts | {Part.ACCEPT} if each in closed else parts for each, parts in plan.items()}

    def _mend(self, backend: Backend, parts: Parts, drifts: list[Drift], changes: Changes) -> list[str]:
        """See to it that all rules are there and nothing else; return them."""
        saved, whole = backend.save(self._vip), self.whole.get(backend) if self.plan.get(backend) == parts else None
        wrong = flaws(backend, self._vip, saved, whole) if whole else []
        found = texts(backend, self._vip, saved)
        if wrong or (not whole and len(found) != backend.size(self._proxy, parts)):
            with changes():
                backend.repair(self._proxy, parts, saved)
            found = texts(backend, self._vip, backend.save(self._vip))
        drifts += [Drift(Kind.RULES, flaw) for flaw in wrong]
        return found

    def removes(self, changes: Changes = nullcontext) -> list[str]:
        """Remove all, also what an earlier kevip left; return the names of the back ends. Raises KevipError."""

        @contextmanager
        def noted() -> Iterator[None]:
            with changes():
                self.here = None if self.here else self.here
                yield

        return remove(self._vip, self._backends.values(), self.plan or [self.backend], noted)


def remove(
    vip: IPv4Address, backends: Iterable[Backend], needed: Collection[Backend], changes: Changes = nullcontext
) -> list[str]:
    """Remove all rules of the VIP; return the names of the back ends that had any. Raises KevipError.

    Back ends that do not work are passed over, unless they are ``needed``.
    """
    found = []
    for each in backends:
        try:
            saved = each.save(vip)
        except KevipError:
            if each in needed:
                raise
            continue
        if each.remove(vip, saved, changes):
            found.append(each.name)
    return found
