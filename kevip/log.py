"""Log events as key-value lines on stderr: JSON for machines, aligned text for a terminal and the journal."""

import json
import os
import re
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, Literal

import structlog

Format = Literal["auto", "json", "text"]
Level = Literal["debug", "info", "warning", "error"]
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3}  # of syslog, as sd-daemon(3) has them
Warn = Callable[..., None]  # logs an event about a subject, with its context, but not the same one again and again


class _Stderr:
    """Stderr as a sink that neither raises nor waits: a log reader that is gone or stalls must not take the VIP along.

    What a stalled reader does not take is dropped and counted; the count is the next thing that it reads.
    """

    def __init__(self) -> None:
        self._dropped = 0

    def write(self, text: str) -> None:
        if self._dropped:
            dropped = json.dumps({"event": "log.dropped", "level": "warning", "lines": self._dropped})
            text = f"{prioritized(dropped, 'warning')}\n{text}"
        with suppress(OSError, ValueError):
            whole = _write(sys.stderr.fileno(), text.encode(errors="backslashreplace"))
            self._dropped = 0 if whole else self._dropped + 1

    def flush(self) -> None:
        """Do nothing: nothing is kept."""


def _write(fd: int, data: bytes) -> bool:
    """Write without waiting; say whether all of it went. A pipe that is ready has room for PIPE_BUF bytes (pipe(7))."""
    ready = select.poll()
    ready.register(fd, select.POLLOUT)
    for start in range(0, len(data), select.PIPE_BUF):
        if not ready.poll(0):
            return False
        os.write(fd, data[start : start + select.PIPE_BUF])
    return True


@cache
def is_journal() -> bool:
    """Whether stderr goes to systemd's journal (JOURNAL_STREAM in systemd.exec(5))."""
    with suppress(OSError, ValueError):
        status = os.fstat(sys.stderr.fileno())
        return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return False


def prioritized(text: str, level: str) -> str:
    """Return lines as the journal wants them, so that it knows how much they matter; elsewhere, as they are."""
    return re.sub("^", f"<{_PRIORITIES[level]}>", text, flags=re.MULTILINE) if is_journal() else text


def configure(*, form: Format, level: Level) -> None:
    """Set up logging once, before the first event. ``auto`` is text on a terminal and in the journal, else JSON."""
    timestamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    finish: list[structlog.typing.Processor] = [
        timestamp,
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ]
    if form == "text" or (form == "auto" and (sys.stderr.isatty() or is_journal())):
        console = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())

        def render(name: Any, method: str, event: structlog.typing.EventDict) -> str:
            level = event["level"]
            return prioritized(console(name, method, event).rstrip(), level)

        finish = [render] if is_journal() else [timestamp, render]
    structlog.configure(
        processors=[structlog.processors.add_log_level, *finish],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=_Stderr()),  # type: ignore[arg-type]  # only write and flush
    )


def logger(**context: str) -> Any:
    """Return a logger that adds the context to each of its events."""
    return structlog.get_logger(**context)
