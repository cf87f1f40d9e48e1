"""Who else advertises, who of them is preferred, who has gone: of each host, its last word and when it said that."""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from math import inf

from kevip.core.messages import Heard, Says

MANY = 64
"""Hosts to remember, those heard last: an advert that is replayed with another source address passes for one."""


@dataclass(frozen=True, slots=True)
class Word:
    """What a host said last, at this time; ``since`` when it has said nothing else."""

    says: Says
    at: float
    since: float
    preferred: bool


@dataclass(frozen=True, slots=True)
class Peers:
    """All other hosts that were heard; who was heard last comes last."""

    words: tuple[tuple[IPv4Address, Word], ...] = ()
    goodbye: float = -inf
    """When somebody said goodbye last."""

    def hear(self, heard: Heard) -> "Peers":
        """Take in an advert. One that was sent before what is known of its sender changes nothing."""
        known = dict(self.words)
        last = known.pop(heard.source, None)
        if last and heard.at < last.at:
            return self
        since = last.since if last and last.says is heard.says else heard.at
        words = [*known.items(), (heard.source, Word(heard.says, heard.at, since, heard.preferred))][-MANY:]
        return Peers(tuple(words), max(self.goodbye, heard.at) if heard.says is Says.LEAVES else self.goodbye)

    def _masters(self, since: float) -> Iterator[tuple[IPv4Address, Word]]:
        return ((who, word) for who, word in self.words if word.says is Says.STAYS and word.at >= since)

    def master(self, since: float) -> IPv4Address | None:
        """Return a host whose last word, not before this time, is that it is master."""
        return next((who for who, _ in self._masters(since)), None)

    def is_led(self, since: float) -> bool:
        """Whether another host was master at this time or later, by its own word; it may have yielded since."""
        return any(word.says is not Says.LEAVES and word.at >= since for _, word in self.words)

    def keeper(self, since: float) -> IPv4Address | None:
        """Return such a host that does not yield to us: it is preferred, or has not done so when it could have."""
        return next((who for who, word in self._masters(since) if word.preferred or word.since < word.at), None)

    def silence(self, patience: float) -> float:
        """Return from when on nobody is master who could be heard: -inf if nobody ever was."""
        return max((word.at + patience for _, word in self._masters(-inf)), default=-inf)

    def advertised(self) -> dict[IPv4Address, float]:
        """Return when each host advertised last that has not left since."""
        return {who: word.at for who, word in self.words if word.says is not Says.LEAVES}


NOBODY = Peers()
