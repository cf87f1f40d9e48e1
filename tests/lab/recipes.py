"""What the documents tell people to do, to be done as it stands there."""

import re
from pathlib import Path

from lab.network import LAN, TARGET, VIP

ROOT = Path(__file__).parents[2]
_STANDS_FOR = {"192.0.2.100": VIP, "192.0.2.0/24": f"{LAN}.0/24", "203.0.113.10": TARGET}


def recipe(document: str, heading: str, language: str, number: int = 0) -> str:
    """Return a block of code below a heading of a document, with the addresses of the lab."""
    text = (ROOT / "docs" / document).read_text()
    section = re.split(r"^##+ ", text.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    block: str = re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[number]
    for shown, meant in _STANDS_FOR.items():
        block = block.replace(shown, meant)
    return block
