"""Looks after a child that elects: ends it where it is of no use, to have it started anew."""

from collections.abc import Callable
from typing import Protocol

from kevip.core.instance import TICK
from kevip.core.messages import Reason
from kevip.election.child import Child
from kevip.election.engine import Teller
from kevip.errors import KevipError
from kevip.host import interface
from kevip.host.interface import Placement
from kevip.loop import Loop

GLANCE = 0.25  # seconds between looks at whether adverts go out


class Ear(Protocol):
    """What is heard of the election; ``advertised`` is when this host, as master, last did, else None."""

    place: Placement | None
    advertised: float | None

    def hear_own(self) -> None:
        """Take in that adverts of this host went out."""


class Cared(Protocol):
    """An engine with a child; ``silence`` are the seconds without an advert after which a master is of no use."""

    loop: Loop
    teller: Teller
    locate: Callable[[], Placement]

    @property
    def segment(self) -> Ear: ...  # noqa: D102

    @property
    def silence(self) -> float: ...  # noqa: D102

    def end(self, reason: Reason = Reason.ENGINE) -> None:
        """End the child, and tell why."""

    def rerank_if_settled(self) -> None:
        """Have the child stand as this host deserves, if it does not yet."""


def is_linked(ear: Ear) -> bool:
    """Whether the interface of the election is up, and has a carrier."""
    return ear.place is not None and interface.is_running(ear.place.interface)


class Care:
    """Looks after a child that runs, and has it ended where it is of no use."""

    def __init__(self, child: Child, engine: Cared) -> None:
        self._child, self._engine = child, engine
        self._loop, self._log, self._segment = engine.loop, engine.teller.log, engine.segment
        self._is_guarded = True
        self._loop.watch(child.watchdog, self._on_watchdog)
        self._loop.after(TICK, self._look_after)
        if self._segment.advertised is not None:
            self.expect_adverts()

    def end(self) -> None:
        """Look after it no more."""
        if self._is_guarded:
            self._loop.forget(self._child.watchdog)
        self._loop.cancel(self._look_after, self._glance)

    def expect_adverts(self) -> None:
        """See to it that a master advertises."""
        self._loop.after(GLANCE, self._glance)

    def _tell(self, what: str) -> str:
        return f"{self._child.program}.{what}"

    def _on_watchdog(self) -> None:
        """Replace a watchdog that was killed: a daemon that hangs would keep the child advertising."""
        self._loop.forget(self._child.watchdog)
        try:
            self._child.guard_anew()
        except (KevipError, OSError) as error:
            self._is_guarded = False
            hint = f"{self._child.program} is ended, and started anew"
            self._log.error(self._tell("unguarded"), error=str(error), hint=hint)
            self._engine.end()
            return
        self._log.warning("watchdog.replaced", hint="it was killed: see dmesg for memory that ran out")
        self._loop.watch(self._child.watchdog, self._on_watchdog)

    def _look_after(self) -> None:
        """End a child that is of no use where it is, to have it started anew."""
        self._loop.after(TICK, self._look_after)
        child, place, is_master = self._child, self._segment.place, self._segment.advertised is not None
        if not place or child.killed:
            return
        if not is_master and child.is_frozen():
            self._log.error(self._tell("frozen"), hint=f"{child.program} ({child.pid}) was stopped: it is ended")
            self._engine.end()
        elif not is_linked(self._segment):
            if not is_master:  # it might sleep for 10 s at a time, as a backup
                self._engine.end(Reason.UNLINKED)
        elif self._has_moved(place):
            hint = "the address of this host has changed"
            self._log.warning(self._tell("moved"), was=str(place.source), hint=hint)
            self._engine.end(Reason.MOVED)
        else:
            self._engine.rerank_if_settled()

    def _has_moved(self, place: Placement) -> bool:
        """Whether another address is this host's source now: adverts from the old one would be taken for its own."""
        if interface.first_address(place.interface) == place.source:
            return False
        try:
            return self._engine.locate() != place
        except KevipError:
            return False  # it has none just now: if that stays, peers hear no more of it

    def _glance(self) -> None:
        """End a child that is master and does not advertise any more: a peer takes over soon anyway."""
        self._segment.hear_own()
        if self._segment.advertised is None:
            return
        if self._loop.now() - self._segment.advertised > self._engine.silence:
            hint = f"{self._child.program} ({self._child.pid}) does not advertise: it is ended"
            self._log.error("election.silent", hint=hint)
            self._engine.end()
        else:
            self.expect_adverts()
