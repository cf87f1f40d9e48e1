"""Log events as others read them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from kevip import log
log.configure(form=sys.argv[1], level=sys.argv[2])
logger = log.logger(vip="10.0.0.100")
logger.info("takeover.done", ms=5.5)
logger.debug("command.run")
try: 1 / 0
except ZeroDivisionError: logger.exception("daemon.failed")
"""


def logged(form: str, level: str) -> list[str]:
    """Return the lines that go to stderr."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, form, level], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_json_is_one_object_per_line() -> None:
    done, failed = map(json.loads, logged("json", "info"))
    assert (done["event"], done["level"], done["vip"], done["ms"]) == ("takeover.done", "info", "10.0.0.100", 5.5)
    assert done["timestamp"].endswith("Z")
    assert "ZeroDivisionError" in failed["exception"]


def test_auto_is_json_where_there_is_no_terminal() -> None:
    assert [json.loads(line)["event"] for line in logged("auto", "debug")] == [
        "takeover.done",
        "command.run",
        "daemon.failed",
    ]


def test_text_is_for_people() -> None:
    assert "takeover.done" in logged("text", "info")[0]
    assert "ms=5.5" in logged("text", "info")[0]


def test_a_level_leaves_out_what_is_below_it() -> None:
    [failed] = logged("json", "error")
    assert json.loads(failed)["event"] == "daemon.failed"


def journaled(*argv: str) -> list[str]:
    """Return what a program says on a stderr that is said to be the journal's, a socket, as systemd makes it."""
    ours, journal = socket.socketpair()
    with ours, journal:
        status = os.fstat(journal.fileno())
        environment = os.environ | {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        subprocess.run([sys.executable, *argv], stderr=journal.fileno(), env=environment, check=False)
        journal.close()
        with ours.makefile() as told:
            return told.read().splitlines()


def test_the_journal_has_text_with_the_priority_of_each_line() -> None:
    done, debugged, *failed = journaled("-c", SCRIPT, "auto", "debug")
    assert done.startswith("<6>[info ")
    assert "takeover.done" in done
    assert "ms=5.5" in done
    assert debugged.startswith("<7>[debug")
    assert [line[:3] for line in failed] == ["<3>"] * len(failed)
    assert failed[-1] == "<3>ZeroDivisionError: division by zero"
    assert [json.loads(line)["level"] for line in journaled("-c", SCRIPT, "json", "info")] == ["info", "error"]


def test_another_stderr_than_the_journal_has_no_priorities(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        environment = os.environ | {"JOURNAL_STREAM": "8:15"}
        subprocess.run([sys.executable, "-c", SCRIPT, "auto", "info"], stderr=log, env=environment, check=True)
    assert all(line.startswith("{") for line in (tmp_path / "log").read_text().splitlines())


def test_what_keeps_it_from_starting_is_an_error_in_the_journal() -> None:
    assert all(line.startswith("<3>kevip: ") for line in journaled("-m", "kevip", "--vip=nonsense"))
