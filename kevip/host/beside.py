"""Work beside the loop: one job at a time, in a thread of its own, for what a program that is slow must not hold up."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from time import monotonic

from kevip.errors import KevipError
from kevip.host.command import Scope
from kevip.loop import Action, Loop


class Job:
    """A piece of work. What it returns is called on the loop's thread, unless it was cancelled meanwhile."""

    def __init__(self, work: Callable[["Job"], Action], seconds: float) -> None:
        self._work = work
        self._scope = Scope(seconds)
        self._changing = Lock()
        self._outcome: Action | Exception | None = None
        self.cancelled = False

    def run(self) -> None:
        """Do the work."""
        with self._scope:
            try:
                self._outcome = self._work(self)
            except Exception as error:  # noqa: BLE001 - it is raised on the loop's thread
                self._outcome = error

    def end(self) -> None:
        """Call what the work has returned, or raise what nobody expected of it."""
        if self.cancelled or not self._outcome:
            return
        if isinstance(self._outcome, Exception):
            raise self._outcome
        self._outcome()

    @contextmanager
    def changes(self) -> Iterator[None]:
        """Change something on the host: that is not cut short. Raises KevipError if it is not wanted any more."""
        with self._changing:
            if self.cancelled:
                raise KevipError("not wanted any more")
            yield

    def kill(self) -> None:
        """Kill what it runs, whatever that is."""
        self.cancelled = True
        self._scope.cancel()

    def cancel(self, seconds: float) -> bool:
        """Kill what it runs, but wait so long for a change that is under way; say whether that is over."""
        self.cancelled = True
        over = self._changing.acquire(timeout=seconds)
        if over:
            self._scope.cancel()
            self._changing.release()
        return over


class Beside:
    """A thread for jobs. It lives as long as it is needed: what it runs dies with it."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._done: SimpleQueue[Job] = SimpleQueue()
        self._under_way: list[Job] = []
        self._ready = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        loop.watch(self._ready, self._on_done)
        Thread(target=self._run, name="beside", daemon=True).start()

    def _run(self) -> None:
        while job := self._jobs.get():
            job.run()
            self._done.put(job)
            os.eventfd_write(self._ready, 1)
        os.close(self._ready)

    @property
    def is_busy(self) -> bool:
        """Whether a job is under way that is wanted."""
        return any(not job.cancelled for job in self._under_way)

    def begin(self, work: Callable[[Job], Action], seconds: float) -> None:
        """Do a job when those before it are done, in so many seconds."""
        job = Job(work, seconds)
        self._under_way.append(job)
        self._jobs.put(job)

    def cancel(self, seconds: float) -> None:
        """Cancel all jobs; raises KevipError if one that changes something does not end in so many seconds."""
        for job in self._under_way:
            job.cancelled = True
        for job in self._under_way:  # a change is made by the first of them only
            if not job.cancel(seconds):
                raise KevipError(f"what kevip changes on this host is not done after {seconds:.1f} s")

    def _on_done(self) -> None:
        for _ in range(os.eventfd_read(self._ready)):
            self._end()

    def _end(self, timeout: float = 0.0) -> None:
        job = self._done.get(timeout=timeout)
        self._under_way.remove(job)
        job.end()

    def close(self, seconds: float) -> None:
        """Wait so long for what is under way, then end it, also in the middle of a change, and do no more."""
        end = monotonic() + seconds
        with suppress(Empty):
            while self.is_busy:
                self._end(max(end - monotonic(), 0.0))
        for job in self._under_way:
            job.kill()
        self._loop.forget(self._ready)
        self._jobs.put(None)
