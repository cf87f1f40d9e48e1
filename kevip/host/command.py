"""The only place that runs a program: argv in, stdout out; an error holds argv, exit status and stderr.

``run`` goes through ``sh``. ``run_now`` does the same through ``subprocess``, whose vfork makes a call cost 1.7 ms
instead of 4.5 ms: it is for what repeats every few seconds. A ``Standby`` is started in advance, for the path of a
failover. ``spawn`` starts a child that stays: ``sh`` would add three threads to the process for it.

Each program has a process group of its own, which is killed as a whole when its time is up: ``iptables`` may be a
script, and what hangs its child. Those that ``subprocess`` starts die with the thread that started them.
"""

import os
import select
import shutil
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired
from threading import Lock
from time import monotonic
from typing import Self

import sh

from kevip.errors import KevipError
from kevip.log import logger

Runner = Callable[[Sequence[str]], str]  # ``run`` or ``run_now``

TIMEOUT = 10.0  # seconds that a program may take, unless it is given others
# All that a child sees of our environment: it holds no password, and messages are not translated.
ENVIRONMENT = {
    "LC_ALL": "C",
    "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]),
}
_PIECE = 1 << 16  # bytes that are read at once
_TIMED_OUT = -signal.SIGKILL, 128 + signal.SIGKILL  # exit statuses of ``timeout``, when it had to kill
_NOT_FOUND = 127  # that of a shell for a program that is not there


class CommandError(KevipError):
    """A program failed, could not be started, or took too long."""

    def __init__(self, argv: Sequence[str], status: int | None, stderr: str) -> None:
        how = "did not end" if status is None else f"exit status {status}"
        self.ending = f"{how}: {' '.join(stderr.split()) or 'no message'}"
        super().__init__(f"{' '.join(argv)}: {self.ending}")
        self.argv = tuple(argv)
        self.exit_status = status
        self.stderr = stderr


class _Program(Popen[bytes]):
    """A program whose end is told by a pidfd: Popen looks for it every few milliseconds if there is a limit."""

    def wait(self, timeout: float | None = None) -> int:
        if timeout is None or self.returncode is not None:
            return super().wait(timeout)
        pidfd = os.pidfd_open(self.pid)
        try:
            ended = select.poll()
            ended.register(pidfd, select.POLLIN)
            ended.poll(max(timeout, 0.0) * 1000)
        finally:
            os.close(pidfd)
        return super().wait(0.0)


class Scope:
    """What is run in this block has so many seconds, all together, and ends at once if another thread cancels it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline = monotonic() + seconds
        self._lock = Lock()
        self._running: Popen[bytes] | None = None
        self._cancelled = False

    def __enter__(self) -> Self:
        self._deadline = monotonic() + self._seconds
        self._token = _SCOPE.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _SCOPE.reset(self._token)

    def left(self) -> float:
        """Return the seconds that are left."""
        return max(self._deadline - monotonic(), 0.0)

    def cancel(self) -> None:
        """Kill what runs, and let nothing else be run."""
        with self._lock:
            self._cancelled = True
            if self._running:
                _kill_group(self._running)

    @contextmanager
    def running(self, program: Popen[bytes]) -> Iterator[None]:
        """Know of a program while it runs."""
        with self._lock:
            self._running = program
            if self._cancelled:
                _kill_group(program)
        try:
            yield
        finally:
            with self._lock:
                self._running = None


_SCOPE = ContextVar[Scope | None]("scope", default=None)


def find(program: str) -> str | None:
    """Return the path of a program, also from /usr/sbin and /sbin, or None."""
    return shutil.which(program, path=ENVIRONMENT["PATH"])


def run(argv: Sequence[str], *, stdin: str = "") -> str:
    """Run a program to its end and return its stdout; raises CommandError."""
    logger().debug("command.run", argv=list(argv))
    try:
        # sh's own time limit is looked at every 100 ms only, which each call would wait for
        timeout = sh.Command("timeout", search_paths=ENVIRONMENT["PATH"].split(os.pathsep))
        return timeout(
            "--signal=KILL", f"{TIMEOUT:g}", *argv, _in=stdin, _env=ENVIRONMENT, _tty_out=False, _truncate_exc=False
        )
    except sh.CommandNotFound:
        raise CommandError(argv, _NOT_FOUND, "timeout, of coreutils, is not there") from None
    except sh.ErrorReturnCode as error:
        if error.exit_code in _TIMED_OUT:
            raise CommandError(argv, None, f"stopped after {TIMEOUT:.2g} s") from None
        raise CommandError(argv, error.exit_code, error.stderr.decode(errors="replace")) from None


def run_now(argv: Sequence[str], *, stdin: str = "", seconds: float | None = None) -> str:
    """Do as ``run`` does, at a third of its cost, in so many seconds at most."""
    logger().debug("command.run", argv=list(argv))
    return _finish(argv, _start(argv, stdin=PIPE, stdout=PIPE), stdin, seconds)[0]


def stream(argv: Sequence[str]) -> Iterator[bytes]:
    """Run a program and yield its stdout as it comes, however long it is; raises CommandError.

    It is killed if not all is read. What it says on stderr must be short.
    """
    logger().debug("command.run", argv=list(argv))
    scope, program = _SCOPE.get() or Scope(TIMEOUT), _start(argv, stdin=DEVNULL, stdout=PIPE)
    with program, scope.running(program):
        try:
            assert program.stdout  # noqa: S101 - they are pipes
            assert program.stderr  # noqa: S101
            said = select.poll()
            said.register(program.stdout, select.POLLIN)
            while said.poll(scope.left() * 1000):
                piece = os.read(program.stdout.fileno(), _PIECE)
                if not piece:
                    break
                yield piece
            status = program.wait(scope.left())
            stderr = program.stderr.read().decode(errors="replace")
        except TimeoutExpired:
            raise CommandError(argv, None, "its time is up") from None
        finally:
            _kill_group(program)
    if status:
        raise CommandError(argv, status, stderr)


def told_now(argv: Sequence[str], *, seconds: float | None = None, variables: Mapping[str, str] | None = None) -> str:
    """Run a program whose stdout is not needed, in so many seconds at most, and return its stderr."""
    logger().debug("command.run", argv=list(argv))
    return _finish(argv, _start(argv, stdin=DEVNULL, variables=variables), "", seconds)[1]


def _start(
    argv: Sequence[str],
    *,
    stdin: int,
    stdout: int = DEVNULL,
    pass_fds: Sequence[int] = (),
    variables: Mapping[str, str] | None = None,
) -> Popen[bytes]:
    """Start a program in a process group of its own; it is killed when this thread ends, however that happens."""
    command, env = ["setpriv", "--pdeathsig", "KILL", "--", *argv], {**ENVIRONMENT, **(variables or {})}
    try:
        return _Program(command, stdin=stdin, stdout=stdout, stderr=PIPE, env=env, pass_fds=pass_fds, process_group=0)
    except OSError as error:
        raise CommandError(command, _NOT_FOUND, error.strerror or str(error)) from None


def _finish(argv: Sequence[str], program: Popen[bytes], stdin: str, seconds: float | None = None) -> tuple[str, str]:
    """Give a program its input, wait for its end, and return stdout and stderr; raises CommandError."""
    scope = _SCOPE.get() or Scope(TIMEOUT)
    seconds = min(TIMEOUT if seconds is None else seconds, scope.left())
    with program, scope.running(program):
        try:
            said = program.communicate(stdin.encode(), seconds)
        except TimeoutExpired:
            raise CommandError(argv, None, f"stopped after {seconds:.2g} s") from None
        finally:
            _kill_group(program)
    stdout, stderr = ((each or b"").decode(errors="replace") for each in said)
    if program.returncode:
        raise CommandError(argv, program.returncode, stderr)
    return stdout, stderr


class Standby:
    """A program that takes its orders on stdin, started in advance: a failover waits for neither fork nor exec.

    It ends by itself with this process, for then its stdin ends.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = list(argv)
        self._ready: Popen[bytes] | None = None

    def start(self) -> None:
        """Start the program, unless it waits already; raises CommandError."""
        self._ready = self._started()

    def _started(self) -> Popen[bytes]:
        if self._ready and self._ready.poll() is None:
            return self._ready
        self.stop()
        return _start(self._argv, stdin=PIPE)

    def run(self, stdin: str) -> None:
        """Give the program its input and wait for its end; started now if it was not; raises CommandError."""
        program, self._ready = self._started(), None
        logger().debug("command.run", argv=self._argv, standby=True)
        _finish(self._argv, program, stdin)

    def stop(self) -> None:
        """End the program, if it waits."""
        if self._ready:
            with self._ready as program:
                _kill_group(program)
            self._ready = None


def spawn(argv: Sequence[str], *, stdin: socket.socket | None = None, pass_fds: Sequence[int] = ()) -> Popen[bytes]:
    """Start a child that stays, in a process group of its own (a terminal's Ctrl-C is ours to handle).

    It is killed when this process dies, however that happens. Its stderr is a pipe, its stdout is dropped.
    """
    logger().debug("command.spawn", argv=list(argv))
    return _start(argv, stdin=stdin.fileno() if stdin else DEVNULL, pass_fds=pass_fds)


def _kill_group(program: Popen[bytes]) -> None:
    """Kill a program, unless it was waited for, and all that it has started."""
    if program.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
