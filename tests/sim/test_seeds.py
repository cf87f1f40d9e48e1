"""Random schedules of faults: no checker finds anything."""

import pytest

from sim.faults import failures, schedule

_SEEDS, _AT_ONCE = 2000, 250


@pytest.mark.parametrize("first", range(0, _SEEDS, _AT_ONCE))
@pytest.mark.timeout(300)
@pytest.mark.no_cover  # it would take twice as long, and the scenarios have been everywhere already
def test_nothing_fails(first: int) -> None:
    """To see what is wrong: script/simulate --seed N."""
    found = {seed: failures(schedule(seed)) for seed in range(first, first + _AT_ONCE)}
    assert [
        f"script/simulate --seed {seed}: {each.checker}: {each.text}"
        for seed, failed in found.items()
        for each in failed
    ] == []
