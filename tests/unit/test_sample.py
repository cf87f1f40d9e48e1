"""The sample of a service's settings has all settings, as the command line has them."""

from pathlib import Path

import click

from kevip.cli import cli

SAMPLE = (Path(__file__).parents[2] / "deploy/systemd/example.env.sample").read_text()


def test_the_sample_explains_all_settings_but_the_directory_which_is_the_units() -> None:
    lines = [line.lstrip("#").partition("=")[0] for line in SAMPLE.splitlines() if "=" in line]
    options = {param.envvar for param in cli.params if isinstance(param, click.Option) and param.envvar}
    assert set(lines) == options - {"RUN_DIR"}


def test_what_it_shows_as_defaults_is_what_they_are() -> None:
    shown = dict(line[1:].split("=", 1) for line in SAMPLE.splitlines() if line.startswith("#") and "# " not in line)
    defaults = {
        param.envvar: param.show_default for param in cli.params if isinstance(param, click.Option) and param.envvar
    }
    examples = {
        "PASSWORD_FILE",
        "FORWARDS",
        "FORWARDS_FILE",
        "ALLOW_FROM",
        "PORTS",
        "CHECK",
        "NOTIFY",
        "VIP_ID",
        "INTERFACE",
        "ADVSKEW",
        "METRICS",
        "ADVERT_INTERVAL",
        "PRIORITY",
        "PEERS",
        "SYNC_INTERFACE",
        "SYNC_PEERS",
        "EXPECT",
    }
    assert {name: value for name, value in shown.items() if name not in examples} == {
        name: defaults[name] for name in shown if name not in examples
    }
