"""Whether this host reaches TARGET, and what follows for its part in the election."""

from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address
from math import inf
from time import monotonic

from kevip.config import RANGES, Config
from kevip.election.carp import UNFIT
from kevip.health import Judge, Prober, ask
from kevip.loop import Loop
from kevip.record import Health
from kevip.reporter import Reporter

PATIENCE = 3.0
"""Seconds that TARGET has to answer, at most."""

FIRST_PAUSE, LAST_PAUSE = 60.0, 3600.0
"""Seconds after a resignation for TARGET's sake before the next: doubled each time, forgotten after the longest."""

_MOST_SKEW = RANGES["advskew"][1]


class Vigil:
    """Asks TARGET as the settings say, if they do."""

    def __init__(self, config: Config, loop: Loop, reporter: Reporter) -> None:
        self._config = config
        self._loop = loop
        self._reporter = reporter
        self._judge = Judge(fall=config.check_fall, rise=config.check_rise)
        self._prober: Prober | None = None
        self._next, self._pause = -inf, FIRST_PAUSE

    @property
    def is_well(self) -> bool | None:
        """Whether this host reaches TARGET, None if that is not known."""
        return self._judge.up if self._judge.known else None

    @property
    def advskew(self) -> int:
        """The skew to stand for election with: a host that does not reach TARGET comes after all that do."""
        skew = self._config.advskew
        return skew if self._judge.up else min(UNFIT + skew, _MOST_SKEW)

    def start(self, serves: Callable[[], bool], stand: Callable[[], None]) -> None:
        """Ask from now on.

        ``serves`` says whether this host has the VIP, and so asks from it. ``stand`` is called after each answer.
        """
        config = self._config
        self._serves, self._stand = serves, stand
        if config.check:
            health = self._reporter.record.health = Health(check=str(config.check))
            question = partial(ask, config.check, config.target, min(float(config.check_interval), PATIENCE))
            prober = self._prober = Prober(question, interval=config.check_interval)
            self._loop.watch(prober, partial(self._on_answers, prober, health))

    def _on_answers(self, prober: Prober, health: Health) -> None:
        self._ask_from(prober, self._config.vip if self._serves() and self._config.target else None)
        for answer in prober.answers():
            health.round_trip, health.problem = (None if answer.problem else answer.seconds), answer.problem
            if self._judge.hear(success=not answer.problem):
                self._tell(health)
        self._stand()

    def _ask_from(self, prober: Prober, source: IPv4Address | None) -> None:
        """Ask from another address; of the VIP, what was asked from others says nothing."""
        if source != prober.source:
            prober.source = source
            if source:
                self._judge.doubt()

    def _tell(self, health: Health) -> None:
        health.turn(up=self._judge.up)
        if health.up:
            self._reporter.log.info("target.up", check=health.check)
        else:
            self._reporter.log.warning("target.down", check=health.check, problem=health.problem)

    def may_resign(self) -> bool:
        """Whether a master may resign for TARGET's sake, and note that it does: rarely, for it is unelected a while."""
        now = monotonic()
        if now < self._next:
            return False
        self._pause = FIRST_PAUSE if now > self._next + LAST_PAUSE else min(2 * self._pause, LAST_PAUSE)
        self._next = now + self._pause
        return True

    def close(self) -> None:
        """Ask no more."""
        if self._prober:
            self._prober.close()
