"""Work beside the loop in virtual time: ``kevip.host.beside`` with a process of the simulation for its thread."""

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kevip.errors import KevipError
from kevip.host.beside import Job
from kevip.loop import Action
from sim.world import Process, Source

if TYPE_CHECKING:
    from sim.host import Host

_SOON = 0.001


class Lock:
    """A lock that is waited for in virtual time, by whatever process runs."""

    def __init__(self, host: "Host") -> None:
        self._world = host.world
        self._is_taken = False

    def acquire(self, timeout: float) -> bool:
        """Take it, or wait so many seconds for it; say whether it was taken."""
        end = self._world.now + timeout
        while self._is_taken and self._world.now < end and self._world.running:
            self._world.running.sleep(_SOON)
        if self._is_taken:
            return False
        self._is_taken = True
        return True

    def release(self) -> None:
        """Give it back."""
        self._is_taken = False

    def __enter__(self) -> Self:
        self.acquire(timeout=1e9)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


class Beside:
    """Drop-in for ``kevip.host.beside.Beside``."""

    def __init__(self, host: "Host") -> None:
        self._world = host.world
        self._jobs: list[Job] = []
        self._done: list[Job] = []
        self._source = Source(host.world)
        self._loop = host.node.loop
        if self._loop:
            self._loop.watch(self._source, self._on_done)
        self._process = Process(host.world, self._run)
        host.node.beside.append(self._process)

    def _run(self) -> None:
        while True:
            waiting = [job for job in self._jobs if job not in self._done]
            if not waiting:
                self._process.wait()
                continue
            waiting[0].run()
            self._done.append(waiting[0])
            self._source.set()

    @property
    def is_busy(self) -> bool:
        """Whether a job is under way that is wanted."""
        return any(not job.cancelled for job in self._jobs)

    def begin(self, work: Callable[[Job], Action], seconds: float) -> None:
        """Do a job when those before it are done, in so many seconds."""
        self._jobs.append(Job(work, seconds))
        self._process.wake()

    def cancel(self, seconds: float) -> None:
        """Cancel all jobs; raises KevipError if one that changes something does not end in so many seconds."""
        for job in self._jobs:
            job.cancelled = True
        for job in self._jobs:
            if not job.cancel(seconds):
                raise KevipError("what kevip changes on this host is not done")

    def _on_done(self) -> None:
        self._source.clear()
        while self._done:
            job = self._done.pop(0)
            self._jobs.remove(job)
            job.end()

    def close(self, seconds: float) -> None:
        """Wait so long for what is under way, then do no more."""
        end = self._world.now + seconds
        while self.is_busy and self._world.now < end and self._world.running:
            self._world.running.sleep(_SOON)
            self._on_done()
        self._process.kill()
