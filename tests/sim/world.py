"""Virtual time: a queue of events, and the processes that wait for them. Nothing here knows of kevip or of networks."""

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import count
from random import Random

from greenlet import getcurrent, greenlet

BOOT = 1000.0
"""What the monotonic clock says at the beginning: a host was not started just now."""

_ENDLESS = 20_000
"""Events at one time after which time is taken to stand still."""


_UNTOLD = {"hint", "interface", "ms", "check"}
"""Fields that say nothing new, or change with each wording."""


class Killed(BaseException):
    """Unwinds a process that was killed; whatever it does meanwhile has no effect."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something that happened at a host."""

    time: float
    host: str
    event: str
    fields: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        told = [f"{name}={_plain(value)}" for name, value in self.fields.items() if name not in _UNTOLD]
        return " ".join([f"{self.time:.2f}", self.host, self.event, *told])


class World:
    """Calls what is due, in order; the same seed gives the same course."""

    def __init__(self, seed: int) -> None:
        self.now = BOOT
        self.random, self.chance = Random(seed), Random(f"{seed} besides")  # the second for what must not matter
        self.running: Process | None = None
        self.observers: list[Callable[[Note], None]] = []
        self.sources: dict[int, Source] = {}
        self.processes: list[Process] = []
        self.hub = getcurrent()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = count()

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Call an action at a time."""
        heappush(self._queue, (when, next(self._serial), action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Call an action after some seconds."""
        self.at(self.now + seconds, action)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end, at_once = self.now + seconds, 0
        while self._queue and self._queue[0][0] <= end:
            when, _, action = heappop(self._queue)
            at_once = 0 if when > self.now else at_once + 1
            if at_once > _ENDLESS:
                raise RuntimeError(f"time stands still at {self.now - BOOT:.2f}: {action}")
            self.now = max(when, self.now)
            action()
        self.now = end

    def note(self, host: str, event: str, **fields: object) -> None:
        """Tell all observers what happened."""
        if self.running and self.running.dead:
            return
        note = Note(self.now - BOOT, host, event, fields)
        for each in self.observers:
            each(note)

    def close(self) -> None:
        """End all processes."""
        for each in self.processes:
            each.kill()
        self.run(0)


class Source:
    """Something to select on: readable from ``set`` to ``clear``."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._number = len(world.sources) + 3
        world.sources[self._number] = self
        self.since: float | None = None
        self.listener: Callable[[], None] | None = None

    def fileno(self) -> int:
        """Return what stands for it."""
        return self._number

    def set(self) -> None:
        """Make it readable."""
        if self.since is None:
            self.since = self._world.now
            if self.listener:
                self.listener()

    def clear(self) -> None:
        """Make it readable no more."""
        self.since = None


class Process:
    """A program that runs, in no time, until it waits; stopped, continued and killed as a kernel does that."""

    def __init__(self, world: World, main: Callable[[], None]) -> None:
        self.world = world
        self.dead = self.stopped = False
        self.catch: Callable[[signal.Signals], None] | None = None
        self.has_caught = False
        self._missed = self._wakes = False
        self._waits = 0
        self._main = main
        self._greenlet = greenlet(self._run, world.hub)
        world.processes.append(self)
        world.at(world.now, partial(self._resume, 0))

    def _run(self) -> None:
        try:
            self._main()
        except Killed:
            pass
        finally:
            self.dead = True

    def wait(self, until: float | None = None, *, wakes: bool = True) -> None:
        """Wait, as this process, until a time, or until it is woken."""
        if self.dead:
            raise Killed
        self._waits += 1
        self._wakes = wakes
        if until is not None:
            self.world.at(until, partial(self._resume, self._waits))
        self.world.hub.switch()
        if self.dead:
            raise Killed

    def sleep(self, seconds: float) -> None:
        """Wait, as this process, for some seconds, whatever happens."""
        self.wait(self.world.now + seconds, wakes=False)

    def wake(self, after: float = 0.0) -> None:
        """End a wait, from outside."""
        if self._wakes:
            self.world.after(after, partial(self._resume, self._waits))

    def _resume(self, wait: int) -> None:
        if wait != self._waits or self.dead:
            return
        if self.stopped:
            self._missed = True
            return
        self.world.running = self
        self._greenlet.switch()
        self.world.running = None

    def stop(self) -> None:
        """Do as SIGSTOP does."""
        self.stopped = True

    def carry_on(self) -> None:
        """Do as SIGCONT does: what it waited for may have come long ago."""
        self.stopped = False
        if self._missed:
            self._missed = False
            self.world.at(self.world.now, partial(self._resume, self._waits))

    def kill(self) -> None:
        """Do as SIGKILL does."""
        self.dead = True
        self.world.at(self.world.now, self._unwind)

    def _unwind(self) -> None:
        if self._greenlet:
            self.world.running = self
            self._greenlet.throw(Killed)
            self.world.running = None


def _plain(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"({text})" if " " in text else text
