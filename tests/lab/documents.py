"""The documents: what they show as code, to be looked at, and what they tell people to do, to be done."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from lab.network import LAN, TARGET, VIP

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bench/*.md"), *ROOT.glob("deploy/**/*.md")]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(`+)(.+?)\1", re.DOTALL)
_STANDS_FOR = {"192.0.2.100": VIP, "192.0.2.0/24": f"{LAN}.0/24", "203.0.113.10": TARGET}


def prose(document: Path) -> str:
    """Return a document without its blocks of code."""
    return FENCE.sub("", document.read_text())


def blocks(document: Path, language: str) -> list[str]:
    """Return the blocks of code that are in a language, without what indents them."""
    found = FENCE.findall(document.read_text())
    return [re.sub(f"^{indent}", "", text, flags=re.MULTILINE) for indent, named, text in found if named == language]


def spans(document: Path) -> list[str]:
    """Return what is set as code within a line."""
    return [" ".join(text.split()) for _, text in SPAN.findall(prose(document))]


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def commands(document: Path) -> Iterator[list[str]]:
    """Yield each command line of a document's shell blocks, as words; what is not plain shell is left out."""
    for block in blocks(document, "sh"):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            for part in re.split(r"\||&&|;", re.sub(r"#.*|>.*|<.*", "", line)):
                try:
                    yield shlex.split(part)
                except ValueError:
                    continue


def recipe(document: str, heading: str, language: str, number: int = 0) -> str:
    """Return a block of code below a heading of a document, with the addresses of the lab."""
    text = (ROOT / "docs" / document).read_text()
    section = re.split(r"^##+ ", text.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    block: str = re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[number]
    for shown, meant in _STANDS_FOR.items():
        block = block.replace(shown, meant)
    return block
