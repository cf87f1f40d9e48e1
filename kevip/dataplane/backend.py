"""What a back end is to the rest: where rules can live, whatever reads and writes them."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from ipaddress import IPv4Address
from typing import Protocol

from kevip.dataplane.rules import Parts, Proxy, Rule
from kevip.host.command import Standby

Changes = Callable[[], AbstractContextManager[None]]
"""What surrounds a change of the host; raises KevipError if it is not to be made."""


class Backend(Protocol):
    """A back end. ``saved`` is what ``save`` has returned; ``save``, ``repair`` and ``remove`` raise KevipError."""

    @property
    def name(self) -> str:
        """Its name, as people know it."""
        ...

    @property
    def priorities(self) -> tuple[int, int]:
        """The priorities of its destination and its source NAT. The lowest of all NAT chains translates."""
        ...

    def save(self, vip: IPv4Address | None = None, *, counters: bool = False) -> str:
        """Return the rules that are there, ours and perhaps others', or at least those of one VIP."""
        ...

    def setup(self, proxy: Proxy, parts: Parts) -> str:
        """Return what installs rules where there are none of this VIP."""
        ...

    def size(self, proxy: Proxy, parts: Parts) -> int:
        """Return how many ``rules`` there are when all are there."""
        ...

    def standby(self) -> Standby:
        """Return what applies a ``setup``, and can be started in advance."""
        ...

    def repair(self, proxy: Proxy, parts: Parts, saved: str) -> None:
        """Replace what is saved of a VIP's rules, without a moment in which one is missing."""
        ...

    def remove(self, vip: IPv4Address, saved: str, changes: Changes = nullcontext) -> bool:
        """Remove all that is saved of a VIP's rules; say whether there was any."""
        ...

    def rules(self, saved: str) -> dict[IPv4Address, list[Rule]]:
        """Return our rules, by VIP."""
        ...

    def misplaced(self, vip: IPv4Address, saved: str) -> Iterator[str]:
        """Say where rules of others stand so that ours do not do what they are for."""
        ...


def texts(backend: Backend, vip: IPv4Address, saved: str) -> list[str]:
    """Return what is saved of a VIP's rules."""
    return [rule.text for rule in backend.rules(saved).get(vip, [])]


def flaws(backend: Backend, vip: IPv4Address, saved: str, whole: list[str]) -> list[str]:
    """Say what is wrong with a VIP's rules; ``whole`` is ``texts`` when all was well."""
    now, wanted = Counter(texts(backend, vip, saved)), Counter(whole)
    found = [f"{rule.split()[0]} rule missing: {rule.partition(' ')[2]}" for rule in (wanted - now).elements()]
    found += [f"{rule.split()[0]} rule foreign: {rule.partition(' ')[2]}" for rule in (now - wanted).elements()]
    return [*found, *backend.misplaced(vip, saved)]
