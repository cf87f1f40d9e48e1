"""What is: the facts about each VIP on this host, from what its daemon says and from the kernel. Changes nothing."""

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from itertools import chain
from pathlib import Path

from kevip.dataplane import conntrack
from kevip.dataplane.nftables import refused
from kevip.dataplane.rules import Part, Rule
from kevip.dataplane.select import ahead, base_chains, closed, installed
from kevip.election.vrrpd import Home
from kevip.errors import KevipError
from kevip.host import interface, kernel, kubernetes, lock, nfnetlink
from kevip.host.command import run_now
from kevip.host.kubernetes import Mode
from kevip.loop import Moment
from kevip.status.record import Record
from kevip.status.runfile import StateFile, reported


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A VIP as an address of an interface."""

    vip: IPv4Address
    interface: str
    prefix: int
    seconds: int | None  # what is left of a lease, None if it is none of kevip's


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that is known about a group here."""

    vip: IPv4Address  # its first one
    at: Moment  # when that was, by the clock of the report
    run_dir: Path
    privileged: bool = True  # whether rules could be looked for
    running: bool = True
    link: str = ""  # what is wrong with the interface
    report: Record | None = None
    held: tuple[Held, ...] = ()
    rules: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)  # by back end
    tracked: conntrack.Tracked | None = None
    foreign: tuple[str, ...] = ()  # NAT chains of others that may translate before our rules
    closed: tuple[str, ...] = ()  # chains of others that keep adverts from keepalived, unless they have a rule for it
    flaws: tuple[str, ...] = ()  # what could not be read, which should be readable
    service: Mode | None = None  # how kube-proxy has TARGET now
    served: tuple[str, ...] | None = None  # at which ports it serves that, None if not all that tells it was read
    cilium: bool = False  # whether Cilium would serve TARGET, if it is a Service
    refused: tuple[str, ...] = ()  # at which ports the rules for that have refused somebody lately

    @property
    def rewrites(self) -> bool:
        """Whether the rules here are for a TARGET that somebody else translates."""
        return any(rule.part is Part.REWRITE for rule in chain.from_iterable(self.rules.values()))

    @property
    def is_limited(self) -> bool:
        """Whether the rules here are for some ports only."""
        return any(rule.text.startswith("set ports ") for rule in chain.from_iterable(self.rules.values()))

    def age(self, moment: Moment) -> float:
        """Return how many seconds ago that was."""
        return self.at - moment

    @property
    def vips(self) -> list[IPv4Address]:
        """All addresses of the group."""
        return self.report.vips if self.report else [self.vip]

    @property
    def leased(self) -> dict[str, list[IPv4Address]]:
        """The VIPs that are leases of kevip's, by the interface that they are on."""
        found: dict[str, list[IPv4Address]] = {}
        for each in self.held:
            if each.seconds is not None:
                found.setdefault(each.interface, []).append(each.vip)
        return found

    @property
    def missing(self) -> list[str]:
        """The rules that its daemon has installed and are not there."""
        if not self.report:
            return []
        present = {(name, rule.text) for name, rules in self.rules.items() for rule in rules}
        return [rule for name, rules in self.report.rules.items() for rule in rules if (name, rule) not in present]

    def counters(self) -> dict[str, tuple[int, int]]:
        """Return packets and bytes by what the rules that matched them do."""
        found: dict[str, tuple[int, int]] = {}
        for rule in chain.from_iterable(self.rules.values()):
            if rule.part:
                packets, octets = found.get(rule.part, (0, 0))
                found[rule.part] = packets + rule.packets, octets + rule.bytes
        return found


class Look:
    """A look at this host, for any number of VIPs; raises CommandError if it cannot even list its interfaces."""

    def __init__(
        self,
        run_dir: Path,
        backends: Collection[str] | None = None,
        survey: Callable[..., conntrack.Tracked] = conntrack.survey,
    ) -> None:
        self._run_dir, self._survey = run_dir, survey
        self._privileged = "NET_ADMIN" not in kernel.missing_capabilities()
        self._running = lock.taken()
        self._interfaces = interface.listing(run_now)
        self._addresses = [(each.name, address) for each in self._interfaces for address in each.addresses]
        self._flaws: dict[str, str] = {}
        self._rules: dict[str, dict[IPv4Address, list[Rule]]] = {}
        self._saved: dict[str, str] = {}
        self._is_whole = backends is None
        if self._privileged:
            for name, each in installed().items():
                try:
                    if backends is None or name in backends:
                        self._saved[name] = each.save(counters=True)
                        self._rules[name] = each.rules(self._saved[name])
                except KevipError as error:
                    self._flaws[name] = str(error)

    def vips(self) -> list[IPv4Address]:
        """Return every VIP of which there is something here: a daemon, a runtime file, a lease or rules.

        Of a group, that is the first one.
        """
        leased = {address.ip.ip for _, address in self._addresses if address.is_lease(address.ip.ip)}
        named = reported(self._run_dir)
        others = {each for vip in named for each in StateFile(self._run_dir, vip).vips()[1:]} - named
        return sorted((self._running | leased | named | set(chain.from_iterable(self._rules.values()))) - others)

    def at(self, vip: IPv4Address) -> Facts:
        """Return the facts about a VIP, with what its daemon says in its file."""
        try:
            return self.of(vip, StateFile(self._run_dir, vip).read(), kernel.uptime())
        except KevipError as error:
            return self.of(vip, None, kernel.uptime(), error.problems if self._privileged else ())

    def of(self, vip: IPv4Address, report: Record | None, now: Moment, flaws: tuple[str, ...] = ()) -> Facts:
        """Return the facts about a VIP; ``report`` is what its daemon says, ``now`` the time on that one's clock."""
        if not self._rules or (report and report.dataplane in self._flaws):
            flaws += tuple(self._flaws.values())
        rules = {name: tuple(rules[vip]) for name, rules in self._rules.items() if vip in rules}
        parts = {rule.part for rule in chain.from_iterable(rules.values())}
        tracked, vips = None, dict.fromkeys(report.vips if report else [vip])
        held = tuple(
            Held(
                vip=each.ip.ip,
                interface=name,
                prefix=each.ip.network.prefixlen,
                seconds=each.valid if each.is_lease(each.ip.ip) else None,
            )
            for name, each in self._addresses
            if each.ip.ip in vips
        )
        if self._privileged:
            with suppress(KevipError):
                rewritten = Part.REWRITE in parts
                tracked = self._survey(list(vips), rewritten=rewritten)
                if Part.SNAT not in parts or rewritten:  # the source need not be the VIP, or nothing is translated
                    tracked = conntrack.Tracked(tracked.total, unanswered=tracked.unanswered)
        service, served = self._service(report)
        return Facts(
            vip=vip,
            at=now,
            run_dir=self._run_dir,
            privileged=self._privileged,
            running=vip in self._running,
            report=report,
            link=interface.link_problem(self._interfaces, report.interface) if report else "",
            held=held,
            rules=rules,
            tracked=tracked,
            foreign=self._foreign(report, source=Part.MASQUERADE not in parts),
            closed=self._closed(vip),
            flaws=flaws,
            service=service,
            served=served,
            cilium=self._cilium(),
            refused=self._refused(vip, parts),
        )

    def _cilium(self) -> bool:
        with suppress(KevipError):
            return self._is_whole and kubernetes.cilium_alone(self._interfaces, self._saved.values())
        return False

    def _refused(self, vip: IPv4Address, parts: Collection[Part | None]) -> tuple[str, ...]:
        with suppress(KevipError):
            return tuple(sorted(kubernetes.port_of(*each) for each in refused(vip))) if Part.UNDONE in parts else ()
        return ()

    def _service(self, report: Record | None) -> tuple[Mode | None, tuple[str, ...] | None]:
        """Return how kube-proxy has a daemon's TARGET, and at which ports."""
        with suppress(KevipError):
            if report and report.target and self._privileged:
                saved = self._saved.values()
                served = tuple(kubernetes.ports(report.target, saved)) if self._is_whole else None
                return kubernetes.mode_of(report.target, self._interfaces, saved), served
        return None, None

    def _closed(self, vip: IPv4Address) -> tuple[str, ...]:
        """Return the chains that keepalived, if it elects, hears behind, where kevip cannot let adverts in."""
        with suppress(KevipError):
            if self._privileged and Home(self._run_dir, vip).path.exists():
                return tuple(map(str, closed(nfnetlink.base_chains())))
        return ()

    def _foreign(self, report: Record | None, *, source: bool) -> tuple[str, ...]:
        """Return the chains that may translate before the rules that a daemon has, or would have."""
        backend = installed().get(report.dataplane) if report and report.proxies and self._privileged else None
        with suppress(KevipError):
            return tuple(map(str, ahead(backend, base_chains(backend), source=source))) if backend else ()
        return ()
