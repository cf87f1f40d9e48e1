"""Puts a daemon together from its settings and from what this host is, and runs it until a signal stops it."""

import shlex
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address

from kevip.check.preflight import Host, locate, preflight, vrrp_candidacy, way
from kevip.config import Config, Endpoint
from kevip.control import Control, Memory, place
from kevip.daemon import STOPS, Daemon, Parts
from kevip.dataplane import conntrack
from kevip.dataplane.announcer import Announcer
from kevip.dataplane.plane import Plane
from kevip.dataplane.rules import Inlet, Proxy
from kevip.dataplane.ruleset import Ruleset
from kevip.election import packet, ucarp, vrrpd
from kevip.election.engine import Engine, Tell
from kevip.election.keepalived import KeepalivedEngine
from kevip.election.standing import UcarpEngine
from kevip.errors import HostError, KevipError
from kevip.health.ask import Answer, Asked, ask, ask_all, together
from kevip.health.prober import PATIENCE, Judge, Prober
from kevip.health.watch import Watch
from kevip.host import kernel, kubernetes, lock, route, systemd
from kevip.host.interface import Placement
from kevip.log import logger
from kevip.loop import Loop
from kevip.names import Names
from kevip.presence.frame import Said, Seal
from kevip.presence.presence import Presence
from kevip.status.notifier import Notifier
from kevip.status.record import VERSION, Health, Record
from kevip.status.reporter import Reporter
from kevip.status.runfile import StateFile
from kevip.sync import conntrackd, wire
from kevip.sync.entries import Entries
from kevip.sync.handoff import Group, Handoff
from kevip.sync.replication import Bystander, Replication

_TELLING = 2.0  # seconds after which systemd hears again that the start waits for a name

Candidacy = ucarp.Candidacy | vrrpd.Candidacy


def serve(config: Config) -> None:
    """Run the daemon; raises KevipError.

    A signal that comes before it runs is taken as soon as it does; one that comes when it has ended does nothing.
    """
    loop = Loop()
    daemon = Daemon(loop)
    with loop.signals({**dict.fromkeys(STOPS, daemon.on_stop), signal.SIGHUP: daemon.on_hangup}):
        names = Names(loop, config.names, logger(vip=str(config.vip)))
        if not _wait(loop, names, daemon):
            return
        given, config = config, config.at(names.addresses)
        host = preflight(config)
        kernel.drop_privileges([vrrpd.REALTIME_NEEDS] if config.engine == "keepalived" else [])
        with ExitStack() as locks:
            for vip in config.vips:
                locks.enter_context(lock.take(vip))
            candidacy = _candidacy(config, host)
            plane, reporter = _build(config, host, candidacy, loop, daemon)
            names.changed = partial(_retarget, given, daemon, plane, reporter.record)
            reporter.record.names = names.known
            if config.metrics:
                _serve_metrics(config.metrics, reporter.record)
            StateFile(config.run_dir, config.vip).prepare()
            _prepare(config, host, plane, reporter)
            _tell_standing(candidacy, reporter)
            memory = Memory(config.run_dir, config.vip)
            daemon.control = Control(loop, place(config.run_dir, config.vip), memory, reporter.log, daemon.tell)
            daemon.control.open()
            try:
                daemon.run()
            finally:
                names.close()
                for number in STOPS:  # threads may live on that do not block them
                    signal.signal(number, signal.SIG_IGN)


def _wait(loop: Loop, names: Names, daemon: Daemon) -> bool:
    """Wait until each name has an address; say whether that is so, and nobody wants to stop."""

    def tell() -> None:
        systemd.notify("WATCHDOG=1", "READY=1", "STATUS=waits for the address of a name")
        loop.after(_TELLING, tell)

    loop.after(_TELLING, tell)
    while not names.is_complete and not daemon.is_stopping:
        loop.turn()
    loop.cancel(tell)
    if daemon.is_stopping:
        names.close()
    return not daemon.is_stopping


def _retarget(
    given: Config, daemon: Daemon, plane: Plane, record: Record, addresses: Mapping[str, IPv4Address]
) -> None:
    """Have names lead to other addresses; raises SettingsError if these cannot be."""
    config = given.at(addresses)
    forwards = tuple(each.of(config.vip) for each in config.forwards)
    proxy = replace(plane.ruleset.proxy, target=config.address, forwards=forwards)
    plane.change(proxy)
    plane.copies = Bystander(config.targets)
    daemon.handoff.also(proxy)
    record.target = config.address


def _build(config: Config, host: Host, candidacy: Candidacy, loop: Loop, daemon: Daemon) -> tuple[Plane, Reporter]:
    """Give the daemon its parts; return those that are wanted before it runs."""
    key = wire.derive(config.password, config.vip)
    record = _record(config, host, candidacy, loop.now())
    proxy = Proxy(
        vip=config.vip, target=config.address, here=host.placement.source,
        global_masquerade=config.global_masquerade, ports=config.ports, allow_from=config.allow_from,
        inlets=_inlets(config, candidacy) + (host.copying.channel.inlets if host.copying else ()),
        channel=host.copying.channel if host.copying else None,
        forwards=tuple(each.of(config.vip) for each in config.forwards), source=config.source,
    )  # fmt: skip
    reporter = Reporter(record, StateFile(config.run_dir, config.vip), daemon.refresh, loop.now)
    if config.notify:
        reporter.notifier = Notifier(shlex.split(config.notify), reporter.log)
    rules = Ruleset(proxy, host.backend, follows=config.dataplane == "auto", rewrites=host.rewrites)
    plane = Plane(rules, loop, daemon, reporter.warn_once)
    plane.interface = host.placement.interface
    if host.copying:
        home = conntrackd.Home(config.run_dir, config.vip)
        plane.copies = daemon.replication = Replication(loop, host.copying, home, reporter, lambda: rules.here is True)
    elif config.routes:
        plane.copies = Bystander(config.targets)
    daemon.attach(
        Parts(
            engine=_engine(candidacy, loop, reporter, daemon.tell, partial(locate, config)),
            plane=plane,
            announcer=Announcer(loop, config.vips, daemon.is_led, reporter.warn_once),
            handoff=Handoff(loop, _heirs(config, key, proxy, rules), reporter, daemon.tell),
            watch=Watch(
                loop,
                daemon.tell,
                lambda answer, up: reporter.answered(up=up, seconds=answer.seconds, problem=answer.problem),
                judge=Judge(fall=config.check_fall, rise=config.check_rise),
                prober=_prober(config, rules),
                vip=config.vip if config.routes else None,
                unrouted=partial(_unrouted, route.Routes(), rules, config) if config.routes else None,
            ),
            presence=_presence(config, candidacy, key, loop, reporter),
            reporter=reporter,
        )
    )
    return plane, reporter


def _record(config: Config, host: Host, candidacy: Candidacy, now: float) -> Record:
    return Record(
        vip=config.vip,
        target=config.address,
        others=list(config.vips[1:]),
        forwards=list(map(str, config.forwards)),
        vip_id=config.vip_id,
        interface=host.placement.interface,
        dataplane=host.backend.name,
        patience=candidacy.patience,
        name=kernel.host_name(),
        rank=_rank(candidacy),
        expect=config.expect,
        started=now,
        turned=now,
        since=now,
        health=Health(check=" ".join(map(str, config.check)), since=now) if config.check else None,
    )


def _heirs(config: Config, key: bytes, proxy: Proxy, rules: Ruleset) -> Group | None:
    entries = Entries([proxy], lambda: rules.rewrites)
    return Group(wire.port(config.vip_id), key, entries) if config.hands_on else None


def _rank(candidacy: Candidacy) -> int:
    return candidacy.advskew if isinstance(candidacy, ucarp.Candidacy) else candidacy.priority


def _presence(config: Config, candidacy: Candidacy, key: bytes, loop: Loop, reporter: Reporter) -> Presence:
    seal = Seal(key, config.vip_id)
    own = Said(
        source=candidacy.source,
        name=reporter.record.name,
        version=VERSION,
        engine=config.engine,
        rank=reporter.record.rank,
        settings=seal.digests(config.alike()),
    )
    return Presence(loop, seal, way(config), own, reporter.warn_once)


def _inlets(config: Config, candidacy: Candidacy) -> tuple[Inlet, ...]:
    """Return what is heard behind the host's packet filter: an heir, and adverts, unless ucarp hears them before it."""
    heirs = (Inlet(socket.IPPROTO_TCP, port=wire.port(config.vip_id)),) if config.hands_on else ()
    if isinstance(candidacy, ucarp.Candidacy):
        return heirs
    peers = tuple(Inlet(packet.PROTOCOL, source=peer) for peer in candidacy.peers)
    return heirs + (peers or (Inlet(packet.PROTOCOL, destination=packet.GROUP),))


def _engine(candidacy: Candidacy, loop: Loop, reporter: Reporter, tell: Tell, find: Callable[[], Placement]) -> Engine:
    """Return what elects."""
    if isinstance(candidacy, ucarp.Candidacy):
        return UcarpEngine(candidacy, loop, reporter, tell, find)
    return KeepalivedEngine(candidacy, loop, reporter, tell, find)


def _candidacy(config: Config, host: Host) -> Candidacy:
    if config.engine == "keepalived":
        return vrrp_candidacy(config, host.placement)
    return ucarp.Candidacy(
        vip=config.vip, vip_id=config.vip_id, interface=host.placement.interface, source=host.placement.source,
        password=config.password, advbase=config.advbase, advskew=config.advskew, dead_ratio=config.dead_ratio,
        preempt=config.preempt, broadcast=config.broadcast, settling=config.preempt_delay,
    )  # fmt: skip


def _unrouted(routes: route.Routes, rules: Ruleset, config: Config) -> str:
    return routes.problem(rules.targets, any_counts=config.check_any)


def _prober(config: Config, rules: Ruleset) -> Prober | None:
    """Return what asks the targets."""
    if not config.check:
        return None
    patience = min(float(config.check_interval), PATIENCE)

    def question(source: IPv4Address | None) -> Answer:
        questions = [partial(_ask, each, rules, source, patience) for each in config.check]
        answers = ask_all(questions, patience) if len(questions) > 1 else [questions[0]()]
        return together(config.check, answers, any_counts=config.check_any)

    return Prober(question, interval=config.check_interval)


def _ask(asked: Asked, rules: Ruleset, held: IPv4Address | None, patience: float) -> Answer:
    """Ask a target: through the VIP while that is held, where our rules make clients' packets TARGET's."""
    check, target = asked.question(rules.proxy)
    if held and rules.rewrites and check.kind == "tcp" and rules.proxy.serves(check.port):
        return ask(check, rules.proxy.vip, patience, held)
    return ask(check, target, patience, held and (rules.proxy.source or asked.vip or held))


def _prepare(config: Config, host: Host, plane: Plane, reporter: Reporter) -> None:
    """Say what starts here, remove what a killed kevip left, and see to it that the host forwards."""
    log, name = reporter.log, host.placement.interface
    log.info(
        "daemon.started",
        target=str(config.target or ("by forwards only" if config.routes else "none: the VIP is only held")),
        forwards=len(config.forwards),
        interface=name,
        source=str(host.placement.source),
        vip_id=config.vip_id,
        engine=config.engine,
        dataplane=host.backend.name,
        dataplane_reason=host.backend_reason,
    )
    try:
        if removed := plane.cleanup():
            log.warning("leftovers.removed", what=list(map(str, removed)))
    except KevipError as error:
        log.warning("leftovers.stay", error=str(error))
    if config.routes and (done := kernel.enable_forwarding(*route.incoming(name, config.targets))):
        log.info("forwarding.enabled", sysctl=" ".join(done), interface=name)
    if host.cilium:
        log.warning("service.elsewhere", hint=f"{kubernetes.CILIUM}: {kubernetes.CILIUM_ADVICE}")
    if config.routes and not conntrack.picks_up_connections():
        hint = "a failover cuts open connections: sysctl -w net.netfilter.nf_conntrack_tcp_loose=1"
        log.warning("conntrack.strict", hint=hint)


def _tell_standing(candidacy: Candidacy, reporter: Reporter) -> None:
    """Say how this host stands for election, and what is not as good about that as it could be."""
    if isinstance(candidacy, ucarp.Candidacy):
        reporter.log.info("election.standing", advbase=candidacy.advbase, advskew=candidacy.advskew)
        return
    log, seconds = reporter.log, candidacy.interval
    log.info("election.standing", advert_interval=seconds, priority=candidacy.priority, vrrp=candidacy.version)
    if not candidacy.realtime:
        hint = (
            f"a busy host may be taken for dead: adverts every {seconds:g} s; a real-time process needs "
            "capability SYS_NICE, and in some control groups cpu.rt_runtime_us"
        )
        log.warning("election.not_realtime", hint=hint)
    if vrrpd.is_in_clear(candidacy):
        hint = (
            "a password of up to 8 letters and digits is in each advert, for peers without kevip: a longer one is not"
        )
        log.warning("election.password_in_clear", hint=hint)


def _serve_metrics(endpoint: Endpoint, record: Record) -> None:
    """Serve metrics from now on; raises HostError."""
    try:
        from kevip.status import metrics  # noqa: PLC0415 - it costs time, and needs a package that most do without
    except ModuleNotFoundError:
        raise HostError("--metrics (METRICS) needs prometheus-client: pip install 'kevip[metrics]'") from None
    metrics.serve(endpoint, metrics.Exporter(record))
