"""A child that elects, whatever program it is: its process, what it says, and the watchdog beside it."""

import fcntl
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from subprocess import Popen
from typing import IO, ClassVar, cast

from kevip.errors import HostError
from kevip.host import command

HOOKS = Path(__file__).parent / "hooks"
_PIPE = 1 << 20  # bytes that it may have to say before it has to wait for us: it may say a line with each bad advert


class Child:
    """A running child. Killed by the kernel if this process dies.

    ``stderr`` has its lines; ``pidfd`` is readable when it has ended, and ``watchdog`` when its watchdog has.
    ``killed`` is whether it was the daemon that ended it.
    """

    program: ClassVar[str]  # as it is called in the log
    flood: ClassVar[bytes] = (
        b"\0"  # what is in lines of which there may be any number: the daemon hears such adverts itself
    )

    def __init__(
        self, argv: Sequence[str], parts: ExitStack, *, stdin: socket.socket | None = None, pass_fds: Sequence[int] = ()
    ) -> None:
        """Start it; ``parts`` are to be freed with it, and end it if this fails: nobody would know of it."""
        if not all(os.access(HOOKS / name, os.X_OK) for name in ("vip-up", "vip-down", "watchdog")):
            raise HostError(f"the scripts in {HOOKS} are not executable: install kevip again")
        self.killed = False
        self._rest = b""
        self._child = command.spawn(argv, stdin=stdin, pass_fds=pass_fds)
        parts.callback(_end, self._child)
        self.pid = self._child.pid
        self.pidfd = os.pidfd_open(self.pid)
        parts.callback(os.close, self.pidfd)
        self.stderr = cast(IO[bytes], self._child.stderr).fileno()
        os.set_blocking(self.stderr, False)
        with suppress(OSError):  # who may not have more has what all have
            fcntl.fcntl(self.stderr, fcntl.F_SETPIPE_SZ, _PIPE)
        self._beat, self._watchdogs_end = map(parts.enter_context, socket.socketpair())
        self._beat.setblocking(False)
        self._guard()
        parts.callback(self._unguard)
        self._parts = parts.pop_all()

    def _guard(self) -> None:
        """Start a watchdog, which ends the child when the daemon hangs."""
        self._watchdog = command.spawn([str(HOOKS / "watchdog"), str(self.pid)], stdin=self._watchdogs_end)
        self.watchdog = os.pidfd_open(self._watchdog.pid)

    def guard_anew(self) -> None:
        """Replace a watchdog that has ended; raises CommandError, OSError."""
        ended, pidfd = self._watchdog, self.watchdog
        self._guard()
        os.close(pidfd)
        _end(ended)

    def _unguard(self) -> None:
        os.close(self.watchdog)
        _end(self._watchdog)

    def beat(self) -> None:
        """Tell the watchdog that the daemon is well; without this, it ends the child after 5 s."""
        with suppress(OSError):
            self._beat.send(b"\n")

    def lines(self) -> list[str]:
        """Return the complete lines that it has written: all of them, for it waits while the pipe is full."""
        with suppress(BlockingIOError):
            while read := os.read(self.stderr, _PIPE):
                self._rest += read
                if len(read) < _PIPE:
                    break
        *lines, self._rest = self._rest.split(b"\n")
        return [line.decode(errors="replace") for line in lines if self.flood not in line]

    def pids(self) -> list[int]:
        """Return the processes that it takes to elect."""
        return [self.pid]

    def is_frozen(self) -> bool:
        """Whether one of them was stopped (SIGSTOP, a debugger), so that nothing is advertised; state in proc(5)."""
        return any(_state(pid) in {"T", "t"} for pid in self.pids())

    def kill(self) -> None:
        """End it at once: it advertises no more."""
        self.killed = True
        self._child.kill()

    def close(self) -> int:
        """Free what belongs to a child that has ended, and return its exit status (negative: a signal)."""
        status = self._child.wait()
        self._parts.close()
        return status


def hint_at_end(status: int) -> str:
    """Say what an exit status, or a signal that is negative, tells of a child that was not ended by kevip."""
    if status < 0:
        return f"ended by signal {-status}: by the watchdog if kevip stalled, else see dmesg for memory that ran out"
    return ""


def _end(child: Popen[bytes]) -> None:
    with child:  # waits for it, and closes its pipe
        child.kill()


def _state(pid: int) -> str:
    with suppress(OSError):  # it has ended: that is an event of its own
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""
