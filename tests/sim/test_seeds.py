"""Random schedules of faults: no checker finds anything."""

import pytest

from sim.faults import failures, schedule

_SEEDS = {"ucarp": 1500, "keepalived": 250}  # of which each takes twice as long
_AT_ONCE = 250


@pytest.mark.parametrize(
    ("engine", "first"), [(engine, first) for engine, seeds in _SEEDS.items() for first in range(0, seeds, _AT_ONCE)]
)
@pytest.mark.timeout(300)
@pytest.mark.no_cover  # it would take twice as long, and the scenarios have been everywhere already
def test_nothing_fails(engine: str, first: int) -> None:
    """To see what is wrong: script/simulate --seed N --engine NAME."""
    found = {seed: failures(schedule(seed, engine=engine)) for seed in range(first, first + _AT_ONCE)}
    assert [
        f"script/simulate --seed {seed} --engine {engine}: {each.checker}: {each.text}"
        for seed, failed in found.items()
        for each in failed
    ] == []
