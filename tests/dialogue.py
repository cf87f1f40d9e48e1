"""A dialogue with the core in virtual time: an event is told, and what it wants done is answered."""

from ipaddress import IPv4Address

from kevip.core.instance import AGREE, step
from kevip.core.messages import (
    Apply,
    Cleared,
    Demoted,
    Do,
    Effect,
    Elected,
    Ended,
    Event,
    Heard,
    Level,
    NotStarted,
    Reason,
    Says,
    Stop,
    Target,
    Tick,
    Unfit,
)
from kevip.core.states import Instance, State, Then, Traits, check, lowest, next_due

PEER, OTHER = IPv4Address("192.0.2.2"), IPv4Address("192.0.2.3")

SLOW = Traits(interval=1.05, patience=3.05, lateness=1.1, farewell=3.5, farewell_alone=2.5, waits=True, reranks=False)
"""An engine as slow, and as late, as ucarp."""

QUICK = Traits(interval=0.1, patience=0.4, lateness=0.0, farewell=0.5, farewell_alone=0.5, waits=False, reranks=True)
"""An engine as quick as keepalived can be."""

LETS_GO = [Do.HUSH, Apply(Level.DRAINING)]
HOLDS = [Apply(Level.HELD)]
LEAVES: dict[Then, Event] = {Then.STOP: Stop(), Then.RETRY: Unfit("no"), Then.STAY: Target(reached=False)}
"""What a master is told for which it leaves."""


class Host:
    """One host's core; ``now`` is its time. Events of its engine are of the run that there is."""

    def __init__(self, traits: Traits = SLOW) -> None:
        self.traits = traits
        self.instance = Instance()
        self.now = 100.0

    @property
    def state(self) -> State:
        """Return the state that it is in."""
        return self.instance.state

    def tell(self, *events: Event, after: float = 0.0) -> list[Effect]:
        """Tell events that come after some seconds, all at once; return what is to be done."""
        self.now += after
        effects: list[Effect] = []
        for event in events:
            self.instance, wanted = step(self.traits, self.instance, event, self.now)
            assert check(self.instance) == ""
            effects += wanted
        return effects

    def wait(self, seconds: float) -> list[Effect]:
        """Let time pass, with a tick whenever it wants one; return what is to be done meanwhile."""
        end, effects = self.now + seconds, list[Effect]()
        while (due := next_due(self.traits, self.instance)) <= end:
            effects += self.tell(Tick(), after=max(due - self.now, 0))
        self.now = end
        return effects

    def elected(self, hook: str = "up", *, after: float = 0.0) -> list[Effect]:
        """Tell that the engine won; the name of a hook is its token."""
        return self.tell(Elected(self.instance.run, hook), after=after)

    def demoted(self, hook: str = "down", *, after: float = 0.0) -> list[Effect]:
        """Tell that the engine is backup."""
        return self.tell(Demoted(self.instance.run, hook), after=after)

    def ended(self, reason: Reason = Reason.ENGINE, *, after: float = 0.0) -> list[Effect]:
        """Tell that the engine ended."""
        return self.tell(Ended(self.instance.run, reason), after=after)

    def not_started(self) -> list[Effect]:
        """Tell that the engine could not be started."""
        return self.tell(NotStarted(self.instance.run))

    def hears(
        self, says: Says, *, of: IPv4Address = PEER, preferred: bool = False, after: float = 0.0, ago: float = 0.0
    ) -> list[Effect]:
        """Tell that another host advertised, some seconds ago."""
        return self.tell(Heard(of, says, self.now + after - ago, preferred), after=after)

    def clear(self, *, ok: bool = True, after: float = 0.0) -> list[Effect]:
        """Tell that nothing of ours is left on the host that does not belong there, or that something is."""
        return self.tell(Cleared(lowest(self.instance), ok), after=after)


def joining(traits: Traits = SLOW) -> Host:
    """Return a host that has just stood for election."""
    host = Host(traits)
    host.tell(Tick())
    return host


def backup(traits: Traits = SLOW) -> Host:
    """Return a backup."""
    host = joining(traits)
    host.demoted()
    return host


def master(traits: Traits = SLOW) -> Host:
    """Return a master that took over from nobody."""
    host = backup(traits)
    host.elected(after=traits.patience)
    return host


def leave(host: Host, then: Then) -> list[Effect]:
    """Have a master leave, and return what is to be done then."""
    if then is Then.STAY:
        host.tell(LEAVES[then])
        host.now += AGREE
    return host.tell(LEAVES[then])


def leaving(then: Then, *, known: bool = False) -> Host:
    """Return a master that leaves, with its engine ended; ``known``: it has heard of a peer."""
    host = master()
    if known:
        host.hears(Says.YIELDS)
    leave(host, then)
    host.ended()
    return host


def serves(host: Host) -> bool:
    """Whether the VIP is here, for all that the core knows."""
    return host.instance.level is Level.HELD
