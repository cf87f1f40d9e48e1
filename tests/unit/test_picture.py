"""docs/how-it-works.md draws the states as the core has them. Run as a program, this file draws them anew."""

import re
from itertools import groupby
from pathlib import Path

from kevip.core.states import TABLE, State

DOCS = Path(__file__).parents[2] / "docs" / "how-it-works.md"
PICTURE = re.compile(r"<!-- states -->\n\n```\n.*?```\n", re.DOTALL)


def picture() -> str:
    """Return the states, where each of them leads, and why."""
    wide = max(len(state.__name__) for edge in TABLE for state in edge)
    lines = []
    for state, edges in groupby(TABLE, key=lambda edge: edge[0]):
        reached: list[type[State]] = [edge[1] for edge in edges]
        for number, after in enumerate(reached):
            name = "" if number else state.__name__
            lines.append(f"  {name:{wide}}  ──►  {after.__name__:{wide}}  {TABLE[state, after]}\n")
        lines.append("\n")
    return "<!-- states -->\n\n```\n" + "".join(lines[:-1]) + "```\n"


def test_the_picture_of_the_states_is_that_of_the_table() -> None:
    assert PICTURE.findall(DOCS.read_text()) == [picture()], f"draw it with: python {__file__}"


if __name__ == "__main__":
    DOCS.write_text(PICTURE.sub(lambda _: picture(), DOCS.read_text()))
