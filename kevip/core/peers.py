"""Who else advertises, who of them is preferred, who has gone: of each host, its last word and when it said that."""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from math import inf

from kevip.core.messages import Heard, Says

MANY = 64  # hosts to remember, those heard last: an advert replayed with another source address passes for one


@dataclass(frozen=True, slots=True)
class Peers:
    """All other hosts that were heard, with their last words, who was heard last comes last."""

    words: tuple[tuple[Heard, float], ...] = ()  # the last of each host, and since when it has said nothing else
    goodbye: float = -inf  # when somebody said goodbye last

    def hear(self, heard: Heard) -> "Peers":
        """Take in an advert. One that was sent before what is known of its sender changes nothing."""
        last, since = next((each for each in self.words if each[0].source == heard.source), (None, heard.at))
        if last and heard.at < last.at:
            return self
        if last and last.says is not heard.says:
            since = heard.at
        others = [each for each in self.words if each[0].source != heard.source]
        goodbye = max(self.goodbye, heard.at) if heard.says is Says.LEAVES else self.goodbye
        return Peers((*others, (heard, since))[-MANY:], goodbye)

    def _masters(self, since: float) -> Iterator[tuple[Heard, float]]:
        return ((word, first) for word, first in self.words if word.says is Says.STAYS and word.at >= since)

    def master(self, since: float) -> IPv4Address | None:
        """Return a host whose last word, not before this time, is that it is master."""
        return next((word.source for word, _ in self._masters(since)), None)

    def leaver(self, since: float) -> IPv4Address | None:
        """Return the host that said last, not before this time, that it leaves."""
        left = (word.source for word, _ in reversed(self.words) if word.says is Says.LEAVES and word.at >= since)
        return next(left, None)

    def succeeded(self, before: float) -> bool:
        """Whether another host was master after the last goodbye, and had become that before some time."""
        return any(word.at > self.goodbye and first < before for word, first in self._masters(-inf))

    def is_led(self, since: float) -> bool:
        """Whether another host was master at this time or later, by its own word; it may have yielded since."""
        return any(word.says is not Says.LEAVES and word.at >= since for word, _ in self.words)

    def keeper(self, since: float) -> IPv4Address | None:
        """Return such a host that does not yield to us: it is preferred, or has not done so when it could have."""
        return next((word.source for word, first in self._masters(since) if word.preferred or first < word.at), None)

    def silence(self, patience: float) -> float:
        """Return from when on nobody is master who could be heard: -inf if nobody ever was."""
        return max((word.at + patience for word, _ in self._masters(-inf)), default=-inf)

    def advertised(self) -> dict[IPv4Address, float]:
        """Return when each host advertised last that has not left since."""
        return {word.source: word.at for word, _ in self.words if word.says is not Says.LEAVES}


NOBODY = Peers()
