"""The command line: every option once, with its flag, variable, type, default and help."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

import click
from click.core import ParameterSource

from kevip import log, manifest
from kevip.check import report
from kevip.check.checks import diagnose, listening_time
from kevip.check.finding import Verdict
from kevip.config import (
    RANGES,
    RUN_DIR,
    EngineName,
    Malformed,
    label,
    load,
    parse_addresses,
    parse_boolean,
    parse_endpoint,
    parse_interval,
    parse_ipv4,
    parse_networks,
    parse_number,
    parse_ports,
)
from kevip.dataplane import plane
from kevip.dataplane.select import Dataplane, select
from kevip.election.vrrpd import Home
from kevip.errors import ExitStatus, HostError, KevipError, SettingsError
from kevip.health.ask import parse_check
from kevip.host import kernel, lock
from kevip.serve import serve
from kevip.status import text
from kevip.status.runfile import StateFile

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
    if not param:
        return "value"
    return f"{param.opts[0]} ({param.envvar})" if param.envvar else param.opts[0]


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


def _setting(
    flag: str, kind: click.ParamType[Any], text: str, *, variable: str = "", **attributes: Any
) -> Callable[[_Function], _Function]:
    """Declare an option; its variable is its flag in capitals, or another one, which as a flag is understood too."""
    name = variable or flag.partition("/")[0].removeprefix("--").upper().replace("-", "_")
    flags = [flag, f"--{variable.lower()}"] if variable else [flag]
    return click.option(*flags, name.lower(), type=kind, envvar=name, show_envvar=True, help=text, **attributes)


def _number(name: str) -> _Parsed:
    least, most = RANGES[name]
    return _Parsed(f"{least}-{most}", parse_number(name))


_ADDRESS = _Parsed("address", parse_ipv4)
_TEXT = _Parsed("text", str)
_PATH = _Parsed("path", _path)

_RUN_DIR = _setting("--run-dir", _PATH, "Directory for runtime files.", show_default="/run/kevip")

_SETTINGS = (
    _setting("--vip", _ADDRESS, "The virtual IP: an IPv4 address of this network that no host has.  [required]"),
    _setting(
        "--target",
        _ADDRESS,
        "Where traffic to the VIP goes: an IPv4 address.",
        show_default="required, but for --hold-only",
    ),
    _setting("--password", _TEXT, "What all replicas share; keeps others out of the election.  [required]"),
    _setting("--password-file", _PATH, "A file with the password, instead of --password."),
    _setting(
        "--global-masquerade/--no-global-masquerade",
        _Switch(),
        "Masquerade all that leaves this host while master, instead of giving the VIP's traffic the VIP as source.",
        default=False,
        show_default="off",
    ),
    _setting(
        "--allow-from",
        _Parsed("networks", parse_networks),
        "Who may use the VIP: networks, separated by commas. What others send is dropped.",
        show_default="everybody",
    ),
    _setting(
        "--port",
        _Parsed("ports", parse_ports),
        "What is proxied: ports such as 443,53/udp,8000-8010. The rest is refused.",
        variable="PORTS",
        show_default="everything",
    ),
    _setting(
        "--hold-only/--no-hold-only",
        _Switch(),
        "Hold the VIP and proxy nothing: something else on the hosts serves it.",
        default=False,
        show_default="off",
    ),
    _setting(
        "--check",
        _Parsed("check", parse_check),
        "Ask TARGET, and let a peer take over if it does not answer: tcp:PORT, icmp or http://HOST[:PORT]/PATH.",
    ),
    _setting("--check-interval", _number("check_interval"), "Seconds between questions.", show_default="5"),
    _setting("--check-fall", _number("check_fall"), "Failures in a row after which TARGET is down.", show_default="3"),
    _setting("--check-rise", _number("check_rise"), "Successes in a row after which it is up again.", show_default="2"),
    _setting(
        "--vip-id", _number("vip_id"), "The CARP or VRRP group of this VIP on its network.", show_default="last octet"
    ),
    _setting(
        "--interface",
        _TEXT,
        "The network interface that the VIP belongs on.",
        show_default="the one whose subnet holds the VIP",
    ),
    _setting(
        "--engine",
        _choice(get_args(EngineName)),
        "What elects, the same on all hosts: ucarp (CARP), or keepalived (VRRP), sooner after a crash.",
        show_default="ucarp",
    ),
    _setting(
        "--advert-interval",
        _Parsed("seconds", parse_interval),
        "Seconds between adverts of the master: whole ones with ucarp, 0.02-40 with keepalived.",
        show_default="1; with keepalived 0.1",
    ),
    _setting(
        "--priority", _number("priority"), "Among replicas with keepalived, the highest wins.", show_default="random"
    ),
    _setting(
        "--peers",
        _Parsed("addresses", parse_addresses),
        "Addresses of all hosts, to advertise to these (with keepalived), where switches drop multicast.",
        show_default="multicast",
    ),
    _setting("--advbase", _number("advbase"), "An older name of --advert-interval, with ucarp.", show_default="1"),
    _setting(
        "--advskew",
        _number("advskew"),
        "1/256 s added to that: among replicas with ucarp, the lowest wins.",
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
        "Take over from a living master with a higher skew, or a lower priority.",
        default=False,
        show_default="off",
    ),
    _setting(
        "--broadcast/--no-broadcast",
        _Switch(),
        "Advertise by broadcast (with ucarp), where switches drop multicast.",
        default=False,
        show_default="off",
    ),
    _setting(
        "--dataplane",
        _choice(get_args(Dataplane)),
        "Where the rules are; auto follows what else translates on this host.",
        show_default="auto",
    ),
    _setting(
        "--iptables",
        _choice(("auto", "nft", "legacy")),
        "An older name of --dataplane, which leaves the iptables- of its values out.",
        show_default="auto",
    ),
    _setting(
        "--metrics",
        _Parsed("host:port", parse_endpoint),
        "Where to serve metrics over HTTP (needs kevip[metrics]).",
        show_default="off",
    ),
    _RUN_DIR,
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
    subcommand_metavar="[COMMAND ...]",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="A flag wins over its variable; an empty variable counts as absent. Exit status: 0 after a stop by signal, "
    "1 failure while running, 2 wrong settings, 3 host not fit, 4 VIP already served on this host.",
)
@click.version_option(version("kevip"), prog_name="kevip")
@_settings
@click.pass_context
def cli(ctx: click.Context, /, **given: Any) -> None:
    """Hold a virtual IP together with other hosts of this network, and proxy its traffic to TARGET.

    Run it with the same settings on two or three hosts. They elect a master over CARP (ucarp) or VRRP
    (keepalived); the master holds the VIP and sends all of its traffic to TARGET, which sees the VIP as the source. If
    it dies, another takes over.
    """
    if ctx.invoked_subcommand:
        _refuse_early_flags(ctx)
    else:
        _hide_password(given)
        config = load(given)
        log.configure(form=config.log_format, level=config.log_level)
        serve(config)


def _hide_password(given: dict[str, Any]) -> None:
    if isinstance(password := given["password"], str):
        kernel.hide_argument(password)


def _refuse_early_flags(ctx: click.Context) -> None:
    """Raise UsageError for flags that stand before a subcommand, and so would be lost."""
    early = [
        param.opts[0]
        for param in ctx.command.params
        if param.name and ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
    ]
    if early:
        raise click.UsageError(f"put {', '.join(early)} after {ctx.invoked_subcommand}, not before it")


@cli.command("manifest")
@_settings
@click.option(
    "--name",
    type=_Parsed("name", manifest.parse_name),
    default="kevip",
    show_default=True,
    help="The objects' name: one for each VIP.",
)
@click.option("--namespace", type=_Parsed("name", manifest.parse_name), help="Where they belong.")
@click.option(
    "--image",
    type=_Parsed("image", manifest.parse_image),
    default=f"kevip:{version('kevip')}",
    show_default=True,
    help="The image that you built and pushed; no public registry has one.",
)
@click.option(
    "--replicas",
    type=_Parsed("number", manifest.parse_replicas),
    default=3,
    show_default=True,
    help="On as many nodes.",
)
def print_manifest(**given: Any) -> None:
    """Print the Kubernetes objects for these settings.

    A Secret with the password, a Deployment and a PodDisruptionBudget, for `kubectl apply -f -`. Of the settings, only
    those that were given are in it.
    """
    own = {name: given.pop(name) for name in ("name", "namespace", "image", "replicas")}
    if given["run_dir"]:
        given["run_dir"] = Malformed(f"{label('run_dir')} means nothing to a pod, whose /run is its own: leave it out")
    config = load(given | {name: value for name, value in own.items() if isinstance(value, Malformed)})
    if problem := manifest.password_problem(config.password):
        raise SettingsError(problem)
    del given["password_file"]
    settings = {name: value for name, value in given.items() if value is not None and value is not False}
    settings["password"] = config.password
    click.echo(manifest.to_yaml(manifest.objects(settings, **own)), nl=False)


@cli.command("check", short_help="Say what would keep kevip from working here, and what to do.")
@_settings
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--strict", is_flag=True, help="Let warnings count as failures.")
@click.option(
    "--seconds",
    type=click.FloatRange(1, 600),
    help="How long to listen for adverts.",
    show_default="until a master would have been missed",
)
def check(*, as_json: bool, strict: bool, seconds: float | None, **given: Any) -> ExitStatus:
    """Say whether kevip would work on this host, with the settings that it is to run with. Changes nothing.

    Looks at the host, listens on the network for some seconds, asks by ARP who has the VIP, and pings TARGET. It may
    be run while kevip runs. Exit status: 0 if no check failed, 1 if one did, 2 wrong settings.
    """
    _hide_password(given)
    config = load(given)
    log.configure(form=config.log_format, level=config.log_level)
    findings = diagnose(config, seconds or listening_time(config))
    verdicts = report.as_json(config, findings) if as_json else report.as_text(findings)
    bad = verdicts[Verdict.FAILED] + strict * verdicts[Verdict.WARNING]
    return ExitStatus.FAILURE if bad else ExitStatus.OK


@cli.command("status", short_help="Show what the VIPs of this host do.")
@click.option("--vip", type=_ADDRESS, help="Only this VIP, not all of this host.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--watch", is_flag=True, help="Show it again every 2 s, until Ctrl-C.")
@_RUN_DIR
def _status(*, as_json: bool, watch: bool, **given: Any) -> ExitStatus:
    """Show what the VIPs of this host do, and what does not fit together.

    Exit status: 0 if all is well, 1 if there is a problem or no VIP.
    """
    vip, run_dir = _place(given)
    log.configure(form="text", level="error")

    def show() -> bool:
        found = text.survey(run_dir, vip)
        if as_json:
            click.echo(json.dumps(text.as_json(found)))
        else:
            if watch:
                click.clear()
            click.echo(text.as_text(found, privileged="NET_ADMIN" not in kernel.missing_capabilities()))
        return text.is_ok(found)

    ok = text.watch(show) if watch else show()
    return ExitStatus.OK if ok else ExitStatus.FAILURE


@cli.command("cleanup", short_help="Remove what a killed kevip left on this host.")
@click.option("--vip", type=_ADDRESS, required=True, help="Whose leftovers.")
@_RUN_DIR
def _cleanup(**given: Any) -> None:
    """Remove what a killed kevip left on this host: address, rules, connections, runtime file."""
    vip, run_dir = _place(given)
    log.configure(form="text", level="error")
    if "NET_ADMIN" in kernel.missing_capabilities():
        raise HostError("capability NET_ADMIN is missing: run it as root")
    state = StateFile(run_dir, vip)
    home = Home(run_dir, vip)
    with lock.take(vip):
        removed = [str(each) for each in plane.clear(vip, select("auto")[0])]
        try:
            removed += [str(home.path)] if home.remove() else []
            removed += [str(state.path)] if state.remove() else []
        except OSError as error:
            raise HostError(f"cannot remove {state.path}: {error.strerror}") from None
    for each in removed:
        click.echo(f"removed {each}")
    if not removed:
        click.echo("nothing to remove")


def _place(given: Mapping[str, Any]) -> tuple[Any, Path]:
    """Return the VIP, if any, and the run directory that a command was given; raises SettingsError."""
    if problems := [value.problem for value in given.values() if isinstance(value, Malformed)]:
        raise SettingsError(*problems)
    return given["vip"], given["run_dir"] or RUN_DIR


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
        status = cli.main(standalone_mode=False, prog_name="kevip")
    except KevipError as error:
        _fail(error.status, *error.problems)
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "kevip"
        _fail(ExitStatus.USAGE, f"{error.format_message()} ({command} --help lists what there is)")
    except BrokenPipeError:  # nobody reads our output any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = ExitStatus.FAILURE
    except (KeyboardInterrupt, click.Abort):
        _fail(ExitStatus.FAILURE, "interrupted")
    sys.exit(status or ExitStatus.OK)


def _fail(status: ExitStatus, *problems: str) -> NoReturn:
    for problem in problems:
        click.echo(f"kevip: {problem}", err=True)
    sys.exit(status)
