"""The command line: every option once, with its flag, variable, type, default and help."""

import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

import click

from kevip import log
from kevip.check import preflight
from kevip.config import RANGES, Config, Malformed, load, parse_boolean, parse_ipv4, parse_number
from kevip.daemon import Daemon
from kevip.errors import ExitStatus, KevipError
from kevip.host import firewall, kernel, lock
from kevip.runtime import StateFile

_STDERR = 2

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Parsed(click.ParamType[Any]):
    """A value parsed by a function. What is malformed is kept, so that all problems are told at once."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self.parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        del ctx
        try:
            return self.parse(value) if isinstance(value, str) else value
        except ValueError as error:
            return Malformed(f"{_label(param)}: {error}")


class _Switch(click.types.BoolParamType):
    """A switch that takes fewer spellings than click's, from its variable."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return _Parsed(self.name, parse_boolean).convert(value, param, ctx)


def _label(param: click.Parameter | None) -> str:
    return f"{param.opts[0]} ({param.envvar})" if param else "value"


def _choice(choices: tuple[str, ...]) -> _Parsed:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is none of {', '.join(choices)}")
        return text

    return _Parsed("|".join(choices), parse)


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError(f"{text!r} is not a path")
    return Path(text)


def _setting(flag: str, kind: click.ParamType[Any], text: str, **attributes: Any) -> Callable[[_Function], _Function]:
    """Declare an option; its variable is its flag in capitals."""
    name = flag.partition("/")[0].removeprefix("--").upper().replace("-", "_")
    return click.option(flag, type=kind, envvar=name, show_envvar=True, help=text, **attributes)


def _number(name: str) -> _Parsed:
    least, most = RANGES[name]
    return _Parsed(f"{least}-{most}", parse_number(name))


_ADDRESS = _Parsed("address", parse_ipv4)
_TEXT = _Parsed("text", str)
_PATH = _Parsed("path", _path)

_SETTINGS = (
    _setting("--vip", _ADDRESS, "The virtual IP: an IPv4 address of this network that no host has.  [required]"),
    _setting("--target", _ADDRESS, "Where traffic to the VIP goes: an IPv4 address.  [required]"),
    _setting("--password", _TEXT, "What all replicas share; keeps others out of the election.  [required]"),
    _setting("--password-file", _PATH, "A file with the password, instead of --password."),
    _setting(
        "--global-masquerade/--no-global-masquerade",
        _Switch(),
        "Masquerade all that leaves this host while master, instead of giving the VIP's traffic the VIP as source.",
        default=False,
        show_default="off",
    ),
    _setting("--vip-id", _number("vip_id"), "The CARP group of this VIP on its network.", show_default="last octet"),
    _setting(
        "--interface",
        _TEXT,
        "The network interface that the VIP belongs on.",
        show_default="the one whose subnet holds the VIP",
    ),
    _setting("--advbase", _number("advbase"), "Seconds between adverts of the master.", show_default="1"),
    _setting(
        "--advskew",
        _number("advskew"),
        "1/256 s added to that: among replicas, the lowest wins.",
        show_default="random, 1-25",
    ),
    _setting(
        "--dead-ratio",
        _number("dead_ratio"),
        "Adverts missed before a backup takes over.",
        show_default="3",
    ),
    _setting(
        "--preempt/--no-preempt",
        _Switch(),
        "Take over from a living master with a higher skew.",
        default=False,
        show_default="off",
    ),
    _setting(
        "--broadcast/--no-broadcast",
        _Switch(),
        "Advertise by broadcast, where switches drop multicast.",
        default=False,
        show_default="off",
    ),
    _setting(
        "--iptables",
        _choice(("auto", *firewall.BACKENDS)),
        "The iptables back end; auto takes the one that this host uses.",
        show_default="auto",
    ),
    _setting("--run-dir", _PATH, "Directory for runtime files.", show_default="/run/kevip"),
    _setting(
        "--log-format",
        _choice(get_args(log.Format)),
        "auto is text on a terminal and JSON elsewhere.",
        show_default="auto",
    ),
    _setting("--log-level", _choice(get_args(log.Level)), "debug adds each command run.", show_default="info"),
)


def _settings(function: _Function) -> _Function:
    """Give a command all options of the daemon."""
    for setting in reversed(_SETTINGS):
        function = setting(function)
    return function


@click.group(
    invoke_without_command=True,
    subcommand_metavar="",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="A flag wins over its variable; an empty variable counts as absent. Exit status: 0 after a stop by signal, "
    "1 failure while running, 2 wrong settings, 3 host not fit, 4 VIP already served on this host.",
)
@click.version_option(version("kevip"), prog_name="kevip")
@_settings
@click.pass_context
def cli(ctx: click.Context, /, **given: Any) -> None:
    """Hold a virtual IP together with other hosts of this network, and proxy its traffic to TARGET.

    Run it with the same settings on two or three hosts. They elect a master over CARP (ucarp); the master holds
    the VIP and sends all of its traffic to TARGET, which sees the VIP as the source. If it dies, another takes over.
    """
    if ctx.invoked_subcommand is None:
        if isinstance(password := given["password"], str):
            kernel.hide_argument(password)
        _serve(load(given))


def _serve(config: Config) -> None:
    """Run the daemon until a signal stops it."""
    log.configure(form=config.log_format, level=config.log_level)
    host = preflight(config)
    with lock.take(config.vip):
        state = StateFile(config.run_dir, config.vip)
        state.prepare()
        Daemon(config, host, state).run()


def _open_standard_files() -> None:
    """Put /dev/null in place of a closed stdin, stdout or stderr, so that no socket of ours becomes one of them."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(fd)
    if sys.stderr is None:
        sys.stderr = open(_STDERR, "w", closefd=False)  # noqa: SIM115 - a descriptor, open to the end


def main() -> NoReturn:
    """Run the command line, and end with an exit status of ExitStatus."""
    _open_standard_files()
    try:
        cli.main(standalone_mode=False, prog_name="kevip")
    except KevipError as error:
        _fail(error.status, *error.problems)
    except click.ClickException as error:
        _fail(ExitStatus.USAGE, f"{error.format_message()} (kevip --help lists what there is)")
    except (KeyboardInterrupt, click.Abort):
        _fail(ExitStatus.FAILURE, "interrupted")
    sys.exit(ExitStatus.OK)


def _fail(status: ExitStatus, *problems: str) -> NoReturn:
    for problem in problems:
        click.echo(f"kevip: {problem}", err=True)
    sys.exit(status)
