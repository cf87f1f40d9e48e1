"""Log events as key-value lines on stderr: JSON for machines, aligned text for a terminal."""

import contextlib
import os
import sys
from typing import Any, Literal

import structlog

Format = Literal["auto", "json", "text"]
Level = Literal["debug", "info", "warning", "error"]


class _Stderr:
    """Stderr as a sink that keeps nothing and never raises: a log reader that went away must not take the VIP along."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            os.write(sys.stderr.fileno(), text.encode(errors="backslashreplace"))

    def flush(self) -> None:
        """Do nothing: nothing is kept."""


def configure(*, form: Format, level: Level) -> None:
    """Set up logging once, before the first event. ``auto`` is text on a terminal and JSON elsewhere."""
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    finish: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        if text
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *finish,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=_Stderr()),  # type: ignore[arg-type]  # only write and flush
    )


def logger(**context: str) -> Any:
    """Return a logger that adds the context to each of its events."""
    return structlog.get_logger(**context)
