"""conntrackd, as far as kevip uses it: what a host's kernel tracks, in the kernels of the others, late or not at all.

As version 1.4.7 does without a cache of what others send: that goes into the kernel at once, and is copied on from
there only when it was compared with the kernel. What is forgotten here is forgotten there, as far as it is copied.
"""

import signal
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

from kevip.host.command import CommandError
from sim.world import Source

if TYPE_CHECKING:
    from sim.host import Host


class Lock(Source):
    """Drop-in for the socket by which one kevip of a host is the only one that makes copies; there is no other."""

    def close(self) -> None:
        """Free it."""


class Home:
    """Drop-in for ``kevip.sync.conntrackd.Home``, without files."""

    def make(self, _setup: object) -> None:
        """Do nothing."""

    def remove(self) -> bool:
        """Do nothing."""
        return True

    def argv(self, *command: str) -> list[str]:
        """Return the command line that asks the running one for something."""
        return ["conntrackd", *command]


class Conntrackd:
    """Drop-in for what ``kevip.sync.replication`` starts. ``copied`` are the connections that it copies from here."""

    def __init__(self, host: "Host") -> None:
        self._host = host
        self.pid = host.pid()
        self._errors, self._end = Source(host.world), Source(host.world)
        self.stderr, self.pidfd = self._errors.fileno(), self._end.fileno()
        self.copied = set(host.tracked)
        self._written = self._heard = 0
        host.conntrackd = self
        self._send("asks")

    # What the daemon does

    def lines(self) -> list[str]:
        """Return what it has written: nothing."""
        return []

    def kill(self) -> None:
        """End it at once."""
        if self._host.conntrackd is self:
            self._host.conntrackd = None
            self._end.set()

    def close(self) -> int:
        """Return its exit status, and end it if it runs."""
        self.kill()
        return -signal.SIGKILL

    def do(self, argv: Sequence[str]) -> str:
        """Do what a command line asks of the running one; raises CommandError."""
        match argv[1:]:
            case ["-s"]:
                return (
                    f"current active connections: {len(self.copied)}\nexternal inject:\n"
                    f"connections created: {self._written} failed: 0\n{self._heard} Pckts recv"
                )
            case ["-R"]:
                self.see(self._host.tracked - self.copied)
            case ["-f", "internal"]:
                self.copied.clear()
            case ["-n"]:
                self._send("asks")
            case _:
                raise CommandError(argv, 1, "Usage: conntrackd")
        return ""

    # What the kernel tells it, and others

    def see(self, new: Iterable[int]) -> None:
        """See connections that begin."""
        self.copied.update(new)
        self._send("has", new)

    def miss(self, old: Iterable[int]) -> None:
        """See connections that end."""
        gone = self.copied.intersection(old)
        self.copied -= gone
        self._send("had", gone)

    def _send(self, says: Literal["asks", "has", "had"], connections: Iterable[int] = ()) -> None:
        for other in self._host.network.hosts.values():
            if other is not self._host:
                self._host.network.copy(self._host, other, partial(self._reach, other, says), connections)

    def _reach(self, other: "Host", says: Literal["asks", "has", "had"], connections: set[int]) -> None:
        if there := other.conntrackd:
            there.hear(self, says, connections)

    def hear(self, sender: "Conntrackd", says: Literal["asks", "has", "had"], connections: set[int]) -> None:
        """Take a message: what is written into the kernel because of it is none of what is copied from here."""
        host = self._host
        self._heard += 1
        match says:
            case "asks":
                answer = partial(self._reach, sender._host, "has")  # noqa: SLF001 - of the same class
                host.network.copy(host, sender._host, answer, self.copied)  # noqa: SLF001
            case "has":
                self._written += len(connections - host.tracked)
                host.tracked |= connections
            case "had":
                host.tracked -= connections
