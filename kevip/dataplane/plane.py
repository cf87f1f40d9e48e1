"""The host as one that serves a VIP, or does not: brought to a level, looked after, and left as it was.

What a takeover waits for is done on the loop's thread: rules, then the address. All else is done beside the loop, for a
host may have a hundred thousand rules and connections of others. A job beside it changes the host only while the level
is still what it was begun for.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from ipaddress import IPv4Address
from math import inf
from time import monotonic
from typing import NamedTuple, Protocol

from kevip.core.messages import Level
from kevip.dataplane import conntrack, lease, select
from kevip.dataplane.backend import Backend, Changes, flaws, texts
from kevip.dataplane.iptables import Iptables
from kevip.dataplane.nftables import Nftables
from kevip.dataplane.rules import TRANSLATION, Part, Parts, Proxy
from kevip.errors import KevipError
from kevip.host import kernel, nfnetlink
from kevip.host.beside import Beside, Job
from kevip.host.command import CommandError, Scope
from kevip.log import Warn
from kevip.loop import Action, Loop

TOGETHER = 4.0  # seconds that programs have on the loop's thread, all together: the watchdog waits 5 s
RENEWAL = 2.5  # the same for a renewal: the watchdog waits since the last one, 2 s ago
BESIDE = 30.0  # seconds that a job beside the loop has
CHECK = 2.5  # seconds between looks at the rules, at least

# A look at the rules that takes longer than that, in seconds, is dear: it is followed by so many times the rest without
# one. A look that failed may have taken long for that reason only.
_CHEAP, _SHARE, _SHARE_OF_FAILED = 0.05, 100, 10

_TOLD = 10  # drifts that are told, at most: there may be a rule for each of thousands of networks
_PATIENCE = 3.0  # seconds that are waited at the end for what is under way

Plan = dict[Backend, Parts]
"""Which rules belong into which back ends. The first of them translates."""


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


class Listener(Protocol):
    """What is told, on the loop's thread."""

    def cleared(self, *, ok: bool) -> None:
        """Hear that what ``apply(NONE)`` began is done; if it is not ok, something is left."""

    def unfit(self, detail: str) -> None:
        """Hear why this host cannot serve as it is."""

    def drifted(self, drifts: tuple[Drift, ...]) -> None:
        """Hear what was not as it should be, and is now."""


@dataclass(slots=True)
class _Look:
    """What came of a look. ``rules`` says whether they were looked at, ``error`` is why they could not be."""

    level: Level
    rules: bool
    drifts: list[Drift] = field(default_factory=list)
    plan: Plan | None = None
    whole: dict[Backend, list[str]] = field(default_factory=dict)
    error: KevipError | None = None
    seconds: float = 0.0


class Plane:
    """Brings this host to a level, and keeps it there. To be made after privileges were dropped.

    ``follows`` says that the rules may go to nftables when others begin to translate there.
    """

    def __init__(  # noqa: PLR0913 - each is one of its parts
        self, proxy: Proxy, backend: Backend, loop: Loop, listener: Listener, warn: Warn, *, follows: bool = False
    ) -> None:
        self._proxy, self._vip = proxy, proxy.vip
        self._loop, self._beside = loop, Beside(loop)
        self._listener, self._warn = listener, warn
        self._backends = select.installed() | {backend.name: backend}
        self._follows = follows and Nftables.name in self._backends
        self._backend, self._restore, self._ip = backend, backend.standby(), lease.standby()
        self._adopt({backend: TRANSLATION} if proxy.target else {})
        self._whole: dict[Backend, list[str]] = {}
        self._installed: bool | None = False  # whether our rules are here, None for some of them, or perhaps
        self._is_new = self._removes = False
        self._next_look = -inf
        self.interface = ""
        self.level = Level.NONE

    @property
    def backend(self) -> str:
        """The name of the back end that has the rules, or would have them."""
        return self._backend.name

    @property
    def rules(self) -> dict[str, list[str]]:
        """The rules that are here when all is well, by back end, as they are saved; none until they were looked at."""
        return {backend.name: rules for backend, rules in self._whole.items()} if self.level is Level.HELD else {}

    def apply(self, level: Level) -> None:
        """Bring the host to a level; raises KevipError.

        HELD again renews the lease. RULES removes the address, and leaves the rules that are there. What NONE removes
        besides is removed beside the loop; so are the rules of a takeover that failed, which leaves NONE.
        """
        renews = level is Level.HELD and self.level is Level.HELD
        with Scope(RENEWAL if renews else TOGETHER) as scope:
            if renews:
                self._renew()
            elif level is Level.HELD:
                self._take_over(scope)
            elif self.level is Level.HELD:
                self._release(level)
            elif level is Level.NONE and not self._removes:
                self._begin_removal()

    def _renew(self) -> None:
        before = lease.hold(self._vip, self.interface)
        strays = [name for name in before if name != self.interface]
        for name in strays:
            lease.drop(self._vip, name)
        missing = [] if self.interface in before else [f"address missing on {self.interface}"]
        self._tell([Drift(Kind.ADDRESS, each) for each in (*missing, *(f"address on {name}" for name in strays))])

    def _take_over(self, scope: Scope) -> None:
        self._removes = False
        try:
            self._beside.cancel(scope.left())
            if self._plan and not self._installed:
                self._installed, self._whole = None, {}
                for backend, text in self._setups.items():
                    program = self._restore if backend == self._backend else backend.standby()
                    program.run(text)
                self._installed = True
            lease.take(self._vip, self.interface, self._ip)
        except KevipError:
            self._begin_removal()
            raise
        self.level, self._is_new, self._next_look = Level.HELD, True, -inf
        self._loop.after(0, self.look)

    def _release(self, level: Level) -> None:
        self.level = level
        with suppress(KevipError):
            self._beside.cancel(0)
        try:
            lease.drop(self._vip, self.interface)
        finally:
            if level is Level.NONE:
                self._begin_removal()

    def _begin_removal(self) -> None:
        self.level, self._removes = Level.NONE, True
        self._beside.begin(self._remove, BESIDE)

    def _remove(self, job: Job) -> Action:
        """Remove, beside the loop, what is left here."""

        @contextmanager
        def changes() -> Iterator[None]:
            with job.changes():
                self._installed = None
                yield

        try:
            _drop_all(self._vip, job.changes)
            if self._plan:
                remove_rules(self._vip, self._backends.values(), self._plan, changes)
            left = conntrack.forget(self._vip) if self._plan else 0
        except KevipError as error:
            return partial(self._removed, error)
        return partial(self._removed, left=left)

    def _removed(self, error: KevipError | None = None, left: int = 0) -> None:
        self._removes = False
        if error:
            hint = "it is tried again; rules that are left do nothing"
            self._warn("release.failed", "rules", error=str(error), hint=hint)
        else:
            self._installed = False
        if left:
            hint = "there are too many to forget them all: the kernel does when nothing is sent any more"
            self._warn("release.slow", None, connections=left, hint=hint)
        self._listener.cleared(ok=not error)

    def look(self) -> None:
        """See, beside the loop, whether all is as it should be, unless a job is under way; be ready for a takeover.

        Where there are many rules, they are not looked at each time.
        """
        if self.level is not Level.HELD:
            self._stand_by()
        if not self._beside.is_busy:
            look = _Look(self.level, rules=self._loop.now() >= self._next_look)
            self._beside.begin(partial(self._look, look), BESIDE)

    def _stand_by(self) -> None:
        try:
            if self._plan:
                self._restore.start()
            self._ip.start()
        except CommandError as error:
            self._warn("drift.not_repaired", None, error=str(error))

    def _look(self, look: _Look, job: Job) -> Action:
        begin = monotonic()
        try:
            if look.level is Level.HELD and self._plan:
                self._look_as_master(look, job.changes)
            elif look.level is Level.NONE and self._installed is False and (look.rules or lease.held(self._vip)):
                look.rules = True
                look.drifts = self._clear(job.changes)
                if self._plan:
                    look.plan = self._survey(look.drifts)
        except KevipError as error:
            look.error = error
        look.seconds = monotonic() - begin
        return partial(self._looked, look)

    def _look_as_master(self, look: _Look, changes: Changes) -> None:
        if not kernel.forwards(self.interface):
            with changes():
                kernel.enable_forwarding(self.interface)
            look.drifts.append(Drift(Kind.FORWARDING, "forwarding off"))
        if not look.rules:
            return
        if self._is_new:
            conntrack.forget_untranslated(self._vip)
        plan = self._survey(look.drifts)
        for backend, parts in plan.items():
            look.whole[backend] = self._mend(backend, parts, look.drifts, changes)
        for backend in self._plan.keys() - plan.keys():
            backend.remove(self._vip, backend.save(self._vip), changes)
        look.plan = plan

    def _survey(self, drifts: list[Drift]) -> Plan:
        """Return what belongs where, by what others have on this host: it follows them."""
        chains, backend = nfnetlink.base_chains(), self._backend
        if self._follows and backend.name != Nftables.name and (others := select.ahead(backend, chains)):
            drifts.append(Drift(Kind.FOREIGN_NAT, f"{others[0]} translates before {backend.name}: nftables takes over"))
            backend = self._backends[Nftables.name]
        closed = [each for each in self._backends.values() if isinstance(each, Iptables) and each.drops(chains)]
        if self.level is Level.HELD and not self._is_new:
            new = [each.name for each in closed if Part.ACCEPT not in self._plan.get(each, ())]
            drifts += [Drift(Kind.FORWARDING, f"the policy of FORWARD in {name} is to drop") for name in new]
        plan = {backend: TRANSLATION} | {each: frozenset() for each in closed if each != backend}
        return {each: parts | {Part.ACCEPT} if each in closed else parts for each, parts in plan.items()}

    def _mend(self, backend: Backend, parts: Parts, drifts: list[Drift], changes: Changes) -> list[str]:
        """See to it that all rules are there and nothing else; return them."""
        saved, whole = backend.save(self._vip), self._whole.get(backend) if self._plan.get(backend) == parts else None
        wrong = flaws(backend, self._vip, saved, whole) if whole else []
        found = texts(backend, self._vip, saved)
        if wrong or (not whole and len(found) != backend.size(self._proxy, parts)):
            with changes():
                backend.repair(self._proxy, parts, saved)
            found = texts(backend, self._vip, backend.save(self._vip))
        drifts += [Drift(Kind.RULES, flaw) for flaw in wrong]
        return found

    def _looked(self, look: _Look) -> None:
        if look.rules:
            share = _SHARE_OF_FAILED if look.error else _SHARE
            self._next_look = self._loop.now() + max(CHECK, (look.seconds - _CHEAP) * share)
        if look.plan:
            self._adopt(look.plan)
            self._whole = look.whole
        self._tell(look.drifts)
        is_new, self._is_new = self._is_new, False
        if isinstance(look.error, CommandError) and look.error.exit_status is None:
            self._warn("look.slow", None, error=str(look.error))
        elif look.error and look.level is Level.HELD and not is_new:
            self._listener.unfit(str(look.error))
        elif look.error:
            event = "takeover.incomplete" if is_new else "drift.not_repaired"
            self._warn(event, None, error=str(look.error))

    def _adopt(self, plan: Plan) -> None:
        """Have rules where this says from now on."""
        self._plan = plan
        self._setups = {backend: backend.setup(self._proxy, parts) for backend, parts in plan.items()}
        backend = next(iter(plan), self._backend)
        if backend != self._backend:
            self._restore.stop()
            self._backend, self._restore = backend, backend.standby()

    def _tell(self, drifts: list[Drift]) -> None:
        more = [Drift(drifts[-1].kind, f"and {len(drifts) - _TOLD} more")] if len(drifts) > _TOLD else []
        if drifts:
            self._listener.drifted((*drifts[:_TOLD], *more))

    def cleanup(self) -> list[str]:
        """Remove what an earlier kevip left for this VIP, in any back end; say what it was. Raises KevipError."""
        return [str(each) for each in self._clear(nullcontext)]

    def _clear(self, changes: Changes) -> list[Drift]:
        return clear(self._vip, self._backends.values(), [self._backend], changes)

    def end(self, patience: float = _PATIENCE) -> None:
        """Remove what is still here, and wait so many seconds for that; raises KevipError if something may be left."""
        self._loop.cancel(self.look)
        self._restore.stop()
        self._ip.stop()
        try:
            if self.level is not Level.NONE or self._installed is not False:
                self.apply(Level.NONE)
        finally:
            self._beside.close(patience)
        if self._installed is not False:
            raise KevipError(f"rules for {self._vip} are left on this host: the next start removes them")


def clear(
    vip: IPv4Address, backends: Iterable[Backend], needed: Collection[Backend], changes: Changes = nullcontext
) -> list[Drift]:
    """Remove each lease of the VIP, then its rules, and say what was there. Raises KevipError.

    Back ends that do not work are passed over, unless they are ``needed``.
    """
    found = [Drift(Kind.ADDRESS, f"address on {name}") for name in _drop_all(vip, changes)]
    cleared = remove_rules(vip, backends, needed, changes)
    found += [Drift(Kind.RULES, f"rules in {name}") for name in cleared]
    if cleared and (tracked := conntrack.count(vip)):
        conntrack.forget(vip)
        found.append(Drift(Kind.RULES, f"{tracked} tracked connection{'' if tracked == 1 else 's'}"))
    return found


def _drop_all(vip: IPv4Address, changes: Changes) -> list[str]:
    """Remove each lease of the VIP; return the interfaces that held one."""
    names = lease.held(vip)
    for name in names:
        with changes():
            lease.drop(vip, name)
    return names


def remove_rules(
    vip: IPv4Address, backends: Iterable[Backend], needed: Collection[Backend], changes: Changes = nullcontext
) -> list[str]:
    """Remove all rules of the VIP as ``clear`` does; return the names of the back ends that had any."""
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
