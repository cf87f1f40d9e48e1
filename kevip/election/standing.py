"""The engine that is ucarp: it elects, and all in which it has to be overruled ends here.

ucarp is late (libpcap gives it an advert up to 1 s late), deaf (without a carrier it sleeps 10 s at a time), says no
goodbye, and goes on to advertise when it should not. So the daemon hears the adverts itself, looks after ucarp every
few seconds, and says goodbye in its place.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from kevip.core.instance import LOOK_AGAIN
from kevip.core.messages import Demoted, Elected, Ended, Reason
from kevip.core.states import Traits
from kevip.election.care import Care, is_linked
from kevip.election.carp import MOST_SKEW, UNFIT, Interval
from kevip.election.child import hint_at_end
from kevip.election.engine import Tell, Teller
from kevip.election.segment import LATE, Segment
from kevip.election.ucarp import Candidacy, Hook, Message, Request, Ucarp, understand
from kevip.errors import KevipError
from kevip.host import interface
from kevip.host.interface import Placement
from kevip.loop import Loop

# Seconds to wait for a peer to take over, where one was heard before, and where none was: backups are silent. That is
# what a goodbye takes, with and without its first stages, until a backup has acted on it whose ucarp is late.
FAREWELL, FAREWELL_ALONE = 3.5, 2.5


class UcarpEngine:
    """Runs ucarp on the interface where the VIP belongs; ``locate`` finds it. See ``Engine``."""

    def __init__(
        self, candidacy: Candidacy, loop: Loop, teller: Teller, tell: Tell, locate: Callable[[], Placement]
    ) -> None:
        self._candidacy, self._tell, self._log = candidacy, tell, teller.log
        self.loop, self.teller, self.locate = loop, teller, locate
        segment = self.segment = Segment(candidacy, loop, teller, tell)
        self.goodbye, self.end_goodbye, self.yields = segment.goodbye, segment.end_goodbye, segment.yields
        self.traits = Traits(
            interval=segment.own.seconds,
            patience=candidacy.patience,
            lateness=LATE,
            farewell=FAREWELL,
            farewell_alone=FAREWELL_ALONE,
            waits=True,
            reranks=False,
            settling=candidacy.settling,
        )
        self._child: Ucarp | None = None
        self._run, self._fit, self._anew = 0, True, False
        self._ends = Reason.ENGINE
        self._asked: dict[str, Request] = {}

    def start(self, run: int, *, fit: bool) -> Placement | None:
        """See ``Engine``."""
        self._run, self._fit = run, fit
        try:
            place = self.locate()
            interface.require_carrier(place.interface)
            self.segment.own = self._deserved()
            self.segment.open(place)
            self._spawn(place)
        except (KevipError, OSError) as error:
            self.teller.warn_once("ucarp.not_started", str(error), error=str(error), retry_seconds=LOOK_AGAIN)
            return None
        return place

    def _deserved(self) -> Interval:
        """Return the interval that this host deserves: one that does not reach TARGET comes after all that do."""
        base, skew = self._candidacy.advbase, self._candidacy.advskew
        return Interval(base, skew if self._fit else min(UNFIT + skew, MOST_SKEW))

    def _spawn(self, place: Placement) -> None:
        """Start ucarp; raises CommandError, HostError, OSError."""
        candidacy = replace(
            self._candidacy, interface=place.interface, source=place.source, advskew=self.segment.own.advskew
        )
        child = self._child = Ucarp(candidacy)
        self._ends = Reason.ENGINE
        self.teller.count("engine_starts")
        self.loop.watch(child.channel, partial(self._on_hooks, child))
        self.loop.watch(child.stderr, partial(self._on_lines, child))
        self.loop.watch(child.pidfd, partial(self._on_exit, child))
        self._care = Care(child, self)

    @property
    def silence(self) -> float:
        """See ``Cared``."""
        return self.segment.own.seconds + LATE

    # What the core asks for

    def proceed(self, token: str) -> None:
        """See ``Engine``."""
        request = self._asked.pop(token, None)
        if not request or not self._child:
            return
        self._child.answer(request)
        self.segment.advertised = None
        if request.hook is Hook.UP:
            self.segment.advertised = self.loop.now()
            self._care.expect_adverts()

    def rerank(self, *, fit: bool) -> None:
        """See ``Engine``."""
        self._fit = fit
        self.rerank_if_settled()

    def rerank_if_settled(self) -> None:
        """Have ucarp stand as this host deserves; as backup only if a master is heard, for it may be about to win."""
        deserved, settled = self._deserved(), self.segment.advertised is not None or self.segment.is_led()
        if self._child and not self._child.killed and deserved != self.segment.own and settled:
            self._renew(deserved)

    def _renew(self, interval: Interval) -> None:
        """Start ucarp anew, with an interval, in the role that there is: it can change neither while it runs.

        For a master, the daemon advertises until the new ucarp is elected, which hears nobody else.
        """
        self.segment.own, self._anew = interval, True
        if self._child:
            self._child.kill()
        if self.segment.advertised is not None:
            patience = interval.advbase * self._candidacy.dead_ratio + 3 * interval.seconds
            self.segment.bridge(patience + LATE, self.end)

    def end(self, reason: Reason = Reason.ENGINE) -> None:
        """See ``Engine``; the reason is told when it has ended."""
        self.segment.advertised, self._anew = None, False
        self.segment.end_bridge()
        if self._child:
            self._ends = reason
            self._child.kill()

    def beat(self) -> None:
        """See ``Engine``."""
        if self._child:
            self._child.beat()

    def close(self) -> None:
        """See ``Engine``."""
        if self._child:
            self._care.end()
            self._child.kill()
            self._child.close()
        self.segment.close()

    # What ucarp says and does

    def _on_hooks(self, child: Ucarp) -> None:
        self.segment.hear()  # of a master, say, who came to be while this process was stopped
        for request in child.requests():
            if self.segment.bridges:  # the role is known
                child.answer(request)
                if request.hook is Hook.UP:
                    self.segment.end_bridge()
                continue
            self._asked[request.token] = request
            if request.hook is Hook.DOWN and self._is_misled():
                self._log.info("election.upheld")
                self._renew(self.segment.own)
            elif request.hook is Hook.DOWN:
                self._tell(Demoted(self._run, request.token))
            elif master := self.segment.master(LATE):
                self._log.info("election.declined", master=str(master))
                self.end(Reason.LATE)  # before it can advertise; it does not know yet that another one won
            else:
                self._tell(Elected(self._run, request.token))

    def _is_misled(self) -> bool:
        """Whether ucarp, as master, gives way to one that has let go since, for it hears of all that late."""
        segment = self.segment
        has_left = not segment.is_led() and self.loop.now() - segment.left <= 2 * LATE
        return segment.advertised is not None and has_left and is_linked(self.segment)

    def _on_lines(self, child: Ucarp) -> None:
        for line in child.lines():
            message, text = understand(line)
            match message:
                case Message.MASTER | Message.BACKUP:
                    self._log.info(message)
                case Message.HOOK_LOST:
                    self._log.error("election.resigned", reason=text)
                    self.end()
                case Message.OTHER:
                    self.teller.warn_once(message, text, ucarp=text)
                case _:
                    self._log.debug(message, ucarp=text)

    def _on_exit(self, child: Ucarp) -> None:
        self._on_lines(child)
        self._care.end()
        for source in (child.channel, child.stderr, child.pidfd):
            self.loop.forget(source)
        status = child.close()
        self._asked.clear()
        if self._anew and self.segment.place:
            self._anew = False
            try:
                self._spawn(self.segment.place)
            except (KevipError, OSError) as error:
                self._log.error("ucarp.not_started", error=str(error))
            else:
                return
        self._child = self.segment.advertised = None
        self.segment.end_bridge()
        if not child.killed:
            self._log.error(
                "ucarp.exited", status=status, hint=hint_at_end(status) or "it said why in ucarp.message, if it knew"
            )
        unlinked = self._ends is Reason.ENGINE and not is_linked(self.segment)
        self._tell(Ended(self._run, Reason.UNLINKED if unlinked else self._ends))
