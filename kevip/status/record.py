"""What a daemon has seen and done since its start: the one schema of what it writes, as JSON, and others read."""

import os
from bisect import bisect_left
from collections import Counter
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import version
from ipaddress import IPv4Address
from math import inf
from time import time
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from kevip.core.messages import Reason, Role
from kevip.host import kernel
from kevip.loop import Moment
from kevip.names import Known
from kevip.presence.group import SILENT, Member
from kevip.sync.replication import Copies

VERSION = version("kevip")
HANGS = 15.0  # seconds without a turn of the loop after which a daemon hangs: it may wait for 10 s. As in kevip-probe
# Upper bounds of the classes of durations, in seconds; one more class has none.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# What the reasons for a role are called in sentences.
PROSE = {
    Reason.STARTED: "started",
    Reason.JOINED: "joined the election",
    Reason.ALONE: "no master was heard",
    Reason.GOODBYE: "the master said goodbye",
    Reason.SILENCE: "the master fell silent",
    Reason.PREFERRED: "preferred to the master",
    Reason.YIELDED: "another master is preferred",
    Reason.UNLINKED: "its interface went down, or lost the carrier",
    Reason.MOVED: "its address changed",
    Reason.STOPPED: "stopped by a signal",
    Reason.LATE: "another one was elected first",
    Reason.FOLLOWED: "another one took over",
    Reason.NOBODY: "no other one took over",
    Reason.ENGINE: "what elects ended or does not advertise",
    Reason.UNFIT: "this host cannot serve",
    Reason.TARGET: "TARGET does not answer, or does again",
    Reason.STANDBY: "it is in standby",
    Reason.KEPT: "no peer that reaches TARGET took over",
}


def standby(seconds: float) -> str:
    """Return until when a standby lasts that ends in so many seconds; "" if it is over."""
    if seconds <= 0:
        return ""
    if seconds == inf:
        return "until it is resumed"
    return datetime.fromtimestamp(time() + seconds, UTC).strftime("until %Y-%m-%d %H:%M:%S UTC")


@dataclass(slots=True)
class Durations:
    """How long something took, each time: how often in each class, and the sum of all, in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Note one more."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds


@dataclass(slots=True, kw_only=True)
class Health:
    """What came of asking TARGET: the verdict and since when it is so; the last round trip, or what was wrong."""

    check: str
    up: bool = True
    since: Moment
    round_trip_ms: float | None = None
    problem: str = ""


@dataclass(slots=True, kw_only=True)
class Record:
    """What a daemon knows of itself; counts are since its start."""

    vip: IPv4Address
    target: IPv4Address | None
    others: list[IPv4Address] = field(default_factory=list)  # VIPs of the group
    forwards: list[str] = field(default_factory=list)  # what goes elsewhere than to the target
    names: dict[str, Known] = field(default_factory=dict)  # of targets
    vip_id: int
    interface: str
    dataplane: str
    patience: float  # seconds without an advert after which a backup takes over
    name: str = ""  # of the host
    rank: int = 0  # the skew or priority
    expect: int | None = None  # replicas that there should be, if somebody said
    pid: int = field(default_factory=os.getpid)
    version: str = VERSION
    started: Moment
    turned: Moment  # when the loop last did
    role: Role = Role.INIT
    since: Moment
    reason: Reason = Reason.STARTED
    transitions: int = 0
    entered: dict[Role, Counter[Reason]] = field(default_factory=dict)
    peers: dict[IPv4Address, Moment] = field(default_factory=dict)  # when each of them advertised last
    members: dict[IPv4Address, Member] = field(default_factory=dict)  # the other replicas, as far as they were heard
    repairs: Counter[str] = field(default_factory=Counter)
    bad_adverts: Counter[str] = field(default_factory=Counter)
    engine_starts: int = 0
    notify_failures: int = 0
    standby: str = ""  # until when, for people
    health: Health | None = None
    sync: Copies | None = None
    rules: dict[str, list[str]] = field(default_factory=dict)  # that are here when all is well, by back end
    claims: dict[str, Moment] = field(default_factory=dict)  # the MAC addresses of others that claim the VIP, and when
    takeovers: Durations = field(default_factory=Durations)
    handovers: Durations = field(default_factory=Durations)

    @property
    def vips(self) -> list[IPv4Address]:
        """All addresses of the group."""
        return [self.vip, *self.others]

    @property
    def proxies(self) -> bool:
        """Whether anything is proxied."""
        return bool(self.target or self.forwards)

    def snapshot(self) -> "Record":
        """Return a copy that another thread may read: each collection is copied in one step."""
        return replace(self, **{each.name: copy(getattr(self, each.name)) for each in fields(self)})

    def heard(self, now: Moment) -> dict[IPv4Address, Member]:
        """Return the replicas of which something was heard lately."""
        return {source: each for source, each in self.members.items() if now - each.heard <= SILENT}

    @property
    def expected(self) -> int:
        """How many replicas there should be, with this one: two, if nobody said and there was another one once."""
        return self.expect or min(1 + len(self.members), 2)

    def latest_peers(self, most: int) -> list[tuple[IPv4Address, Moment]]:
        """Return those heard last: whoever can send on the network can make up any number of them."""
        return sorted(self.peers.items(), key=lambda peer: peer[1], reverse=True)[:most]


def to_json(record: Record, now: Moment) -> dict[str, Any]:
    """Return what JSON can hold of it; ``now`` is the time on its clock. No secret is in there.

    ``uptime`` is ``turned`` as time since boot, so that the other dates can be read relative to it.
    """
    return {**_encode(record, Record, time() - now), "uptime": round(kernel.uptime() - now + record.turned, 2)}


def from_json(said: Any, now: Moment) -> Record:
    """Return what was written; ``now`` is the time since boot. Raises LookupError, TypeError, ValueError."""
    turned = said["uptime"] if said["uptime"] <= now else 0.0  # else that was before this boot
    record: Record = _decode(said, Record, turned - datetime.fromisoformat(said["turned"]).timestamp())
    return record


_kinds = cache(partial(get_type_hints, include_extras=True))  # what each field of a dataclass holds
# What JSON makes of a type; of all others, text.
_FORMS: dict[Any, Any] = {bool: bool, int: int, float: (float, int), list: list, dict: dict, Counter: dict}


def _encode(value: Any, kind: Any, epoch: float) -> Any:
    """Return what JSON can hold of a value; ``epoch`` is the Unix time at which its clock showed 0."""
    if kind == Moment:
        return datetime.fromtimestamp(value + epoch, UTC).isoformat()
    if is_dataclass(value):
        return {name: _encode(getattr(value, name), of, epoch) for name, of in _kinds(value.__class__).items()}
    if isinstance(value, list):
        return [_encode(each, get_args(kind)[0], epoch) for each in value]
    if isinstance(value, dict):
        return {str(key): _encode(each, get_args(kind)[-1], epoch) for key, each in value.items()}
    return str(value) if isinstance(value, IPv4Address) else value


def _decode(said: Any, kind: Any, zero: float) -> Any:
    """Return the value that was encoded; ``zero`` is what the clock to use showed at the start of Unix time."""
    if kind == Moment:
        return datetime.fromisoformat(said).timestamp() + zero
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin is UnionType:
        return None if said is None else _decode(said, inner[0], zero)
    if not isinstance(said, _FORMS.get(origin, dict if is_dataclass(origin) else str)):
        raise TypeError(f"{said!r} is no {kind}")
    if is_dataclass(origin):
        return kind(**{name: _decode(said[name], of, zero) for name, of in _kinds(kind).items()})
    if origin is list:
        return [_decode(each, inner[0], zero) for each in said]
    if origin in {dict, Counter}:
        key, each = (*inner, int)[:2]
        return origin({_decode(name, key, zero): _decode(value, each, zero) for name, value in said.items()})
    return origin(said)
