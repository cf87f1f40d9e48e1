"""The README says what the command line is."""

from pathlib import Path

import click

from kevip.cli import cli
from kevip.errors import ExitStatus

README = (Path(__file__).parents[2] / "README.md").read_text()
REQUIRED = "  [required]"


def row(option: click.Option) -> str:
    """Return the line of the settings table for an option."""
    text = option.help or ""
    default = "required" if text.endswith(REQUIRED) else option.show_default or ""
    return f"| `{option.opts[0]}` | `{option.envvar}` | {default} | {text.removesuffix(REQUIRED)} |"


def test_the_settings_table_is_that_of_the_command_line() -> None:
    options = [param for param in cli.params if isinstance(param, click.Option) and param.envvar]
    table = "\n".join(["| flag | variable | default | meaning |", "|---|---|---|---|", *map(row, options)])
    assert table in README, f"README.md needs this table:\n{table}"


def test_the_exit_statuses_are_all_there() -> None:
    assert [f"| {status.value} |" for status in ExitStatus if f"\n| {status.value} | " not in README] == []
