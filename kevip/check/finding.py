"""What one check found, and what to do about it."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """It may work, or break in some event."""
    FAILED = "failed"
    """It will not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of ``kevip check``."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""


def ok(check: str, found: str, advice: str = "") -> Finding:
    """Return a finding that is well."""
    return Finding(check, Verdict.OK, found, advice)


def warning(check: str, found: str, advice: str) -> Finding:
    """Return a finding that may become trouble."""
    return Finding(check, Verdict.WARNING, found, advice)


def failed(check: str, found: str, advice: str = "") -> Finding:
    """Return a finding that keeps kevip from working."""
    return Finding(check, Verdict.FAILED, found, advice)
