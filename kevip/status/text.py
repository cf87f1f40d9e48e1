"""``kevip status``: the facts about the VIPs of this host and what they come to, as text for people and as JSON."""

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Address
from itertools import chain, repeat
from pathlib import Path
from time import sleep
from typing import Any

import click

from kevip.dataplane.conntrack import SOURCE_PORTS
from kevip.host import kernel
from kevip.names import Known
from kevip.presence.group import Member
from kevip.status.observe import Facts, Look
from kevip.status.record import HANGS, PROSE, Record, to_json
from kevip.status.verdict import verdict
from kevip.sync.replication import Copies

_WIDTH = 80
_LABEL = 15
_PEERS, _FORWARDS = 8, 12  # that are shown
_COLUMNS = 17, 7, 4, 6, 8, 16  # of their table
_REACHED = {True: "up", False: "down", None: "-"}
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_SECOND_LOOK = 0.3  # seconds after which a problem is looked at again: a takeover may come between report and host
_AGAIN = 2.0  # seconds between looks of ``--watch``: a daemon writes its report as often

# The parts of the rules whose packets are shown: under which label, and what they are.
_TRAFFIC = {
    "forward": ("forwarded", "both directions"),
    "guard": ("dropped", "not expected or not allowed"),
    "refuse": ("refused", "to other ports"),
    "shield": ("kept out", "to conntrackd, by strangers"),
    "undone": ("refused", "which nobody has translated"),
}


def survey(run_dir: Path, vip: IPv4Address | None, *, again: bool = True) -> list[Facts]:
    """Return the facts about each VIP of this host, or about one; raises CommandError."""
    look = Look(run_dir)
    found = [look.at(each) for each in ([vip] if vip else look.vips())]
    if again and not all(verdict(each).ok for each in found):
        sleep(_SECOND_LOOK)
        return survey(run_dir, vip, again=False)
    return found


def is_ok(found: Sequence[Facts]) -> bool:
    """Whether there is a VIP, and no problem with any."""
    return bool(found) and all(verdict(each).ok for each in found)


def watch(show: Callable[[], bool]) -> bool:
    """Show it again and again until Ctrl-C; return what was shown last."""
    ok = False
    with suppress(KeyboardInterrupt):
        while True:
            ok = show()
            sleep(_AGAIN)
    return ok


def as_text(found: Sequence[Facts], *, privileged: bool) -> str:
    """Return all of it for people, at most 80 columns wide, with colours that ``click.echo`` drops off a terminal."""
    if found:
        return "\n\n".join("\n".join(_block(each)) for each in found)
    if privileged:
        return _conclusion("PROBLEM no kevip runs on this host, and none left anything behind")
    return _conclusion("PROBLEM none is seen, but only root sees all: sudo kevip status")


def _block(facts: Facts) -> Iterator[str]:
    yield click.style(str(facts.vip), bold=True)
    yield _conclusion(str(verdict(facts)))
    for label, value in _lines(facts):
        first, further = f"  {label:{_LABEL - 2}}", " " * _LABEL
        yield from textwrap.wrap(value, _WIDTH, initial_indent=first, subsequent_indent=further, break_on_hyphens=False)


def _conclusion(line: str) -> str:
    word, _, rest = line.partition(" ")
    wrapped = textwrap.fill(f"{word:8}{rest}", _WIDTH - 2, subsequent_indent=" " * 10, break_on_hyphens=False)
    return "  " + click.style(word, fg="green" if word == "OK" else "red", bold=True) + wrapped.removeprefix(word)


def _lines(facts: Facts) -> Iterator[tuple[str, str]]:
    report = facts.report
    if report:
        yield "role", _role(facts, report)
        if report.standby:
            yield "standby", report.standby
        yield "target", _target(facts, report)
    yield "address", _address(facts)
    yield from _forwards(facts, report) if report else ()
    if facts.privileged:
        yield "rules", _rules(facts)
    yield from _of_others(facts)
    yield from _traffic(facts)
    if report:
        yield from _of_group(facts, report)
        yield "repairs", _counts(report.repairs)
        yield "bad adverts", _counts(report.bad_adverts)
        if failures := report.notify_failures:
            yield "notify", f"{failures} failure{'' if failures == 1 else 's'}: its log says why, at notify.failed"


def _of_others(facts: Facts) -> Iterator[tuple[str, str]]:
    if facts.foreign:
        yield "others' NAT", "; ".join(f"{chain}: before ours" for chain in facts.foreign)
    if facts.closed:
        yield "firewall", f"{'; '.join(facts.closed)}: has to let IP protocol 112 in"


def _of_group(facts: Facts, report: Record) -> Iterator[tuple[str, str]]:
    yield from zip(chain(["peers"], repeat("")), _peers(facts, report), strict=False)
    if odd := [each for each in report.heard(facts.at).values() if each.differs]:
        differ = "; ".join(f"{', '.join(each.differs)} on {each.name}" for each in odd)
        yield "settings", f"not as here: {differ}"
    if report.sync:
        yield "sync", _sync(facts, report.sync)


def _role(facts: Facts, report: Record) -> str:
    age = facts.age(report.turned)
    if age > HANGS or not facts.running:
        return f"was {report.role} when last heard of, {duration(age)} ago"
    changes = f"{report.transitions} transition{'' if report.transitions == 1 else 's'}"
    return f"{report.role} for {duration(facts.age(report.since))}: {PROSE[report.reason]}; {changes}"


def _target(facts: Facts, report: Record) -> str:
    held = "by forwards only" if report.forwards else "none, the VIP is only held"
    health, subject = report.health, str(report.target or held)
    if not health:
        return subject
    subject, since = subject + ("" if report.proxies else "; what serves it"), duration(facts.age(health.since))
    if health.up:
        trip = "" if health.round_trip_ms is None else f" in {health.round_trip_ms:g} ms"
        return f"{subject}, answers {health.check}{trip}, for {since}"
    problem = f": {health.problem}" if health.problem else ""
    return f"{subject}, does not answer {health.check} for {since}{problem}"


def _forwards(facts: Facts, report: Record) -> Iterator[tuple[str, str]]:
    """Yield where else something goes, and where names lead to."""
    more = [f"{len(report.forwards) - _FORWARDS} more"] if len(report.forwards) > _FORWARDS else []
    yield from zip(chain(["forwards"], repeat("")), report.forwards[:_FORWARDS] + more, strict=False)
    named = (f"{name} is {_known(facts, each)}" for name, each in report.names.items())
    yield from zip(chain(["names"], repeat("")), named, strict=False)


def _known(facts: Facts, known: Known) -> str:
    ago = f"{known.address}, as of {duration(facts.age(known.resolved))} ago"
    return f"{ago}; since then: {known.problem}" if known.problem else ago


def _address(facts: Facts) -> str:
    if len(facts.vips) == 1:
        return "; ".join(f"on {each.interface}, {_lease(each.seconds)}" for each in facts.held) or "not here"
    soonest = {
        name: min(each.seconds or 0 for each in facts.held if each.vip in vips) for name, vips in facts.leased.items()
    }
    number = len(facts.vips)
    places = [f"{len(facts.leased[name])} of {number} on {name}, {_lease(left)}" for name, left in soonest.items()]
    places += [f"{each.vip} on {each.interface}, {_lease(None)}" for each in facts.held if each.seconds is None]
    return "; ".join(places) or f"none of {number} here"


def _lease(seconds: int | None) -> str:
    return "not by kevip" if seconds is None else f"expires in {seconds} s if not renewed"


def _rules(facts: Facts) -> str:
    placed = ", ".join(f"{len(rules)} in {prefix}" for prefix, rules in facts.rules.items()) or "none"
    if missing := facts.missing:
        return "; ".join([f"{placed}; {len(missing)} missing", *missing])
    return f"{placed}, complete" if facts.report and facts.report.rules and facts.rules else placed


def _traffic(facts: Facts) -> Iterator[tuple[str, str]]:
    """Yield what goes through the rules. Of a connection, nat sees the first packet only."""
    counters = facts.counters()
    tracked = f"{facts.tracked.total} tracked now" if facts.tracked else ""
    if facts.tracked and facts.tracked.wrong:
        tracked += f", {facts.tracked.wrong} with a wrong source"
    if new := counters.get("dnat") or counters.get("snat"):  # there is none where somebody else translates TARGET
        tracked = f"{new[0]} new since the rules are there, {tracked}"
    if tracked:
        yield "connections", tracked
    if facts.tracked and (ports := facts.tracked.ports):
        most = max(ports, key=lambda each: ports[each])
        yield "source ports", f"{ports[most]} of {SOURCE_PORTS} in use, to {most[0]} {most[1]}"
    for part, (label, note) in _TRAFFIC.items():
        if part in counters:
            packets, octets = counters[part]
            yield label, f"{packets} packet{'' if packets == 1 else 's'}, {size(octets)}, {note}"


def _peers(facts: Facts, report: Record) -> Iterator[str]:
    """Yield a table of the group, this host first, and those heard last, also if only by adverts: of ucarp, say."""
    heard = dict(report.peers)
    for source, member in report.members.items():
        heard[source] = max(member.heard, heard.get(source, member.heard))
    if not heard:
        yield "none heard"
        return
    reached = report.health.up if report.health else None
    yield _row("name", "role", "rank", "TARGET", "version", "last heard")
    yield _row(report.name, report.role, str(report.rank), _REACHED[reached], report.version, "this host")
    latest = sorted(heard, key=lambda each: heard[each], reverse=True)[:_PEERS]
    for source in sorted(latest):
        ago = f"{duration(facts.age(heard[source]))} ago"
        if source in report.members:
            member = report.members[source]
            role = _part(member) if member.stopped or member.is_here(facts.at) else "silent"
            name = member.name or str(source)
            yield _row(name, role, str(member.rank), _REACHED[member.target], member.version, ago)
        else:
            yield _row(str(source), "master", "-", "-", "-", ago)
    if len(heard) > _PEERS:
        yield f"{len(heard) - _PEERS} more"


def _part(member: Member) -> str:
    """Return what a replica does, as it says; a master in standby still serves."""
    if member.stopped:
        return "stopped"
    return "standby" if member.standby and not member.holds else member.role


def _row(*cells: str) -> str:
    """Return a row of the table: what is too long for its column is cut."""
    cut = [each if len(each) <= width else each[: width - 1] + "…" for each, width in zip(cells, _COLUMNS, strict=True)]
    return " ".join(each.ljust(width) for each, width in zip(cut, _COLUMNS, strict=True)).rstrip()


def _sync(facts: Facts, sync: Copies) -> str:
    since = duration(facts.age(sync.since))
    if sync.elsewhere:
        return f"by another kevip of this host, which has the same target, for {since}"
    if not sync.running:
        return f"conntrackd does not run, for {since}"
    resynced = duration(facts.age(sync.resynced))
    last = f", the last {duration(facts.age(sync.heard_last))} ago" if sync.heard else ""
    return (
        f"on {sync.interface} for {since}: {sync.sent_on} connections of this host copied, {sync.written} of others "
        f"written here; {sync.heard} packets heard{last}; compared with the kernel {resynced} ago"
    )


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {number}" for kind, number in sorted(counts.items())) or "none"


def duration(seconds: float) -> str:
    """Return seconds in the two largest units that fit, for people."""
    if seconds < 10:  # noqa: PLR2004 - below it, tenths say something
        return f"{max(seconds, 0):.1f} s"
    whole = int(seconds)
    units = [("d", whole // 86400), ("h", whole // 3600 % 24), ("min", whole // 60 % 60), ("s", whole % 60)]
    first = next(number for number, (_, amount) in enumerate(units) if amount)
    return " ".join(f"{amount} {unit}" for unit, amount in units[first : first + 2] if amount)


def size(octets: int) -> str:
    """Return bytes in the largest unit that fits, for people."""
    power = min((len(str(octets)) - 1) // 3, len(_UNITS) - 1)
    return f"{octets / 1000**power:.3g} {_UNITS[power]}"


def as_json(found: Sequence[Facts]) -> dict[str, Any]:
    """Return all of it for programs; ``report`` is what the runtime file says."""
    return {"ok": is_ok(found), "vips": [_as_json(each) for each in found]}


def _as_json(facts: Facts) -> dict[str, Any]:
    report, concluded = facts.report, verdict(facts)
    held = [
        {"vip": str(each.vip), "interface": each.interface, "lease_seconds": each.seconds, "prefix": each.prefix}
        for each in facts.held
    ]
    return {
        "vip": str(facts.vip),
        "ok": concluded.ok,
        "verdict": concluded.text,
        "running": facts.running,
        "privileged": facts.privileged,
        "report": to_json(report, kernel.uptime()) if report else None,
        "report_age_seconds": round(facts.age(report.turned), 1) if report else None,
        "addresses": held,
        "rules": {prefix: [rule.text for rule in rules] for prefix, rules in facts.rules.items()},
        "missing_rules": facts.missing,
        "counters": {part: {"packets": counts[0], "bytes": counts[1]} for part, counts in facts.counters().items()},
        "conntrack_entries": facts.tracked.total if facts.tracked else None,
        "wrong_source": facts.tracked.wrong if facts.tracked else 0,
        "source_ports": {f"{name}:{port}": number for (name, port), number in facts.tracked.ports.items()}
        if facts.tracked
        else {},
        "foreign_nat": list(facts.foreign),
        "foreign_input": list(facts.closed),
    }
