"""Connections that are tracked: how often they are surveyed."""

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address
from typing import Any
from unittest import mock

import pytest

from kevip.dataplane import conntrack
from kevip.dataplane.conntrack import Survey, Tracked
from kevip.host.command import CommandError

VIPS = [IPv4Address("10.0.0.100")]


class Table:
    """A table whose survey takes some seconds."""

    def __init__(self) -> None:
        self.now, self.seconds, self.surveys = 1000.0, 0.6, 0
        self.problem: CommandError | None = None

    def survey(self, vips: Sequence[IPv4Address], *, rewritten: bool) -> Tracked:
        """Stand for ``conntrack.survey``."""
        del vips, rewritten
        self.now += self.seconds
        self.surveys += 1
        if self.problem:
            raise self.problem
        return Tracked(self.surveys)


@pytest.fixture
def table() -> Iterator[Table]:
    made = Table()
    stand_ins: dict[str, Any] = {"survey": made.survey, "monotonic": lambda: made.now}
    with mock.patch.multiple(conntrack, **stand_ins):
        yield made


@pytest.mark.parametrize(("seconds", "most"), [(0.05, 1000), (0.1, 200), (0.6, 34)])
def test_a_survey_that_takes_long_takes_a_fiftieth_of_the_time_at_most(table: Table, seconds: float, most: int) -> None:
    table.seconds, survey = seconds, Survey()
    for _ in range(1000):
        assert survey(VIPS).total == table.surveys
        table.now += 1
    assert 0.9 * most <= table.surveys <= most


def test_connections_that_are_translated_in_another_way_are_surveyed_at_once(table: Table) -> None:
    survey = Survey()
    table.seconds = 0.1
    assert [survey(VIPS, rewritten=each).total for each in (False, False, True, True)] == [1, 1, 2, 2]


def test_a_survey_that_failed_is_done_again(table: Table) -> None:
    survey, table.problem = Survey(), CommandError(["conntrack"], 1, "no")
    table.seconds = 0.1
    with pytest.raises(CommandError):
        survey(VIPS)
    table.problem = None
    assert survey(VIPS).total == 2
