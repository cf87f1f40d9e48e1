"""All checks, in the order in which they are told. They change nothing, and send ARP probes, a ping and a connect."""

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from ipaddress import IPv4Address

from kevip.check import election, group, rules, traffic, vrrp
from kevip.check.copies import copies
from kevip.check.preflight import Fitness, examine, packages, vrrp_candidacy, way
from kevip.check.report import Finding, Verdict, failed, ok, warning
from kevip.config import Config
from kevip.dataplane import conntrack
from kevip.dataplane.backend import Backend
from kevip.dataplane.lease import leases
from kevip.dataplane.rules import Proxy
from kevip.dataplane.select import base_chains, installed, save_all
from kevip.election.carp import Group, Interval
from kevip.election.ucarp import key
from kevip.election.vrrpd import default_interval
from kevip.errors import KevipError
from kevip.health.ask import Asker, Check, ask, parse_check
from kevip.host import kernel, kubernetes, lock, nfnetlink, route
from kevip.host.interface import Interface, Placement
from kevip.names import resolve
from kevip.presence.channel import Channel
from kevip.presence.presence import EVERY
from kevip.status.runfile import StateFile
from kevip.sync import wire

_PING = Check(kind="icmp")
_AT_ONCE = 16  # targets that are asked
_PATIENCE = 2.0  # seconds for TARGET to answer
# Seconds to listen, if nobody says for how long: at least, until each replica has said what it is, and at most.
_SHORTEST, _LONGEST = EVERY + 0.5, 60.0


def diagnose(config: Config, seconds: float | None) -> Iterator[Finding]:
    """Check this host and its network segment, listening there for some seconds, or until a master would be missed.

    What the start refuses is told in its words; what cannot be looked at because of that is left out.
    """
    addresses = dict[str, IPv4Address]()
    for name in config.names:
        yield from _attempt("names", _resolved(name, addresses))
    if len(addresses) == len(config.names):  # else the start would wait for them
        yield from _diagnose(config.at(addresses), seconds)


def _diagnose(config: Config, seconds: float | None) -> Iterator[Finding]:
    interval = (
        config.advbase if config.engine == "ucarp" else config.advert_interval or default_interval(realtime=False)
    )
    missed = (config.dead_ratio + 1) * interval  # its adverts, and one more
    seconds = seconds or min(max(missed, _SHORTEST), _LONGEST)
    fitness = examine(config)
    yield from _start(config, fitness)
    if place := fitness.placement:
        here = next(each for each in fitness.interfaces if each.name == place.interface)
        yield _kevip(config.vip, fitness)
        yield _multicast(config, here)
        if "capabilities" not in fitness.problems:
            yield from _attempt("election", _segment(config, here, place, seconds))
        for number, target in enumerate(config.targets):
            found = _attempt("route", _way(target, here, fitness.interfaces))
            yield from (each for each in found if not number or each.verdict is not Verdict.OK)
    if config.sync:
        yield from _sync(fitness)
    if config.routes:
        yield from _proxy(config, fitness)
    else:
        yield from _told(fitness, "service", "no TARGET: with --hold-only, something else on this host serves the VIP")
        yield from _attempt("served", _served(config.vip, fitness))
        yield from (_answer(each.check, None) for each in config.check)


def _resolved(name: str, addresses: dict[str, IPv4Address]) -> Iterator[Finding]:
    addresses[name] = resolve(name)[0]
    yield ok("names", f"{name} is {addresses[name]}")


def _served(vip: IPv4Address, fitness: Fitness) -> Iterator[Finding]:
    """Yield whether kube-proxy serves a VIP that is only held, where it runs."""
    saved = fitness.saved.values()
    if kubernetes.is_here(fitness.interfaces, saved):
        yield traffic.served(vip, kubernetes.ports(vip, saved))


def _told(fitness: Fitness, check: str, well: str) -> Iterator[Finding]:
    """Yield what the start refuses, else how it is, if that is known."""
    problems = fitness.problems.get(check, [])
    yield from (failed(check, problem) for problem in problems)
    if well and not problems:
        yield ok(check, well)


def _attempt(check: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """Yield the findings, or why they could not be had."""
    try:
        yield from findings
    except KevipError as error:
        yield from (failed(check, problem) for problem in error.problems)
    except OSError as error:
        yield failed(check, f"cannot be looked at: {error.strerror or error}")


def _start(config: Config, fitness: Fitness) -> Iterator[Finding]:
    place = fitness.placement
    yield from _told(fitness, "programs", ", ".join(packages(config)))
    yield from _told(fitness, "capabilities", ", ".join(kernel.CAPABILITIES))
    problem = StateFile(config.run_dir, config.vip).problem()
    yield failed("run dir", problem) if problem else ok("run dir", str(config.run_dir))
    yield from _told(fitness, "interface", f"{place.interface}, source address {place.source}" if place else "")
    forwards = "on" if fitness.forwards else "off: kevip switches it on"
    yield from _told(fitness, "forwarding", f"IP forwarding is {forwards}" if place and config.routes else "")
    chosen = f"{fitness.backend[0].name}: {fitness.backend[1]}" if fitness.backend else ""
    yield from _told(fitness, "dataplane", chosen)


def _kevip(vip: IPv4Address, fitness: Fitness) -> Finding:
    """Say what kevip does here already; the VIP as a lease is its mark."""
    here, saved = bool(leases(fitness.interfaces, [vip])), fitness.saved
    if vip in lock.taken():
        return ok("kevip", f"runs here for VIP {vip}, as {'master' if here else 'backup'}")
    if here or any(vip in each.rules(saved[name]) for name, each in installed().items() if name in saved):
        return ok("kevip", f"was killed here while it served VIP {vip}; the next start removes what is left")
    return ok("kevip", f"does not run here for VIP {vip}")


def _sync(fitness: Fitness) -> Iterator[Finding]:
    yield from _told(fitness, "sync", "")
    if (setup := fitness.copying) and fitness.placement:
        there = next(each for each in fitness.interfaces if each.name == setup.channel.interface)
        yield from copies(setup, there, fitness.placement.interface)


def _multicast(config: Config, here: Interface) -> Finding:
    if config.broadcast:
        return ok("multicast", "not needed with --broadcast")
    if config.peers:
        return ok("multicast", "not needed with --peers")
    if here.multicast:
        return ok("multicast", f"{here.name} can; whether switches pass it (IGMP snooping) is not seen from here")
    found = f"{here.name} does not take multicast: adverts of peers may not be heard"
    advice = f"ip link set dev {here.name} multicast on; or --broadcast, on all hosts"
    return warning("multicast", found, advice)


def _segment(config: Config, here: Interface, place: Placement, seconds: float) -> Iterator[Finding]:
    with closing(Channel(place, way(config))) as channel:  # what is said meanwhile waits there
        yield from _election(config, here, place, seconds)
        yield from group.judge(config, channel, place.source)


def _election(config: Config, here: Interface, place: Placement, seconds: float) -> Iterator[Finding]:
    source = place.source
    if config.engine == "keepalived":
        candidacy = vrrp_candidacy(config, place)
        yield from vrrp.standing(candidacy)
        yield from rules.hearing(save_all(), nfnetlink.base_chains())
        judged = vrrp.VrrpListener(place, candidacy.group()).listen(seconds)
        yield from vrrp.judge(judged, candidacy.group())
        yield from _handoff(config, judged.masters.keys() - {source})
        return
    ours = Group(vhid=config.vip_id, vip=config.vip, key=key(config.password))
    heard = election.CarpListener(place, ours, [each.ip.network for each in here.addresses]).listen(seconds)
    yield from election.masters(heard, Interval(config.advbase, config.advskew), config.dead_ratio)
    yield from election.strangers(heard, ours)
    yield from election.duplicates(heard, ours.vip)
    yield from _handoff(config, heard.masters.keys() - {source})


def _handoff(config: Config, masters: Collection[IPv4Address]) -> Iterator[Finding]:
    """Yield whether connections could be fetched from a master, which offers them only when it leaves."""
    port = wire.port(config.vip_id)
    for master in sorted(masters)[:1] if config.hands_on else ():
        yield traffic.handoff(master, port, ask(parse_check(f"tcp:{port}"), master, _PATIENCE, None))


def _rules(config: Config, fitness: Fitness, backend: Backend) -> Iterator[Finding]:
    vip, saved = config.vip, fitness.saved
    chains, runs = base_chains(backend), vip in lock.taken()
    yield from rules.forwarding(saved, vip, chains)
    yield from rules.translating(backend, chains, movable="nftables" in installed())
    yield rules.postrouting(saved.get(backend.name, ""), vip, runs=runs)
    yield from rules.matching(saved, config.vips)
    if runs and not config.global_masquerade and (tracked := conntrack.survey(config.vips)).total:
        yield rules.sources(tracked.total, tracked.wrong)


def _way(address: IPv4Address, here: Interface, interfaces: tuple[Interface, ...]) -> Iterator[Finding]:
    way = route.require(address)
    out = next((each.mtu for each in interfaces if each.name == way.interface), here.mtu)
    yield traffic.route(address, way)
    yield traffic.mtu(here.name, here.mtu, way, way.mtu or out)
    yield from traffic.reverse_path(here.name, kernel.reverse_path_filter(here.name), way, route.default_interfaces())


def _proxy(config: Config, fitness: Fitness) -> Iterator[Finding]:
    """Yield what it takes to proxy the VIPs to their targets."""
    if fitness.backend:
        service = traffic.service(config.targets[0], fitness.service, cilium=fitness.cilium)
        if fitness.cilium:
            yield service
        well = "no target is a cluster-IP" if config.forwards else service.found
        yield from _told(fitness, "service", "" if fitness.cilium else well)
    if fitness.service and fitness.service.translates and (place := fitness.placement):
        on = kernel.redirecting(place.interface)
        yield from () if kernel.may_redirect(on) else (traffic.redirects(place.interface),)
    if "capabilities" not in fitness.problems:
        yield from _answers(config)
    if fitness.backend:
        yield from _rules(config, fitness, fitness.backend[0])
    yield traffic.loose(picks_up=conntrack.picks_up_connections())
    yield traffic.fill(conntrack.fill())
    yield traffic.sources(config.allow_from, config.vip)


def _answers(config: Config) -> Iterator[Finding]:
    """Ask each target as the settings say, else all of them by a ping."""
    proxy = Proxy(
        vip=config.vip, target=config.address, forwards=tuple(each.of(config.vip) for each in config.forwards)
    )
    questions: list[tuple[Check | None, IPv4Address | None]] = [each.question(proxy) for each in config.check]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from pool.map(lambda each: _answer(*each), questions or [(None, target) for target in config.targets])


def _answer(check: Check | None, address: IPv4Address | None) -> Finding:
    """Ask TARGET, or what serves a VIP that is only held: as the settings say, else by a ping."""
    question = partial(ask, check or _PING, address, _PATIENCE)
    return traffic.answer(check, address, Asker(question, _PATIENCE).ask(None))
