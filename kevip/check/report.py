"""The findings as people and programs read them."""

import json
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial

import click

from kevip.check.finding import Finding, Verdict
from kevip.config import Config

_COLOURS = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAILED: "red"}
_VERDICT, _CHECK = 9, 14
"""Columns of the verdict and of the name of the check."""

_WIDEST = 110


def as_text(findings: Iterable[Finding]) -> Counter[Verdict]:
    """Print each finding when it is there, and a summary; return how many there are of each verdict."""
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    verdicts = Counter[Verdict]()
    for finding in findings:
        verdicts[finding.verdict] += 1
        head = click.style(f"{finding.verdict:<{_VERDICT}}", fg=_COLOURS[finding.verdict])
        click.echo(head + lines(finding, width))
    click.echo(summary(verdicts))
    return verdicts


def lines(finding: Finding, width: int) -> str:
    """Return a finding without its verdict, in aligned lines that fit the width."""
    indent = " " * (_VERDICT + _CHECK)
    wrap = partial(textwrap.wrap, width=max(width - len(indent), 20), break_long_words=False, break_on_hyphens=False)
    found, advice = wrap(finding.found), wrap(finding.advice, initial_indent="-> ", subsequent_indent="   ")
    return f"{finding.check:<{_CHECK}}" + f"\n{indent}".join([*found, *advice])


def summary(verdicts: Counter[Verdict]) -> str:
    """Return one line that says how it is."""
    ok, warnings, failed = (verdicts[verdict] for verdict in Verdict)
    return f"{verdicts.total()} checks: {ok} ok, {warnings} warning{'s' * (warnings != 1)}, {failed} failed"


def as_json(config: Config, findings: Iterable[Finding]) -> Counter[Verdict]:
    """Print one JSON object; return how many findings there are of each verdict."""
    told = list(findings)
    verdicts = Counter(finding.verdict for finding in told)
    document = {
        "vip": str(config.vip),
        "target": str(config.target),
        "findings": [asdict(finding) for finding in told],
        "summary": {verdict.value: verdicts[verdict] for verdict in Verdict},
    }
    click.echo(json.dumps(document, indent=2))
    return verdicts
