"""A course of events: hosts with their kevips, what is done to them, what is seen of them, and what must not be."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sim.attacker import Attacker
from sim.checkers import CHECKERS, Failure
from sim.daemon import Simulated, patched
from sim.host import Host, Start
from sim.network import CLIENT, Network
from sim.world import BOOT, Note, World

SETTLING = 15.0
"""Seconds after the last fault in which all has to be well again."""

_LOOK = 0.25
"""Seconds between looks at what lasts."""


@dataclass(slots=True)
class Seen:
    """What was seen since a mark: seconds without service, without a holder, changes of the holder, most at once."""

    outage: float = 0.0
    absence: float = 0.0
    moves: int = 0
    holders: int = 0
    engines: int = 0


class Course:
    """What happens in one world. ``disturbed`` is when something was done to it last."""

    def __init__(self, seed: int, kevip: Start = Simulated) -> None:
        self.world = World(seed)
        self.network = Network(self.world)
        self.kevip = kevip
        self.attacker: Attacker | None = None
        self.disturbed = self.world.now
        self.notes: list[Note] = []
        self.marked = 0
        self.failures: list[Failure] = []
        self.seen = Seen()
        self._since: dict[str, float] = {}
        self._holder = ""
        self.clients: list[float] = []
        """When each of them connected; their numbers begin with 1."""
        self._checkers = [kind(self) for kind in CHECKERS]
        self.world.observers.append(self._noted)
        self.world.after(_LOOK, self._look)

    @property
    def hosts(self) -> list[Host]:
        """All hosts."""
        return list(self.network.hosts.values())

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self.world.now - BOOT

    def add(self, number: int) -> None:
        """Add hosts, with nothing on them that runs."""
        for each in range(1, number + 1):
            Host(self.network, each, self.kevip)

    def mark(self) -> None:
        """Begin to count anew."""
        self.seen, self.marked = Seen(), len(self.notes)
        self._since.clear()
        self.look()

    def look(self) -> None:
        """See who serves, and who has the VIP."""
        seen, holders = self.seen, [host for host in self.hosts if host.holds]
        serving = [host for host in holders if host.serves and self.network.connects(CLIENT, host.name)]
        seen.outage = max(seen.outage, self._lasts("outage", bool(serving)))
        seen.absence = max(seen.absence, self._lasts("absence", bool(holders)))
        seen.holders = max(seen.holders, len(holders))
        seen.engines = max([seen.engines, *(len(host.engines) for host in self.hosts)])

    def _lasts(self, what: str, well: bool) -> float:
        """Return for how long it is not well."""
        since = self._since.setdefault(what, self.world.now)
        if well:
            del self._since[what]
        return self.world.now - since

    def fail(self, checker: str, text: str) -> None:
        """Note that something is as it must not be, the first time that a checker says so."""
        if all(each.checker != checker for each in self.failures):
            self.failures.append(Failure(self.elapsed, checker, text))

    def _noted(self, note: Note) -> None:
        self.notes.append(note)
        if note.event == "vip.held":
            self.seen.moves += self._holder not in ("", note.host)
            self._holder = note.host
        self.look()
        for each in self._checkers:
            each.noted(note, self.network.hosts[note.host])

    def _look(self) -> None:
        self.world.after(_LOOK, self._look)
        self.look()
        self._connect()
        for each in self._checkers:
            each.looked()

    def _connect(self) -> None:
        """Have a client connect, and be silent from then on."""
        for host in self.visible():
            if host.serves:
                self.clients.append(self.world.now)
                host.track([len(self.clients)])

    # What can be said of hosts

    @property
    def is_calm(self) -> bool:
        """Whether the last fault is long enough ago, and none that lasts makes chance rule."""
        return self.world.now - self.disturbed > SETTLING and not self.is_lossy

    @property
    def is_lossy(self) -> bool:
        """Whether it is chance who hears what in time."""
        return bool(self.network.loss) or self.network.delay > _LOOK

    def visible(self) -> list[Host]:
        """Return the hosts that clients reach."""
        return [host for host in self.hosts if self.network.connects(CLIENT, host.name)]

    def able(self) -> list[Host]:
        """Return the hosts that clients reach and that could serve, if they reached TARGET."""
        able = [host for host in self.visible() if host.node.is_live and host.is_linked and host.is_well]
        return [host for host in able if not (host.asked.out and host.is_in_standby)]

    def is_whole(self) -> bool:
        """Whether all hosts that clients reach hear each other."""
        names = [host.name for host in self.visible()]
        return all(self.network.passes(one, other) for one in names for other in names if one != other)

    def are_copied(self) -> bool:
        """Whether each connection is copied as soon as it begins to all hosts that could serve."""
        return all(host.conntrackd for host in self.able()) and not (self.network.apart or self.network.copy_loss)

    def all_suffer(self) -> bool:
        """Whether no host reaches TARGET that could serve otherwise."""
        able = self.able()
        return bool(able) and not any(host.reaches_target() for host in able)


@contextmanager
def course(seed: int, kevip: Start = Simulated) -> Iterator[Course]:
    """Give a new course of events, and end its processes at the end."""
    made = Course(seed, kevip)
    with patched(made.network):
        try:
            yield made
        finally:
            made.world.observers.clear()
            made.world.close()
