"""Log events as key-value lines on stderr: JSON for machines, aligned text for a terminal."""

import json
import os
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

import structlog

Format = Literal["auto", "json", "text"]
Level = Literal["debug", "info", "warning", "error"]
Warn = Callable[..., None]  # logs an event about a subject, with its context, but not the same one again and again


class _Stderr:
    """Stderr as a sink that neither raises nor waits: a log reader that is gone or stalls must not take the VIP along.

    What a stalled reader does not take is dropped and counted; the count is the next thing that it reads.
    """

    def __init__(self) -> None:
        self._dropped = 0

    def write(self, text: str) -> None:
        if self._dropped:
            text = json.dumps({"event": "log.dropped", "level": "warning", "lines": self._dropped}) + "\n" + text
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


def configure(*, form: Format, level: Level) -> None:
    """Set up logging once, before the first event. ``auto`` is text on a terminal and JSON elsewhere."""
    finish: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ]
    if form == "text" or (form == "auto" and sys.stderr.isatty()):
        finish = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    timestamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    structlog.configure(
        processors=[structlog.processors.add_log_level, timestamp, *finish],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=_Stderr()),  # type: ignore[arg-type]  # only write and flush
    )


def logger(**context: str) -> Any:
    """Return a logger that adds the context to each of its events."""
    return structlog.get_logger(**context)
