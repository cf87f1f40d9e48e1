"""How programs are run: what comes back, and what an error says."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
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
    command.kill(child)
    assert child.wait(10) == -9
    command.kill(child)
    assert child.stderr
    child.stderr.close()
