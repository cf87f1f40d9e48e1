"""The kernel's connection tracking of what goes to the VIP."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from math import inf
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

_COUNTING = 0.5  # seconds that a count of those that are left may take
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


def count(vips: Sequence[IPv4Address], *, rewritten: bool = False, seconds: float | None = None) -> int:
    """Return how many connections to VIPs are tracked, or those that are as some to TARGET; raises CommandError.

    It may take so many seconds for each VIP.
    """
    total = 0
    for which in _which(vips, rewritten):  # its stdout may be long; the number is the last that it says
        said = command.told_now(["conntrack", "--dump", "--family", "ipv4", *which], seconds=seconds)
        total += int(re.findall(r"(\d+) flow entries", said)[-1])
    return total


_CHEAP, _REST = 0.05, 49  # a survey that takes more seconds is good for so many times of that


@dataclass(frozen=True, slots=True)
class Tracked:
    """The connections to VIPs: all of them, and those whose source TARGET does not see as a VIP.

    ``ports`` has how many of a VIP's source ports a port of a TARGET takes, at most, by protocol and port;
    ``unanswered`` are those whose client has waited for seconds, and has not given up long ago.
    """

    total: int
    wrong: int = 0
    ports: Mapping[tuple[str, int], int] = field(default_factory=dict)
    unanswered: int = 0


def survey(vips: Sequence[IPv4Address], *, rewritten: bool = False) -> Tracked:
    """Return what is tracked of VIPs; raises CommandError. 0.6 s of a processor for 100,000 connections."""
    seen, unanswered, longest = Counter[tuple[bytes, ...]](), 0, _longest()
    for text in _lines(vips, rewritten=rewritten):
        seen.update(_ENTRY.findall(text))
        unanswered += sum(longest - int(left) in _WAITED for left in _UNANSWERED.findall(text))
    total, wrong, ports, ours = 0, 0, dict[tuple[str, int], int](), {str(vip).encode() for vip in vips}
    for (protocol, answers, to, port), number in seen.items():
        total += number
        if answers in ours:
            continue  # what this host answers itself
        if to not in ours:
            wrong += number
        elif port:
            of = protocol.decode(), int(port)
            ports[of] = max(ports.get(of, 0), number)
    return Tracked(total, wrong, ports, unanswered)


# How many seconds an entry has left of a TCP connection that was not answered; each attempt of the client gives it all.
_UNANSWERED = re.compile(rb"^tcp +6 (\d+) SYN_SENT .*\[UNREPLIED\]", re.MULTILINE)
_WAITED = range(2, 30)


def _longest() -> int:
    try:
        return int((_SYSCTL / "nf_conntrack_tcp_timeout_syn_sent").read_text())
    except FileNotFoundError:
        return 0


def _lines(vips: Sequence[IPv4Address], *, rewritten: bool = False) -> Iterator[bytes]:
    """Yield what is tracked of VIPs, some lines at a time; raises CommandError."""
    for which in _which(vips, rewritten):
        rest = b""
        for piece in command.stream(["conntrack", "--dump", "--family", "ipv4", *which]):
            text = rest + piece
            whole = text.rfind(b"\n") + 1
            yield text[:whole]
            rest = text[whole:]


class Survey:
    """Surveys VIPs, as often as is cheap: if it is not, for a fiftieth of the time; the last one is good meanwhile."""

    def __init__(self) -> None:
        self._found: dict[object, Tracked] = {}
        self._due = -inf

    def __call__(self, vips: Sequence[IPv4Address], *, rewritten: bool = False) -> Tracked:
        """Return what is tracked of the VIPs; raises CommandError."""
        begin, which = monotonic(), (tuple(vips), rewritten)
        if begin >= self._due or which not in self._found:
            self._found = {which: survey(vips, rewritten=rewritten)}
            took = monotonic() - begin
            self._due = begin + took * (1 + _REST * (took > _CHEAP))
        return self._found[which]


# The protocol, and where the answers come from, go to, and from which port.
_ENTRY = re.compile(rb"^(\w+) .*?src=\S+ dst=\S+ .*?src=(\S+) dst=(\S+)(?: sport=(\d+))?", re.MULTILINE)


def forget_untranslated(vips: Sequence[IPv4Address]) -> None:
    """Delete connections to VIPs that were tracked before our rules were there; raises CommandError.

    They are the ones whose replies are expected from the VIP itself. With such an entry, a process of this host that
    used the VIP while it was elsewhere would get a reset.
    """
    answering = {each[1] for text in _lines(vips) for each in _ENTRY.findall(text)} if len(vips) > 1 else ()
    for vip in vips:
        if len(vips) == 1 or str(vip).encode() in answering:
            _delete(("--orig-dst", str(vip), "--reply-src", str(vip)), monotonic() + PATIENCE)


def networks(vips: Iterable[IPv4Address]) -> list[str]:
    """Return VIPs as a few networks: each question goes through the whole table."""
    return [str(each).removesuffix("/32") for each in collapse_addresses(map(IPv4Network, vips))]


def _which(vips: Sequence[IPv4Address], rewritten: bool) -> list[tuple[str, str]]:
    return [("--orig-zone", str(zone(vips[0])))] if rewritten else [("--orig-dst", each) for each in networks(vips)]


def forget(vips: Sequence[IPv4Address], *, rewritten: bool = False) -> int:
    """Delete all connections to VIPs: if they come back, none must be found here; return how many are left.

    That is none, unless there are more than can be deleted in PATIENCE seconds; if these cannot even be counted soon,
    it is how many the kernel tracks at all. For VIPs that our rules translate only: those of others are theirs. Raises
    CommandError.
    """
    end = monotonic() + PATIENCE
    try:
        for which in _which(vips, rewritten):
            _delete(which, end)
    except command.CommandError as error:
        if error.exit_status is not None:
            raise
        try:
            return count(vips, rewritten=rewritten, seconds=_COUNTING)
        except command.CommandError:
            return (fill() or (1, 1))[0]
    return 0


def _delete(conditions: tuple[str, ...], end: float) -> None:
    """Delete entries until then, again where one expired between its listing and its end."""
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
