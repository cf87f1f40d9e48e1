"""Log events as others read them."""

import json
import subprocess
import sys

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
