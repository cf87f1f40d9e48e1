"""How programs are run: what comes back, and what an error says."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest

from kevip.host import command
from kevip.host.command import CommandError, run, run_now, spawn

Run = Callable[..., str]

both = pytest.mark.parametrize("run", [run, run_now])


@both
def test_stdin_goes_in_and_stdout_comes_back(run: Run) -> None:
    assert run(["tr", "a-z", "A-Z"], stdin="one\ntwo\n") == "ONE\nTWO\n"


@both
def test_an_error_holds_argv_status_and_the_whole_of_stderr(run: Run) -> None:
    script = "seq 500 | tr '\\n' ' ' >&2; exit 7"
    with pytest.raises(CommandError) as caught:
        run(["sh", "-c", script])
    assert (caught.value.argv, caught.value.exit_status) == (("sh", "-c", script), 7)
    assert caught.value.stderr.split() == [str(number) for number in range(1, 501)]
    assert caught.value.problems[0].startswith(f"sh -c {script}: exit status 7: 1 2 3")


@both
def test_a_program_that_is_not_there_is_an_error(run: Run) -> None:
    with pytest.raises(CommandError, match=r"no-such-program: exit status 127: .*No such file"):
        run(["no-such-program"])


@both
def test_a_program_that_does_not_end_is_ended(run: Run) -> None:
    with mock.patch.object(command, "TIMEOUT", 0.1), pytest.raises(CommandError, match="did not end: stopped after"):
        run(["sleep", "60"])


@both
def test_a_child_sees_nothing_of_our_environment_but_the_path(run: Run) -> None:
    with mock.patch.dict(os.environ, {"PASSWORD": "secret"}):
        names = {line.partition("=")[0] for line in run(["env"]).splitlines()}
    assert names - {"_", "PWD", "SHLVL"} == {"LC_ALL", "PATH"}


@both
def test_programs_are_found_in_sbin_too(run: Run) -> None:
    assert command.find("ip") is not None
    assert "iproute2" in run(["ip", "-V"])


def test_a_spawned_child_dies_with_its_parent() -> None:
    script = "from kevip.host.command import spawn; import os; print(spawn(['sleep', '60']).pid); os._exit(0)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    status = Path(f"/proc/{done.stdout.strip()}/stat")
    deadline = time.monotonic() + 10
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.01)


def test_kill_ends_a_child_once_and_twice() -> None:
    child = spawn(["sleep", "60"])
    child.kill()
    assert child.wait(10) == -9
    child.kill()
    assert child.stderr
    child.stderr.close()


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[tuple[list[str], Callable[[], bool]]]:
    """Give a script whose child hangs, with something on stderr, and what says whether the child lives."""
    pids = tmp_path / "pids"

    def lives() -> bool:
        return pids.exists() and any(_lives(int(pid)) for pid in pids.read_text().split())

    yield ["sh", "-c", f"echo here >&2; sleep 60 & echo $! $$ >{pids}; wait"], lives
    for pid in pids.read_text().split() if pids.exists() else ():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def _lives(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _ends(lives: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while lives() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not lives()


Hanging = tuple[list[str], Callable[[], bool]]


@both
def test_what_hangs_ends_with_its_children(run: Run, hanging: Hanging) -> None:
    argv, lives = hanging
    with mock.patch.object(command, "TIMEOUT", 0.5), pytest.raises(CommandError, match="did not end: stopped after"):
        run(argv)
    assert _ends(lives)


def test_a_standby_that_says_something_and_hangs_ends_with_its_children(hanging: Hanging) -> None:
    argv, lives = hanging
    with command.Scope(0.5), pytest.raises(CommandError, match="did not end: stopped after"):
        command.Standby(argv).run("")
    assert _ends(lives)


def test_a_standby_that_waits_ends_with_its_children_when_it_is_stopped(hanging: Hanging) -> None:
    argv, lives = hanging
    standby = command.Standby(argv)
    standby.start()
    while not lives():
        time.sleep(0.01)
    standby.stop()
    assert _ends(lives)


def test_all_that_is_run_in_a_scope_has_its_seconds_together() -> None:
    begin = time.monotonic()
    with command.Scope(0.5):
        run_now(["sleep", "0.3"])
        with pytest.raises(CommandError, match="stopped after"):
            run_now(["sleep", "0.3"])
        with pytest.raises(CommandError, match="stopped after 0 s"):
            run_now(["true"])
    assert time.monotonic() - begin < 5


def test_a_scope_is_cancelled_by_another_thread() -> None:
    with command.Scope(60) as scope:
        threading.Timer(0.2, scope.cancel).start()
        with pytest.raises(CommandError, match="exit status -9"):
            run_now(["sleep", "60"])
        with pytest.raises(CommandError, match="exit status -9"):
            run_now(["sleep", "60"])


def test_much_goes_in_and_comes_out() -> None:
    text = "0123456789\n" * 100_000
    assert run_now(["cat"], stdin=text) == text


def test_a_program_that_reads_nothing_is_no_error() -> None:
    assert run_now(["true"], stdin="0123456789" * 100_000) == ""


def test_a_program_dies_with_the_process_that_runs_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    argv = ["sh", "-c", f"echo $$ >{pid}; exec sleep 60"]
    script = f"from kevip.host.command import run_now; run_now({argv})"
    with subprocess.Popen([sys.executable, "-c", script]) as daemon:
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.01)
        daemon.kill()
    assert _ends(lambda: _lives(int(pid.read_text())))


def test_a_stream_yields_what_is_said_while_it_is_said(tmp_path: Path) -> None:
    pieces = command.stream(["sh", "-c", f"echo one; until [ -e {tmp_path}/heard ]; do sleep 0.01; done; echo two"])
    assert next(pieces) == b"one\n"
    (tmp_path / "heard").touch()
    assert b"".join(pieces) == b"two\n"


def test_a_stream_is_whole_however_long_it_is() -> None:
    assert sum(len(piece) for piece in command.stream(["head", "-c", "5000000", "/dev/zero"])) == 5_000_000


def test_a_stream_of_a_program_that_fails_ends_with_its_error() -> None:
    pieces = command.stream(["sh", "-c", "echo one; echo 'no more' >&2; exit 3"])
    assert next(pieces) == b"one\n"
    with pytest.raises(CommandError, match="exit status 3: no more"):
        next(pieces)


def test_a_stream_is_ended_when_its_time_is_up() -> None:
    begin = time.monotonic()
    with command.Scope(0.2), pytest.raises(CommandError, match="did not end"):
        list(command.stream(["sh", "-c", "echo one; sleep 60"]))
    assert time.monotonic() - begin < 10


def test_a_stream_that_is_not_read_to_its_end_leaves_no_program(tmp_path: Path) -> None:
    pieces = command.stream(["sh", "-c", f"echo $$ >{tmp_path}/pid; cat /dev/zero"])
    next(pieces)
    del pieces
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_run_may_have_less_time_than_usual() -> None:
    with pytest.raises(CommandError, match=r"stopped after 0\.1 s"):
        run_now(["sleep", "60"], seconds=0.1)
