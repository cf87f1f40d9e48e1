"""Targets that are given by name: their addresses, asked of the system's resolver, beside the loop, again and again.

The address that is in use stays while it is among the answers; else the lowest of them takes its place, so that
replicas agree. A look-up that fails changes nothing.
"""

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from typing import Any

from kevip.errors import HostError, KevipError
from kevip.host.beside import Beside, Job
from kevip.loop import Action, Loop, Moment

EVERY = 30.0
"""Seconds between look-ups: the resolver does not tell for how long an answer is good."""

_SOON = 1.0  # seconds between them until there was an answer for each name

Answer = tuple[IPv4Address, ...] | str
"""The addresses of a name, the lowest first, or why there are none."""

Changed = Callable[[Mapping[str, IPv4Address]], None]
"""Is told which addresses the names have now; raises KevipError if that cannot be."""


@dataclass(slots=True)
class Known:
    """What is known of a name: the address that is in use, when it was told last, and what is wrong since."""

    address: IPv4Address
    resolved: Moment
    problem: str = ""


def resolve(name: str) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses of a name, the lowest first; raises HostError if there are none."""
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        problem = getattr(error, "strerror", None) or error
        raise HostError(f"{name} has no address: {problem}: getent ahostsv4 {name}") from None
    return tuple(sorted({IPv4Address(each[4][0]) for each in found}))


class Names:
    """Knows the addresses of names, and tells when one is another."""

    def __init__(self, loop: Loop, names: Sequence[str], log: Any) -> None:
        self._loop, self._beside = loop, Beside(loop)
        self._names, self._log = names, log
        self._told: dict[str, str] = {}
        self.known: dict[str, Known] = {}
        self.changed: Changed = lambda _addresses: None
        if names:
            loop.after(0, self._ask)

    @property
    def is_complete(self) -> bool:
        """Whether each name had an address."""
        return len(self.known) == len(self._names)

    @property
    def addresses(self) -> dict[str, IPv4Address]:
        """The addresses in use, by name."""
        return {name: each.address for name, each in self.known.items()}

    def _ask(self) -> None:
        if not self._beside.is_busy:  # a resolver may be slow
            self._beside.begin(self._look_up, EVERY)
        self._loop.after(EVERY if self.is_complete else _SOON, self._ask)

    def _look_up(self, job: Job) -> Action:
        del job
        answers: dict[str, Answer] = {}
        for name in self._names:
            try:
                answers[name] = resolve(name)
            except HostError as error:
                answers[name] = str(error)
        return partial(self._take_in, answers)

    def _take_in(self, answers: Mapping[str, Answer]) -> None:
        for name, answer in answers.items():
            if isinstance(answer, str):
                self._fail(name, answer)
            else:
                self._learn(name, answer)
        if self.is_complete:
            self._loop.after(EVERY, self._ask)

    def _fail(self, name: str, problem: str) -> None:
        if known := self.known.get(name):
            known.problem = problem
        if self._told.get(name) != problem:
            stays = f"{known.address} stays in use" if known else "the start waits for it"
            self._log.warning("name.unresolved", name=name, error=problem, hint=stays)
        self._told[name] = problem

    def _learn(self, name: str, addresses: tuple[IPv4Address, ...]) -> None:
        known = self.known.get(name)
        if known and known.address in addresses:
            address = known.address
        else:
            address = addresses[0]
            try:
                self.changed(self.addresses | {name: address})
            except KevipError as error:
                self._fail(name, str(error))
                return
            self._log.info(
                "name.resolved", name=name, address=str(address), before=str(known.address) if known else None
            )
        self.known[name] = Known(address, self._loop.now())
        self._told.pop(name, None)

    def close(self) -> None:
        """Ask no more; a question that is on its way is not waited for."""
        self._loop.cancel(self._ask)
        self._beside.close(0)
