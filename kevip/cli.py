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

from kevip import config as settings
from kevip import control, forwards, log, manifest
from kevip.check import report
from kevip.check.checks import diagnose
from kevip.config import Config, EngineName, Malformed, load
from kevip.dataplane import plane
from kevip.dataplane.select import Dataplane, select
from kevip.election.vrrpd import Home, VrrpVersion
from kevip.errors import ExitStatus, HostError, KevipError, SettingsError
from kevip.health.ask import parse_checks
from kevip.host import kernel, lock
from kevip.serve import serve
from kevip.status import text
from kevip.status.runfile import StateFile, group_of, reported
from kevip.sync import conntrackd

_STDERR = 2
_PATIENCE = 300.0  # seconds for an answer: with keepalived and an advert in 40 s, nobody may take over for 2 min

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Parsed(click.ParamType[Any]):
    """A value parsed by a function. What is malformed is kept, so that all problems are told at once."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self.parse = parse

    def convert(self, value: Any, param: click.Parameter | None, _: click.Context | None) -> Any:
        try:
            return self.parse(value) if isinstance(value, str) else value
        except ValueError as error:
            return Malformed(f"{_label(param)}: {error}")


class _Switch(_Parsed, click.types.BoolParamType):
    """A switch that takes fewer spellings than click's, from its variable."""


class _Several(_Parsed):
    """What may stand several times in one value, and in several."""

    def split_envvar_value(self, rv: str) -> list[str]:
        """Leave it whole: it may hold comments."""
        return [rv]


def _flattened(_context: click.Context, _param: click.Parameter, values: tuple[Any, ...]) -> Any:
    """Return what all values hold, None without one, or what is wrong with them."""
    if bad := [each.problem for each in values if isinstance(each, Malformed)]:
        return Malformed("; ".join(bad))
    return tuple(spec for each in values for spec in each) or None


def _label(param: click.Parameter | None) -> str:
    if not param:
        return "value"
    return f"{param.opts[0]} ({param.envvar})" if param.envvar else param.opts[0]


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError(f"{text!r} is not a path")
    return Path(text)


def _setting(
    flag: str, kind: click.ParamType[Any], text: str, shown: str | None = None, *, variable: str = "", **attributes: Any
) -> Callable[[_Function], _Function]:
    """Declare an option; its variable is its flag in capitals, or another one, which as a flag is understood too.

    ``shown`` is what people are told that its default is.
    """
    name = variable or flag.partition("/")[0].removeprefix("--").upper().replace("-", "_")
    flags = [flag, f"--{variable.lower()}"] if variable else [flag]
    attributes |= {"type": kind, "envvar": name, "show_envvar": True, "show_default": shown, "help": text}
    return click.option(*flags, name.lower(), **attributes)


def _switch(flag: str, text: str) -> Callable[[_Function], _Function]:
    kind = _Switch("boolean", settings.parse_boolean)
    return _setting(f"{flag}/{flag.replace('--', '--no-')}", kind, text, "off", default=False)


def _number(flag: str, text: str, shown: str) -> Callable[[_Function], _Function]:
    least, most = settings.RANGES[flag.removeprefix("--").replace("-", "_")]
    return _setting(flag, _Parsed(f"{least}-{most}", settings.parse_number(least, most)), text, shown)


def _choice(flag: str, choices: tuple[str, ...], text: str, shown: str) -> Callable[[_Function], _Function]:
    def parse(given: str) -> str:
        if given.lower() not in choices:
            raise ValueError(f"{given!r} is none of {', '.join(choices)}")
        return given.lower()

    def complete(_context: click.Context, _param: click.Parameter, begun: str) -> list[str]:
        return [each for each in choices if each.startswith(begun.lower())]

    named = "|".join(choices)
    return _setting(flag, _Parsed(named, parse), text, shown, metavar=named, shell_complete=complete)


_ADDRESS = _Parsed("address", forwards.parse_ipv4)
_TEXT = _Parsed("text", str)
_PATH = _Parsed("path", _path)
_NETWORKS = _Parsed("networks", settings.parse_list(settings.parse_network))
_PORTS = _Parsed("ports", settings.parse_list(forwards.parse_ports))
_CHECK = _Several("check", parse_checks)
_PEERS = _Parsed("addresses", settings.parse_list(forwards.parse_ipv4))
_SOURCE = _Parsed("address", settings.parse_source)
_COMMAND = _Parsed("command", settings.parse_command)
_DURATION = _Parsed("time", settings.parse_duration)
_INTERVAL = _Parsed("seconds", settings.parse_interval)
_ENDPOINT = _Parsed("[host]:port", settings.parse_endpoint)
_NAME = _Parsed("name", manifest.parse_name)
_REPLICAS = _Parsed("number", settings.parse_number(1, 9999))
_NODE_LABELS = _Parsed("labels", settings.parse_list(manifest.parse_node_label))
_TAINTS = _Parsed("taints", lambda text: [manifest.parse_toleration(each.strip()) for each in text.split(",")])
_AMOUNTS = _Parsed("amounts", settings.parse_list(manifest.parse_amount))

_RUN_DIR = _setting("--run-dir", _PATH, "Directory for runtime files.", "/run/kevip")

_SETTINGS = (
    _setting("--vip", _ADDRESS, "The virtual IP: an IPv4 address of this network that no host has.  [required]"),
    _setting(
        "--target",
        _Parsed("address", forwards.parse_target),
        "Where traffic to the VIP goes: an IPv4 address, or a name, which is looked up every 30 s.",
        "required, but for --hold-only",
    ),
    _setting(
        "--forward",
        _Several("forwards", forwards.parse_specs),
        "More of the group: [VIP][:PORT[-PORT]][/udp]=TARGET[:PORT], also several times.",
        "none",
        variable="FORWARDS",
        multiple=True,
        callback=_flattened,
    ),
    _setting("--forwards-file", _PATH, "A file with forwards, instead: one a line, with comments from # on."),
    _setting("--source", _SOURCE, "What targets see: the VIP that was connected to, or one for all.", "own"),
    _setting("--password", _TEXT, "What all replicas share; keeps others out of the election.  [required]"),
    _setting("--password-file", _PATH, "A file with the password, instead of --password."),
    _switch(
        "--global-masquerade",
        "Masquerade all that leaves this host while master, instead of giving the VIP's traffic the VIP as source.",
    ),
    _setting(
        "--allow-from",
        _NETWORKS,
        "Who may use the VIP: networks, separated by commas. What others send is dropped.",
        "everybody",
    ),
    _setting(
        "--port",
        _PORTS,
        "What is proxied: ports such as 443,53/udp,8000-8010. The rest is refused.",
        "everything",
        variable="PORTS",
    ),
    _switch("--hold-only", "Hold the VIP and proxy nothing: something else on the hosts serves it."),
    _setting(
        "--check",
        _CHECK,
        "Ask TARGET, and let a peer take over if it does not answer: tcp:PORT, icmp, http[s]://HOST[:PORT]/PATH; with "
        "VIP= before it, the target of that VIP. Also several times.",
        multiple=True,
        callback=_flattened,
    ),
    _switch("--check-any", "Of several checks, one that succeeds is enough."),
    _number("--check-interval", "Seconds between questions.", "5"),
    _number("--check-fall", "Failures in a row after which TARGET is down.", "3"),
    _number("--check-rise", "Successes in a row after which it is up again.", "2"),
    _setting("--notify", _COMMAND, "What to run at each change of role, with ROLE VIP REASON behind it, 30 s at most."),
    _number("--vip-id", "The CARP or VRRP group of this VIP on its network.", "last octet"),
    _setting(
        "--interface", _TEXT, "The network interface that the VIP belongs on.", "the one whose subnet holds the VIP"
    ),
    _choice(
        "--engine",
        get_args(EngineName),
        "What elects, the same on all hosts: ucarp (CARP), or keepalived (VRRP), sooner after a crash.",
        "ucarp",
    ),
    _setting(
        "--advert-interval",
        _INTERVAL,
        "Seconds between adverts of the master: whole ones with ucarp, 0.02-40 with keepalived.",
        "1; with keepalived 0.1",
    ),
    _choice(
        "--vrrp-version",
        get_args(VrrpVersion),
        "What keepalived speaks, the same on all hosts: 2 has a password, and whole seconds; auto is 2 for these.",
        "auto",
    ),
    _number("--priority", "Among replicas with keepalived, the highest wins.", "random"),
    _setting(
        "--peers",
        _PEERS,
        "Addresses of all hosts, to advertise to these (with keepalived), where switches drop multicast.",
        "multicast",
    ),
    _number("--advbase", "An older name of --advert-interval, with ucarp.", "1"),
    _number("--advskew", "1/256 s added to that: among replicas with ucarp, the lowest wins.", "random, 1-25"),
    _number("--dead-ratio", "Adverts missed before a backup takes over.", "3"),
    _switch("--preempt", "Take over from a living master with a higher skew, or a lower priority."),
    _number("--preempt-delay", "Seconds that a host which came back waits before it does that.", "0"),
    _switch("--broadcast", "Advertise by broadcast (with ucarp), where switches drop multicast."),
    _switch("--sync", "Copy connections to the other hosts, by conntrackd: silent ones survive a crash, too."),
    _setting(
        "--sync-interface",
        _TEXT,
        "Where they are copied, by multicast: who can send there can write into the hosts' kernels.",
        "none",
    ),
    _setting(
        "--sync-peers",
        _PEERS,
        "Addresses of all hosts there: copies are taken from these only. Two without --sync-interface use unicast.",
        "whoever is there",
    ),
    _number(
        "--expect", "Replicas that there should be, this one too: fewer are a problem.", "2, once another was heard"
    ),
    _choice(
        "--dataplane",
        get_args(Dataplane),
        "Where the rules are; auto follows what else translates on this host.",
        "auto",
    ),
    _choice(
        "--iptables",
        ("auto", "nft", "legacy"),
        "An older name of --dataplane, which leaves the iptables- of its values out.",
        "auto",
    ),
    _setting(
        "--metrics",
        _ENDPOINT,
        "Where to serve metrics over HTTP: [ADDRESS or INTERFACE]:PORT (needs kevip[metrics]).",
        "off",
    ),
    _RUN_DIR,
    _choice(
        "--log-format", get_args(log.Format), "auto is text on a terminal and in the journal, JSON elsewhere.", "auto"
    ),
    _choice("--log-level", get_args(log.Level), "debug adds each command run.", "info"),
)


def _settings(function: _Function) -> _Function:
    """Give a command all options of the daemon."""
    for setting in reversed(_SETTINGS):
        function = setting(function)
    return function


def _load(given: Mapping[str, Any]) -> Config:
    """Return the settings, and have the log as they say; the list of processes does not show the password any more."""
    if isinstance(password := given["password"], str):
        kernel.hide_argument(password)
    config = load(given)
    log.configure(form=config.log_format, level=config.log_level)
    return config


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
    if not ctx.invoked_subcommand:
        serve(_load(given))
        return
    early = [
        param.opts[0]
        for param in ctx.command.params
        if param.name and ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
    ]
    if early:  # they would be lost
        raise click.UsageError(f"put {', '.join(early)} after {ctx.invoked_subcommand}, not before it")


_MAPPINGS = ("node_selector", "requests", "limits")
_WORKLOAD = ("name", "namespace", "image", "replicas", "tolerations", *_MAPPINGS)


@cli.command("manifest")
@_settings
@click.option("--name", type=_NAME, default="kevip", show_default=True, help="The objects' name: one for each VIP.")
@click.option("--namespace", type=_NAME, help="Where they belong.")
@click.option(
    "--image",
    type=_Parsed("image", manifest.parse_image),
    default=f"kevip:{version('kevip')}",
    show_default=True,
    help="The image that you built and pushed; no public registry has one.",
)
@click.option("--replicas", type=_REPLICAS, default=3, show_default=True, help="On as many nodes.")
@click.option("--node-selector", type=_NODE_LABELS, help="Labels of the nodes that it may run on: KEY=VALUE,...")
@click.option(
    "--tolerations",
    type=_TAINTS,
    help="Taints of nodes that it may run on all the same, as kubectl writes them: KEY[=VALUE][:EFFECT],...",
)
@click.option("--requests", type=_AMOUNTS, help="What it is sure to get.", show_default="cpu=20m,memory=64Mi")
@click.option("--limits", type=_AMOUNTS, help="What it gets at most.", show_default="memory=256Mi")
def print_manifest(**given: Any) -> None:
    """Print the Kubernetes objects for these settings.

    A Secret with the password, a Deployment and a PodDisruptionBudget, for `kubectl apply -f -`. Of the settings, only
    those that were given are in it.
    """
    own = {name: given.pop(name) for name in _WORKLOAD}
    if given["run_dir"]:
        named = settings.label("run_dir")
        given["run_dir"] = Malformed(f"{named} means nothing to a pod, whose /run is its own: leave it out")
    config = load(given | {name: value for name, value in own.items() if isinstance(value, Malformed)})
    if problem := manifest.password_problem(config.password):
        raise SettingsError(problem)
    del given["password_file"], given["forwards_file"]
    given |= {"password": config.password, "forwards": config.forwards or None}
    wanted = {name: value for name, value in given.items() if value is not None and value is not False}
    own = {name: dict(value) if name in _MAPPINGS else value for name, value in own.items() if value}
    workload = manifest.Workload(version=version("kevip"), **own)
    click.echo(manifest.to_yaml(manifest.objects(wanted, workload)), nl=False)


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
    config = _load(given)
    findings = diagnose(config, seconds)
    verdicts = report.as_json(config, findings) if as_json else report.as_text(findings)
    bad = verdicts[report.Verdict.FAILED] + strict * verdicts[report.Verdict.WARNING]
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


_OF_VIP = click.option("--vip", type=_ADDRESS, help="Only this VIP, not all of this host.")
_FORCE = click.option("--force", is_flag=True, help="Leave the election meanwhile, though nobody else may take over.")


@cli.command("standby", short_help="Let other hosts serve, until it is resumed.")
@_OF_VIP
@click.option(
    "--for", "seconds", type=_DURATION, help="For a time such as 90s, 30m, 2h or 1d, not until it is resumed."
)
@_FORCE
@_RUN_DIR
def _standby(*, force: bool, **given: Any) -> ExitStatus:
    """Hand the VIP over, if it is here, and come after all hosts that are fit from now on.

    A restart does not end that. Exit status: 0 if a peer serves the VIP, 1 if none took over, and it stays here.
    """
    return _ask(given, "standby", force=force)


@cli.command("resume", short_help="End a standby.")
@_OF_VIP
@_RUN_DIR
def _resume(**given: Any) -> ExitStatus:
    """End a standby, so that this host is as good as any; that does not move the VIP."""
    return _ask(given, "resume")


@cli.command("move", short_help="Hand the VIP over to another host.")
@_OF_VIP
@_FORCE
@_RUN_DIR
def _move(*, force: bool, **given: Any) -> ExitStatus:
    """Hand the VIP over now, and come after all hosts that are fit for a minute.

    Exit status: 0 if a peer took over, 1 if none did, and it stays here.
    """
    return _ask(given | {"seconds": control.MOVED}, "move", force=force)


def _ask(given: Mapping[str, Any], command: control.Command, *, force: bool = False) -> ExitStatus:
    """Ask the daemon of a VIP, or of each on this host, and say what came of it."""
    vip, run_dir = _place(given)
    question, well = control.Question(command, given.get("seconds"), force), True
    if not (vips := [vip] if vip else sorted(reported(run_dir))):
        raise KevipError("no kevip is seen here: run this as root, in the container that it runs in")
    for each in vips:
        answer = control.ask(control.place(run_dir, each), question, _PATIENCE)
        click.echo(f"{each}: {answer.text}")
        well = well and answer.ok
    return ExitStatus.OK if well else ExitStatus.FAILURE


@cli.command("cleanup", short_help="Remove what a killed kevip left on this host.")
@click.option("--vip", type=_ADDRESS, required=True, help="Whose leftovers.")
@_RUN_DIR
def _cleanup(**given: Any) -> None:
    """Remove what a killed kevip left on this host: address, rules, connections, runtime file."""
    vip, run_dir = _place(given)
    if "NET_ADMIN" in kernel.missing_capabilities():
        raise HostError("capability NET_ADMIN is missing: run it as root")
    state = StateFile(run_dir, vip)
    homes = Home(run_dir, vip), conntrackd.Home(run_dir, vip)
    with lock.take(vip):
        removed = [str(each) for each in plane.clear(state.vips(), select("auto")[0])]
        try:
            removed += [str(home.path) for home in homes if home.remove()]
            removed += [str(state.path)] if state.remove() else []
        except OSError as error:
            raise HostError(f"cannot remove {state.path}: {error.strerror}") from None
    for each in removed:
        click.echo(f"removed {each}")
    if not removed:
        click.echo("nothing to remove")


def _place(given: Mapping[str, Any]) -> tuple[Any, Path]:
    """Return the group's VIP, if any was given, and the run directory; raises SettingsError."""
    if problems := [value.problem for value in given.values() if isinstance(value, Malformed)]:
        raise SettingsError(*problems)
    log.configure(form="text", level="error")
    run_dir = given["run_dir"] or settings.RUN_DIR
    return given["vip"] and group_of(run_dir, given["vip"]), run_dir


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
        click.echo(log.prioritized(f"kevip: {problem}", "error"), err=True)
    sys.exit(status)
