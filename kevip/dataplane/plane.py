"""The host as one that serves a VIP, or does not: brought to a level, looked after, and left as it was.

What a takeover waits for is done on the loop's thread: rules, then the address. All else is done beside the loop, for a
host may have a hundred thousand rules and connections of others. A job beside it changes the host only while the level
is still what it was begun for.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address
from math import inf
from time import monotonic
from typing import Protocol

from kevip.core.messages import Level
from kevip.dataplane import conntrack, lease, redirects, select
from kevip.dataplane.backend import Backend, Changes
from kevip.dataplane.lease import Lease
from kevip.dataplane.nftables import Nftables
from kevip.dataplane.rules import Proxy
from kevip.dataplane.ruleset import Ruleset, Whole, remove
from kevip.dataplane.survey import Drift, Kind, Plan
from kevip.errors import KevipError
from kevip.host import kernel, route
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
_TRIED_AGAIN = "it is tried again; rules that are left do nothing"
_TOO_MANY = "there are too many to forget them all: the kernel does when nothing is sent any more"
_PATIENCE = 3.0  # seconds that are waited at the end for what is under way


class Copies(Protocol):
    """What may copy the connections that are tracked here to other hosts."""

    def spared(self, level: Level) -> AbstractContextManager[bool]:
        """Have the others not notice what becomes of them; whether they may be forgotten. For a thread."""


class Listener(Protocol):
    """What is told, on the loop's thread."""

    def cleared(self, level: Level, *, ok: bool) -> None:
        """Hear that what ``apply`` began, to come down to a level, is done; if it is not ok, something is left."""

    def unfit(self, detail: str) -> None:
        """Hear why this host cannot serve as it is."""

    def drifted(self, drifts: tuple[Drift, ...]) -> None:
        """Hear what was not as it should be, and is now."""


@dataclass(slots=True)
class _Look:
    """What came of a look. ``rules`` says whether they were looked at, ``error`` is why they could not be.

    ``anew`` says that they are, also if nobody changed any since the last one.
    """

    level: Level
    rules: bool
    anew: bool
    drifts: list[Drift] = field(default_factory=list)
    plan: Plan | None = None
    whole: Whole = field(default_factory=dict)
    error: KevipError | None = None
    seconds: float = 0.0


class Plane:
    """Brings this host to a level, and keeps it there. To be made after privileges were dropped."""

    copies: Copies | None = None

    def __init__(self, rules: Ruleset, loop: Loop, listener: Listener, warn: Warn) -> None:
        self._vips, self.ruleset = rules.vips, rules
        self._loop, self._beside = loop, Beside(loop)
        self._listener, self._warn = listener, warn
        self._ip, self._is_new = lease.standby(), False
        self._lowers: Level | None = None  # to which level, beside the loop
        self._next_look = -inf
        self.interface, self.level = "", Level.NONE

    def change(self, proxy: Proxy) -> None:
        """Have other targets from now on; connections that are open go on to where they went."""
        if self._lowers is None:
            with suppress(KevipError):
                self._beside.cancel(0)
        self.ruleset.change(proxy)
        self.look(anew=True)

    @property
    def rules(self) -> dict[str, list[str]]:
        """The rules that are here when all is well, by back end, as they are saved; none until they were looked at."""
        return {each.name: rules for each, rules in self.ruleset.whole.items()} if self.level else {}

    def apply(self, level: Level) -> None:
        """Bring the host to a level; raises KevipError.

        HELD again renews the lease. DRAINING removes the address, and leaves all else. What lower levels add or remove
        besides, they do beside the loop. A takeover that failed leaves DRAINING.
        """
        renews = level is Level.HELD and self.level is Level.HELD
        with Scope(RENEWAL if renews else TOGETHER) as scope:
            if renews:
                self._renew()
            elif level is Level.HELD:
                self._take_over(scope)
            else:
                self._come_down(level)

    def _renew(self) -> None:
        before = lease.hold(self._vips, self.interface)
        strays = [each for each in before if each[0] != self.interface]
        lease.drop(strays)
        missing = sorted({*lease.on(self.interface, self._vips)}.difference(before))
        self._tell(_addresses(self._vips, missing, "missing on") + _addresses(self._vips, strays))

    def _take_over(self, scope: Scope) -> None:
        self._lowers = None
        try:
            self._beside.cancel(scope.left())
            self.ruleset.install()
            lease.take(self._vips, self.interface, self._ip)
        except KevipError:
            self.level = Level.DRAINING
            raise
        self.level, self._is_new, self._next_look = Level.HELD, True, -inf
        self._loop.after(0, self.look)

    def _come_down(self, level: Level) -> None:
        was, self.level = self.level, level
        if level is self._lowers:
            return
        self._lowers = None
        with suppress(KevipError):
            self._beside.cancel(0)
        try:
            if was is Level.HELD:
                lease.drop(lease.on(self.interface, self._vips))
        finally:
            if was is Level.NONE and level is Level.ARMED:
                self.look(anew=True)
            elif level < Level.DRAINING:
                self._lowers = level
                self._beside.begin(partial(self._lower, level), BESIDE)

    def _lower(self, level: Level, job: Job) -> Action:
        """Remove, beside the loop, what is left here and does not belong to a level."""
        ways = [False] * self.ruleset.translates + [True] * self.ruleset.rewrites
        try:
            drop_all(self._vips, job.changes)
            _restore(self._vips, job.changes)
            if self.ruleset.may_have_any and level is Level.NONE:
                self.ruleset.removes(job.changes)
            left = sum(self._forget(level, rewritten=each) for each in ways)
        except KevipError as error:
            return partial(self._lowered, level, error)
        return partial(self._lowered, level, left=left)

    def _forget(self, level: Level, *, rewritten: bool = False) -> int:
        """Forget all connections without harm to the copies that others have; return how many are left."""
        with self.copies.spared(level) if self.copies else nullcontext(True) as may:
            return conntrack.forget(self._vips, rewritten=rewritten) if may else 0

    def _lowered(self, level: Level, error: KevipError | None = None, left: int = 0) -> None:
        self._lowers = None
        if error:
            self._warn("release.failed", "rules", error=str(error), hint=_TRIED_AGAIN)
        elif level is Level.ARMED:
            self.look(anew=True)
        else:
            self.ruleset.here, self.ruleset.whole = False, {}
        if left:
            self._warn("release.slow", None, connections=left, hint=_TOO_MANY)
        self._listener.cleared(level, ok=not error)

    def look(self, *, anew: bool = False) -> None:
        """See, beside the loop, whether all is as it should be, unless a job is under way; be ready for a takeover.

        Where there are many rules, they are not looked at each time; ``anew``, they are.
        """
        self._next_look = -inf if anew else self._next_look
        try:
            if self.level is not Level.HELD:
                self.ruleset.stand_by()
                self._ip.start()
        except CommandError as error:
            self._warn("drift.not_repaired", None, error=str(error))
        if not self._beside.is_busy and self.level is not Level.DRAINING:
            look = _Look(self.level, rules=self._loop.now() >= self._next_look, anew=self._next_look == -inf)
            self._beside.begin(partial(self._look, look), BESIDE)

    def _look(self, look: _Look, job: Job) -> Action:
        begin = monotonic()
        try:
            if look.level is Level.ARMED:
                look.drifts += _addresses(self._vips, drop_all(self._vips, job.changes))
                begin = monotonic()  # an ip that is slow does not make rules dear
            if look.level is not Level.NONE:
                self._tend(look, job.changes)
            elif self.ruleset.here is False and (look.rules or lease.held(self._vips)):
                look.rules = True
                look.drifts = self.cleanup(job.changes)
                look.plan = self.ruleset.survey(look.drifts, self.ruleset.parts, opens=False)
        except KevipError as error:
            look.error = error
        look.seconds = monotonic() - begin
        return partial(self._looked, look)

    def _tend(self, look: _Look, changes: Changes) -> None:
        """See that the host can serve, and mend what it lacks for that."""
        if not self.ruleset.may_have_any:
            return
        if self.ruleset.targets and not kernel.forwards(
            *(ways := route.incoming(self.interface, self.ruleset.targets))
        ):
            with changes():
                kernel.enable_forwarding(*ways)
            look.drifts.append(Drift(Kind.FORWARDING, "forwarding off"))
        look.rules = self.ruleset.wants_look(due=look.rules, anew=look.anew)
        rewrites = look.level is Level.HELD and self.ruleset.rewrites
        redirects.follow(self._vips[0], self.interface, changes, off=rewrites)
        if look.rules and self._is_new and self.ruleset.translates:
            conntrack.forget_untranslated(self._vips)
        if look.rules:
            look.plan, look.whole = self.ruleset.looks(look.drifts, changes, held=look.level is Level.HELD)

    def _looked(self, look: _Look) -> None:
        if look.rules:
            share = _SHARE_OF_FAILED if look.error else _SHARE
            self._next_look = self._loop.now() + max(CHECK, (look.seconds - _CHEAP) * share)
        if look.plan is not None:
            self.ruleset.adopt(look.plan, look.whole)
        self._tell(look.drifts)
        if look.error and look.level is Level.ARMED and self.ruleset.here:
            self.ruleset.here = None  # a takeover installs them again, just in case
        is_new, self._is_new = self._is_new, False
        if isinstance(look.error, CommandError) and look.error.exit_status is None:
            self._warn("look.slow", None, error=str(look.error))
        elif look.error and look.level is Level.HELD and not is_new:
            self._listener.unfit(str(look.error))
        elif look.error:
            event = "takeover.incomplete" if is_new else "drift.not_repaired"
            self._warn(event, None, error=str(look.error))

    def _tell(self, drifts: list[Drift]) -> None:
        if drifts:
            more = [Drift(drifts[-1].kind, f"and {len(drifts) - _TOLD} more")] if len(drifts) > _TOLD else []
            self._listener.drifted((*drifts[:_TOLD], *more))

    def cleanup(self, changes: Changes = nullcontext) -> list[Drift]:
        """Remove what an earlier kevip left for this VIP, in any back end; say what it was. Raises KevipError."""
        found = _addresses(self._vips, drop_all(self._vips, changes)) + _restore(self._vips, changes)
        return found + _forgotten(self._vips, self.ruleset.removes(changes), partial(self._forget, Level.NONE))

    def end(self, patience: float = _PATIENCE) -> None:
        """Remove what is still here, and wait so many seconds for that; raises KevipError if something may be left."""
        self._loop.cancel(self.look)
        self.ruleset.stand_down()
        self._ip.stop()
        try:
            if self.level is not Level.NONE or self.ruleset.here is not False:
                self.apply(Level.NONE)
        finally:
            self._beside.close(patience)
        if self.ruleset.here is not False:
            raise KevipError(f"rules for {self._vips[0]} are left on this host: the next start removes them")


def clear(vips: Sequence[IPv4Address], needed: Backend) -> list[Drift]:
    """Remove each lease of a group, then its rules in all back ends that work here, and say what was there.

    Raises KevipError, also if a back end that is needed does not work.
    """
    found = _addresses(vips, drop_all(vips)) + _restore(vips)
    forget = partial(conntrack.forget, vips)
    return found + _forgotten(vips, remove(vips[0], select.installed().values(), [needed]), forget)


def drop_all(vips: Sequence[IPv4Address], changes: Changes = nullcontext) -> list[Lease]:
    """Remove each lease of the VIPs, and return them."""
    if found := lease.held(vips):
        with changes():
            lease.drop(found)
    return found


def _addresses(vips: Sequence[IPv4Address], there: Iterable[Lease], what: str = "on") -> list[Drift]:
    """Say what is with some leases of a group."""
    several = len(vips) > 1
    return [Drift(Kind.ADDRESS, f"address {f'{vip} ' * several}{what} {name}") for name, vip in there]


def _restore(vips: Sequence[IPv4Address], changes: Changes = nullcontext) -> list[Drift]:
    """Have ICMP redirects sent again, and say if they were off."""
    return [Drift(Kind.RULES, "ban on ICMP redirects")] if redirects.restore(vips[0], changes) else []


def _forgotten(vips: Sequence[IPv4Address], cleared: list[str], forget: Callable[..., int]) -> list[Drift]:
    """Forget the connections that rules in these back ends translated, and say what was there."""
    found = [Drift(Kind.RULES, f"rules in {name}") for name in cleared]
    ways = (False, True) if Nftables.name in cleared else (False,)
    if cleared and (tracked := sum(conntrack.count(vips, rewritten=each) for each in ways)):
        for each in ways:
            forget(rewritten=each)
        found.append(Drift(Kind.RULES, f"{tracked} tracked connection{'' if tracked == 1 else 's'}"))
    return found
