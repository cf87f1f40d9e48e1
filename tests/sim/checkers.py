"""What must hold whatever happens: each checker looks at all that is noted, and several times a second."""

from dataclasses import dataclass
from itertools import combinations
from math import inf
from typing import TYPE_CHECKING, ClassVar

from kevip.core.instance import LEASE
from kevip.dataplane.plane import BESIDE
from sim.world import Note

if TYPE_CHECKING:
    from sim.course import Course
    from sim.host import Host

_TOGETHER = 4.0
"""Seconds for which two holders that hear each other may last."""

_MOMENT = 1.0
"""Seconds in which the VIP moves."""

_GRACE = 0.5
"""Seconds by which things may be late: programs take time, and looks are rare."""

_REPAIR = 5.0
"""Seconds that a repair may take."""

_CHEAP, _RARELY = 0.05, 100 * BESIDE
"""Seconds that a look at the rules may take without a rest after it, and that such a rest may last."""

_BARE = 6.0
"""Seconds for which an engine that waits for nobody may advertise what is not held: a takeover has 4, a watchdog 5."""

_PAUSE = 1.5
"""Seconds without an advert after which one is the first of a new reign."""

_HANDED_ON = 2.0
"""Seconds after which an heir knows the connections of a master that left."""

_COPIED, _COPIED_AGAIN = 0.5, 40.0
"""Seconds after which a connection is in all kernels, and after which also those are that were lost on their way."""

_JOINING = 20.0
"""Seconds after which a host that said nothing else has to stand for election again."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What a checker saw that must not be."""

    time: float
    checker: str
    text: str


class Checker:
    """Sees what happens, and tells the course what must not."""

    name: ClassVar[str]

    def __init__(self, course: "Course") -> None:
        self.course = course

    @property
    def now(self) -> float:
        """The time."""
        return self.course.world.now

    def noted(self, note: Note, host: "Host") -> None:
        """See something happen at a host."""

    def looked(self) -> None:
        """See how things are."""

    def fail(self, text: str) -> None:
        """Say what is wrong."""
        self.course.fail(self.name, text)


class OneHolder(Checker):
    """Of hosts that hear each other exactly one has the VIP, if one of them could serve; a move takes a moment.

    One that cannot remove it besides, because its ``ip`` is of no use, is the business of ``TwoHolders``.
    """

    name = "one holder"

    def __init__(self, course: "Course") -> None:
        super().__init__(course)
        self._since = self.now

    def looked(self) -> None:
        course = self.course
        holding = [host for host in course.visible() if host.holds]
        holders = [host.name for host in holding if host.tools.renews] or [host.name for host in holding]
        is_led_astray = any(host.is_astray for host in course.hosts)  # by a ucarp that advertises, and serves nothing
        if len(holders) == 1 or is_led_astray or not (course.is_calm and course.is_whole() and course.able()):
            self._since = self.now
        elif self.now - self._since > _MOMENT:
            self.fail(f"{' and '.join(holders) or 'nobody'} has the VIP")


class RulesFirst(Checker):
    """The rules are there before the address is; or they were flushed, and no look could see that yet."""

    name = "rules first"

    def noted(self, note: Note, host: "Host") -> None:
        dear = host.tools.took.get("save", 0.0) > _CHEAP  # so they are looked at rarely
        late = _RARELY if dear else _REPAIR if host.is_well else BESIDE  # a look is as slow as the programs it runs
        if note.event == "vip.held" and not note.fields["rules"] and self.now - host.tools.flushed > late:
            self.fail(f"{note.host} has the VIP and no rules")


class HeldIfAdvertised(Checker):
    """Nobody advertises, as master, what he does not hold; who waits for nobody is told to end before long.

    The watchdog sees to that where the daemon hangs; where both are gone, the daemon does, a moment after it is back.
    """

    name = "held if advertised"

    def __init__(self, course: "Course") -> None:
        super().__init__(course)
        self._astray: dict[str, float] = {}
        self._spans: dict[str, tuple[float, float]] = {}

    def looked(self) -> None:
        self._astray |= {host.name: self.now for host in self.course.hosts if host.is_astray}

    def noted(self, note: Note, host: "Host") -> None:
        if host.holds or note.event == "vip.held":
            self._spans.pop(host.name, None)
        repaired = max(host.deleted + _REPAIR, self._astray.get(host.name, 0.0) + _MOMENT)
        if not note.event.endswith(".advert") or host.holds or self.now <= repaired or host.is_astray:
            return
        begin, last = self._spans.get(host.name, (self.now, self.now))
        if self.now - last > _PAUSE:
            begin = self.now
        self._spans[host.name] = begin, self.now
        if note.event == "ucarp.advert" or self.now - begin > _BARE + 2 * host.node.slowness:
            self.fail(f"{note.host} advertises without the VIP")


class OneEngine(Checker):
    """A host has one engine at most."""

    name = "one engine"

    def noted(self, note: Note, host: "Host") -> None:
        if len(host.engines) > 1:
            self.fail(f"{note.host} has {len(host.engines)} engines")


class Standing(Checker):
    """A host that can stands for election, unless it said that it does so later."""

    name = "standing"

    def __init__(self, course: "Course") -> None:
        super().__init__(course)
        self._due: dict[str, float] = {}

    def noted(self, note: Note, host: "Host") -> None:
        seconds = note.fields.get("retry_seconds", 0.0)
        self._due[host.name] = max(self._due.get(host.name, 0.0), self.now + _JOINING + float(str(seconds)))

    def looked(self) -> None:
        able = self.course.able()
        for host in self.course.hosts:
            if host not in able or host.engines:
                self._due[host.name] = max(self._due.get(host.name, 0.0), self.now + _JOINING)
            elif self.now > self._due.setdefault(host.name, self.now + _JOINING):
                self.fail(f"{host.name} does not stand for election")


class CalmHolder(Checker):
    """The VIP stays where it is in the calm."""

    name = "calm"

    def __init__(self, course: "Course") -> None:
        super().__init__(course)
        self._was_calm = False

    def looked(self) -> None:
        course = self.course
        well = all(
            host.reaches_target() and not host.settings.get("preempt") and not host.is_in_standby
            for host in course.able()
        )
        self._was_calm = course.is_calm and course.is_whole() and well

    def noted(self, note: Note, host: "Host") -> None:
        if note.event == "vip.held" and self._was_calm and self.course.is_calm and host in self.course.visible():
            self.fail(f"{host.name} takes the VIP without need")


class CommonFault(Checker):
    """Where all hosts suffer the same, the VIP does not go round, unless one stops, preempts, or is not heard."""

    name = "common fault"

    def __init__(self, course: "Course") -> None:
        super().__init__(course)
        self._moves: int | None = None

    def looked(self) -> None:
        course = self.course
        apart = any(host.settings.get("preempt") or host.node.is_stopping for host in course.hosts)
        heard = all(host.is_linked for host in course.hosts) and not (course.network.cuts or course.is_lossy)
        if apart or not heard or not course.all_suffer():
            self._moves = None
        elif self._moves is None and sum(host.holds for host in course.hosts) == 1:
            self._moves = 0

    def noted(self, note: Note, host: "Host") -> None:
        if note.event == "vip.held" and self._moves is not None:
            self._moves += 1
            if self._moves > 2:
                self.fail(f"the VIP moves to {host.name}, for the third time")


class Stop(Checker):
    """A stop, in the calm, lets go only when a peer serves."""

    name = "stop"

    def __init__(self, course: "Course") -> None:
        super().__init__(course)
        self._stopped: Host | None = None
        self._disturbed = 0.0

    def noted(self, note: Note, host: "Host") -> None:
        course = self.course
        if note.event == "fault.stop":
            peers = [peer for peer in course.able() if peer is not host and peer.engines]
            knows = all(peer.target or peer.settings.get("check") for peer in peers)  # else it is as good as any
            calm = note.fields["calm"] and course.is_whole() and host.is_well
            serves = any(peer.reaches_target() for peer in peers) and knows
            self._stopped = host if host.holds and serves and calm else None
            self._disturbed = course.disturbed
        if note.event == "vip.gone" and host is self._stopped and course.disturbed == self._disturbed:
            self._stopped = None
            self.let_go(host)

    def let_go(self, host: "Host") -> None:
        """See the address go."""
        if not any(peer.serves for peer in self.course.visible()):
            self.fail(f"{host.name} lets go and nobody serves")


class Connections(Stop):
    """A stop, in the calm, ends no connection: he who serves then knows them all, a moment later."""

    name = "connections"

    def __init__(self, course: "Course") -> None:
        super().__init__(course)
        self._since, self._wanted = inf, set[int]()

    def let_go(self, host: "Host") -> None:
        """See which connections there are."""
        self._since, self._wanted = self.now, set(host.tracked)

    def looked(self) -> None:
        if self.now - self._since < _HANDED_ON:
            return
        self._since = inf
        holders = [host for host in self.course.visible() if host.holds]
        if self.course.disturbed == self._disturbed and len(holders) == 1:
            lost = self._wanted - holders[0].tracked
            if lost:
                self.fail(f"{holders[0].name} does not know {len(lost)} connections")


class Copies(Checker):
    """Who takes over from a host that is lost, in the calm, knows each connection that it was sent a copy of."""

    name = "copies"

    def __init__(self, course: "Course") -> None:
        super().__init__(course)
        self._well = self._lost = inf
        self._disturbed, self._wanted = 0.0, set[int]()

    def noted(self, note: Note, host: "Host") -> None:
        course = self.course
        if note.event == "fault.loss" and host.holds and note.fields["calm"] and course.is_whole():
            self._lost, self._disturbed = self.now, course.disturbed
            late = self.now - _COPIED - course.network.copy_delay
            again = late - _COPIED_AGAIN - len(host.tracked) / 300
            since = inf if self._well > late else 0.0 if self._well < again else self._well
            self._wanted = {
                each for each in host.tracked if each > 0 and since <= course.clients[each - 1] < late
            }  # fmt: skip

    def looked(self) -> None:
        course = self.course
        self._well = min(self._well, self.now) if course.are_copied() else inf
        if course.disturbed != self._disturbed:
            self._lost = inf
        holders = [host for host in course.visible() if host.holds]
        if self.now - self._lost >= _MOMENT and len(holders) == 1 and holders[0].node.is_live:
            self._lost = inf
            if lost := self._wanted - holders[0].tracked:
                self.fail(f"{holders[0].name} does not know {len(lost)} connections that were copied")


class TwoHolders(Checker):
    """Two live holders that hear each other agree soon on one; a slow one by the third turn of its loop.

    In the first it hears of the other, and ends its engine; in the second that has ended; in the third it lets go.
    Where no program removes the address, because ``ip`` is of no use, the kernel does, when the lease ends.
    """

    name = "two holders"

    def __init__(self, course: "Course") -> None:
        super().__init__(course)
        self._together: dict[tuple[str, str], tuple[float, float]] = {}

    def looked(self) -> None:
        network = self.course.network
        holders = [host for host in self.course.hosts if host.holds and host.node.is_live]
        pairs = [each for each in combinations(holders, 2) if network.connects(each[0].name, each[1].name)]
        before, self._together = self._together, {}
        for one, other in pairs if not network.loss else ():
            names = one.name, other.name
            since, until = before.get(names, (self.now, 0.0))
            turn = max(one.node.slowness, other.node.slowness)
            leases = [host.lease for host in (one, other) if host.lease and not host.tools.renews]
            until = max(until, since + _TOGETHER + 2 * turn, *leases)
            self._together[names] = since, until
            if self.now > until:
                self.fail(f"{one.name} and {other.name} have the VIP for {self.now - since:.1f} s")


class DeadHolder(Checker):
    """A host whose daemon is gone, or stopped, loses the VIP when its lease ends; an ``ip`` that runs may renew it."""

    name = "dead holder"

    def __init__(self, course: "Course") -> None:
        super().__init__(course)
        self._since: dict[str, float] = {}

    def looked(self) -> None:
        holders = [host for host in self.course.hosts if host.holds and not host.tools.under_way]
        dead = [host.name for host in holders if not (host.node.is_live or host.node.stopping)]
        self._since = {name: self._since.get(name, self.now) for name in dead}
        for name, since in self._since.items():
            if self.now - since > LEASE + _GRACE:
                self.fail(f"{name}, which is dead, has the VIP for {self.now - since:.1f} s")


class NothingLeft(Checker):
    """A stop ends with 0, and leaves nothing behind; where programs failed meanwhile, rules, and then it says so."""

    name = "nothing left"

    def __init__(self, course: "Course") -> None:
        super().__init__(course)
        self._told: dict[str, float] = {}

    def noted(self, note: Note, host: "Host") -> None:
        if note.event == "fault.stop" and host.node.runs:
            self._told.setdefault(host.name, self.now)
        if note.event != "daemon.ended":
            return
        told, status = self._told.pop(host.name, self.now), note.fields["status"]
        if not host.node.stopping or status == -9 or not host.is_well:
            return
        failed = host.tools.failed >= told  # a program that hangs does so although those started later do not
        begun = host.node.has_begun  # before, what is here is of one that was killed: the next start removes it
        left = {
            "the VIP": host.holds and begun,
            "rules": bool(host.tools.tables) and begun and not (failed and status),
            "an engine": bool(host.engines),
        }
        if found := [what for what, is_left in left.items() if is_left]:
            self.fail(f"{' and '.join(found)} on {host.name} after a stop")
        if status and begun and not failed:
            self.fail(f"{host.name} stops with {status}")


class NoCrash(Checker):
    """A daemon does not end by an error that is none of its own."""

    name = "crash"

    def noted(self, note: Note, host: "Host") -> None:
        if note.event == "daemon.crashed":
            self.fail(f"{host.name}: {note.fields['error']}")


CHECKERS: tuple[type[Checker], ...] = (
    OneHolder, RulesFirst, HeldIfAdvertised, OneEngine, Standing, CalmHolder, CommonFault, Stop, Connections,
    Copies, TwoHolders, DeadHolder, NothingLeft, NoCrash,
)  # fmt: skip
