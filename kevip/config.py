"""The settings of one group: parsed, checked all at once, and kept as a frozen value."""

import os
import re
import shlex
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from random import SystemRandom
from typing import Any, Literal, TypeVar

from kevip import forwards, log
from kevip.dataplane.rules import Forward, Ports
from kevip.dataplane.select import Dataplane
from kevip.election.carp import UNFIT
from kevip.election.vrrpd import MOST_DEAD, RANKS, VrrpVersion, default_interval, version
from kevip.errors import SettingsError
from kevip.forwards import Spec
from kevip.health.ask import Asked

_Value = TypeVar("_Value")

# Least and most of each number. 255 as a skew is left out: with it, a base of 255 means "never" to ucarp.
RANGES = {
    "vip_id": (1, 255), "advbase": (1, 255), "advskew": (0, 254), "dead_ratio": (1, 255), "priority": RANKS,
    "preempt_delay": (0, 3600), "check_interval": (1, 3600), "check_fall": (1, 100), "check_rise": (1, 100),
    "expect": (1, 64),
}  # fmt: skip
INTERVALS = 0.02, 40.0  # the shortest and the longest of keepalived, in seconds

EngineName = Literal["ucarp", "keepalived"]

# The settings that mean nothing to an engine, and those that say the same to it, if there are any.
_OF_ENGINE = {
    "ucarp": {"priority": "advskew", "peers": "broadcast"},
    "keepalived": {"advbase": "advert_interval", "advskew": "priority", "broadcast": "peers"},
}
_PLAIN_PATH = re.compile(r"[\w./+:@-]+", re.ASCII)
RUN_DIR = Path("/run/kevip")
# What means nothing if the VIP is only held.
_PROXYING = "target", "forwards", "source", "global_masquerade", "allow_from", "ports", "sync"
_PAIR = 2  # of hosts, which have one peer each, or of checks
# What differs from host to host, or may; and what no replica could hear of another if it were not the same.
_OWN = {
    "vip", "vip_id", "password", "interface", "priority", "advskew", "dataplane", "metrics", "run_dir", "log_format",
    "log_level", "notify", "sync_interface", "preempt_delay",
}  # fmt: skip
_LONGEST_FILE = 65536
_BOOLEANS = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)
_PORTS = range(1, 2**16)
_ENDPOINT = re.compile(
    r"(\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<four>[0-9.]+|localhost)|(?P<interface>[^\s/:*\[\]]{0,15})):(?P<port>[0-9]{1,5})",
    re.ASCII,
)

# What no host can have.
_UNUSABLE = {
    "the unspecified address": IPv4Network("0.0.0.0/8"),
    "a loopback address": IPv4Network("127.0.0.0/8"),
    "a multicast address": IPv4Network("224.0.0.0/4"),
    "a reserved or broadcast address": IPv4Network("240.0.0.0/4"),
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to listen: at an address, at that of an interface, or, with no name of one, everywhere."""

    host: IPv4Address | IPv6Address | str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if isinstance(self.host, IPv6Address) else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A group and how to serve it; raises SettingsError with every problem when built from values that do not fit.

    ``vip`` is the one that the election is about; ``forwards`` has the others, and what of each goes elsewhere.
    """

    vip: IPv4Address
    target: IPv4Address | str | None = None
    password: str = field(repr=False)
    forwards: tuple[Spec, ...] = ()
    source: IPv4Address | None = None  # what targets see; None is the VIP that was connected to
    hold_only: bool = False
    allow_from: tuple[IPv4Network, ...] = ()
    ports: tuple[Ports, ...] = ()
    check: tuple[Asked, ...] = ()
    check_any: bool = False
    check_interval: int = 5  # seconds
    check_fall: int = 3  # results in a row
    check_rise: int = 2
    notify: str = ""
    global_masquerade: bool = False
    vip_id: int = 0  # the last octet of the VIP
    interface: str | None = None
    engine: EngineName = "ucarp"
    advert_interval: float | None = None  # seconds, of keepalived; None leaves it to kevip, as it does the priority
    vrrp_version: VrrpVersion = "auto"
    priority: int | None = None
    peers: tuple[IPv4Address, ...] = ()
    advbase: int = 1  # seconds
    # 1/256 s: differs between replicas, as a rule, and costs a takeover less than 0.3 s
    advskew: int = field(default_factory=lambda: SystemRandom().randint(1, 25))
    dead_ratio: int = 3  # adverts missed (ucarp(8))
    preempt: bool = False
    preempt_delay: int = 0  # seconds
    broadcast: bool = False
    sync: bool = False
    sync_interface: str | None = None
    sync_peers: tuple[IPv4Address, ...] = ()
    expect: int | None = None  # replicas
    dataplane: Dataplane = "auto"
    metrics: Endpoint | None = None
    run_dir: Path = RUN_DIR
    log_format: log.Format = "auto"
    log_level: log.Level = "info"

    def __post_init__(self) -> None:
        if self.vip_id == 0:
            object.__setattr__(self, "vip_id", int(self.vip) & 0xFF)
        if problems := list(_problems({each.name: getattr(self, each.name) for each in fields(self)})):
            raise SettingsError(*problems)

    @property
    def routes(self) -> tuple[Forward, ...]:
        """All that is proxied."""
        return tuple(each.of(self.vip) for each in _specs(self.target, self.forwards))

    @property
    def vips(self) -> tuple[IPv4Address, ...]:
        """The addresses of the group, the first one first."""
        return tuple(dict.fromkeys((self.vip, *(each.vip or self.vip for each in self.forwards))))

    @property
    def targets(self) -> tuple[IPv4Address, ...]:
        """Where something is sent on to."""
        return tuple(dict.fromkeys(each.target for each in self.routes))

    @property
    def address(self) -> IPv4Address | None:
        """The one of TARGET, which is no name by now."""
        assert not isinstance(self.target, str)  # noqa: S101 - see ``at``
        return self.target

    @property
    def names(self) -> tuple[str, ...]:
        """The targets that are given by name."""
        every = (each.target for each in _specs(self.target, self.forwards))
        return tuple(dict.fromkeys(each for each in every if isinstance(each, str)))

    def at(self, addresses: Mapping[str, IPv4Address]) -> "Config":
        """Return the settings with addresses in the place of names; raises SettingsError where these do not fit."""
        target = addresses[self.target] if isinstance(self.target, str) else self.target
        specs = (replace(each, target=addresses.get(str(each.target), each.target)) for each in self.forwards)
        return replace(self, target=target, forwards=tuple(specs))

    @property
    def hands_on(self) -> bool:
        """Whether an heir may have the connections: a host-wide masquerade gives them an address that it has not."""
        return bool(self.target or self.forwards) and not self.global_masquerade

    def alike(self) -> dict[str, str]:
        """Return what replicas should have alike, by the names of the variables."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _OWN}
        advbase, quick = values.pop("advbase"), self.advert_interval or default_interval(realtime=True)
        values["advert_interval"] = advbase if self.engine == "ucarp" else quick
        wanted = values.pop("vrrp_version")
        if self.engine == "keepalived":
            values["vrrp_version"] = version(wanted, quick)
        lists = {name: ",".join(sorted(map(str, each))) for name, each in values.items() if isinstance(each, tuple)}
        return {name.upper(): str(value) for name, value in (values | lists).items()}


@dataclass(frozen=True, slots=True)
class Malformed:
    """Stands in for a value that could not be parsed, so that all problems can be told at once."""

    problem: str


def load(given: Mapping[str, Any]) -> Config:
    """Build a Config from parsed settings, None where one was not given; raises SettingsError with every problem."""
    problems = [value.problem for value in given.values() if isinstance(value, Malformed)]
    values = {name: value for name, value in given.items() if value is not None and not isinstance(value, Malformed)}
    problems += _missing(given)
    if file := values.pop("forwards_file", None):
        problems += _from_file(values, file)
    if not isinstance(given.get("password_file"), Malformed):
        try:
            values["password"] = _password(values.get("password"), values.pop("password_file", None))
        except SettingsError as error:
            problems += error.problems
    if older := values.pop("iptables", None):
        if "dataplane" in values:
            problems.append(f"{label('iptables')} is an older name of {label('dataplane')}: leave one of them out")
        values["dataplane"] = older if older == "auto" else f"iptables-{older}"
    problems += _timed(values)
    if problems:
        raise SettingsError(*problems, *_problems(values))
    return Config(**values)


def _missing(given: Mapping[str, Any]) -> Iterator[str]:
    """Say which addresses are not given, of those that are needed."""
    if given.get("vip") is None:
        yield f"{label('vip')} is missing: set it to an IPv4 address"
    if given.get("target") is None and given.get("hold_only") is not True and not _covered(given):
        yield _NO_TARGET


def _specs(target: IPv4Address | str | None, more: Iterable[Spec]) -> Iterator[Spec]:
    if target:
        yield Spec(target)
    yield from more


def _covered(values: Mapping[str, Any]) -> bool:
    """Whether something of the first VIP is sent somewhere, as far as that can be told."""
    specs = values.get("forwards") or ()
    return (
        isinstance(specs, Malformed)
        or bool(values.get("forwards_file"))
        or any(each.vip in {None, values.get("vip")} for each in specs)
    )


def _timed(values: dict[str, Any]) -> Iterator[str]:
    """Say what means nothing to the engine, and give it its interval, ucarp by its older name."""
    engine = values.get("engine", "ucarp")
    for name, other in _OF_ENGINE[engine].items():
        if name in values and values[name] is not False:
            yield f"{label(name)} means nothing with {label('engine')} {engine}: use {label(other)}"
    if engine == "keepalived":
        if values.get("dead_ratio", 0) > MOST_DEAD:
            yield f"{label('dead_ratio')}: with {label('engine')} {engine}, {MOST_DEAD} is the most"
        if values.get("vrrp_version") == "2":
            values.setdefault("advert_interval", 1.0)
    elif (interval := values.pop("advert_interval", None)) is not None:
        yield from _whole(values, interval)


def _whole(values: dict[str, Any], interval: float) -> Iterator[str]:
    """Give ucarp its interval, or say why not."""
    if "advbase" in values:
        yield f"{label('advbase')} is an older name of {label('advert_interval')}: leave one of them out"
    least, most = RANGES["advbase"]
    if interval == int(interval) and least <= interval <= most:
        values["advbase"] = int(interval)
    else:
        whole = f"no whole number of seconds from {least} to {most}, as ucarp wants it"
        yield f"{label('advert_interval')}: {interval:g} is {whole}"


def label(name: str) -> str:
    """Return how messages name a setting: its flag and its environment variable."""
    return f"--{_FLAGS.get(name, name).replace('_', '-')} ({name.upper()})"


_FLAGS = {"forwards": "forward"}  # where that is another one
_NO_TARGET = f"{label('target')} is missing: set it to an IPv4 address"


def _password(password: str | None, file: Path | None) -> str:
    flag, file_flag = label("password"), label("password_file")
    if password is not None and file is not None:
        raise SettingsError(f"{flag} and {file_flag} are both given: leave one of them out")
    if password is not None:
        return password
    if file is None:
        raise SettingsError(f"{flag} is missing: set it, or {file_flag}, to what all replicas share")
    try:
        text = os.fsdecode(_content(file))
    except OSError as error:
        raise SettingsError(f"{file_flag}: cannot read {file}: {error.strerror}") from None
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def _from_file(values: dict[str, Any], file: Path) -> list[str]:
    """Add the forwards that a file holds; return what is wrong with that."""
    flag = label("forwards_file")
    if "forwards" in values:
        return [f"{label('forwards')} and {flag} are both given: leave one of them out"]
    try:
        values["forwards"] = forwards.parse_specs(_content(file).decode())
    except OSError as error:
        return [f"{flag}: cannot read {file}: {error.strerror}"]
    except ValueError as error:
        return [f"{flag}: {error}"]
    return []


def _content(file: Path) -> bytes:
    """Read a regular file of a sensible size; raises OSError. Others may have no end, or no beginning."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError(None, "not a regular file")
    with file.open("rb") as opened:
        content = opened.read(_LONGEST_FILE + 1)
    if len(content) > _LONGEST_FILE:
        raise OSError(None, f"larger than {_LONGEST_FILE} bytes")
    return content


def _problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Say what is wrong with the values that are there."""
    yield from _misplaced(values)
    yield from _contradictions(values)
    yield from _of_keepalived(values)
    yield from _of_sync(values)
    yield from _strange_peers(values)
    yield from _of_forwards(values)
    if values.get("password") == "":
        yield f"the password is empty: set {label('password')}, or {label('password_file')}, to what all replicas share"
    for name, (least, most) in RANGES.items():
        number = least if values.get(name) is None else values[name]
        if not least <= number <= most and (name, number) != ("vip_id", 0):
            yield f"{label(name)}: {number} is not a whole number from {least} to {most}"


def _misplaced(values: Mapping[str, Any]) -> Iterator[str]:
    vip, target = values.get("vip"), values.get("target")
    for name, address in (("vip", vip), ("target", target)):
        if address and (kind := _unusable(address)):
            yield f"{label(name)}: {address} is {kind}: set it to the address of a host"
    if vip and vip == target:
        yield f"{label('vip')} and {label('target')} are both {vip}: the VIP must be an address of its own"
    if vip and not values.get("vip_id") and int(vip) & 0xFF == 0:
        yield f"{label('vip_id')} is missing: VIP {vip} ends in .0, which is no valid id; set one from 1 to 255"


def _of_forwards(values: Mapping[str, Any]) -> Iterator[str]:
    """Say what is wrong with the forwards, by their numbers."""
    vip, specs = values.get("vip"), values.get("forwards") or ()
    if not vip:
        return
    named = [(f"{label('target')} {each}", Spec(each, vip)) for each in [values.get("target")] if each and specs]
    for number, spec in enumerate(specs, 1):
        named.append((f"{label('forwards')} {number}, {spec}", replace(spec, vip=spec.vip or vip)))
        for what, address in (("VIP", spec.vip), ("target", spec.target)):
            if address and (kind := _unusable(address)):
                yield f"{named[-1][0]}: {what} {address} is {kind}"
    yield from forwards.problems(named, values.get("ports") or ())
    yield from _of_vips(values, {vip, *(each.vip for _, each in named)})


def _of_vips(values: Mapping[str, Any], vips: Collection[object]) -> Iterator[str]:
    """Say what is about a VIP that the group does not have, or about a port of one that goes nowhere."""
    source = values.get("source")
    for each in values.get("check") or ():
        if each.vip and each.vip not in vips:
            yield f"{label('check')}: {each}: {each.vip} is no VIP of this group"
        elif each.check.kind == "tcp" and not _leads(values, each.vip or values["vip"], each.check.port):
            yield f"{label('check')}: {each}: that port of {each.vip or values['vip']} goes nowhere"
    if source and source not in vips:
        yield f"{label('source')}: {source} is no VIP of this group: set it to one, or to own"
    if source and values.get("global_masquerade"):
        yield f"{label('source')} and {label('global_masquerade')} contradict each other: leave one of them out"


def _leads(values: Mapping[str, Any], vip: IPv4Address, port: int) -> bool:
    """Whether a TCP port of a VIP goes somewhere."""
    of_vip = [each for each in _all(values) if (each.vip or values["vip"]) == vip]
    return not of_vip or any(not each.ports or each.ports.has("tcp", port) for each in of_vip)


def _unusable(address: IPv4Address | str) -> str | None:
    """Say what kind of address this is, if no host can have it; of a name, nothing is known."""
    if isinstance(address, str):
        return None
    return next((kind for kind, network in _UNUSABLE.items() if address in network), None)


def _contradictions(values: Mapping[str, Any]) -> Iterator[str]:
    """Say what contradicts holding the VIP only or is missing where it is not, and what means nothing."""
    held = values.get("hold_only")
    if not held and "target" in values and not values["target"] and not _covered(values):
        yield _NO_TARGET
    for name in _PROXYING:
        if held and values.get(name):
            yield f"{label('hold_only')} and {label(name)} contradict each other: leave one of them out"
    if values.get("preempt_delay") and not values.get("preempt"):
        yield f"{label('preempt_delay')} means nothing without {label('preempt')}"
    yield from _of_checks(values)


def _of_checks(values: Mapping[str, Any]) -> Iterator[str]:
    """Say what contradicts a check."""
    checks, skew = values.get("check") or (), values.get("advskew") or 0
    for each in checks if values.get("hold_only") else ():
        if each.check.kind != "http":
            yield f"{label('check')}: {each} asks TARGET, and {label('hold_only')} has none: use http[s]://HOST:PORT/PATH"
    if values.get("check_any") and len(checks) < _PAIR:
        yield f"{label('check_any')} means nothing without several of {label('check')}"
    if checks and skew >= UNFIT:  # a check adds to the skew of a host that should come last
        yield f"{label('advskew')}: with {label('check')}, {skew} is too much: set one below {UNFIT}"


def _of_keepalived(values: Mapping[str, Any]) -> Iterator[str]:
    """Say what does not fit keepalived."""
    if values.get("engine") == "keepalived" and not _PLAIN_PATH.fullmatch(str(values.get("run_dir", RUN_DIR))):
        yield f"{label('run_dir')}: keepalived takes a path of letters, digits and ./_+:@- only"
    if values.get("engine") != "keepalived" and values.get("vrrp_version", "auto") != "auto":
        yield f"{label('vrrp_version')} means nothing with {label('engine')} ucarp: it speaks CARP"
    interval, (shortest, longest) = values.get("advert_interval"), INTERVALS
    if interval is not None and not shortest <= interval <= longest:
        yield f"{label('advert_interval')}: {interval:g} is not from {shortest:g} to {longest:g} seconds"
    elif interval is not None and values.get("vrrp_version") == "2" and interval != int(interval):
        yield f"{label('advert_interval')}: {label('vrrp_version')} 2 wants whole seconds, not {interval:g}"


def _of_sync(values: Mapping[str, Any]) -> Iterator[str]:
    """Say what does not fit conntrackd."""
    sync, interface, peers = (label(name) for name in ("sync", "sync_interface", "sync_peers"))
    given = {name: values[name] for name in ("sync_interface", "sync_peers") if values.get(name)}
    if not values.get("sync"):
        yield from (f"{label(name)} means nothing without {sync}" for name in given)
        return
    if not given:
        trust = "who can send to conntrackd there writes into the hosts' kernels, so let it be a network of their own"
        yield f"{sync} needs {interface}, or {peers} of two hosts: {trust}"
    if "sync_interface" not in given and len(given.get("sync_peers", ())) > _PAIR:
        yield f"{peers}: conntrackd sends to one host only, unless by multicast: set {interface}, for more than two"
    yield from _uncopied(values)
    if values.get("global_masquerade"):
        translated = "other hosts do not have the address that it gives connections"
        yield f"{sync} and {label('global_masquerade')} contradict each other, for {translated}: leave one of them out"
    if not _PLAIN_PATH.fullmatch(str(values.get("run_dir", RUN_DIR))):
        yield f"{label('run_dir')}: conntrackd takes a path of letters, digits and ./_+:@- only"
    if not _PLAIN_PATH.fullmatch(values.get("sync_interface") or "-"):
        yield f"{interface}: conntrackd takes a name of letters, digits and ./_+:@- only"


def _uncopied(values: Mapping[str, Any]) -> Iterator[str]:
    """Say which targets conntrackd's filter cannot have."""
    if name := next((each.target for each in _all(values) if isinstance(each.target, str)), None):
        yield f"{label('sync')} needs the address of a target, for conntrackd filters by it: {name} may get another"
    if len({each.target for each in _all(values)}) > 1:
        yield f"{label('sync')} copies connections to one target, and here are several: give each a group of its own"


def _all(values: Mapping[str, Any]) -> Iterator[Spec]:
    return _specs(values.get("target"), values.get("forwards") or ())


def _strange_peers(values: Mapping[str, Any]) -> Iterator[str]:
    for name in ("peers", "sync_peers"):
        for peer in values.get(name) or ():
            if kind := "the VIP" if peer == values.get("vip") else _unusable(peer):
                yield f"{label(name)}: {peer} is {kind}: list the hosts' own addresses"


# What values are written like. All of these raise ValueError.


def parse_source(text: str) -> IPv4Address | None:
    """Parse what targets see: ``own``, which is None, or an address."""
    return None if text.lower() == "own" else forwards.parse_ipv4(text)


def parse_list(parse: Callable[[str], _Value]) -> Callable[[str], tuple[_Value, ...]]:
    """Return the parser of values that are separated by commas, each of which counts once."""
    return lambda text: tuple(dict.fromkeys(parse(each.strip()) for each in text.split(",")))


def parse_network(text: str) -> IPv4Network:
    """Parse an IPv4 network."""
    try:
        network = IPv4Network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv4 network, such as 192.0.2.0/24") from None
    if network.network_address != IPv4Address(text.partition("/")[0]):
        raise ValueError(f"{text!r} has bits beyond its prefix: {network} may be what is meant")
    return network


def parse_boolean(text: str) -> bool:
    """Parse a switch."""
    try:
        return _BOOLEANS[text.lower()]
    except KeyError:
        raise ValueError(f"{text!r} is none of {', '.join(_BOOLEANS)}") from None


def parse_number(least: int, most: int) -> Callable[[str], int]:
    """Return the parser of a number in a range."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise ValueError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return parse


def parse_command(text: str) -> str:
    """Return a command with its arguments, as a shell would split it; raises ValueError."""
    if not shlex.split(text):
        raise ValueError(f"{text!r} is no command")
    return text


def parse_interval(text: str) -> float:
    """Parse seconds, and hundredths of one; raises ValueError."""
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,2})?", text):
        raise ValueError(f"{text!r} is no number of seconds with two decimals at most, such as 0.1")
    return float(text)


def parse_duration(text: str) -> float:
    """Parse a time, such as ``90s``, ``30m``, ``2h`` or ``1d``, and return its seconds."""
    found = re.fullmatch(r"([0-9]{1,6})([smhd]?)", text)
    if not found or not int(found[1]):
        raise ValueError(f"{text!r} is no time, such as 90s, 30m, 2h or 1d")
    return float(int(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]])


def parse_endpoint(text: str) -> Endpoint:
    """Parse HOST:PORT. A host is an address or an interface: a name would have to be resolved at each start."""
    match = _ENDPOINT.fullmatch(text)
    if match and (port := int(match["port"])) in _PORTS:
        with suppress(AddressValueError):
            if match["six"]:
                return Endpoint(IPv6Address(match["six"]), port)
            if match["four"]:
                return Endpoint(IPv4Address("127.0.0.1" if match["four"] == "localhost" else match["four"]), port)
            return Endpoint(match["interface"], port)
    raise ValueError(f"{text!r} is no [HOST]:PORT, such as :9112, 127.0.0.1:9112 or eth0:9112")
