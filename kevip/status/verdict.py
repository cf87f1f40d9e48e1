"""What the facts about a VIP come to: one line that says whether they fit together, and if not, what to do."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import chain

from kevip.core.messages import Reason, Role
from kevip.host.kubernetes import CILIUM, IPVS_INTERFACE
from kevip.presence.group import SILENT
from kevip.status.observe import Facts
from kevip.status.record import HANGS, PROSE, Record

_SETTLING = 4.0  # seconds in which a change of role is cleared up, and two masters have settled who stays it
_JOINING = 10.0  # seconds in which a daemon has joined the election, as a rule
_FRESH = 6.0  # seconds for which a peer's advert says that it is master: reports are 2 s old, and adverts may be lost
_STALE = 300.0  # seconds for which a name need not be resolved: a resolver may be restarted
_LATE = 2.0  # seconds that a report may be old

_LOG = "its log says why (drift.*)"
_SOON = f"if this stays for 5 s, {_LOG}"
_MOVE = "leave --dataplane at auto, and have nft installed (apt-get install nftables)"
_LOWER = "give that chain a higher priority"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether all fits together, and what there is to say about it."""

    ok: bool
    text: str

    def __str__(self) -> str:
        return f"{'OK' if self.ok else 'PROBLEM'} {self.text}"


def verdict(facts: Facts, *, group: bool = True) -> Verdict:
    """Say whether role, host and ``group`` agree; of several problems, the one that explains most."""
    if (problem := next(_of_host(facts), "")) or not facts.report:
        return Verdict(ok=False, text=problem)
    problem = next(chain(_of_role(facts, facts.report), _of_group(facts, facts.report) if group else ()), "")
    return Verdict(ok=not problem, text=problem or _well(facts, facts.report))


def _of_host(facts: Facts) -> Iterator[str]:
    """Say what others did that kevip does not touch, and why the report of its daemon is not to be relied on."""
    if not facts.privileged:
        yield "cannot tell: rules and reports need root (NET_ADMIN): sudo kevip status"
    only_held = facts.report and not facts.report.proxies
    for held in facts.held:
        if held.seconds is None and not (only_held and held.interface == IPVS_INTERFACE):
            here = f"{held.vip}/{held.prefix} dev {held.interface}"
            yield f"{_named(facts, [held.vip])} is on {held.interface}, but not by kevip: ip address delete {here}"
    yield from facts.flaws
    yield from _of_daemon(facts)


def _named(facts: Facts, vips: Sequence[IPv4Address]) -> str:
    """Return what some VIPs of a group are called: of many, how many they are."""
    if len(facts.vips) == 1:
        return "the VIP"
    return f"VIP {vips[0]}" if len(vips) == 1 else f"{len(vips)} of {len(facts.vips)} VIPs"


def _of_daemon(facts: Facts) -> Iterator[str]:
    """Say what is wrong with its daemon, and that there is a problem if it does not report."""
    report, held = facts.report, [f"{_named(facts, vips)} on {name}" for name, vips in facts.leased.items()]
    left = " and ".join([*held, *(f"rules in {prefix}" for prefix in facts.rules)])
    if not facts.running and left:
        yield f"no kevip runs here, and one left {left}: start it, or: kevip cleanup --vip {facts.vip}"
    elif not facts.running and report:
        yield f"its kevip was killed: start it again, or: kevip cleanup --vip {facts.vip}"
    elif not facts.running:
        yield "no kevip serves this VIP here, and none left anything behind"
    elif not report:
        yield f"its kevip does not write to {facts.run_dir}: run this in its container, or with its --run-dir"
    elif (age := facts.age(report.turned)) > HANGS:
        pid, has = report.pid, f", and the host still has {left}" if left else ""
        yield f"its kevip (process {pid}) hangs: silent for {age:.0f} s{has}: kill -KILL {pid}, and start it again"


def _of_role(facts: Facts, report: Record) -> Iterator[str]:
    if facts.link:
        yield facts.link
    yield from _of_service(facts, report)
    if report.role is Role.MASTER:
        yield from _of_master(facts, report)
    elif report.role is not Role.LEAVING:
        yield from _of_others(facts, report)
    yield from _of_rules(facts, report)
    yield from _of_names(facts, report)
    if (sync := report.sync) and not sync.is_well and facts.age(sync.since) > _JOINING:
        lost = "after a crash, connections would hang on which the client is silent"
        yield f"conntrackd does not run: {lost}: its log says why, at conntrackd.ended"
    if (health := report.health) and not health.up:
        silent = f"does not answer {health.check}{f' ({health.problem})' if health.problem else ''}"
        if report.proxies:
            yield f"{report.target or 'TARGET'} {silent}: look at it, and at the route to it"
        elif report.role is Role.MASTER:
            yield f"what serves the VIP {silent}, here or on any peer"


def _of_names(facts: Facts, report: Record) -> Iterator[str]:
    for name, known in report.names.items():
        if known.problem and (age := facts.age(known.resolved)) > _STALE:
            yield f"{name} was resolved {age:.0f} s ago, and {known.address} stays in use: {known.problem}"


def _of_rules(facts: Facts, report: Record) -> Iterator[str]:
    if missing := facts.missing:
        number = sum(map(len, report.rules.values()))
        rules = f"{len(missing)} of {number} rules" if len(missing) < number else "its rules"
        yield f"it is {report.role} without {rules}: {_SOON}"
    strays = [name for name in facts.rules if name not in report.rules]
    serves = report.role in {Role.MASTER, Role.LEAVING}  # and may not have looked at its rules yet
    if strays and (report.rules or not serves) and facts.age(report.since) > _SETTLING:
        yield f"rules in {' and '.join(strays)}, where they do not belong: if this stays for 10 s, {_LOG}"
    if facts.foreign:
        ahead = f"{facts.foreign[0]} translates before the rules in {report.dataplane}"
        yield f"{ahead}: TARGET may not see the VIP: {_LOWER if report.dataplane == 'nftables' else _MOVE}"


def _of_master(facts: Facts, report: Record) -> Iterator[str]:
    here = facts.leased.get(report.interface, [])
    if missing := [each for each in facts.vips if each not in here]:
        yield f"it is master without {_named(facts, missing)} on {report.interface}: {_SOON}"
    if macs := ", ".join(report.claims):
        yield f"{macs} answers ARP for the VIP too, and is no peer that is heard: kevip check says who it is"
    lately = max(report.since + _SETTLING, facts.at - _FRESH)
    if rivals := ", ".join(str(peer) for peer, heard in report.peers.items() if heard > lately):
        advice = "look there with kevip status, and for packets lost on one way between the two"
        yield f"two masters: {rivals} advertises too, and one of them should yield: {advice}"


def _of_service(facts: Facts, report: Record) -> Iterator[str]:
    """Say why nothing reaches a TARGET that kube-proxy translates, from where it is sent on."""
    if report.role not in {Role.MASTER, Role.LEAVING}:
        return
    if facts.service and facts.rules and facts.service.translates is not facts.rewrites:
        yield f"kube-proxy has {report.target} in {facts.service} mode, which its rules are not for: {_SOON}"
    if facts.rewrites and facts.served == ():
        gone = "it has no endpoints, or is gone, or kube-proxy does not run"
        yield f"no Service is served at {report.target} on this node: {gone}: kubectl get services,endpointslices"
    # Of a port that nobody has named, whoever asks for it may be wrong.
    if refused := [each for each in facts.refused if facts.is_limited or each in (facts.served or ())]:
        reason = (
            f"kube-proxy serves {', '.join(facts.served)} there" if facts.served else "kube-proxy does not serve it"
        )
        yield f"clients are refused at {', '.join(refused)} of {report.target}: {reason}: kubectl get services"
    if (facts.rewrites or facts.cilium) and facts.tracked and (silent := facts.tracked.unanswered):
        who, seen = "pods have" if facts.rewrites else "TARGET has", "the VIP" if facts.is_limited else "this node"
        why = f"see whether they are up, and whether a NetworkPolicy keeps out {seen}" if facts.rewrites else CILIUM
        yield f"{who} not answered {silent} connect{'' if silent == 1 else 's'} of the last 30 s: {why}"


def _of_others(facts: Facts, report: Record) -> Iterator[str]:
    """Say what keeps it from serving, and what only a master may have; the last one's rules go after its address."""
    led = any(facts.age(heard) < _FRESH for heard in report.peers.values())
    if report.reason is Reason.NOBODY and not led and not report.standby:
        nobody = "nobody holds the VIP: this host cannot serve it or was cut off, and no peer took over"
        yield f"{nobody}: its log says why, at election.* and takeover.failed"
    for name, vips in facts.leased.items():
        delete = f"ip address delete {vips[0]}/32 dev {name}"
        yield f"{_named(facts, vips)} is on {name}, but this host is not master: if this stays for 6 s: {delete}"
    if report.reason is Reason.UNFIT:
        failed = "this host cannot serve: its last takeover failed"
        yield f"{failed}: its log says why, at takeover.failed: see to that, and restart kevip"
    if report.role is Role.INIT and facts.age(report.since) > _JOINING and not report.standby:
        reason = PROSE[report.reason]
        log = "at ucarp.* or keepalived.*, and takeover.failed"
        yield f"it takes no part in the election ({reason}): its log says why, {log}"
    if report.role is Role.BACKUP and (silence := _silence(facts, report)) > 2 * report.patience + _JOINING:
        yield f"nobody advertises: no master was heard for {silence:.0f} s, yet this host stays backup: restart kevip"


def _of_group(facts: Facts, report: Record) -> Iterator[str]:
    """Say what the whole group lacks: who is silent, and who is not set as this host is."""
    heard = report.heard(facts.at)
    if 1 + len(heard) < report.expected and facts.age(report.started) > SILENT:
        if report.role is Role.MASTER and not heard:
            yield "no backup: a failure of this host takes the VIP down"
        elif report.expect:
            missing = ", ".join(each.name for source, each in report.members.items() if source not in heard)
            who = f"{missing} silent" if missing else "the others were never heard"
            yield f"{1 + len(heard)} of {report.expect} replicas are here: {who}: look there with kevip status"
    lost = [each.name for each in heard.values() if each.copies is False and facts.age(each.since) > _JOINING]
    if report.sync and lost:
        where = f"{', '.join(lost)}, where conntrackd does not run"
        yield f"connections are not copied to {where}: look there with kevip status"
    differ = [f"{', '.join(each.unlike)} on {each.name}" for each in heard.values() if each.unlike]
    if differ:
        yield f"settings differ: {'; '.join(differ)}: set them to the same on all hosts, and restart kevip there"


def _silence(facts: Facts, report: Record) -> float:
    """Return for how many seconds a backup has heard no master."""
    return min(facts.age(moment) for moment in (report.since, *report.peers.values()))


def _well(facts: Facts, report: Record) -> str:
    last = "is in standby" if report.standby else "is ready to take over"
    match report.role:
        case Role.MASTER if report.standby:
            return "this host serves the VIP, though in standby: no peer that is fit has taken over"
        case Role.MASTER:
            return "this host serves the VIP"
        case Role.LEAVING:
            return "this host serves the VIP until another one has taken over"
        case Role.BACKUP if report.peers and (silence := _silence(facts, report)) > report.patience + _LATE:
            return f"no master was heard for {silence:.0f} s: one takes over soon"
        case Role.BACKUP if report.peers:
            [(master, _)] = report.latest_peers(1)
            return f"{master} serves the VIP, this host {last}"
        case _:
            return "it is in standby, out of the election" if report.standby else "it joins the election"
