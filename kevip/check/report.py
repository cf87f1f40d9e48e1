"""What each check found and what to do about it, and how people and programs read that."""

import json
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import partial

import click

from kevip.config import Config

_VERDICT, _CHECK = 9, 14  # columns of the verdict and of the name of the check
_WIDEST = 110


class Verdict(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"  # it may work, or break in some event
    FAILED = "failed"  # it will not work


_COLOURS = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAILED: "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of ``kevip check``."""

    check: str
    verdict: Verdict = field(kw_only=True)
    found: str
    advice: str = ""


ok = partial(Finding, verdict=Verdict.OK)
warning = partial(Finding, verdict=Verdict.WARNING)
failed = partial(Finding, verdict=Verdict.FAILED)


def as_text(findings: Iterable[Finding]) -> Counter[Verdict]:
    """Print each finding when it is there, and a summary; return how many there are of each verdict."""
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    verdicts = Counter[Verdict]()
    for finding in findings:
        verdicts[finding.verdict] += 1
        head = click.style(f"{finding.verdict:<{_VERDICT}}", fg=_COLOURS[finding.verdict])
        click.echo(head + lines(finding, width))
    well, warnings, failures = (verdicts[verdict] for verdict in Verdict)
    plural = "s" * (warnings != 1)
    click.echo(f"{verdicts.total()} checks: {well} ok, {warnings} warning{plural}, {failures} failed")
    return verdicts


def lines(finding: Finding, width: int) -> str:
    """Return a finding without its verdict, in aligned lines that fit the width."""
    indent = " " * (_VERDICT + _CHECK)
    wrap = partial(textwrap.wrap, width=max(width - len(indent), 20), break_long_words=False, break_on_hyphens=False)
    found, advice = wrap(finding.found), wrap(finding.advice, initial_indent="-> ", subsequent_indent="   ")
    return f"{finding.check:<{_CHECK}}" + f"\n{indent}".join([*found, *advice])


def as_json(config: Config, findings: Iterable[Finding]) -> Counter[Verdict]:
    """Print one JSON object; return how many findings there are of each verdict."""
    told = [asdict(finding) for finding in findings]
    verdicts = Counter(Verdict(finding["verdict"]) for finding in told)
    summary = {verdict.value: verdicts[verdict] for verdict in Verdict}
    document = {"vip": str(config.vip), "target": str(config.target), "findings": told, "summary": summary}
    click.echo(json.dumps(document, indent=2))
    return verdicts
