"""Schedules of faults by chance, from a seed, and the shortest part of one that shows the same failure."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from sim.attacker import KINDS
from sim.checkers import Failure
from sim.commands import do
from sim.course import SETTLING, course

_WARM = 12.0
"""Seconds until the first fault, in most schedules."""

_LATEST = 45.0
"""Seconds until the last fault, or the first of a few that follow each other."""

_COMMON, _ALONE = 0.1, 0.5
"""How often all hosts suffer the same, and nothing else; how often a fault has nothing to do with the one before."""

_CALM = 12.0
"""Seconds that are looked at when all should be well again."""

_TAMPERED = 0.3
"""How often somebody tampers with presence; how often its frames are lost, late and doubled."""
_SYNC = 0.3
"""How often connections are copied."""

_INTERVALS = (0.1, 0.1, 0.5, 1)
"""Seconds between adverts of keepalived: its default, that of who may not be a real-time process, and of version 2."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is done at a time, and something that ends it at another; seconds since the beginning."""

    begin: float
    end: float
    does: str
    undoes: str = ""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The hosts, and what is done to them; ``str`` gives it as a scenario."""

    seed: int
    hosts: str
    faults: tuple[Fault, ...]
    presence: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """Yield what is done, as lines of commands."""
        yield self.hosts
        yield from self.presence
        now = 0.0
        for at, what in sorted(self._times(), key=lambda each: each[0]):
            if at > now:
                yield f"run {at - now:.2f}s"
                now = at
            yield what
        yield f"run {SETTLING + _CALM:g}s"

    def _times(self) -> Iterator[tuple[float, str]]:
        for fault in self.faults:
            yield fault.begin, fault.does
            if fault.undoes:
                yield fault.end, fault.undoes

    def __str__(self) -> str:
        return "\n".join([f"seed {self.seed}", *self.lines()])


def failures(schedule: Schedule) -> list[Failure]:
    """Run a schedule and return what must not have been."""
    with course(schedule.seed) as made:
        for line in schedule.lines():
            do(made, line)
        return made.failures


def shortest(schedule: Schedule, checker: str) -> Schedule:
    """Leave out faults for as long as the checker still fails."""
    for number in range(len(schedule.faults)):
        rest = schedule.faults[:number] + schedule.faults[number + 1 :]
        shorter = replace(schedule, faults=rest)
        if any(each.checker == checker for each in failures(shorter)):
            return shortest(shorter, checker)
    return schedule


# Faults by chance

_Make = Callable[[Random, str, Sequence[str]], tuple[str, str]]


def _simple(does: str, undoes: str = "") -> _Make:
    return lambda _random, name, _all: (does.format(name), undoes.format(name))


def _cut(random: Random, name: str, names: Sequence[str]) -> tuple[str, str]:
    other = random.choice([each for each in names if each != name])
    ways = [name, f"{name} {other}", f"{name} > {other}", f"{name} {other} | {names[0]}"]
    return f"cut {random.choice(ways)}", "mend"


def _network(random: Random, _name: str, _names: Sequence[str]) -> tuple[str, str]:
    what, values = random.choice(
        [("loss", ["10%", "30%", "60%"]), ("delay", ["50ms", "500ms", "1500ms"]), ("duplication", ["30%"])]
    )
    return f"{what} {random.choice(values)}", f"{what} 0s"


def _tools(random: Random, name: str, _names: Sequence[str]) -> tuple[str, str]:
    program = random.choice(["save", "restore", "ip", "conntrack", "all"])
    how = random.choice(["fail", "hang", "200ms", "1s", "2500ms", "6s"])
    return f"tools {name} {program}={how}", f"tools {name} well"


def _starve(random: Random, name: str, _names: Sequence[str]) -> tuple[str, str]:
    return f"starve {name} {random.choice(['100ms', '700ms', '3s'])}", f"starve {name} 0s"


def _clock(random: Random, name: str, _names: Sequence[str]) -> tuple[str, str]:
    return f"clock {name} {random.choice(['3600s', '-3600s', '-5s'])}", ""


def _renumber(_random: Random, name: str, _names: Sequence[str]) -> tuple[str, str]:
    return f"renumber {name} 10.77.0.9{name[1:]}", ""


def _kinds(engine: str) -> list[tuple[int, _Make]]:
    """Return the faults, each with how often it comes."""
    return [
        (3, _simple("kill {}", "start {}")),
        (3, _simple("crash {}", "start {}")),
        (3, _simple("stop {}", "start {}")),
        (3, _simple("freeze {}", "thaw {}")),
        (3, _simple(f"kill {{}} {engine}")),
        (2, _simple(f"freeze {{}} {engine}", f"thaw {{}} {engine}")),
        (1, _simple("kill {} watchdog")),
        (4, _cut),
        (3, _simple("carrier {} off", "carrier {} on")),
        (2, _simple("link {} down", "link {} up")),
        (1, _simple("link {} gone", "link {} up")),
        (3, _network),
        (4, _tools),
        (2, _starve),
        (2, _simple("route {} gone", "route {} back")),
        (1, _simple("target {} gone", "target {} back")),
        (1, _simple("route all gone", "route all back")),
        (1, _simple("target all gone", "target all back")),
        (1, _simple("standby {}", "resume {}")),
        (1, _simple("standby {} out", "resume {}")),
        (1, _simple("standby {} 5s")),
        (1, _simple("flush {}")),
        (1, _simple("delete {}")),
        (1, _simple("forwarding {} off")),
        (1, _clock),
        (1, _renumber),
        *([(2, _simple("kill {} parent"))] if engine == "keepalived" else []),
    ]


_OF_COPIES: list[tuple[int, _Make]] = [
    (2, _simple("kill {} conntrackd")),
    (2, _simple("apart {}", "together")),
    (1, _simple("copy_loss 30%", "copy_loss 0s")),
    (1, _simple("copy_delay 500ms", "copy_delay 0s")),
]


def schedule(seed: int, hosts: int | None = None, engine: str = "ucarp") -> Schedule:
    """Return the schedule of a seed: misfortunes, and in some of them, somebody who tampers with presence."""
    return replace(_misfortunes(seed, hosts, engine), presence=tuple(_tampering(Random(f"{seed} presence"))))


def _tampering(random: Random) -> Iterator[str]:
    if random.random() < _TAMPERED:
        yield f"attack {','.join(random.sample(KINDS, random.randint(1, len(KINDS))))}"
    if random.random() < _TAMPERED:
        yield f"presence loss={random.choice([0, 30, 80])}% delay={random.choice([0, 3, 30])}s duplication=30%"


def _misfortunes(seed: int, hosts: int | None, engine: str) -> Schedule:
    """Return the schedule of a seed: misfortunes that come alone, that follow each other, or one that all suffer."""
    random = Random(seed)
    names = [f"n{each}" for each in range(1, 1 + (hosts or random.choice([3, 3, 5])))]
    skews = [random.randint(1, 25) for _ in names]
    switches = [word for word, chance in (("check", 0.4), ("preempt", 0.1)) if random.random() < chance]
    start = " ".join(["hosts", str(len(names)), f"advskew={','.join(map(str, skews))}", *switches])
    if engine != "ucarp":
        start += f" engine={engine} interval={random.choice(_INTERVALS)}"
    kinds = _kinds(engine)
    if Random(f"sync {seed}").random() < _SYNC:  # the rest is the same with copies and without
        start, kinds = f"{start} sync", kinds + _OF_COPIES
    if random.random() < _COMMON:
        what = random.choice(["route", "target"])
        end = round(_WARM + random.uniform(20, 150), 2)
        return Schedule(seed, start, (Fault(_WARM, end, f"{what} all gone", f"{what} all back"),))
    first = names[skews.index(min(skews))]
    victims, earliest = [*names, first, first], random.choices([_WARM, 0.0], [6, 1])[0]
    name, begin, faults = random.choice(victims), random.uniform(earliest, _LATEST), list[Fault]()
    for _ in range(random.randint(1, 7)):
        faults.append(_fault(random, kinds, name, names, begin))
        begin += random.uniform(0, 3)
        if random.random() < _ALONE:
            name, begin = random.choice(victims), random.uniform(earliest, _LATEST)
    return Schedule(seed, start, tuple(sorted(faults, key=lambda fault: fault.begin)))


def _fault(random: Random, kinds: Sequence[tuple[int, _Make]], name: str, names: Sequence[str], begin: float) -> Fault:
    [(_, make)] = random.choices(kinds, [weight for weight, _ in kinds])
    does, undoes = make(random, name, names)
    end = begin + random.choice([0.5, 3, 8, 20]) * random.uniform(0.5, 1.5)
    return Fault(round(begin, 2), round(end, 2), does, undoes)
