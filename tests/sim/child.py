"""A child of a host's daemon that elects, from fork to close, with its watchdog: a drop-in for ``Child``."""

import signal
from typing import TYPE_CHECKING, ClassVar

from sim.world import Process, Source

if TYPE_CHECKING:
    from sim.host import Host

_WATCH = 5.0
"""Seconds without a beat after which the watchdog ends it."""


class Child:
    """A program that elects; ``process`` is what does that."""

    program: ClassVar[str]
    process: Process

    def __init__(self, host: "Host") -> None:
        self._host, self._world = host, host.world
        self.pid = host.pid()
        self._errors, self._end = Source(self._world), Source(self._world)
        self.stderr, self.pidfd = self._errors.fileno(), self._end.fileno()
        self._guard()
        self.killed = False
        self.status: int | None = None
        self._beaten = self._world.now
        self._lines: list[str] = []
        host.engines.append(self)
        host.note(f"{self.program}.started")

    # What the daemon does

    def beat(self) -> None:
        """Tell the watchdog that the daemon is well."""
        self._beaten = self._world.now

    def _guard(self) -> None:
        """Have a watchdog."""
        self._barks = Source(self._world)
        self.watchdog = self._barks.fileno()
        self._watchdog = True
        self._world.after(_WATCH, self._watch)

    @property
    def is_guarded(self) -> bool:
        """Whether its watchdog lives."""
        return self._watchdog

    def guard_anew(self) -> None:
        """Have another one."""
        self._guard()

    def lines(self) -> list[str]:
        """Return what it has written."""
        self._errors.clear()
        lines, self._lines = self._lines, []
        return lines

    def is_frozen(self) -> bool:
        """Whether it was stopped."""
        return self.process.stopped

    def kill(self) -> None:
        """End it at once."""
        self.killed = True
        self.die(-signal.SIGKILL)

    def close(self) -> int:
        """Return the exit status of one that has ended."""
        self._watchdog = False
        return self.status or 0

    # What happens to it

    def die(self, status: int) -> None:
        """End, by a signal or by itself."""
        self.process.kill()
        self._ended(status)

    def _ended(self, status: int) -> None:
        """Be seen to have ended."""
        if self.status is None:
            self.status = status
            self._host.engines.remove(self)
            self._host.note(f"{self.program}.ended", status=status)
            self._end.set()

    def lose_parent(self) -> None:
        """Have no daemon any more, or be what is left when the watchdog has done its work."""
        self.die(-signal.SIGKILL)

    def lose_watchdog(self) -> None:
        """Have nobody who ends this if the daemon hangs."""
        self._watchdog = False
        self._barks.set()

    def _watch(self) -> None:
        if not self._watchdog or self.status is not None:
            return
        if self._world.now >= self._beaten + _WATCH:
            self.lose_parent()
        else:
            self._world.at(self._beaten + _WATCH, self._watch)

    def take(self, frame: bytes) -> None:
        """Get a frame."""
        raise NotImplementedError

    def see_link(self) -> None:
        """See that the interface is not what it was."""
        raise NotImplementedError

    # What its process does

    def say(self, text: str) -> None:
        """Write a line to stderr."""
        self._lines.append(f"{self.program}: {text}")
        self._errors.set()
