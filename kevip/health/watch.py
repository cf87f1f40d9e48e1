"""Whether this host reaches TARGET, by all that is known of it: one input of the core, whose policy it is."""

from collections.abc import Callable
from ipaddress import IPv4Address

from kevip.core.messages import Event, Target
from kevip.health.ask import Answer
from kevip.health.prober import Judge, Prober
from kevip.loop import Loop

GLANCE = 0.5  # seconds between looks at the route, which cost next to nothing
_MORE = 1.0  # seconds by which hosts may differ besides the time between two answers


class Watch:
    """Hears a prober, if there is one, and looks at the route to TARGET, if there is a TARGET; tells Target.

    ``vip`` is what to ask from while it is here; ``unrouted`` says why there is no route. ``told`` is called with each
    answer, and whether TARGET is up.
    """

    def __init__(  # noqa: PLR0913 - each is one of its parts
        self,
        loop: Loop,
        tell: Callable[[Event], None],
        told: Callable[[Answer, bool], None],
        *,
        judge: Judge,
        prober: Prober | None,
        vip: IPv4Address | None,
        unrouted: Callable[[], str] | None,
    ) -> None:
        self._loop, self._tell, self._told = loop, tell, told
        self._judge, self._prober = judge, prober
        self._vip = vip
        self._within = (prober.period if prober else 0) + _MORE
        self._unrouted, self._problem = unrouted, ""
        if unrouted:
            loop.after(0, self._glance)
        if prober:
            loop.watch(prober, self._on_answers)

    def _on_answers(self) -> None:
        for answer in self._prober.answers() if self._prober else ():
            self._judge.hear(success=not answer.problem)
            self._told(answer, self._judge.up)
        self._say()

    def serves(self, *, vip: bool) -> None:
        """Ask from the VIP while this host serves it; of that, what was asked from elsewhere says nothing."""
        if self._prober and self._vip:
            source = self._vip if vip else None
            if vip and source != self._prober.source:
                self._judge.doubt()
            self._prober.source = source

    def _glance(self) -> None:
        """Look at the route; what has not changed is told again only if it is bad, for then time matters."""
        self._loop.after(GLANCE, self._glance)
        before, self._problem = self._problem, self._unrouted() if self._unrouted else ""
        if self._problem or self._problem != before:
            self._say()

    def _say(self) -> None:
        answers = None if self._prober and not self._judge.known else self._judge.up
        reached = False if self._problem else answers
        self._tell(Target(reached, self._problem, self._within))

    def close(self) -> None:
        """Ask no more."""
        if self._prober:
            self._prober.close()
