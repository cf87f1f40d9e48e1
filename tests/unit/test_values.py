"""The chart's README says what its values are. Run as a program, this file writes the README's tables anew."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from kevip.cli import cli

CHART = Path(__file__).parents[2] / "deploy/helm/kevip"
README = CHART / "README.md"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
HELM = "global"
"""What Helm itself sets, and no user."""


def described(schema: dict[str, Any]) -> dict[str, Any]:
    """Return what a value's schema says, its own words before those of the definition that it refers to."""
    defined = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else {}
    return defined | schema


def values(schema: dict[str, Any], defaults: dict[str, Any], above: str = "") -> Iterator[str]:
    """Yield the rows of all values, by their dotted names."""
    for name, each in schema["properties"].items():
        if name == HELM:
            continue
        found = described(each)
        if "description" in found:
            yield f"| `{above}{name}` | `{json.dumps(defaults[name])}` | {found['description']} |\n"
        else:
            yield from values(found, defaults[name], f"{above}{name}.")


def of_vip() -> Iterator[str]:
    """Yield the rows of what an entry of vips may have; what may be set for all VIPs has a row there."""
    vip = SCHEMA["definitions"]["vip"]
    needed = {*vip["required"], *vip["else"]["then"]["required"]}
    for name, each in vip["properties"].items():
        if name not in SCHEMA["properties"]:
            note = "" if name not in needed else "yes" if name != "target" else "but for mode hold, or with forwards"
            yield f"| `{name}` | {note} | {described(each)['description']} |\n"


def options() -> Iterator[str]:
    """Yield the rows of the options: the command line's settings."""
    texts = {str(each.name): each.help or "" for each in cli.params if isinstance(each, click.Option)}
    for name, each in SCHEMA["definitions"]["vip"]["properties"]["options"]["properties"].items():
        setting = re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", name)
        kind = ", ".join(map(str, each["enum"])) if "enum" in each else each.get("type", "list")
        yield f"| `{name}` | {kind} | {texts[setting]} |\n"


def tables() -> dict[str, str]:
    """Return the tables, by their first lines."""
    shared = ", ".join(f"`{name}`" for name in SCHEMA["definitions"]["vip"]["properties"] if name in DEFAULTS)
    rows = {
        "| value | default | meaning |\n|---|---|---|\n": values(SCHEMA, DEFAULTS),
        "| of each VIP | required | meaning |\n|---|---|---|\n": [
            *of_vip(),
            f"| {shared} | | Instead of the value above, for this VIP. |\n",
        ],
        "| option | values | meaning |\n|---|---|---|\n": options(),
    }
    return {head: head + "".join(each) for head, each in rows.items()}


@pytest.mark.parametrize("head", tables())
def test_the_readme_says_what_the_values_are(head: str) -> None:
    assert tables()[head] + "\n" in README.read_text(), f"write it with: python {__file__}"


def test_the_defaults_are_values_that_the_schema_knows() -> None:
    def names(schema: dict[str, Any], above: str = "") -> set[str]:
        inner = described(schema)
        found = {f"{above}{name}": each for name, each in inner.get("properties", {}).items() if name != HELM}
        return {*found}.union(*(names(each, f"{name}.") for name, each in found.items() if "description" not in each))

    def given(value: Any, above: str = "") -> set[str]:
        if not isinstance(value, dict):
            return set()
        return {above + name for name in value}.union(*(given(each, f"{above}{name}.") for name, each in value.items()))

    assert names(SCHEMA) <= given(DEFAULTS)
    assert {name for name in given(DEFAULTS) if not name.startswith(("resources.", "dashboard.labels."))} == names(
        SCHEMA
    )


if __name__ == "__main__":
    text = README.read_text()
    for head, table in tables().items():
        before, _, after = text.partition(head)
        text = before + table + after[after.index("\n\n") + 1 :]
    README.write_text(text)
