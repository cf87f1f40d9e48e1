"""Scenarios: dialogues of what is done and what then happens, with their whole transcript, replayed and compared.

A line at the margin is done, or asked, or says which seed to begin with; the indented lines below it are what happened.
A first line that begins with ``# fails today`` says of a scenario that it shows a defect.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sim.commands import do
from sim.course import Course, course
from sim.world import Note

FOLDER = Path(__file__).parent / "scenarios"

_MARK = "# fails today"
_UNTOLD = {
    "ucarp.advert", "keepalived.advert", "daemon.started", "fault.stop", "fault.loss", "release.done",
    "election.master", "election.backup",
}  # fmt: skip
"""Events that say what others say too."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A scenario with the transcript of a replay, and how many of its lines say that something is wrong."""

    text: str
    failures: int

    @property
    def fails_today(self) -> bool:
        """Whether the scenario is meant to fail."""
        return self.text.startswith(_MARK)


def play(text: str) -> Outcome:
    """Replay a scenario."""
    lines, failures = list[str](), 0
    written = [line for line in text.splitlines() if not line.startswith(" ")]
    with course(_seed(written)) as made:
        for line in written:
            lines.append(line)
            if line and not line.startswith(("#", "seed ")):
                told = list(_answers(made, line))
                lines += [f"  {each}" for each in told]
                failures += sum(each.startswith("FAILS") for each in told)
    return Outcome("\n".join(lines) + "\n", failures)


def _seed(lines: list[str]) -> int:
    return next((int(line.split()[1]) for line in lines if line.startswith("seed ")), 1)


def _answers(made: Course, line: str) -> Iterator[str]:
    """Do what a line says; yield what happened, what was not as expected, and what must never be."""
    notes, failures = len(made.notes), len(made.failures)
    unmet = do(made, line)
    yield from (str(note) for note in made.notes[notes:] if _is_told(note))
    yield from (f"FAILS {each}" for each in unmet)
    yield from (f"FAILS at {each.time:.2f}: {each.checker}: {each.text}" for each in made.failures[failures:])


def _is_told(note: Note) -> bool:
    return note.event not in _UNTOLD
