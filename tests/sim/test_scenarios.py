"""Scenarios: what happens is what their transcripts say, and those that show a defect fail."""

from pathlib import Path

import pytest

from sim.scenario import FOLDER, play


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_a_scenario_is_as_written(path: Path) -> None:
    """If it is another one for a good reason: script/simulate --rewrite."""
    text = path.read_text()
    outcome = play(text)
    assert outcome.text.splitlines() == text.splitlines()
    assert (outcome.failures > 0) == outcome.fails_today, "a scenario fails exactly if its first line says so"
