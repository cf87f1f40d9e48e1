"""The states of one election, the table of their transitions, and what must hold in each of them.

A host is ``Down`` (it takes no part, and knows when it will), ``Joining``, ``Backup`` or ``Master``; a master that goes
is ``Leaving`` until another host is heard that has taken over; ``Stopped`` is for good.
"""

from dataclasses import dataclass
from enum import Enum, auto
from math import inf

from kevip.core.messages import Level, Reason, Role
from kevip.core.peers import NOBODY, Peers

# Seconds before the engine is started again after a failure: doubled each time, forgotten once it ran for the longest.
# Where nobody is heard to be master, the shortest is enough.
FIRST_RETRY, LAST_RETRY = 1.0, 60.0
# Seconds after a handover for TARGET's sake before the next: doubled each time, forgotten after the longest.
FIRST_PAUSE, LAST_PAUSE = 60.0, 3600.0
STUCK = 3  # how often rules that cannot be removed are tried again during a stop
GIVE_UP = 4.5  # seconds that a stop waits for rules to be removed, by programs that may wait 4 s for a lock, or hang


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What has to be known of an engine. Times in seconds."""

    interval: float  # between its adverts
    patience: float  # after which it takes a silent master for dead
    lateness: float  # by how much it may be late to know of an advert
    farewell: float  # that a goodbye takes until a peer has acted on it, in stages
    farewell_alone: float  # and without stages
    waits: bool  # for our answer before it advertises: a host that is heard as master serves
    reranks: bool  # while it runs, and hosts that are fit take over from one that is not
    settling: float = 0.0  # after its start, in which this host stands as one that is not fit


class Engine(Enum):
    """What has become of the engine."""

    OFF = auto()
    ON = auto()
    ENDING = auto()


class Then(Enum):
    """What a leaving master does when it has let go."""

    STOP = auto()
    RETRY = auto()
    OUT = auto()  # it is in standby, and takes no part
    STAY = auto()  # it stands for election meanwhile: if nobody else takes over, it may stay master


@dataclass(frozen=True, slots=True)
class Down:
    """Out of the election until ``due``, or from ``soonest`` on until nobody is heard to be master."""

    due: float
    soonest: float


@dataclass(frozen=True, slots=True)
class Joining:
    """In the election, but the engine has said nothing yet."""


@dataclass(frozen=True, slots=True)
class Backup:
    """In the election, ready to take over."""


@dataclass(frozen=True, slots=True)
class Master:
    """Serves the VIP."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """Serves the VIP since it said goodbye, until another does, or ``due``; ``restart`` is when to stand again."""

    then: Then
    since: float
    due: float
    restart: float = inf


@dataclass(frozen=True, slots=True)
class Stopped:
    """Out of the election for good."""


State = Down | Joining | Backup | Master | Leaving | Stopped

# From, to: why. ``step`` refuses what is not here, and the picture in docs/how-it-works.md is drawn from it.
TABLE: dict[tuple[type[State], type[State]], str] = {
    (Down, Joining): "due: the engine is started",
    (Down, Stopped): "stop",
    (Joining, Backup): "the engine says backup",
    (Joining, Master): "elected",
    (Joining, Down): "the engine ended, or could not be started; standby, and out",
    (Joining, Stopped): "stop",
    (Backup, Master): "elected",
    (Backup, Down): "the engine ended; standby, and out",
    (Backup, Stopped): "stop",
    (Master, Backup): "the engine says backup",
    (Master, Leaving): "stop; standby; the engine ended, or says backup too soon; it cannot serve, or reach TARGET",
    (Master, Down): "a preferred master is heard; the takeover failed; another one serves already",
    (Master, Stopped): "stop, and another one serves already",
    (Leaving, Master): "stays: nobody that is fit took over, and it was elected again",
    (Leaving, Backup): "stays: another one serves, or nobody in time",
    (Leaving, Down): "another one serves, or nobody in time",
    (Leaving, Stopped): "stop: another one serves, or nobody in time",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One election as this host sees it."""

    state: State = Down(-inf, -inf)
    role: Role = Role.INIT
    reason: Reason = Reason.STARTED
    engine: Engine = Engine.OFF
    run: int = 0  # numbers the engine's runs
    started: float = -inf  # when the last one began
    ranked_fit: bool = True  # how the engine stands
    level: Level = Level.NONE  # what the host was brought to
    renewed: float = -inf  # when the lease began anew
    lower_at: float = inf  # when the host is to be brought to the lowest level that its state wants
    pulled: bool = False  # somebody fetches the connections that are offered here, which puts that off
    drained_by: float = -inf  # until then at the latest
    stuck: int = 0  # times that this has failed
    give_up: float = inf  # until when a stop waits for it
    peers: Peers = NOBODY
    reached: bool | None = None  # the last word on TARGET
    reached_since: float = -inf
    fit: bool = True  # the last that was known of TARGET
    agreed: float = -inf  # when others know as well that it answers again: until then they come first
    standby: float = -inf  # until when fit peers come first
    out: bool = False  # until then it takes no part
    settled: float = -inf  # until when they do because the engine has just started
    successor: int | None = None  # the last word on the rank of the backup that comes first of those that are fit
    pause: float = FIRST_RETRY  # after the next failure
    resign_from: float = -inf  # when the VIP may be handed over again for TARGET's sake
    resign_pause: float = FIRST_PAUSE
    heeds_from: float = -inf  # from when on one that appears is worth another try: it may not be there at all
    tick: float = -inf


def next_due(traits: Traits, instance: Instance) -> float:
    """Return when an instance wants a Tick, at the latest."""
    due = instance.state.due if isinstance(instance.state, Leaving) else inf
    ends = min((each for each in _waits(instance) if each > -inf), default=inf)
    return min(instance.tick, instance.lower_at, instance.give_up, due, ends, start_due(traits, instance))


def lowest(instance: Instance) -> Level:
    """Return the level of a host that does not hold the VIP, when all is done."""
    return Level.NONE if isinstance(instance.state, Stopped) else Level.ARMED


def is_over(instance: Instance) -> bool:
    """Whether it is stopped, and nothing is left to wait for; ``level`` then says whether rules are left."""
    quiet = instance.level is Level.NONE or instance.stuck >= STUCK
    return isinstance(instance.state, Stopped) and instance.engine is Engine.OFF and quiet


def start_due(traits: Traits, instance: Instance) -> float:
    """Return when the engine is to be started."""
    if instance.engine is Engine.OFF and not instance.out:
        match instance.state:
            case Down(due, soonest):
                return min(due, max(soonest, instance.peers.silence(traits.patience)))
            case Leaving(restart=restart):
                return restart
    return inf


def deserves(instance: Instance, now: float) -> bool:
    """Whether this host should come before those that are not fit: who serves need not settle, nor wait for others."""
    settled = now >= max(instance.settled, instance.agreed) or isinstance(instance.state, Master | Leaving)
    return instance.fit and now >= instance.standby and settled


def _waits(instance: Instance) -> tuple[float, ...]:
    return instance.standby, instance.settled, instance.agreed


def is_waited_for(instance: Instance) -> bool:
    """Whether time alone may change what this host deserves."""
    return max(_waits(instance)) > -inf


def ended(instance: Instance, now: float) -> dict[str, object]:
    """Return what becomes of a standby that is over, and of what else is waited for."""
    standby: dict[str, object] = {"standby": -inf, "out": False} if now >= instance.standby else {}
    settled: dict[str, object] = {"settled": -inf} if now >= instance.settled else {}
    return standby | settled | ({"agreed": -inf} if now >= instance.agreed else {})


def check(instance: Instance) -> str:
    """Say what must not be: a bug of this module; "" if all is well."""
    state, engine, held = instance.state, instance.engine, instance.level is Level.HELD
    match state:
        case Master():
            well = held and engine is Engine.ON
        case Leaving(then):
            well = held and (then is Then.STAY or engine is not Engine.ON)
        case Joining() | Backup():
            well = not held and engine is Engine.ON
        case _:
            well = not held and engine is not Engine.ON
    return "" if well else f"{type(state).__name__}, engine {engine.name}, level {instance.level.name}"
