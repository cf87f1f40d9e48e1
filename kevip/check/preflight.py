"""The preflight: everything about this host that would keep kevip from working, told at once. Changes nothing."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import TypeVar

from kevip.config import Config
from kevip.dataplane.backend import Backend
from kevip.dataplane.nftables import Nftables
from kevip.dataplane.rules import Channel
from kevip.dataplane.select import save_all, select
from kevip.election import vrrpd
from kevip.errors import HostError, KevipError
from kevip.host import command, interface, kernel, kubernetes, route
from kevip.presence.channel import Way
from kevip.sync import conntrackd, wire

_Found = TypeVar("_Found")

# The programs that kevip runs besides its engine, and the Debian packages that they come in.
PACKAGES = {
    "ip": "iproute2", "conntrack": "conntrack", "setpriv": "util-linux", "bash": "bash",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the preflight found: where the VIP belongs, and what it takes to serve it."""

    placement: interface.Placement
    backend: Backend
    backend_reason: str
    rewrites: bool  # whether somebody else translates TARGET
    cilium: bool  # whether Cilium would, where rules do not help
    copying: conntrackd.Setup | None = None


@dataclass(slots=True)
class Fitness:
    """What was found out about this host, as far as that was possible, and the problems by what they are about."""

    placement: interface.Placement | None = None
    interfaces: tuple[interface.Interface, ...] = ()
    backend: tuple[Backend, str] | None = None
    copying: conntrackd.Setup | None = None
    forwards: bool = True
    saved: dict[str, str] = field(default_factory=dict)  # what ``iptables-save`` prints in each back end
    service: kubernetes.Mode | None = None  # how kube-proxy handles a TARGET of its own
    cilium: bool = False  # whether Cilium serves Services here, alone
    problems: dict[str, list[str]] = field(default_factory=dict)

    def attempt(self, about: str, program: str, action: Callable[[], _Found]) -> _Found | None:
        """Return what the action finds, or note its problems. Without its program, if it has one, it is not tried."""
        if program and not command.find(program):
            return None
        try:
            return action()
        except KevipError as error:
            self.note(about, *error.problems)
            return None

    def note(self, about: str, *problems: str) -> None:
        """Note problems, if there are any."""
        if problems:
            self.problems.setdefault(about, []).extend(problems)


def packages(config: Config) -> dict[str, str]:
    """Return the programs that kevip runs with these settings, and the Debian packages that they come in."""
    return {config.engine: config.engine, **PACKAGES, **({"conntrackd": "conntrackd"} if config.sync else {})}


def preflight(config: Config) -> Host:
    """Check this host; raises HostError with every problem found."""
    found = examine(config)
    if found.problems or not found.placement or not found.backend:
        raise HostError(*(problem for about in found.problems.values() for problem in about))
    backend, reason = found.backend
    return Host(
        placement=found.placement,
        backend=backend,
        backend_reason=reason,
        copying=found.copying,
        rewrites=bool(found.service and found.service.translates),
        cilium=found.cilium,
    )


def examine(config: Config) -> Fitness:
    """Find out all that a start needs to know of this host."""
    fitness = Fitness()
    wanted = packages(config)
    absent = [program for program in wanted if not command.find(program)]
    fitness.note("programs", *[f"{each} is not installed: apt-get install {wanted[each]}" for each in absent])
    if config.notify and not command.find(program := shlex.split(config.notify)[0]):
        fitness.note("programs", f"--notify (NOTIFY): {program} is no program that can be run")
    lacking = kernel.missing_capabilities()
    for name in lacking:
        way = f"in Docker with --cap-add {name}, in Kubernetes with securityContext.capabilities.add [{name}]"
        fitness.note("capabilities", f"capability {name} is missing: run as root, {way}")
    fitness.interfaces = fitness.attempt("interface", "ip", interface.listing) or ()
    if fitness.interfaces:
        fitness.placement = fitness.attempt("interface", "ip", lambda: locate(config, fitness.interfaces))
        fitness.copying = fitness.attempt("sync", "ip", lambda: copying(config, fitness.interfaces))
    if "NET_ADMIN" not in lacking:  # without it, the rules cannot be read anyway
        fitness.backend = fitness.attempt("dataplane", "", lambda: select(config.dataplane))
    if fitness.backend:
        fitness.saved = save_all()
    if config.routes:
        _examine_proxying(fitness, config)
    elif fitness.placement:
        _examine_holding(fitness, config.vip, fitness.placement.interface)
    return fitness


def _examine_proxying(fitness: Fitness, config: Config) -> None:
    """See whether packets are forwarded already, and where the rules have to be if TARGET is a cluster-IP."""
    if fitness.placement:
        fitness.forwards = kernel.forwards(*route.incoming(fitness.placement.interface, config.targets))
    if not fitness.interfaces or not fitness.backend:
        return
    if config.forwards:
        problems = kubernetes.services(config.targets, fitness.interfaces, list(fitness.saved.values()))
        fitness.note("service", *problems)
        return
    [target] = config.targets
    fitness.service = kubernetes.mode_of(target, fitness.interfaces, fitness.saved.values())
    fitness.cilium = bool(fitness.attempt("service", "", lambda: _cilium(fitness)))
    native, problem = Nftables(), kubernetes.problem(target, fitness.service, rewrites=True)
    if fitness.service and fitness.service.translates and fitness.backend[0] != native:
        rewrites = config.dataplane == "auto" and bool(command.find("nft")) and native.works()
        problem = kubernetes.problem(target, fitness.service, rewrites=rewrites)
        fitness.backend = (native, f"kube-proxy translates TARGET, in {fitness.service} mode")
    fitness.note("service", *([problem] if problem else []))


def _cilium(fitness: Fitness) -> bool:
    return kubernetes.cilium_alone(fitness.interfaces, fitness.saved.values())


def _examine_holding(fitness: Fitness, vip: IPv4Address, name: str) -> None:
    """See whether this host would answer ARP for a VIP that kube-proxy has put on each node."""
    if kubernetes.on_ipvs_interface(vip, fitness.interfaces) and kernel.answers_arp_for_all(name):
        problem = f"kube-proxy, in IPVS mode, has VIP {vip} on each node, and this one answers ARP for it as backup too"
        advice = f"set strictARP: true for kube-proxy (or sysctl -w net.ipv4.conf.{name}.arp_ignore=1)"
        fitness.note("service", f"{problem}: {advice}")


def locate(config: Config, interfaces: tuple[interface.Interface, ...] = ()) -> interface.Placement:
    """Find where the VIP belongs among these interfaces, or those of this host now; raises HostError, CommandError."""
    shared, there = kubernetes.IPVS_INTERFACE if config.hold_only else "", interfaces or interface.listing()
    return interface.place(there, config.vips, config.interface, shared=shared)


def copying(config: Config, interfaces: tuple[interface.Interface, ...]) -> conntrackd.Setup | None:
    """Find where connections are copied among these interfaces, None if they are not; raises HostError."""
    if not config.sync or not config.routes:
        return None
    own = {each.ip.ip: there.name for there in interfaces for each in there.addresses}
    listed = [each for each in config.sync_peers if each in own]
    others = tuple(each for each in config.sync_peers if each not in own)
    unicast = not config.sync_interface
    if unicast and not listed:
        raise HostError("--sync-peers (SYNC_PEERS) has no address of this host: list those of both hosts")
    if unicast and len(others) != 1:
        raise HostError("--sync-peers (SYNC_PEERS) has no address of another host: list those of both hosts")
    there = interface.named(interfaces, config.sync_interface or own[listed[0]], "--sync-interface")
    if problem := interface.link_problem((replace(there, carrier=True),), there.name):
        raise HostError(problem)
    addresses = [*(each for each in listed if own[each] == there.name), *there.primaries()]
    if not addresses:
        raise HostError(f"interface {there.name} has no IPv4 address, which conntrackd needs as its source")
    channel = Channel(port=conntrackd.port(config.targets[0]), interface=there.name, peers=others)
    return conntrackd.Setup(target=config.targets[0], channel=channel, source=addresses[0], unicast=unicast)


def way(config: Config) -> Way:
    """Return how what replicas say of themselves goes: to the port of the group, which heirs use too, but over TCP."""
    return Way(port=wire.port(config.vip_id), peers=config.peers, broadcast=config.broadcast)


def vrrp_candidacy(config: Config, place: interface.Placement) -> vrrpd.Candidacy:
    """Return what this host stands for election with, where it is keepalived's."""
    realtime = kernel.may_be_realtime(vrrpd.REALTIME)
    return vrrpd.Candidacy(
        vip=config.vip,
        vip_id=config.vip_id,
        interface=place.interface,
        source=place.source,
        password=config.password,
        interval=config.advert_interval or vrrpd.default_interval(realtime=realtime),
        vrrp_version=config.vrrp_version,
        priority=config.priority or vrrpd.random_priority(),
        dead_ratio=config.dead_ratio,
        preempt=config.preempt,
        settling=config.preempt_delay,
        realtime=realtime,
        peers=config.peers,
        run_dir=config.run_dir,
    )
