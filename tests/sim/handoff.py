"""Connections, and how an heir fetches them: stands for what ``kevip.sync`` does between hosts."""

from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from kevip.core.messages import Pulled as PulledEvent
from kevip.core.messages import Served
from kevip.election.engine import Tell
from kevip.loop import Loop
from kevip.sync.pull import Pulled
from sim.world import Source

if TYPE_CHECKING:
    from sim.host import Host

_ROUND_TRIP = 0.004
"""Seconds from a connect to an answer, and from a proof to the connections."""

_PIECE, _RATE = 700, 40_000
"""Connections that come at once, and that an heir's kernel takes in a second."""


class Offer:
    """Drop-in for ``kevip.sync.offer.Offer``: what a host tracks, for its heir."""

    def __init__(self, host: "Host", loop: Loop, tell: Tell) -> None:
        self._host, self._loop, self._tell = host, loop, tell
        self.asked, self.left = Source(host.world), Source(host.world)
        self.answered = False
        self.heirs = 0
        loop.watch(self.asked, self._answer)
        loop.watch(self.left, self._served)
        host.offer = self

    def _answer(self) -> None:
        self.asked.clear()
        self.answered = True
        self._tell(PulledEvent())

    def _served(self) -> None:
        self.left.clear()
        if not self.heirs:
            self._tell(Served())

    def close(self) -> None:
        """Be asked no more."""
        self._loop.forget(self.asked)
        self._loop.forget(self.left)
        self._host.offer = None


class Group:
    """Drop-in for ``kevip.sync.handoff.Group``, on a host."""

    port, key, entries = 25100, b"", None

    def __init__(self, host: "Host") -> None:
        self._host, self._world = host, host.world

    def pull(self, source: IPv4Address, seconds: float) -> Pulled:
        """Fetch what the host with this address offers, as the process that runs now."""
        begin, end = self._world.now, self._world.now + seconds
        peer = next((each for each in self._host.network.hosts.values() if each.address == source), None)
        self._sleep(_ROUND_TRIP)
        if not peer or not self._hears(peer):
            self._sleep(end - self._world.now)
            return Pulled(seconds=seconds, problem="no answer in time")
        offer = peer.offer
        if not offer:
            return Pulled(seconds=self._world.now - begin, problem="it offers none")
        offer.asked.set()
        while not offer.answered and self._world.now < end:
            self._sleep(_ROUND_TRIP)
        self._sleep(_ROUND_TRIP)
        if not offer.answered:
            return Pulled(seconds=self._world.now - begin, problem="not all in time")
        pulled = Pulled()
        offer.heirs += 1
        try:
            self._load(peer, end, pulled)
        finally:
            offer.heirs -= 1
            offer.left.set()
        pulled.seconds = self._world.now - begin
        return pulled

    def _load(self, peer: "Host", end: float, pulled: Pulled) -> None:
        """Take in, piece by piece, what is tracked there: what is forgotten meanwhile does not come."""
        there = sorted(peer.tracked)
        for at in range(0, len(there), _PIECE):
            piece = peer.tracked.intersection(there[at : at + _PIECE])
            self._sleep(len(piece) / _RATE if at else 0)  # the first is there at once
            if not self._hears(peer) or self._world.now > end:
                pulled.problem = "not all in time"
                return
            self._host.track(piece)
            pulled.loaded += len(piece)

    def _hears(self, peer: "Host") -> bool:
        return peer.node.runs and self._host.network.connects(self._host.name, peer.name)

    def _sleep(self, seconds: float) -> None:
        if self._world.running and seconds > 0:
            self._world.running.sleep(seconds)
