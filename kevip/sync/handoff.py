"""Both sides of a planned move: a master that leaves offers its connections, and its heir fetches them."""

from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address

from kevip.dataplane.rules import Proxy
from kevip.election.engine import Tell, Teller
from kevip.errors import HostError
from kevip.host.beside import Beside, Job
from kevip.loop import Action, Loop
from kevip.sync.entries import Entries
from kevip.sync.offer import Offer
from kevip.sync.pull import Pulled, pull

AHEAD = 0.2  # seconds that a takeover waits for connections
LATER = 0.15  # seconds after it before what was left, and what came meanwhile, is fetched
REST = 8.0  # seconds that this may take

_MANY = 8  # hosts to fetch from: an advert that says so can be replayed with any source

_HINT = "where the client is silent, connections hang now until it sends something, as after a crash"


@dataclass(frozen=True, slots=True)
class Group:
    """The hosts that hand on connections to each other: their TCP port, their key, and which connections are theirs."""

    port: int
    key: bytes
    entries: Entries

    def pull(self, source: IPv4Address, seconds: float) -> Pulled:
        """Fetch what a host offers."""
        return pull((source, self.port), self.key, self.entries, seconds)


class Handoff:
    """Hands on connections, and fetches them, if there is a group for that. ``here`` is this host's address."""

    here: IPv4Address | None = None

    def __init__(self, loop: Loop, group: Group | None, teller: Teller, tell: Tell) -> None:
        self._loop, self._beside, self._group = loop, Beside(loop), group
        self._teller, self._tell = teller, tell
        self._offer: Offer | None = None
        self._ahead: dict[IPv4Address, Pulled] = {}
        self._due: list[IPv4Address] = []

    def also(self, proxy: Proxy) -> None:
        """Hand on the connections of a proxy, too, whose targets have other addresses now."""
        if self._group:
            self._group.entries.also(proxy)

    def offer(self) -> None:
        """Let who knows the password fetch what is tracked here, from now on."""
        self.end_offer()
        self._loop.cancel(self._begin)
        if (group := self._group) and self.here:
            try:
                self._offer = Offer(self._loop, (self.here, group.port), group.key, group.entries, self._tell)
            except HostError as error:
                self._teller.warn_once("connections.not_offered", None, error=str(error), hint=_HINT)

    def end_offer(self) -> None:
        """Let nobody do so any more."""
        if self._offer:
            self._offer.close()
        self._offer = None

    def pull(self, source: IPv4Address) -> None:
        """Fetch what a host offers, as far as there is time before a takeover."""
        if self._group:
            self._ahead[source] = self._group.pull(source, AHEAD)

    def pull_rest(self, source: IPv4Address) -> None:
        """Fetch all that a host offers, beside the loop, in a moment."""
        if self._group:
            if source not in self._due and len(self._due) < _MANY:
                self._due.append(source)
            self._loop.after(LATER, self._begin)

    def _begin(self) -> None:
        if self._group and self._due and not self._beside.is_busy:
            self._beside.begin(partial(self._pull_rest, self._group, self._due.pop(0)), REST)
        if self._due:
            self._loop.after(LATER, self._begin)

    def _pull_rest(self, group: Group, source: IPv4Address, job: Job) -> Action:
        del job
        return partial(self._told, source, group.pull(source, REST))

    def _told(self, source: IPv4Address, rest: Pulled) -> None:
        ahead = self._ahead.pop(source, Pulled())
        loaded, refused = max(ahead.loaded, rest.loaded), max(ahead.refused, rest.refused)
        told = {"source": str(source), "connections": loaded, "refused": refused}
        if rest.problem and not loaded:
            self._teller.warn_once("connections.not_pulled", str(source), **told, reason=rest.problem, hint=_HINT)
        else:
            ms = round((ahead.seconds + rest.seconds) * 1000, 1)
            self._teller.log.info("connections.pulled", **told, ms=ms, incomplete=rest.problem)

    def close(self) -> None:
        """End it."""
        self._loop.cancel(self._begin)
        self.end_offer()
        self._beside.close(0)
