"""Asks again and again, in a thread, for a TARGET that is slow must not hold up the loop; and judges the answers."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address
from queue import SimpleQueue
from time import monotonic

from kevip.health.ask import Answer, Asker

PATIENCE = 3.0  # seconds that TARGET has to answer, at most


class Judge:
    """Whether TARGET is up: changes its mind after so many failures, or successes, in a row.

    ``known`` says whether there were that many since the beginning, or since there was ``doubt``.
    """

    def __init__(self, *, fall: int, rise: int) -> None:
        self._needed = {False: fall, True: rise}
        self._last, self._in_a_row = True, 0
        self.up, self.known = True, False

    def doubt(self) -> None:
        """Know nothing: what was asked from another address says nothing of this one. The verdict stays till then."""
        self._in_a_row, self.known = 0, False

    def hear(self, *, success: bool) -> bool:
        """Take a result into account; say whether that changed the verdict."""
        self._in_a_row = self._in_a_row + 1 if success is self._last else 1
        self._last, before = success, self.up
        if self._in_a_row >= self._needed[success]:
            self.up, self.known = success, True
        return self.up is not before


class Prober:
    """Asks every ``interval`` seconds, in a thread, until it is closed; readable when there are answers.

    What is not answered after ``patience`` seconds is told as a failure then, though the question may hang. So there
    are ``period`` seconds between two answers, at most.
    """

    def __init__(
        self, question: Callable[[IPv4Address | None], Answer], *, interval: float, patience: float = PATIENCE
    ) -> None:
        self._asker = Asker(question, patience)
        self._interval, self.period = interval, max(interval, patience)
        self.source: IPv4Address | None = None
        self._answers: SimpleQueue[tuple[IPv4Address | None, Answer]] = SimpleQueue()
        self._ready = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._ended = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        due = monotonic()
        while not self._ended.wait(max(due - monotonic(), 0)):
            due = monotonic() + self._interval
            source = self.source
            self._answers.put((source, self._asker.ask(source)))
            os.eventfd_write(self._ready, 1)

    def fileno(self) -> int:
        """Return what to select on."""
        return self._ready

    def answers(self) -> list[Answer]:
        """Return the answers since the last call to what was asked from ``source``, as it is now."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._ready)
        answers = [self._answers.get() for _ in range(self._answers.qsize())]
        return [answer for source, answer in answers if source == self.source]

    def close(self) -> None:
        """Ask no more; a question that is on its way is not waited for."""
        self._ended.set()
