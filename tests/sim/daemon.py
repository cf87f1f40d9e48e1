"""The daemon over the models: its parts, put together as ``kevip.serve`` does, and what has to be patched for them."""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from kevip.core.messages import Role
from kevip.daemon import STOPS, Daemon, Parts
from kevip.dataplane import conntrack, iptables, plane, select, survey
from kevip.dataplane.announcer import Announcer
from kevip.dataplane.iptables import Iptables
from kevip.dataplane.rules import Channel, Proxy
from kevip.dataplane.ruleset import Ruleset
from kevip.election import adverts, keepalived, standing, ucarp, vrrpd
from kevip.election.engine import Engine
from kevip.election.vrrpd import RANKS
from kevip.errors import KevipError
from kevip.health.ask import Answer, parse_check
from kevip.health.prober import Judge
from kevip.health.watch import Watch
from kevip.host import arp, beside, command, interface, kernel, kubernetes, lock, nfnetlink, route, systemd
from kevip.presence import channel, presence
from kevip.presence.channel import Way
from kevip.presence.frame import Said, Seal
from kevip.presence.group import Member
from kevip.presence.presence import Presence
from kevip.status import reporter
from kevip.status.record import VERSION, Health, Record
from kevip.status.runfile import StateFile
from kevip.sync import handoff, replication, wire
from kevip.sync.conntrackd import Setup
from kevip.sync.handoff import Handoff
from kevip.sync.replication import Replication
from sim.beside import Beside, Lock
from sim.conntrackd import Conntrackd, Home
from sim.conntrackd import Lock as CopyingLock
from sim.handoff import Group, Offer
from sim.host import TARGET, VIP, Host, Prober
from sim.keepalived import Keepalived
from sim.loop import Loop
from sim.network import Network, Wire
from sim.ucarp import Ucarp

_PASSWORD, _SHORT = "correct horse", "horse"
"""For the simulation alone; to derive what version 2 of VRRP sends for a long one takes 50 ms."""

SEAL = Seal(wire.derive(_PASSWORD, VIP), int(VIP) & 0xFF)
PORT = wire.port(int(VIP) & 0xFF)

_IMPORTS, _PREFLIGHT = 0.2, 0.1
"""Seconds from exec to the first line of our own, and for the look at the host."""

_COPYING = Setup(target=TARGET, channel=Channel(port=26000, interface="eth1", peers=()), source=TARGET)

_CHECK = {"check_interval": 5, "check_fall": 3, "check_rise": 2}


class Simulated:
    """A ``kevip.daemon.Daemon`` on a host."""

    def __init__(self, host: Host, loop: Loop) -> None:
        self.host, self.loop = host, loop
        self._state = _State(host)
        self.known: dict[IPv4Address, Member] = {}

    @property
    def role(self) -> str:
        """The role that it says it has."""
        return self._state.role

    def run(self) -> int:
        """Do what ``kevip.serve`` does, but for the look at the host."""
        host, process = self.host, self.host.node.process
        if process:
            process.sleep(_IMPORTS)
        daemon = Daemon(self.loop)  # type: ignore[arg-type]  # it has the same methods
        signals = {**dict.fromkeys(STOPS, daemon.on_stop), signal.SIGHUP: daemon.on_hangup}
        with self.loop.signals(signals | {signal.SIGUSR1: lambda _: daemon.tell(host.asked)}):
            try:
                if process:
                    process.sleep(_PREFLIGHT)
                self._attach(daemon)
                if host.is_in_standby:
                    daemon.tell(host.asked)
                daemon.run()
            except KevipError as error:
                host.note("daemon.failed", error=str(error))
                return error.status
        return 0

    def engine(self, given: dict[str, Any], told: reporter.Reporter, daemon: Daemon) -> Engine:
        """Return the engine."""
        rest: Any = self.loop, told, daemon.tell, _locate
        if given.pop("engine", "ucarp") == "keepalived":
            return keepalived.KeepalivedEngine(candidacy_of_vrrp(self.host, given), *rest)
        return standing.UcarpEngine(_carp(self.host, given), *rest)

    def presence(self, told: reporter.Reporter, daemon: Daemon) -> Presence:
        """Return what makes this replica known to others."""
        del daemon
        own = Said(
            source=self.host.address,
            name=self.host.name,
            version=VERSION,
            engine=str(self.host.settings.get("engine", "ucarp")),
            rank=int(self.host.settings["advskew"]),
        )
        made = Presence(self.loop, SEAL, Way(port=PORT), own, told.warn_once)  # type: ignore[arg-type]
        self.known = made.members
        return made

    def _attach(self, daemon: Daemon) -> None:
        host, loop = self.host, self.loop
        given = _CHECK | host.settings
        question = parse_check("tcp:80") if given.pop("check", False) else None
        told = _reporter(host, daemon, self._state, str(question or ""))
        copies = given.pop("sync", False)
        interval, fall, rise = (given.pop(name) for name in _CHECK)
        rules = Ruleset(Proxy(vip=VIP, target=TARGET), Iptables("iptables-nft", "nft"), follows=True)
        made = plane.Plane(rules, loop, daemon, told.warn_once)  # type: ignore[arg-type]
        made.interface = host.interface
        if copies:
            made.copies = daemon.replication = Replication(
                loop, _COPYING, Home(), told, lambda: rules.here is True  # type: ignore[arg-type]
            )  # fmt: skip
        try:
            if removed := made.cleanup():
                told.log.warning("leftovers.removed", what=removed)
        except KevipError as error:
            told.log.warning("leftovers.stay", error=str(error))

        def answered(answer: Answer, up: bool) -> None:
            told.answered(up=up, seconds=answer.seconds, problem=answer.problem)

        daemon.attach(
            Parts(
                engine=self.engine(given, told, daemon),
                plane=made,
                announcer=Announcer(loop, [VIP], daemon.is_led, told.warn_once),  # type: ignore[arg-type]
                handoff=Handoff(loop, Group(host), told, daemon.tell),  # type: ignore[arg-type]
                watch=Watch(
                    loop,  # type: ignore[arg-type]
                    daemon.tell,
                    answered,
                    judge=Judge(fall=int(fall), rise=int(rise)),
                    prober=Prober(host, interval=interval) if question else None,  # type: ignore[arg-type]
                    vip=VIP,
                    unrouted=lambda: "" if host.route and host.link == "up" else "no route",
                ),
                presence=self.presence(told, daemon),
                reporter=told,
            )
        )


def _carp(host: Host, given: Mapping[str, Any]) -> ucarp.Candidacy:
    settings: Any = {"vip_id": int(VIP) & 0xFF, "advbase": 1, "dead_ratio": 3, "preempt": False, "broadcast": False}
    return ucarp.Candidacy(
        vip=VIP, interface=host.interface, source=host.address, password=_PASSWORD, **(settings | given)
    )  # fmt: skip


def candidacy_of_vrrp(host: Host, given: Mapping[str, Any]) -> vrrpd.Candidacy:
    """Return what a host stands for election with by keepalived."""
    return vrrpd.Candidacy(
        vip=VIP, vip_id=int(VIP) & 0xFF, interface=host.interface, source=host.address, password=_SHORT,
        interval=given.get("interval", 0.1), priority=max(RANKS[0], RANKS[1] + 1 - given["advskew"]), dead_ratio=3,
        preempt=given.get("preempt", False), realtime=True, run_dir=Path("/nonexistent"),
        settling=given.get("settling", 0.0),
    )  # fmt: skip


def _locate() -> interface.Placement:
    return interface.place(interface.listing(command.run_now), [VIP], None)


def _reporter(host: Host, daemon: Daemon, state: StateFile, check: str) -> reporter.Reporter:
    now = host.world.now
    record = Record(
        vip=VIP,
        target=TARGET,
        vip_id=int(VIP) & 0xFF,
        interface=host.interface,
        dataplane="iptables-nft",
        patience=3.0,
        started=now,
        turned=now,
        since=now,
        health=Health(check=check, since=now) if check else None,
    )
    return reporter.Reporter(record, state, daemon.refresh, lambda: host.world.now)


class _State(StateFile):
    """The runtime file: what is written there is noted when the role changes."""

    role = "init"

    def __init__(self, host: Host) -> None:
        super().__init__(Path("/nonexistent"), VIP)
        self._host: Host
        self.__dict__.update(_host=host)  # the runtime file is frozen

    def write(self, record: Record, now: float) -> None:
        del now
        if record.role != self.role:
            self.__dict__.update(role=Role(record.role).value)
            self._host.note("role", role=record.role.value, reason=record.reason.value)

    def remove(self) -> bool:
        return True


class _Log:
    """A logger whose events are noted."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def debug(self, event: str, **fields: object) -> None:
        pass

    def info(self, event: str, **fields: object) -> None:
        self._host.note(event, **fields)

    warning = error = info


class _Standby:
    """A program that waits for its orders."""

    def __init__(self, argv: list[str]) -> None:
        self._argv = argv

    def start(self) -> None:
        pass

    def run(self, stdin: str) -> None:
        command.run_now(self._argv, stdin=stdin)

    def stop(self) -> None:
        pass


def _patches(network: Network) -> Mapping[Any, Mapping[str, Any]]:
    """Return what stands for what, by module."""
    world = network.world

    def here() -> Host:
        return next(host for host in network.hosts.values() if world.running in (host.node.process, *host.node.beside))

    def on(make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **named: make(here(), *arguments, **named)

    def run_now(argv: list[str], *, stdin: str = "", seconds: float = 10.0) -> str:
        del seconds
        return here().tools.run(argv, stdin=stdin)

    timed = {"monotonic": lambda: world.now}
    return {
        adverts: {"Wire": on(Wire), "SystemRandom": lambda: world.random},
        arp: {"Wire": on(Wire)},
        channel: {"Wire": on(Wire)},
        presence: {"os": SimpleNamespace(urandom=world.chance.randbytes)},
        beside: {"Lock": lambda: Lock(here())},
        command: {
            **timed, "_kill_group": lambda program: program.kill(),
            "run_now": run_now, "told_now": run_now, "Standby": _Standby,
        },
        plane: {**timed, "Beside": lambda _: Beside(here())},
        select: {"installed": dict},
        iptables: {"installed": dict},
        nfnetlink: {"base_chains": list, "keys": lambda *_: []},
        survey: {"_generation": lambda: None},
        kubernetes: dict.fromkeys(("mode_now", "in_ipvs", "in_nftables"), lambda *_: None),
        handoff: {
            "Beside": lambda _: Beside(here()),
            "Offer": lambda loop, _at, _key, _entries, tell: Offer(here(), loop, tell),
        },
        replication: {"Beside": lambda _: Beside(here()), "_Child": lambda _: Conntrackd(here())},
        lock: {"take_copying": lambda _: CopyingLock(world), "find_copying": lambda _: None},
        conntrack: {"fill": lambda: (len(here().tracked), 1 << 20)},
        interface: {
            "is_running": lambda _: here().is_linked,
            "first_address": lambda _: here().address if here().link != "gone" else None,
        },
        kernel: {
            "forwards": lambda *_: here().forwarding,
            "enable_forwarding": lambda *_: setattr(here(), "forwarding", True),
        },
        route: {"outgoing": lambda _: ""},
        reporter: {"logger": lambda **_: _Log(here())},
        standing: {"Ucarp": on(Ucarp)},
        keepalived: {"Keepalived": on(Keepalived)},
        systemd: {"notify": lambda *_: None},
    }  # fmt: skip


@contextmanager
def patched(network: Network) -> Iterator[None]:
    """Have ``kevip.daemon`` and what it imports live on this network."""
    with ExitStack() as patches:
        for module, names in _patches(network).items():
            patches.enter_context(mock.patch.multiple(module, **names))
        yield
