"""The loop of kevip.loop in virtual time: what is readable first, then what is due, and signals."""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import inf

from kevip.loop import Action, Readable
from sim.world import Process, Source

COST = 0.0002
"""Seconds that a turn takes, unless the process is starved."""


class Loop:
    """Calls one action per source that is readable, in the order in which they came to be, and each that is due."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world
        self._watched: dict[Source, Action] = {}
        self._due: dict[Action, float] = {}
        self.cost = COST

    def now(self) -> float:
        """Return the time."""
        return self._world.now

    def _source(self, source: Readable | int) -> Source:
        return self._world.sources[source if isinstance(source, int) else source.fileno()]

    def watch(self, source: Readable | int, action: Action) -> None:
        """Call the action whenever the source is readable."""
        found = self._source(source)
        if found in self._watched:
            raise KeyError(f"{source} is watched already")
        self._watched[found] = action
        found.listener = lambda: self._process.wake(self.cost)

    def forget(self, source: Readable | int) -> None:
        """Watch a source no more."""
        found = self._source(source)
        del self._watched[found]
        found.listener = None

    def after(self, seconds: float, action: Action) -> None:
        """Call the action once, after some seconds; replaces an earlier time for it."""
        self._due[action] = self._world.now + seconds

    def cancel(self, *actions: Action) -> None:
        """Do not call these actions when they were due."""
        for action in actions:
            self._due.pop(action, None)

    def awaits(self, action: Action) -> bool:
        """Whether the action is due some time."""
        return action in self._due

    def turn(self) -> None:
        """Wait until something is readable or due, and call all such actions."""
        soon = self._world.now + self.cost
        if any(source.since is not None for source in self._watched):
            self._process.wait(soon)
        else:
            self._process.wait(max(min(self._due.values()), soon) if self._due else None)
        readable = [(source.since, source, action) for source, action in self._watched.items() if source.since]
        for _, source, action in sorted(readable, key=lambda each: each[0]):
            if self._watched.get(source) is action:  # an action before it may have ended it
                action()
        now = self._world.now
        for action in [action for action, due in self._due.items() if due <= now]:
            if self._due.get(action, inf) <= now:  # an action before it may have put it off
                del self._due[action]
                action()

    @contextmanager
    def signals(self, methods: Mapping[signal.Signals, Callable[[signal.Signals], None]]) -> Iterator[None]:
        """Call a method of the loop's user for each signal, from within ``turn``."""
        source, queue = Source(self._world), list[signal.Signals]()

        def dispatch() -> None:
            source.clear()
            while queue:
                number = queue.pop(0)
                methods[number](number)

        def catch(number: signal.Signals) -> None:
            queue.append(number)
            source.set()

        self.watch(source, dispatch)
        self._process.catch, self._process.has_caught = catch, True
        try:
            yield
        finally:
            self._process.catch = None
            self.forget(source)

    def close(self) -> None:
        """Free nothing: there is nothing."""
