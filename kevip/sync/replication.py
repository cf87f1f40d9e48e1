"""Looks after conntrackd, and has it know what becomes of the VIP: so connections live on after a crash, too.

Its death is none of the VIP's: it is started again, and fetches what it missed.
"""

import os
import select
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from subprocess import Popen
from typing import IO, cast

from kevip.core.messages import Level
from kevip.dataplane import conntrack
from kevip.election.engine import Teller
from kevip.errors import HostError, KevipError
from kevip.host import command, lock
from kevip.host.beside import Beside, Job
from kevip.host.command import CommandError
from kevip.loop import Action, Loop, Moment
from kevip.sync.conntrackd import Home, Setup, Stats, stats

_FIRST_RETRY, _LAST_RETRY = 1.0, 60.0  # seconds before it is started again: doubled, forgotten once it ran for the last
_PATIENCE = 10.0  # seconds that a command has: it may have to look at a hundred thousand connections
_ENDS = 2.0  # seconds that its end is waited for
# Seconds after which a host that does not serve fetches all again, and more for each connection that there is: nobody
# says what was lost on the way, for conntrackd counts the messages of all hosts as if they came from one.
_AGAIN, _PER_CONNECTION = 30.0, 1 / 300
_PASSED_ON = 2.0  # seconds that another kevip has to do what it is asked for
_SOON = 1.0  # seconds that another kevip has to say what it wants
_FLUSH = "-f", "internal"  # forget what is copied: what becomes of it is no news then
_RESYNC = "-R"  # compare with the kernel what is copied
_FETCH = "-n"  # have the others send what they copy
_LAST = 3  # lines that are kept, for its end


@dataclass(slots=True, kw_only=True)
class Copies:
    """How it is with the copies of connections. ``elsewhere`` says that another kevip of this host makes them."""

    interface: str
    running: bool = False
    elsewhere: bool = False
    since: Moment  # when that became so
    starts: int = 0
    sent_on: int = 0  # connections of this host that are copied to others
    written: int = 0  # connections of others that were written into the kernel here
    failed: int = 0
    heard: int = 0  # packets
    heard_last: Moment  # when the last of them was noticed
    resynced: Moment  # when the kernel's table was last compared with what is copied

    @property
    def is_well(self) -> bool:
        """Whether there are copies, whoever makes them."""
        return self.running or self.elsewhere


class _Child:
    """A running conntrackd. Killed by the kernel if this process dies."""

    def __init__(self, home: Home) -> None:
        self._program: Popen[bytes] = command.spawn(home.confined())
        self.pid = self._program.pid
        self.pidfd = os.pidfd_open(self.pid)
        self.stderr = cast(IO[bytes], self._program.stderr).fileno()
        os.set_blocking(self.stderr, False)

    def lines(self) -> list[str]:
        """Return what it has written, without the date."""
        with suppress(BlockingIOError):
            text = os.read(self.stderr, 1 << 16).decode(errors="replace")
            return [line.rpartition("] ")[2] for line in text.splitlines()]
        return []

    def kill(self) -> None:
        """End it, and wait for that."""
        with suppress(OSError):  # it has ended, and been closed
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            ended = select.poll()
            ended.register(self.pidfd, select.POLLIN)
            ended.poll(_ENDS * 1000)

    def close(self) -> int:
        """Free what belongs to one that has ended or ends now, and return its exit status (negative: a signal)."""
        with self._program as program:
            program.kill()
        os.close(self.pidfd)
        return self._program.returncode


class Bystander:
    """A kevip without conntrackd, beside others of this host that may copy connections to the same targets."""

    def __init__(self, targets: Sequence[IPv4Address]) -> None:
        self._targets = targets

    def _say(self, *what: str) -> None:
        """Ask conntrackd for something; raises KevipError if one runs and does not do it."""
        for target in self._targets:
            if other := lock.find_copying(target):
                self._ask_other(other, *what)

    def _ask_other(self, other: socket.socket, *what: str) -> None:
        with other:
            other.settimeout(_PASSED_ON)
            try:
                other.sendall(" ".join(what).encode())
                done = other.recv(1)
            except OSError:
                done = b""
        if not done:
            raise HostError(f"another kevip's conntrackd did not do: {' '.join(what)}")

    @contextmanager
    def spared(self, level: Level) -> Iterator[bool]:
        """Have the others not notice what becomes of connections here; yields whether they may be forgotten.

        A host that stays keeps them, and fetches the heir's in their place, for it has looked at the TCP windows of its
        own, which go on elsewhere. For a thread beside the loop.
        """
        goes = level is Level.NONE
        yield self._is_flushed() and goes
        with suppress(KevipError):
            self._say(_RESYNC if goes else _FETCH)  # there may be other VIPs of this TARGET

    def _is_flushed(self) -> bool:
        """Have deletions not reach the others any more; say whether that was done."""
        with suppress(KevipError):
            self._say(*_FLUSH)
            return True
        return False


class Replication(Bystander):
    """Runs conntrackd from ``begin`` on. ``is_safe`` says whether strangers are kept off by now."""

    def __init__(self, loop: Loop, setup: Setup, home: Home, teller: Teller, is_safe: Callable[[], bool]) -> None:
        self._loop, self._beside = loop, Beside(loop)
        super().__init__([setup.target])
        self._setup, self._home, self._is_safe = setup, home, is_safe
        self._teller, self._log = teller, teller.log
        self._child: _Child | None = None
        self._lock: socket.socket | None = None
        self._wanted = False
        self._pause, self._due, self._again = _FIRST_RETRY, loop.now(), 0.0
        self._last: deque[str] = deque(maxlen=_LAST)
        now = loop.now()
        self.state = Copies(interface=setup.channel.interface, since=now, heard_last=now, resynced=now)

    def begin(self) -> None:
        """Have it run from now on, one for each TARGET of this host."""
        self._wanted = True
        self.tend()

    def tend(self, *, serves: bool = False) -> None:
        """Start it if it is to run and does not, else look how it is; to be called from time to time."""
        if not self._wanted:
            return
        if self._child:
            if not self._beside.is_busy:
                self._ask(self._look)
                self._fetch_again(serves=serves)
        elif self._loop.now() >= self._due and self._is_safe() and self._may_run():
            self._start()

    def _may_run(self) -> bool:
        """Whether no other kevip runs one for this TARGET."""
        if not self._lock and (mine := lock.take_copying(self._setup.target)):
            self._lock = mine
            self._loop.watch(mine, partial(self._serve, mine))
        self._become(running=False, elsewhere=not self._lock)
        return bool(self._lock)

    def _serve(self, mine: socket.socket) -> None:
        """Do what another kevip of this host asks for."""
        with suppress(OSError):  # it has gone already
            other, _ = mine.accept()
            if lock.peer_uid(other) == os.geteuid():
                self._ask(partial(self._pass_on, other))
            else:
                other.close()

    def _pass_on(self, other: socket.socket) -> Action:
        with other, suppress(OSError):
            other.settimeout(_SOON)
            what = tuple(other.recv(100).decode(errors="replace").split())
            if what in {_FLUSH, (_RESYNC,), (_FETCH,)}:
                self._say(*what)
                other.sendall(b".")
        return _nothing

    def _become(self, *, running: bool, elsewhere: bool = False) -> None:
        if (running, elsewhere) != (self.state.running, self.state.elsewhere):
            self.state.running, self.state.elsewhere, self.state.since = running, elsewhere, self._loop.now()

    def _start(self) -> None:
        try:
            self._home.make(self._setup)
            child = self._child = _Child(self._home)
        except (OSError, CommandError) as error:
            self._put_off(error=str(error))
            return
        self._loop.watch(child.pidfd, partial(self._on_exit, child))
        self._loop.watch(child.stderr, partial(self._on_lines, child))
        self.state.starts += 1
        self.state.resynced = self._loop.now()
        self._again = self._loop.now() + _AGAIN  # it fetches all at its start
        self._become(running=True)
        self._log.info("conntrackd.started", pid=child.pid, interface=self.state.interface)

    def _put_off(self, **context: object) -> None:
        """Try again in a while."""
        now = self._loop.now()
        if self.state.running and now - self.state.since >= _LAST_RETRY:
            self._pause = _FIRST_RETRY
        self._due, pause = now + self._pause, self._pause
        self._pause = min(2 * pause, _LAST_RETRY)
        self._become(running=False)
        self._teller.log.error("conntrackd.ended", **context, retry_seconds=pause)

    def _on_lines(self, child: _Child) -> None:
        for line in child.lines():
            self._last.append(line)
            self._log.debug("conntrackd.message", conntrackd=line)

    def _on_exit(self, child: _Child) -> None:
        self._on_lines(child)
        self._part(child)
        status = child.close()
        if self._wanted:
            self._put_off(status=status, hint=f"its last words: {'; '.join(self._last) or 'none'}")

    def _part(self, child: _Child) -> None:
        for source in (child.pidfd, child.stderr):
            self._loop.forget(source)
        self._child = None

    # What it is asked

    def _ask(self, question: Callable[[], Action]) -> None:
        """Ask it something beside the loop."""

        def work(job: Job) -> Action:
            del job
            try:
                return question()
            except KevipError as error:
                return partial(self._log.warning, "conntrackd.silent", error=str(error))

        self._beside.begin(work, _PATIENCE)

    def _look(self) -> Action:
        return partial(self._looked, stats(command.run_now(self._home.argv("-s"))))

    def _looked(self, told: Stats | None) -> None:
        if not told or not self._child:
            return
        state, now = self.state, self._loop.now()
        if told.heard != state.heard:
            state.heard_last = now
        state.sent_on, state.written, state.failed, state.heard = told

    def _fetch_again(self, *, serves: bool) -> None:
        """Have the others send what they copy, once in a while, if this host does not serve."""
        now = self._loop.now()
        due = now >= self._again
        if due or serves:
            tracked, _ = conntrack.fill() or (0, 0)
            self._again = now + _AGAIN + tracked * _PER_CONNECTION
        if due and not serves:
            self._ask(self._fetch)

    def _fetch(self) -> Action:
        self._say(_FETCH)
        return _nothing

    def _say(self, *what: str) -> None:
        if self._child:
            command.told_now(self._home.argv(*what))
        elif not self._lock:
            super()._say(*what)

    def serves(self) -> None:
        """Have it copy the connections of a VIP that is here now, also those that it has written here itself."""
        self._ask(self._compare)

    def _compare(self) -> Action:
        self._say(_RESYNC)
        return self._compared

    def _compared(self) -> None:
        if self.state.running or self.state.elsewhere:
            self.state.resynced = self._loop.now()
            self._log.info("conntrackd.resynced")

    def _is_flushed(self) -> bool:
        if not (flushed := super()._is_flushed()) and (child := self._child):
            child.kill()  # it is started again
            return True
        return flushed

    @contextmanager
    def spared(self, level: Level) -> Iterator[bool]:
        """End it, if nothing of ours is to be left, else as for others."""
        if level is not Level.NONE or not self._lock:
            with super().spared(level) as may:
                yield may
            return
        self._wanted = False
        if child := self._child:
            child.kill()
        yield True

    def close(self) -> None:
        """End it."""
        self._wanted = False
        self._beside.close(0)
        if child := self._child:
            self._part(child)
            child.close()
        self._home.remove()
        if self._lock:
            self._loop.forget(self._lock)
            self._lock.close()


def _nothing() -> None:
    """Do nothing more."""
