"""A model of keepalived 2.2.7, along its vrrp.c and vrrp_scheduler.c: a drop-in for ``vrrpd.Keepalived``."""

import signal
from collections import deque
from math import inf
from typing import TYPE_CHECKING

from kevip.election.packet import PROTOCOL, BadAdvertError
from kevip.election.vrrp import LEAVES, Advert, Group, build, parse
from kevip.election.vrrpd import Candidacy, Home, State
from sim.child import Child
from sim.world import Process, Source

if TYPE_CHECKING:
    from sim.host import Host

_START, _ENDS = 0.06, 1.03
"""Seconds for all that is done before the election; from the goodbye to the end."""

_ORPHAN = 0.03
"""Seconds after which it knows, at most, that its parent has ended."""

_MULTICAST_MAC = bytes.fromhex("01005e000012")
_MOST = 254
"""The highest priority of one that does not own the VIP."""


class Keepalived(Child):
    """A keepalived of a host's daemon: the parent, which does nothing, and the process that elects."""

    program = "keepalived"

    def __init__(self, host: "Host", candidacy: Candidacy, group: Group, home: Home, rank: int) -> None:
        del home
        super().__init__(host)
        self._fifo = Source(host.world)
        self.events = self._fifo.fileno()
        self.last: list[str] = []
        self._said: list[State] = []
        self._vrrp = _Vrrp(host, candidacy, group, self)
        self.process = self._vrrp.process
        self.rerank(rank)

    # What the daemon does

    def rerank(self, rank: int) -> None:
        """Stand with so much more than the own priority."""
        self._vrrp.stand(rank)

    def states(self) -> list[State]:
        """Return what it has become since the last call."""
        self._fifo.clear()
        said, self._said = self._said, []
        return said

    def kill(self) -> None:
        """Have it say goodbye, and end; at once, if it was stopped."""
        self.killed = True
        if self.is_frozen():
            self.end()
        else:
            self._vrrp.terminate()

    def end(self) -> None:
        """End parent and child at once."""
        self.die(-signal.SIGKILL)

    def close(self) -> int:
        """End what is left of one that has ended, unless the daemon is dead too, and return its exit status."""
        if self._host.node.runs:
            self.process.kill()
        return super().close()

    # What happens to it

    def lose_parent(self) -> None:
        """Go on alone, until it is told: then it says goodbye."""
        self._ended(-signal.SIGKILL)
        self._world.after(self._world.random.uniform(0, _ORPHAN), self._vrrp.terminate)

    def take(self, frame: bytes) -> None:
        """Get a frame."""
        self._vrrp.hear(frame)

    def see_link(self) -> None:
        """See that the interface is not what it was."""
        self._vrrp.process.wake()

    def tell(self, state: State) -> None:
        """Write to the FIFO."""
        self._said.append(state)
        self._fifo.set()


class _Vrrp:
    """What the process does that elects. ``due`` is the end of the timer that runs: of an advert, or of patience."""

    def __init__(self, host: "Host", candidacy: Candidacy, group: Group, child: Keepalived) -> None:
        self._host, self._world, self._child = host, host.world, child
        self._candidacy, self._group = candidacy, group
        self._frames: deque[bytes] = deque()
        self._state: State | None = None
        self._priority = self._asked = candidacy.priority
        self._interval = candidacy.interval  # of the master
        self._down = 0.0  # patience, as it was reckoned last
        self._due = inf
        self._terminated = False
        self.process = Process(self._world, self._main)

    # What comes from outside

    def terminate(self) -> None:
        """Take SIGTERM."""
        self._terminated = True
        self.process.wake()

    def stand(self, rank: int) -> None:
        """See that the file with the rank was written."""
        self._asked = min(self._candidacy.priority + rank, _MOST)
        self.process.wake()

    def hear(self, frame: bytes) -> None:
        """Get a frame."""
        if frame[12:14] == b"\x08\0" and frame[23] == PROTOCOL:
            self._frames.append(frame)
            self.process.wake()

    # What it does

    def _main(self) -> None:
        self.process.sleep(_START)
        self._priority = self._asked
        while not self._terminated:
            self._follow_link()
            self._follow_rank()
            while self._frames and self._state is not State.FAULT:
                self._on_frame(self._frames.popleft())
            if self._world.now >= self._due:
                self._advertise_or_take_over()
            self.process.wait(self._due if self._due < inf else None)
        if self._state is State.MASTER:
            self._advertise(LEAVES)
        self._become(State.STOP)
        self.process.sleep(_ENDS)
        self._child.die(0)

    def _become(self, state: State) -> None:
        self._state = state
        self._child.tell(state)

    def _follow_link(self) -> None:
        if not self._host.is_linked and self._state is not State.FAULT:
            self._frames.clear()
            self._due = inf
            self._become(State.FAULT)
        elif self._host.is_linked and self._state in {None, State.FAULT}:
            self._interval = self._candidacy.interval
            self._be_backup()

    def _follow_rank(self) -> None:
        if self._asked != self._priority:
            self._priority, was = self._asked, self._down
            self._down = self._patience()
            if self._state is State.BACKUP:
                self._due += self._down - was

    def _skew(self) -> float:
        return (256 - self._priority) / 256 * (self._interval if self._group.version > 2 else 1)

    def _patience(self) -> float:
        return self._candidacy.dead_ratio * self._interval + self._skew()

    def _expect_master(self, seconds: float) -> None:
        self._down, self._due = seconds, self._world.now + seconds

    def _be_backup(self) -> None:
        self._expect_master(self._patience())
        self._become(State.BACKUP)

    def _advertise_or_take_over(self) -> None:
        self._advertise(self._priority)
        if self._state is not State.MASTER:
            self._become(State.MASTER)

    def _advertise(self, priority: int) -> None:
        host = self._host
        advert = Advert(source=self._candidacy.source, priority=priority, interval=self._candidacy.interval)
        self._due = self._world.now + self._candidacy.interval
        if priority != LEAVES:
            host.note("keepalived.advert")
        host.network.send(host, _MULTICAST_MAC + host.mac + b"\x08\0" + build(self._group, advert))

    def _on_frame(self, frame: bytes) -> None:
        try:
            advert = parse(self._group, frame[14:])
        except BadAdvertError:
            if self._state is State.MASTER:
                self._due = self._world.now + self._candidacy.interval
            return
        if advert and self._state is State.MASTER:
            self._on_rival(advert)
        elif advert and advert.priority == LEAVES:
            self._expect_master(self._skew())
        elif advert and advert.priority >= self._priority:
            self._follow(advert)
            self._expect_master(self._patience())

    def _follow(self, advert: Advert) -> None:
        """Learn the interval of a master; version 2 has the same for all."""
        if self._group.version > 2:
            self._interval = advert.interval

    def _on_rival(self, advert: Advert) -> None:
        if (advert.priority, advert.source) < (self._priority, self._candidacy.source):
            self._advertise(self._priority)
        else:
            self._follow(advert)
            self._be_backup()
