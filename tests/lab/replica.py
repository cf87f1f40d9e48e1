"""A real kevip daemon on a node: started, watched through its log and state file, ended."""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pytest

from lab.network import TARGET, VIP, Namespace, eventually

_LIBC = ctypes.CDLL(None, use_errno=True)

PASSWORD = "correct horse"  # noqa: S105 - for the lab alone


READ_ONLY_SYSCTL = (
    "unshare", "--mount", "sh", "-c",
    'mount --bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys; exec "$@"', "sh",
)  # fmt: skip
"""Wraps what is to have no writable /proc/sys, as in most containers."""

on_each_engine = pytest.mark.parametrize("start", ["ucarp", "keepalived"], indirect=True)
"""Marks tests of what the VIP does, whatever elects."""


class Replica:
    """A kevip in a node; starts at once. ``settings`` are flags by name, True for a switch, None to leave one out."""

    def __init__(
        self, node: Namespace, *, env: dict[str, str] | None = None, wrapper: tuple[str, ...] = (), **settings: Any
    ) -> None:
        self.node = node
        self.directory = Path(tempfile.mkdtemp(prefix=f"{node.name}-"))
        settings = {
            "vip": VIP, "target": TARGET, "password": PASSWORD, "run_dir": self.directory / "run", **settings,
        }  # fmt: skip
        self.vip, self.engine = str(settings["vip"]), str(settings.get("engine", "ucarp"))
        self.run_dir = Path(settings["run_dir"])
        self._log = self.directory / "log"
        with self._log.open("w") as log:
            self.process = node.popen(
                *wrapper,
                sys.executable,
                "-m",
                "kevip",
                *flags(settings),
                stderr=log,
                env={"PATH": os.environ["PATH"]} | (env or {}),
            )

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return the log's events, or those of one name."""
        lines = [line for line in self._log.read_text().splitlines() if line.startswith("{")]
        events = [json.loads(line) for line in lines]
        return [event for event in events if name in (None, event["event"])]

    def log(self) -> str:
        """Return all that the daemon wrote to stderr."""
        return self._log.read_text()

    def logged(self, name: str, *, times: int = 1, within: float = 20.0) -> dict[str, Any]:
        """Wait until an event was logged so many times and return the last one."""
        events: list[dict[str, Any]] = eventually(
            lambda: found if len(found := self.events(name)) >= times else None, within=within, what=f"{name} in log"
        )
        return events[-1]

    def state(self) -> dict[str, Any]:
        """Return what the runtime file says, nothing without one."""
        try:
            state: dict[str, Any] = json.loads((self.run_dir / f"{self.vip}.json").read_text())
        except FileNotFoundError:
            return {}
        return state

    def runtime_files(self) -> dict[str, str]:
        """Return the files in the run directory, by name: the runtime file, and the mark that kevip made it."""
        names = {f"{self.vip}.json", ".made-by-kevip"}
        there = names | {f"{self.vip}.sock"}
        eventually(lambda: {path.name for path in self.run_dir.iterdir()} == there, what="these files, and no draft")
        return {name: (self.run_dir / name).read_text() for name in names}

    def role(self) -> str | None:
        """Return the role that the runtime file says, None without one."""
        return self.state().get("role")

    def ready(self) -> "Replica":
        """Wait until the replica takes part in the election."""
        eventually(lambda: self.role() in {"backup", "master"}, what=f"{self.node.name} is in the election")
        return self

    def master(self, within: float = 20.0) -> "Replica":
        """Wait until the replica is master and has the VIP."""
        eventually(lambda: self.role() == "master" and self.node.has(self.vip), within=within, what="is master")
        return self

    def engine_pids(self) -> list[int]:
        """Return the process ids of all that elect for it. A hook of ucarp is one, too, until it is executed."""
        pid = self.process.pid
        started = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return [each for each in started if _command(each).startswith(f"{self.engine}\0")]

    def engine_pid(self) -> int:
        """Return the process id of what elects for the daemon; raises LookupError."""
        for pid in self.engine_pids():
            return pid
        raise LookupError(f"no {self.engine}")

    def children(self, name: str) -> list[int]:
        """Return the processes below the daemon that have a name in their command line."""
        return [pid for pid in _children(self.process.pid) if name in _command(pid)]

    @contextmanager
    def hooks(self) -> Iterator[Callable[[str], float]]:
        """Yield a function that runs a hook as ucarp does, with ucarp's stdin, and returns the seconds that it took."""
        ucarp = self.engine_pid()
        options = dict(each.split("=", 1) for each in _command(ucarp).split("\0") if "=" in each)
        pidfd = os.pidfd_open(ucarp)
        fd = _pidfd_getfd(pidfd, 0)

        def call(name: str) -> float:
            script = str(Path(options["--upscript"]).with_name(name))
            begin = time.perf_counter()
            subprocess.run([script, "eth0", self.vip], stdin=fd, check=True)  # a time limit would be polled for
            return time.perf_counter() - begin

        try:
            yield call
        finally:
            os.close(fd)
            os.close(pidfd)

    def kill(self) -> None:
        """End daemon, ucarp and hooks with SIGKILL, if they run."""
        pids = [self.process.pid, *_children(self.process.pid)]
        if self.process.poll() is None:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.remove()

    def remove(self) -> None:
        """Remove the replica's files."""
        shutil.rmtree(self.directory)

    def stop(self, number: signal.Signals = signal.SIGTERM, within: float = 10.0) -> tuple[int, float]:
        """Stop the daemon by a signal; return its exit status and the seconds that it took."""
        begin = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(within), time.monotonic() - begin


def _pidfd_getfd(pidfd: int, fd: int) -> int:
    """Copy a file descriptor of another process (pidfd_getfd(2), number 438 on all architectures)."""
    copied = _LIBC.syscall(438, pidfd, fd, 0)
    if copied < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return int(copied)


def flags(settings: dict[str, Any]) -> list[str]:
    """Return settings as flags."""
    names = {name: f"--{name.replace('_', '-')}" for name in settings}
    return [
        names[name] if value is True else f"{names[name]}={value}"
        for name, value in settings.items()
        if value is not None
    ]


def keepalived_version() -> tuple[int, ...]:
    """Return the version of the keepalived that is here."""
    argv = [str(shutil.which("keepalived")), "--version"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return tuple(map(int, done.stderr.split()[1].removeprefix("v").split(".")))


def _children(pid: int) -> list[int]:
    """Return the processes that a process has started, and theirs."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wrapped(directory: Path, program: str, script: str) -> dict[str, str]:
    """Put a script before a program of /usr/sbin; return the environment in which it is found first.

    The program runs when the script is over, unless that ends by itself: its path is ``$real``.
    """
    wrapper = directory / program
    wrapper.write_text(f'#!/bin/sh\nreal=/usr/sbin/{program}\n{script}\nexec "$real" "$@"\n')
    wrapper.chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}


def invoke(
    node: Namespace, *arguments: str, env: dict[str, str] | None = None, wrapper: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run kevip to its end on a node; for what it refuses."""
    return subprocess.run(
        node.command(*wrapper, sys.executable, "-m", "kevip", *arguments),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env={"PATH": os.environ["PATH"]} | (env or {}),
    )
