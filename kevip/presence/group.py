"""What is known of the other replicas of a group: what each said last, and when. Pure: it is given the time."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from kevip.core.messages import Role
from kevip.loop import Moment
from kevip.presence.frame import Frame, Said

MANY = 64  # replicas to remember, those heard last
SILENT = 15.0  # seconds after which a replica is taken for gone: three frames are missing
_FORGET = 86400.0  # seconds after which a silent one is forgotten, if another was heard since
_RUNS = 4 * MANY  # to remember, lest what was recorded of one that has ended passes for a new one

_BEST: Mapping[str, Callable[[Iterable[int]], int]] = {"ucarp": min, "keepalived": max}  # as an engine has ranks

# The settings that need not be the same, but would better be. Replicas that differ in others do not serve the same.
SHOULD = frozenset(
    {"CHECK", "CHECK_INTERVAL", "CHECK_FALL", "CHECK_RISE", "DEAD_RATIO", "EXPECT", "PREEMPT", "SYNC", "SYNC_PEERS"}
)


@dataclass(slots=True, kw_only=True)
class Member:
    """What is known of another replica."""

    name: str
    version: str
    engine: str
    rank: int
    role: Role
    since: Moment
    heard: Moment
    holds: bool = False
    target: bool | None = None
    copies: bool | None = None
    standby: bool = False
    stopped: bool = False
    differs: list[str] = field(default_factory=list)  # the settings in which it is not as this host

    def is_here(self, now: Moment) -> bool:
        """Whether it runs, as far as is known."""
        return not self.stopped and now - self.heard <= SILENT

    @property
    def is_fit(self) -> bool:
        """Whether it is a backup that should take over before those that should not."""
        return self.role is Role.BACKUP and self.target is not False and not self.standby

    @property
    def unlike(self) -> list[str]:
        """Those of the settings that have to be alike."""
        return [each for each in self.differs if each not in SHOULD]


class Group:
    """The other replicas; ``settings`` are the digests of this host's."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._settings = settings
        self._numbers: dict[bytes, int] = {}  # the last of each run, who was heard last comes last
        self._runs: dict[IPv4Address, bytes] = {}
        self.members: dict[IPv4Address, Member] = {}

    def take_in(self, frame: Frame, now: Moment) -> bool:
        """Take in what a replica says, unless it said it before; say whether a replica has joined by that.

        A new run of a replica is heard only once its last one has stopped, or is silent: nobody can put a recorded
        one in the place of one that is alive.
        """
        source, run = frame.said.source, frame.run
        known, joins = self.members.get(source), self._runs.get(source) != run
        if frame.number <= self._numbers.get(run, 0) or (joins and known and known.is_here(now)):
            return False
        self._numbers.pop(run, None)
        self._numbers[run] = frame.number
        self._runs[source], self.members[source] = run, self._member(frame.said, now)
        if joins:
            self._tidy(source, now)
        return joins

    def successor(self, engine: str, now: Moment) -> int | None:
        """Return the best rank that one of the backups has which are fit, and which this engine elects; None: none."""
        fit = [each for each in self.members.values() if each.engine == engine and each.is_here(now) and each.is_fit]
        ranks = [each.rank for each in fit]
        return _BEST[engine](ranks) if ranks else None

    def _member(self, said: Said, now: Moment) -> Member:
        both = self._settings.keys() & said.settings.keys()  # a replica of another version may have others
        return Member(
            name=said.name, version=said.version, engine=said.engine, rank=said.rank, role=said.role,
            since=now - said.since, heard=now, holds=said.holds, target=said.target, copies=said.copies,
            standby=said.standby, stopped=said.stopped,
            differs=sorted(each for each in both if said.settings[each] != self._settings[each]),
        )  # fmt: skip

    def _tidy(self, newest: IPv4Address, now: Moment) -> None:
        """Forget what the newest replica was before, under another address, and those that are silent for longest."""
        run, name = self._runs[newest], self.members[newest].name
        for source, member in list(self.members.items()):
            moved = self._runs[source] == run or (member.name == name and not member.is_here(now))
            if source != newest and (moved or now - member.heard > _FORGET):
                self._forget(source)
        if len(self.members) > MANY:
            self._forget(min(self.members, key=lambda each: self.members[each].heard))
        while len(self._numbers) > _RUNS:
            del self._numbers[next(iter(self._numbers))]

    def _forget(self, source: IPv4Address) -> None:
        del self._runs[source], self.members[source]
