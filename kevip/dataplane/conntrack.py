"""The kernel's connection tracking of what goes to the VIP."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from time import monotonic

from kevip.dataplane.rewrite import zone
from kevip.host import command

_SYSCTL = Path("/proc/sys/net/netfilter")
_LOOSE, _COUNT, _MAX = (_SYSCTL / f"nf_conntrack_{name}" for name in ("tcp_loose", "count", "max"))
_NONE_DELETED, _EXPIRED = "0 flow entries have been deleted", "such conntrack doesn't exist"
"""What ``conntrack`` fails with when there was nothing to delete, or no more of an entry that it had just listed."""

SOURCE_PORTS = 65536 - 1024
"""How many connections there can be from one address to one port: that many source ports the kernel gives out."""

PATIENCE = 2.0
"""Seconds in which connections are deleted: a stop must not take longer where there are a hundred thousand."""


def picks_up_connections() -> bool:
    """Whether the kernel tracks a TCP connection from its middle: what lets it survive a failover."""
    try:
        return _LOOSE.read_text().strip() != "0"
    except FileNotFoundError:
        return True  # conntrack is not loaded yet, and on by default


def fill() -> tuple[int, int] | None:
    """Return how many connections are tracked, and how many can be; None if conntrack is not loaded yet."""
    try:
        return int(_COUNT.read_text()), int(_MAX.read_text())
    except FileNotFoundError:
        return None


def count(vip: IPv4Address, *, rewritten: bool = False) -> int:
    """Return how many connections to the VIP are tracked, or those that are as some to TARGET; raises CommandError."""
    # Its stdout may be long; the number is the last that it says.
    said = command.told_now(["conntrack", "--dump", "--family", "ipv4", *_which(vip, rewritten)])
    return int(re.findall(r"(\d+) flow entries", said)[-1])


@dataclass(frozen=True, slots=True)
class Tracked:
    """The connections to a VIP: all of them, and those whose source TARGET does not see as the VIP.

    ``ports`` has how many of the VIP's source ports each port of TARGET takes, by protocol and port.
    """

    total: int
    wrong: int = 0
    ports: Mapping[tuple[str, int], int] = field(default_factory=dict)


def survey(vip: IPv4Address, *, rewritten: bool = False) -> Tracked:
    """Return what is tracked of a VIP; raises CommandError. 0.6 s of a processor for 100,000 connections."""
    rest, seen = b"", Counter[tuple[bytes, ...]]()
    for piece in command.stream(["conntrack", "--dump", "--family", "ipv4", *_which(vip, rewritten)]):
        text = rest + piece
        whole = text.rfind(b"\n") + 1
        seen.update(_ENTRY.findall(text[:whole]))
        rest = text[whole:]
    total, wrong, ports, address = 0, 0, Counter[tuple[str, int]](), str(vip).encode()
    for (protocol, answers, to, port), number in seen.items():
        total += number
        if answers != address != to:  # what this host answers itself is none of them
            wrong += number
        elif answers != address and port:
            ports[protocol.decode(), int(port)] += number
    return Tracked(total, wrong, ports)


# The protocol, and where the answers come from, go to, and from which port.
_ENTRY = re.compile(rb"^(\w+) .*?src=\S+ dst=\S+ .*?src=(\S+) dst=(\S+)(?: sport=(\d+))?", re.MULTILINE)


def forget_untranslated(vip: IPv4Address) -> None:
    """Delete connections to the VIP that were tracked before our rules were there; raises CommandError.

    They are the ones whose replies are expected from the VIP itself. With such an entry, a process of this host that
    used the VIP while it was elsewhere would get a reset.
    """
    _delete("--orig-dst", str(vip), "--reply-src", str(vip))


def _which(vip: IPv4Address, rewritten: bool) -> tuple[str, str]:
    return ("--orig-zone", str(zone(vip))) if rewritten else ("--orig-dst", str(vip))


def forget(vip: IPv4Address, *, rewritten: bool = False) -> int:
    """Delete all connections to the VIP: if it comes back, none must be found here; return how many are left.

    That is none, unless there are more than can be deleted in PATIENCE seconds. For VIPs that our rules translate only:
    those of others are theirs. Raises CommandError.
    """
    try:
        _delete(*_which(vip, rewritten))
    except command.CommandError as error:
        if error.exit_status is not None:
            raise
        return count(vip, rewritten=rewritten)
    return 0


def _delete(*conditions: str) -> None:
    """Delete entries in PATIENCE seconds, again where one expired between its listing and its end."""
    end = monotonic() + PATIENCE
    while True:
        try:
            command.told_now(
                ["conntrack", "--delete", "--family", "ipv4", *conditions], seconds=max(end - monotonic(), 0)
            )
        except command.CommandError as error:
            if _EXPIRED in error.stderr:
                continue
            if _NONE_DELETED not in error.stderr:
                raise
        return
