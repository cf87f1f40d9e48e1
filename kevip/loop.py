"""An event loop: what is readable, what is due, and signals, whose handlers only queue."""

import selectors
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from time import monotonic
from types import FrameType
from typing import Annotated, Protocol

# Seconds of a clock that only goes forward: a daemon's own, or that since boot in what was read of its record.
Moment = Annotated[float, "moment"]

Action = Callable[[], None]


class Readable(Protocol):
    """Something with a file descriptor to select on."""

    def fileno(self) -> int: ...  # noqa: D102


class Loop:
    """Calls one action per source that is readable, and each action that is due; ``now`` is its clock."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self.now = clock
        self._selector = selectors.DefaultSelector()
        self._due: dict[Action, float] = {}

    def watch(self, source: Readable | int, action: Action) -> None:
        """Call the action whenever the source is readable."""
        self._selector.register(source, selectors.EVENT_READ, action)

    def forget(self, source: Readable | int) -> None:
        """Watch a source no more; to be called before it is closed."""
        self._selector.unregister(source)

    def after(self, seconds: float, action: Action) -> None:
        """Call the action once, after some seconds; replaces an earlier time for it."""
        self._due[action] = self.now() + seconds

    def cancel(self, *actions: Action) -> None:
        """Do not call these actions when they were due."""
        for action in actions:
            self._due.pop(action, None)

    def awaits(self, action: Action) -> bool:
        """Whether the action is due some time."""
        return action in self._due

    def turn(self) -> None:
        """Wait until something is readable or due, and call all such actions."""
        wait = max(min(self._due.values()) - self.now(), 0.0) if self._due else None
        # Where this process was stopped for a while, a wait that is over says nothing of what came meanwhile.
        for key, _ in self._selector.select(wait) or self._selector.select(0):
            if self._selector.get_map().get(key.fd) is key:  # an action before it may have ended it
                key.data()
        now = self.now()
        for action in [action for action, due in self._due.items() if due <= now]:
            if self._due.get(action, inf) <= now:  # an action before it may have put it off
                del self._due[action]
                action()

    @contextmanager
    def signals(self, methods: Mapping[signal.Signals, Callable[[signal.Signals], None]]) -> Iterator[None]:
        """Call a method of the loop's user for each signal, from within ``turn``.

        Afterwards each has its old handler again, unless another one was set meanwhile.
        """
        reader, writer = socket.socketpair()
        with reader, writer:
            writer.setblocking(False)
            earlier_fd = signal.set_wakeup_fd(writer.fileno())
            earlier = {number: signal.signal(number, _queued) for number in methods}

            def dispatch() -> None:
                for number in reader.recv(64):
                    if number in methods:
                        methods[signal.Signals(number)](signal.Signals(number))

            self.watch(reader, dispatch)
            try:
                yield
            finally:
                self.forget(reader)
                for number, handler in earlier.items():
                    if signal.getsignal(number) is _queued:
                        signal.signal(number, handler)
                signal.set_wakeup_fd(earlier_fd)

    def close(self) -> None:
        """Free the selector."""
        self._selector.close()


def _queued(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the interpreter has written the number to the wakeup socket by now."""
