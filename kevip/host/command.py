"""The only place that runs a program: argv in, stdout out; an error holds argv, exit status and stderr.

``run`` goes through ``sh``. ``run_now`` does the same through ``subprocess``, whose vfork makes a call cost 0.7 ms
instead of 4.5 ms: it is for what repeats every few seconds. A ``Standby`` is started in advance, for the path of a
failover. ``spawn`` starts a child that stays: ``sh`` would add three threads to the process for it.
"""

import os
import select
import shutil
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress

import sh

from kevip.errors import KevipError
from kevip.log import logger

Runner = Callable[[Sequence[str]], str]
"""How a program is run: ``run`` or ``run_now``."""

TIMEOUT = 10.0
"""Seconds that a program may take."""

ENVIRONMENT = {
    "LC_ALL": "C",
    "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]),
}
"""All that a child sees of our environment: it holds no password, and messages are not translated."""

_SEARCH = ENVIRONMENT["PATH"].split(os.pathsep)
_TIMED_OUT, _NOT_FOUND = 124, 127
"""Exit statuses of ``timeout`` and of shells for a program that took too long, or is not there."""


class CommandError(KevipError):
    """A program failed, could not be started, or took too long."""

    def __init__(self, argv: Sequence[str], status: int | None, stderr: str) -> None:
        ending = "did not end" if status is None else f"exit status {status}"
        super().__init__(f"{' '.join(argv)}: {ending}: {' '.join(stderr.split()) or 'no message'}")
        self.argv = tuple(argv)
        self.exit_status = status
        self.stderr = stderr


def _timed_out(argv: Sequence[str]) -> CommandError:
    return CommandError(argv, None, f"stopped after {TIMEOUT:g} s")


def find(program: str) -> str | None:
    """Return the path of a program, also from /usr/sbin and /sbin, or None."""
    return shutil.which(program, path=ENVIRONMENT["PATH"])


def run(argv: Sequence[str], *, stdin: str = "") -> str:
    """Run a program to its end and return its stdout; raises CommandError."""
    logger().debug("command.run", argv=list(argv))
    try:
        # sh's own time limit is looked at every 100 ms only, which each call would wait for
        output = sh.Command("timeout", search_paths=_SEARCH)(
            f"{TIMEOUT:g}", *argv, _in=stdin, _env=ENVIRONMENT, _tty_out=False, _truncate_exc=False, _return_cmd=True
        )
    except sh.CommandNotFound:
        raise CommandError(argv, _NOT_FOUND, "timeout, of coreutils, is not there") from None
    except sh.ErrorReturnCode as error:
        if error.exit_code == _TIMED_OUT:
            raise _timed_out(argv) from None
        raise CommandError(argv, error.exit_code, error.stderr.decode(errors="replace")) from None
    return str(output)


def run_now(argv: Sequence[str], *, stdin: str = "") -> str:
    """Do as ``run`` does, at a sixth of its cost."""
    return _run_now(argv, stdin, subprocess.PIPE).stdout


def told_now(argv: Sequence[str]) -> str:
    """Run a program whose stdout is not needed, and return its stderr; raises CommandError."""
    return _run_now(argv, "", subprocess.DEVNULL).stderr


def _run_now(argv: Sequence[str], stdin: str, stdout: int) -> subprocess.CompletedProcess[str]:
    logger().debug("command.run", argv=list(argv))
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=ENVIRONMENT,
            timeout=TIMEOUT,
            check=False,
        )
    except OSError as error:
        raise CommandError(argv, _NOT_FOUND, error.strerror or str(error)) from None
    except subprocess.TimeoutExpired:
        raise _timed_out(argv) from None
    if done.returncode != 0:
        raise CommandError(argv, done.returncode, done.stderr)
    return done


class Standby:
    """A program that takes its orders on stdin, started in advance: a failover waits for neither fork nor exec.

    It ends by itself with this process, for then its stdin ends.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = list(argv)
        self._ready: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the program, unless it waits already; raises CommandError."""
        if self._ready and self._ready.poll() is None:
            return
        self.stop()
        try:
            self._ready = subprocess.Popen(
                self._argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=ENVIRONMENT,
                process_group=0,
            )
        except OSError as error:
            raise CommandError(self._argv, _NOT_FOUND, error.strerror or str(error)) from None

    def run(self, stdin: str) -> None:
        """Give the program its input and wait for its end; started now if it was not; raises CommandError."""
        self.start()
        program, self._ready = self._ready, None
        if not program:
            return
        logger().debug("command.run", argv=self._argv, standby=True)
        status, stderr = _finish(program, stdin.encode())
        if status != 0:
            raise CommandError(self._argv, status, stderr)

    def stop(self) -> None:
        """End the program, if it waits."""
        if self._ready:
            self._ready.kill()
            self._ready.communicate()
            self._ready = None


def _finish(program: subprocess.Popen[bytes], stdin: bytes) -> tuple[int | None, str]:
    """Give a program its input, wait until it ends or TIMEOUT is over, and return exit status, if any, and stderr.

    ``communicate`` does the same; but it is 0.4 ms slower, a tenth of a takeover.
    """
    orders, errors = program.stdin, program.stderr
    if not orders or not errors:
        raise TypeError("a program without pipes")
    with errors:
        with suppress(BrokenPipeError), orders:
            orders.write(stdin)
        if not select.select([errors], [], [], TIMEOUT)[0]:
            program.kill()
            program.wait()
            return None, f"stopped after {TIMEOUT:g} s"
        stderr = errors.read()
        return program.wait(), (stderr or b"").decode(errors="replace")


def spawn(
    argv: Sequence[str], *, stdin: socket.socket | None = None, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a child that stays, in a process group of its own (a terminal's Ctrl-C is ours to handle).

    It is killed when this process dies, however that happens. Its stderr is a pipe, its stdout is dropped.
    """
    logger().debug("command.spawn", argv=list(argv))
    command = ["setpriv", "--pdeathsig", "KILL", "--", *argv]
    try:
        return subprocess.Popen(
            command,
            stdin=stdin.fileno() if stdin else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            pass_fds=pass_fds,
            process_group=0,
        )
    except OSError as error:
        raise CommandError(command, _NOT_FOUND, error.strerror or str(error)) from None


def kill(child: subprocess.Popen[bytes]) -> None:
    """End a child at once, whatever it is doing."""
    with suppress(ProcessLookupError):
        child.kill()
