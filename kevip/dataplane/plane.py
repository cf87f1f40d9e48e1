"""The host as one that serves a VIP, or does not: brought to a level, looked after, and left as it was.

What a takeover waits for is done on the loop's thread: rules, then the address. All else is done beside the loop, for a
host may have a hundred thousand rules and connections of others. A job beside it changes the host only while the level
is still what it was begun for.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from ipaddress import IPv4Address
from math import inf
from time import monotonic
from typing import NamedTuple, Protocol

from kevip.core.messages import Level
from kevip.dataplane import conntrack, iptables, lease
from kevip.dataplane.iptables import Iptables
from kevip.dataplane.rules import Proxy
from kevip.errors import KevipError
from kevip.host import kernel
from kevip.host.beside import Beside, Job
from kevip.host.command import CommandError, Scope, run_now
from kevip.log import Warn
from kevip.loop import Action, Loop

TOGETHER = 4.0
"""Seconds that programs have on the loop's thread, all together: the watchdog waits 5 s."""

RENEWAL = 2.5
"""The same for a renewal: the watchdog waits since the last one, 2 s ago."""

BESIDE = 30.0
"""Seconds that a job beside the loop has."""

CHECK = 2.5
"""Seconds between looks at the rules, at least."""

_SHARE = 100
"""A look at the rules is followed by that many times its duration without one: where there are many, it is dear."""

_SHARE_OF_FAILED = 10
"""The same for a look that failed: it may have taken long for that reason only."""

_TOLD = 10
"""Drifts that are told, at most: there may be a rule for each of thousands of networks."""

_PATIENCE = 3.0
"""Seconds that are waited at the end for what is under way."""


class Kind(StrEnum):
    """What can drift. The names are labels of metrics."""

    ADDRESS = "address"
    FORWARDING = "forwarding"
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
    """What came of a look. ``whole`` are our rules, if they were looked at, ``error`` is why they could not be."""

    level: Level
    rules: bool
    """Whether rules are looked at."""
    drifts: list[Drift] = field(default_factory=list)
    whole: list[str] | None = None
    error: KevipError | None = None
    seconds: float = 0.0


Changes = Callable[[], AbstractContextManager[None]]
"""What surrounds a change of the host; raises KevipError if it is not to be made."""


class Plane:
    """Brings this host to a level, and keeps it there. To be made after privileges were dropped."""

    def __init__(self, proxy: Proxy, backend: Iptables, loop: Loop, listener: Listener, warn: Warn) -> None:
        self._proxy, self._vip = proxy, proxy.vip
        self._iptables = backend
        self._loop, self._beside = loop, Beside(loop)
        self._listener, self._warn = listener, warn
        self._setup = iptables.setup(proxy)
        self._restore, self._ip = backend.standby(), lease.standby()
        self._installed: bool | None = False
        """Whether our rules are here, None for some of them, or perhaps."""
        self._whole: list[str] | None = None
        self._is_new = self._removes = False
        self._next_look = -inf
        self.interface = ""
        self.level = Level.NONE

    @property
    def rules(self) -> list[str]:
        """The rules that are here when all is well, as they are saved; none until they were looked at."""
        return (self._whole or []) if self.level is Level.HELD else []

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
            if self._setup and not self._installed:
                self._installed = self._whole = None
                self._restore.run(self._setup)
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
            if self._setup:
                remove_rules(self._vip, self._iptables, self._iptables.save(run_now), changes)
            left = conntrack.forget(self._vip) if self._setup else 0
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
            if self._setup:
                self._restore.start()
            self._ip.start()
        except CommandError as error:
            self._warn("drift.not_repaired", None, error=str(error))

    def _look(self, look: _Look, job: Job) -> Action:
        begin = monotonic()
        try:
            if look.level is Level.HELD and self._setup:
                self._look_as_master(look, job.changes)
            elif look.level is Level.NONE and self._installed is False and (look.rules or lease.held(self._vip)):
                look.rules = True
                look.drifts = _clear(self._vip, self._iptables, job.changes)
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
        saved, whole = self._iptables.save(run_now), self._whole
        flaws = [] if whole is None else iptables.flaws(saved, self._vip, whole)
        found = iptables.ours(saved, self._vip)
        if flaws or (whole is None and not iptables.is_whole(self._proxy, found)):
            with changes():
                self._iptables.apply(iptables.repair(self._proxy, saved))
            found = iptables.ours(self._iptables.save(run_now), self._vip)
        look.whole = found
        look.drifts += [Drift(Kind.RULES, flaw) for flaw in flaws]

    def _looked(self, look: _Look) -> None:
        if look.rules:
            share = _SHARE_OF_FAILED if look.error else _SHARE
            self._next_look = self._loop.now() + max(CHECK, look.seconds * share)
        if look.whole is not None:
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

    def _tell(self, drifts: list[Drift]) -> None:
        more = [Drift(drifts[-1].kind, f"and {len(drifts) - _TOLD} more")] if len(drifts) > _TOLD else []
        if drifts:
            self._listener.drifted((*drifts[:_TOLD], *more))

    def cleanup(self) -> list[str]:
        """Remove what an earlier kevip left for this VIP, in either back end; say what it was. Raises KevipError."""
        return cleanup(self._vip, self._iptables)

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


def cleanup(vip: IPv4Address, backend: Iptables) -> list[str]:
    """Remove each lease of the VIP, then its rules in this back end, and in the other one if that works here.

    Say what was there. Raises KevipError.
    """
    return [str(each) for each in _clear(vip, backend, nullcontext)]


def _clear(vip: IPv4Address, backend: Iptables, changes: Changes) -> list[Drift]:
    found = [Drift(Kind.ADDRESS, f"address on {name}") for name in _drop_all(vip, changes)]
    saved = {backend.prefix: backend.save(run_now)} | iptables.save_all(but=backend)
    cleared = [prefix for prefix, text in saved.items() if remove_rules(vip, Iptables(prefix), text, changes)]
    found += [Drift(Kind.RULES, f"rules in {prefix}") for prefix in cleared]
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


def remove_rules(vip: IPv4Address, backend: Iptables, saved: str, changes: Changes = nullcontext) -> bool:
    """Remove all rules of the VIP that are saved; say whether there were any. Raises KevipError."""
    disarm, delete = iptables.teardown(saved, vip)
    if disarm:
        with changes():
            backend.apply(disarm)
    if delete:
        try:
            with changes():
                backend.apply(delete)
        except CommandError as error:
            raise KevipError(*error.problems, f"empty chains of {vip} stay: a rule of others jumps there") from None
    return bool(disarm)
