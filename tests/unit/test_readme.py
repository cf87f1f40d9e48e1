"""docs/settings.md says what the command line is; the README is short. Run as a program, this writes the table anew."""

import re
from pathlib import Path

import click

from kevip.cli import cli
from kevip.errors import ExitStatus

README = Path(__file__).parents[2] / "README.md"
SETTINGS = Path(__file__).parents[2] / "docs" / "settings.md"
REQUIRED = "  [required]"
TABLE = re.compile(r"^\| flag \| variable \|.*?\n(?=\n)", re.MULTILINE | re.DOTALL)


def row(option: click.Option) -> str:
    """Return the line of the settings table for an option."""
    text = option.help or ""
    default = "required" if text.endswith(REQUIRED) else option.show_default or ""
    return f"| `{option.opts[0]}` | `{option.envvar}` | {default} | {text.removesuffix(REQUIRED)} |\n"


def table() -> str:
    """Return the settings table."""
    options = [param for param in cli.params if isinstance(param, click.Option) and param.envvar]
    return "| flag | variable | default | meaning |\n|---|---|---|---|\n" + "".join(map(row, options))


def test_the_settings_table_is_that_of_the_command_line() -> None:
    assert TABLE.findall(SETTINGS.read_text()) == [table()], f"write it with: python {__file__}"


def test_the_exit_statuses_are_all_there() -> None:
    text = SETTINGS.read_text()
    assert [f"| {status.value} |" for status in ExitStatus if f"\n| {status.value} | " not in text] == []


def test_the_readme_is_read_in_one_go() -> None:
    assert len(README.read_text().splitlines()) <= 200, "move what is for one task only to docs/"


if __name__ == "__main__":
    SETTINGS.write_text(TABLE.sub(lambda _: table(), SETTINGS.read_text()))
