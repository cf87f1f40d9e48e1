"""What a daemon has seen and done since its start: what the runtime file, ``kevip status`` and the metrics show."""

import os
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import version
from ipaddress import IPv4Address
from time import monotonic
from typing import Any

VERSION = version("kevip")


class Role(StrEnum):
    """The part that a daemon has in the election."""

    INIT = "init"
    """It takes no part yet, or not any more."""
    BACKUP = "backup"
    MASTER = "master"
    LEAVING = "leaving"
    """A master that serves on until a peer has taken over."""


class Reason(StrEnum):
    """Why a daemon came to its role."""

    STARTED = "started"
    JOINED = "joined the election"
    ALONE = "no master was heard"
    GOODBYE = "the master said goodbye"
    SILENCE = "the master fell silent"
    PREFERRED = "preferred to the master"
    YIELDED = "another master is preferred"
    UNLINKED = "its interface went down, or lost the carrier"
    STOPPED = "stopped by a signal"
    LATE = "another one was elected first"
    FOLLOWED = "another one took over"
    NOBODY = "no other one took over"
    UCARP = "ucarp ended or does not advertise"
    UNFIT = "this host cannot serve"
    TARGET = "TARGET does not answer, or does again"
    KEPT = "no peer that reaches TARGET took over"


BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the classes of durations, in seconds; one more class has none."""


@dataclass(slots=True)
class Durations:
    """How long something took, each time: how often in each class, and the sum of all, in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Note one more."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True, kw_only=True)
class Health:
    """What came of asking TARGET: the verdict, and the last answer, its round trip in seconds or what was wrong."""

    check: str
    up: bool = True
    since: datetime = field(default_factory=_now)
    round_trip: float | None = None
    problem: str = ""

    def turn(self, *, up: bool) -> None:
        """Note another verdict."""
        self.up, self.since = up, _now()

    def as_json(self) -> dict[str, Any]:
        """Return what JSON can hold of it."""
        return {
            "check": self.check,
            "up": self.up,
            "since": self.since.isoformat(),
            "round_trip_ms": None if self.round_trip is None else round(self.round_trip * 1000, 3),
            "problem": self.problem,
        }


@dataclass(slots=True, kw_only=True)
class Record:
    """Counts since the start of the daemon; ``peers`` says when each of them advertised last.

    ``patience`` is the seconds without an advert after which a backup takes over, ``rules`` what a master has
    installed, as ``nat.ours`` returns it, ``claims`` the MAC addresses of others that claim the VIP and when they last
    did, and ``turned`` when the loop last turned (monotonic time).
    """

    vip: IPv4Address
    target: IPv4Address | None
    vip_id: int
    interface: str
    iptables: str
    patience: float
    role: Role = Role.INIT
    reason: Reason = Reason.STARTED
    since: datetime = field(default_factory=_now)
    started: datetime = field(default_factory=_now)
    transitions: Counter[tuple[Role, Reason]] = field(default_factory=Counter)
    peers: dict[IPv4Address, datetime] = field(default_factory=dict)
    repairs: Counter[str] = field(default_factory=Counter)
    bad_adverts: Counter[str] = field(default_factory=Counter)
    ucarp_starts: int = 0
    health: Health | None = None
    rules: list[str] = field(default_factory=list)
    claims: dict[str, datetime] = field(default_factory=dict)
    takeovers: Durations = field(default_factory=Durations)
    handovers: Durations = field(default_factory=Durations)
    turned: float = field(default_factory=monotonic)

    def enter(self, role: Role, reason: Reason) -> bool:
        """Note the role from now on and why; say whether it is another one."""
        if role is self.role:
            return False
        self.role, self.reason, self.since = role, reason, _now()
        self.transitions[role, reason] += 1
        return True

    def as_json(self) -> dict[str, Any]:
        """Return what JSON can hold of it. No secret is in there."""
        return {
            "vip": str(self.vip),
            "target": str(self.target) if self.target else None,
            "vip_id": self.vip_id,
            "interface": self.interface,
            "iptables": self.iptables,
            "patience": self.patience,
            "pid": os.getpid(),
            "version": VERSION,
            "started": self.started.isoformat(),
            "role": self.role,
            "since": self.since.isoformat(),
            "reason": self.reason,
            "transitions": sum(dict(self.transitions).values()),
            "peers": {str(peer): heard.isoformat() for peer, heard in self.peers.items()},
            "repairs": dict(self.repairs),
            "bad_adverts": dict(self.bad_adverts),
            "ucarp_starts": self.ucarp_starts,
            "health": self.health.as_json() if self.health else None,
            "rules": self.rules,
            "claims": {mac: seen.isoformat() for mac, seen in dict(self.claims).items()},
        }
