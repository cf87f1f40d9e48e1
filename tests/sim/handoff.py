"""Connections, and how an heir fetches them: stands for what ``kevip.sync`` does between hosts."""

from collections.abc import Callable
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from kevip.loop import Loop
from kevip.sync.pull import Pulled
from sim.world import Source

if TYPE_CHECKING:
    from sim.host import Host

_ROUND_TRIP = 0.004
"""Seconds from a connect to an answer, and from a proof to the connections."""


class Offer:
    """Drop-in for ``kevip.sync.offer.Offer``: what a host tracks, for its heir."""

    def __init__(self, host: "Host", loop: Loop, pulled: Callable[[], None]) -> None:
        self._host, self._loop, self._pulled = host, loop, pulled
        self.asked = Source(host.world)
        self.answered = False
        loop.watch(self.asked, self._answer)
        host.offer = self

    def _answer(self) -> None:
        self.asked.clear()
        self.answered = True
        self._pulled()

    def close(self) -> None:
        """Be asked no more."""
        self._loop.forget(self.asked)
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
        if not offer.answered or not self._hears(peer):
            return Pulled(seconds=self._world.now - begin, problem="not all in time")
        self._host.tracked |= peer.tracked
        return Pulled(loaded=len(peer.tracked), seconds=self._world.now - begin)

    def _hears(self, peer: "Host") -> bool:
        return peer.node.runs and self._host.network.connects(self._host.name, peer.name)

    def _sleep(self, seconds: float) -> None:
        if self._world.running and seconds > 0:
            self._world.running.sleep(seconds)
