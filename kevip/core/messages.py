"""Events in, effects out: the whole vocabulary of the core. Times are seconds of a clock that only goes forward."""

from dataclasses import dataclass
from enum import Enum, IntEnum, StrEnum, auto
from ipaddress import IPv4Address


class Role(StrEnum):
    """The part that a host has in the election."""

    INIT = auto()  # it takes no part yet, or not any more
    BACKUP = auto()
    MASTER = auto()
    LEAVING = auto()  # a master that serves on until a peer has taken over


class Reason(StrEnum):
    """Why a host came to its role. The names are stable: they are written to files, and are labels of metrics."""

    STARTED = auto()
    JOINED = auto()
    ALONE = auto()
    GOODBYE = auto()
    SILENCE = auto()
    PREFERRED = auto()
    YIELDED = auto()
    UNLINKED = auto()
    MOVED = auto()
    STOPPED = auto()
    LATE = auto()
    FOLLOWED = auto()
    NOBODY = auto()
    ENGINE = auto()  # it ended, or does not advertise
    UNFIT = auto()
    TARGET = auto()
    KEPT = auto()
    STANDBY = auto()  # an operator wants it to be elsewhere


class Level(IntEnum):
    """What a dataplane makes of the host, each with all of those before it."""

    NONE = 0  # nothing of ours
    ARMED = 1  # rules, as far as they do nothing without the address: all that a takeover adds is that
    DRAINING = 2  # what was translated still is
    HELD = 3  # the address


class Says(StrEnum):
    """What a host says of itself by advertising."""

    STAYS = auto()  # it is master, and means to stay it
    YIELDS = auto()  # it was master, and lets go at once, for the one that it has heard
    LEAVES = auto()  # it serves on only until another one does


# Events. ``run`` numbers the engine's runs: what an earlier one says is stale.


@dataclass(frozen=True, slots=True)
class Elected:
    """The engine won; with a token it waits for the answer to it before it advertises."""

    run: int
    token: str = ""


@dataclass(frozen=True, slots=True)
class Demoted:
    """The engine is backup; with a token it waits."""

    run: int
    token: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """The engine has ended; ``reason`` is ENGINE if that was not the aim, else why it has to be started anew."""

    run: int
    reason: Reason = Reason.ENGINE


@dataclass(frozen=True, slots=True)
class NotStarted:
    """The engine could not be started: the interface is not fit for it."""

    run: int


@dataclass(frozen=True, slots=True)
class Heard:
    """Another host advertised at this time; ``preferred`` says that of two that serve, it would stay to do so."""

    source: IPv4Address
    says: Says
    at: float
    preferred: bool = False


@dataclass(frozen=True, slots=True)
class Pulled:
    """A host that knows the password fetches the connections that are offered here: it is about to take over."""


@dataclass(frozen=True, slots=True)
class Served:
    """Nobody fetches connections any more: who did has all of them, or has gone."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The host could not be brought to hold the VIP: the takeover came to nothing."""

    detail: str = ""


@dataclass(frozen=True, slots=True)
class Cleared:
    """Nothing of ours is left on the host but what belongs to this level; or, not ``ok``, something is."""

    level: Level
    ok: bool = True


@dataclass(frozen=True, slots=True)
class Unfit:
    """The host cannot serve as it is, or its lease could not be renewed; the VIP may still be here."""

    detail: str


@dataclass(frozen=True, slots=True)
class Target:
    """Whether TARGET is reached from here, None if that is not known; ``detail`` may say why not.

    Hosts to which the same happens learn of it ``within`` so many seconds of each other.
    """

    reached: bool | None
    detail: str = ""
    within: float = 0.0


@dataclass(frozen=True, slots=True)
class Standby:
    """An operator wants fit peers to come first until then, -inf ends it; ``out``: it takes no part meanwhile."""

    until: float
    out: bool = False


@dataclass(frozen=True, slots=True)
class Successor:
    """The rank of the backup that comes first of those that are fit, by what replicas say of themselves; None: none.

    That may be wrong: it may say how a goodbye begins, and when another one is worth while, and nothing else.
    """

    rank: int | None


@dataclass(frozen=True, slots=True)
class Stop:
    """A signal says to stop."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Elected | Demoted | Ended | NotStarted | Heard | Pulled | Served | Failed | Cleared | Unfit | Target | Standby
    | Successor | Stop | Tick
)  # fmt: skip


# Effects, to be applied in the order given; one that fails is the last of its batch.


class Do(Enum):
    """Effects that are said by their name."""

    END_ENGINE = auto()  # at once: it advertises no more
    END_FAREWELL = auto()  # say no more goodbyes
    OFFER = auto()  # let the next master fetch the connections that are tracked here, until it is ended
    END_OFFER = auto()
    YIELD = auto()  # say once that this host was master, and lets go
    ANNOUNCE = auto()  # tell the neighbours that the VIP is here, from now on
    HUSH = auto()  # announce no more
    LOOK = auto()  # see whether the host is as it should be, beside the loop


@dataclass(frozen=True, slots=True)
class StartEngine:
    """Stand for election; not ``fit``: as one that should be master only if no other one can."""

    run: int
    fit: bool = True


@dataclass(frozen=True, slots=True)
class Rerank:
    """Let the engine that runs stand as fit, or not, without a change of its role."""

    fit: bool


@dataclass(frozen=True, slots=True)
class Proceed:
    """Let the engine go on, which waits for this."""

    token: str


@dataclass(frozen=True, slots=True)
class Apply:
    """Bring the host to a level; HELD again renews the lease of the address."""

    level: Level


@dataclass(frozen=True, slots=True)
class Pull:
    """Fetch the connections of the host that was master: what a moment allows; or the ``rest``, beside the loop."""

    source: IPv4Address
    rest: bool = False


@dataclass(frozen=True, slots=True)
class Farewell:
    """Make a peer take over: in stages, preferred ones first, if any are ``known``; only those that are fit, or all.

    The stages begin with that of ``rank``, if it is said that one has that, and go on as they would without.
    """

    known: bool = False
    fit_only: bool = False
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Enter:
    """The role from now on, and why."""

    role: Role
    reason: Reason


class What(StrEnum):
    """What there is to tell."""

    YIELDED = auto()
    RIVAL = auto()
    RESIGNED = auto()
    LEAVING = auto()
    FOLLOWED = auto()
    NOBODY = auto()
    KEPT = auto()
    RETRY = auto()
    BROKEN = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something to tell; what else belongs to it depends on what it is."""

    what: What
    who: IPv4Address | None = None
    seconds: float = 0.0
    reason: Reason | None = None
    detail: str = ""


Effect = Do | StartEngine | Rerank | Proceed | Apply | Pull | Farewell | Enter | Note
