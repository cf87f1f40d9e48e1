"""The rules of a VIP, in the back ends where they belong on this host: installed, looked after, and removed."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from ipaddress import IPv4Address

from kevip.dataplane import select
from kevip.dataplane.backend import Backend, Changes, flaws, texts
from kevip.dataplane.rules import Part, Parts, Proxy, rewriting
from kevip.dataplane.survey import Drift, Kind, Plan, Survey, rewrites
from kevip.errors import HostError, KevipError
from kevip.host.command import CommandError

Whole = dict[Backend, list[str]]
"""The rules that are there when all is well, as they are saved."""


class Ruleset:
    """What ``looks`` and ``removes`` is for a thread beside the loop; all else for the loop's.

    ``follows`` says that the rules may go to nftables when others begin to translate there. ``rewrites`` is what is
    known of TARGET so far: that somebody else translates it. ``here`` is whether rules of ours are on the host as
    ``plan`` says, None for some of them, or perhaps.
    """

    def __init__(self, proxy: Proxy, backend: Backend, *, follows: bool, rewrites: bool = False) -> None:
        self.proxy, self._vip, self.vips = proxy, proxy.vip, proxy.vips
        self._backends = select.installed() | {backend.name: backend}
        self._others = Survey(proxy, self._backends.values(), follows=follows)
        self.backend, self._restore = backend, backend.standby()
        self.parts, self.targets, self.translates = proxy.parts, proxy.targets, bool(proxy.routes)
        self.may_have_any = bool(proxy.parts or proxy.opens)
        self._seen: tuple[int, bool] | None = None  # what others have here, as far as it is told, when all was well
        self.plan: Plan = {}
        self.whole: Whole = {}
        self.here: bool | None = False
        self._is_stale = False  # the targets are others than those of the rules that are here
        self._used: set[Backend] = set()  # where rules of ours are, or may be
        self.adopt({backend: rewriting(proxy.parts) if rewrites else proxy.parts} if proxy.routes else {}, {})

    def change(self, proxy: Proxy) -> None:
        """Have other targets from now on, with the next look, or takeover; while no thread is at it."""
        self.proxy, self.targets = proxy, proxy.targets
        self._others.proxy, self._is_stale = proxy, True
        self.whole = {}

    def adopt(self, plan: Plan, whole: Whole) -> None:
        """Have rules where this says from now on; ``whole`` are those that are there."""
        self.whole, self._is_stale = whole, self._is_stale and not any(whole.values())
        if any(whole.values()):
            self.here = True
        if plan == self.plan:
            return
        self.plan = plan
        backend = next((each for each, parts in plan.items() if Part.FORWARD in parts), self.backend)
        if backend != self.backend:
            self._restore.stop()
            self.backend, self._restore = backend, backend.standby()

    @property
    def rewrites(self) -> bool:
        """Whether somebody else translates TARGET, by what is known so far."""
        return rewrites(self.plan)

    def stand_by(self) -> None:
        """Be ready to install them at once, if they may not all be here by then; raises CommandError."""
        if self.translates and (self.here is None or self.proxy.global_masquerade):
            self._restore.start()
        else:
            self._restore.stop()

    def stand_down(self) -> None:
        """Be ready no more."""
        self._restore.stop()

    def install(self) -> None:
        """Install what a master has and is not here; raises CommandError."""
        have, plan = self.plan if self.here else {}, dict(self.plan)
        if self.translates:
            parts = rewriting(self.proxy.parts) if self.rewrites else self.proxy.parts
            plan[self.backend] = plan.get(self.backend, frozenset()) | parts
        if self._is_stale and self.here is not False:
            for backend, parts in plan.items():
                backend.repair(self.proxy, parts, backend.save(self._vip))
            have = plan
        missing = {backend: parts - have.get(backend, frozenset()) for backend, parts in plan.items()}
        for backend, parts in missing.items():
            if parts:
                self.here, self.whole = None, {}
                self._used.add(backend)
                program = self._restore if backend == self.backend else backend.standby()
                program.run(backend.setup(self.proxy, parts))
        self.plan, self.here = plan, self.here is not False or self.translates

    def looks(self, drifts: list[Drift], changes: Changes, *, held: bool) -> tuple[Plan, Whole]:
        """Return what belongs where, and is there now; add what was not as it should be. Raises KevipError.

        While the VIP is not held, only what does nothing without it.
        """
        before, self._seen = self._others.seen(), None
        news = list[Drift]()  # told only if all is done
        parts = self.proxy.parts if held else self.proxy.parts - {Part.MASQUERADE}
        plan = self.survey(news, parts, opens=bool(self.whole))
        try:
            whole = self._mend_all(plan, drifts, changes)
        except HostError as error:  # rules of nftables are in its tables now
            if not self._others.can_move(self.backend):
                raise
            news.append(Drift(Kind.FOREIGN_NAT, f"{error}: nftables takes over"))
            plan = {self._others.native: parts}
            whole = self._mend_all(plan, drifts, changes)
        for backend in self.plan.keys() - plan.keys():
            with suppress(HostError):  # it cannot read them any more, and the end will say so
                backend.remove(self._vip, backend.save(self._vip), changes)
                self._used.discard(backend)
        drifts += news
        self._seen = before if before == self._others.seen() else None
        return plan, whole

    def _mend_all(self, plan: Plan, drifts: list[Drift], changes: Changes) -> Whole:
        whole: Whole = {}
        for backend, parts in plan.items():
            with suppress(
                *([] if Part.FORWARD in parts else [HostError])
            ):  # what only accepts is not worth to be unfit
                whole[backend] = self._mend(backend, parts, drifts, changes)
        return whole

    def wants_look(self, *, due: bool, anew: bool) -> bool:
        """Whether to look at the rules: not if nobody changed any since all was well, as far as the kernel says so."""
        if not anew and self._seen is not None and self._seen == self._others.seen():
            return False
        return due or (self.may_have_any and self._others.is_overtaken(self.backend, self.plan))

    def survey(self, drifts: list[Drift], parts: Parts, *, opens: bool) -> Plan:
        """See ``Survey.plan``."""
        if not self.may_have_any:
            return {}
        return self._others.plan(self.backend, self.plan, drifts, parts, opens=opens)

    def _mend(
        self, backend: Backend, parts: Parts, drifts: list[Drift], changes: Changes, *, again: bool = True
    ) -> list[str]:
        """See to it that all rules are there and nothing else; return them, none if that came to nothing."""
        saved, size = backend.save(self._vip), backend.size(self.proxy, parts)
        as_planned = self.plan.get(backend) == parts and not self._is_stale
        whole = self.whole.get(backend) if as_planned else None
        wrong = flaws(backend, self._vip, saved, whole) if whole else []
        found = texts(backend, self._vip, saved)
        if not wrong and len(found) == size and as_planned:
            return found
        try:
            with changes():
                self._used.add(backend)
                self.here = None
                backend.repair(self.proxy, parts, saved)
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
