"""Another engine than ucarp, of a few lines: whatever elects, the core and the daemon do the same."""

from collections.abc import Iterator
from typing import Any

import pytest

from kevip.core.messages import Demoted, Elected, Ended, Event, Heard, Says
from kevip.core.states import Traits
from kevip.daemon import Daemon
from kevip.host.interface import Placement
from kevip.status.reporter import Reporter
from sim.commands import do
from sim.course import Course, course
from sim.daemon import Simulated
from sim.host import Host
from sim.world import Source

_PATIENCE = 0.3


class Queue:
    """An engine of hosts that stand in a queue: the first that is fit has the VIP, and knows whether it is there."""

    members: list["Queue"] = []  # noqa: RUF012 - one queue for all
    traits = Traits(
        interval=0.1, patience=_PATIENCE, lateness=0.1, farewell=0.5, farewell_alone=0.5, waits=True, reranks=False
    )

    def __init__(self, host: Host, daemon: Daemon) -> None:
        self._host, self._daemon = host, daemon
        self._said: list[Event] = []
        self._source = Source(host.world)
        self._run, self.fit, self._leads = 0, True, False
        if host.node.loop:
            host.node.loop.watch(self._source, self._tell)

    def _tell(self) -> None:
        self._source.clear()
        while self._said:
            self._daemon.tell(self._said.pop(0))

    def say(self, event: Event) -> None:
        """Tell an event, as soon as the daemon hears."""
        self._said.append(event)
        self._source.set()

    def start(self, run: int, *, fit: bool) -> Placement | None:
        """Join the queue."""
        self._run, self.fit, self._leads = run, fit, False
        self.members.append(self)
        self.say(Demoted(run))
        self._host.world.after(_PATIENCE, self.choose)
        return Placement(interface=self._host.interface, source=self._host.address)

    def choose(self, apart: "Queue | None" = None) -> None:
        """Elect the first, unless one that lives is elected."""
        for each in [each for each in self.members if not each._host.node.runs]:  # noqa: SLF001
            self.members.remove(each)
        if self.members and not any(each._leads and each is not apart for each in self.members):  # noqa: SLF001
            heir = next((each for each in self.members if each.fit and each is not apart), self.members[0])
            heir._leads = True  # noqa: SLF001
            heir.say(Elected(heir._run, "won"))  # noqa: SLF001
        if self.members:
            self._host.world.after(_PATIENCE, self.choose)

    def proceed(self, token: str) -> None:
        """Tell the others who serves."""
        for each in self.members if token else ():
            if each is not self:
                each.say(Heard(self._host.address, Says.STAYS, self._host.world.now, preferred=True))
                each._leads = False  # noqa: SLF001

    def rerank(self, *, fit: bool) -> None:
        """Note it."""
        self.fit = fit

    def end(self) -> None:
        """Leave the queue."""
        self.close()
        self.say(Ended(self._run))

    def goodbye(self, *, known: bool, fit_only: bool, rank: int | None) -> None:
        """Let the next one serve."""
        del known, fit_only, rank
        others = [each for each in Queue.members if each is not self]
        if others:
            others[0].choose(apart=self)

    def end_goodbye(self) -> None:
        """Do nothing."""

    yields = beat = end_goodbye

    def close(self) -> None:
        """Leave the queue."""
        if self in self.members:
            self.members.remove(self)


class Queued(Simulated):
    """A daemon with that engine."""

    def engine(self, given: dict[str, Any], told: Reporter, daemon: Daemon) -> Queue:
        """Return the engine."""
        del given, told
        return Queue(self.host, daemon)


@pytest.fixture
def three() -> Iterator[Course]:
    """Give three hosts, the first of which serves."""
    Queue.members.clear()
    with course(1, Queued) as made:
        do(made, "hosts 3")
        do(made, "run 5s")
        assert [host.name for host in made.hosts if host.holds] == ["n1"]
        assert not any(host.engines for host in made.hosts)
        yield made


def expect(made: Course, *lines: str) -> None:
    """Do what lines say, and see that all is as expected."""
    assert [answer for line in lines for answer in do(made, line)] == []
    assert made.failures == []


def test_a_stop_hands_over(three: Course) -> None:
    expect(three, "mark", "stop n1", "run 5s", "expect outage < 0.1s", "expect one holder", "expect clean n1")


def test_after_a_crash_another_serves_as_soon_as_the_engine_says(three: Course) -> None:
    expect(three, "mark", "crash n1", "run 5s", "expect outage < 1s", "expect one holder")


def test_a_takeover_that_fails_leaves_the_vip_to_the_next(three: Course) -> None:
    expect(three, "tools n2 ip=fail", "stop n1", "run 10s", "expect holder n3", "expect logged n2 takeover.failed")
