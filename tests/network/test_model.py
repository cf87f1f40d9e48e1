"""The models of tests/sim are held to the programs: the same is done to both, and the same has to come of it."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from ipaddress import IPv4Address
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import pytest
from lab.network import LAN, VIP, Network
from sim import keepalived as keepalived_model
from sim import loop as virtual
from sim import network as sim_network
from sim import ucarp as ucarp_model
from sim.daemon import Simulated
from sim.host import Host
from sim.world import Process, World

from kevip.election import ucarp, vrrpd
from kevip.election.carp import Advert, Group, Interval, build
from kevip.election.packet import GROUP, PROTOCOL
from kevip.election.ucarp import Hook, Message, key, understand
from kevip.host.wire import Wire, adverts
from kevip.loop import Action, Loop, Readable

HEARS = adverts(PROTOCOL, GROUP, 100, outgoing=False)
PASSWORD = "correct horse"  # noqa: S105 - for the lab alone
SEEDS = range(20)
GENEROUS = 3.0
"""Seconds by which the real one may be earlier or later than the model of all seeds: hosts of tests are busy."""

GOODBYE = Interval(4, 0)
Child = Any
"""A real child or a model of one: what is alike in both is what is tried here."""

Hears = dict[Readable | int, Callable[[], list[str]]]


class Turning(Protocol):
    """What both loops can do."""

    def watch(self, source: Readable | int, action: Action) -> None: ...  # noqa: D102

    def forget(self, source: Readable | int) -> None: ...  # noqa: D102

    def after(self, seconds: float, action: Action) -> None: ...  # noqa: D102


class Engine(Protocol):
    """What makes children, does things to them, and understands what they say."""

    def real(self, number: int) -> Child:
        """Start the program, on the host of this number."""

    def model(self, host: Host, number: int) -> Child:
        """Start its model."""

    def hears(self, child: Child) -> Hears:
        """Return where a child says something, with what reads it, and answers."""

    def signal(self, child: Child, what: signal.Signals) -> None:
        """Send a signal to it."""


class Ucarp:
    """ucarp, whose hooks are answered at once."""

    @staticmethod
    def _candidacy(number: int) -> ucarp.Candidacy:
        return ucarp.Candidacy(
            vip=IPv4Address(VIP), vip_id=100, interface="eth0", source=IPv4Address(f"{LAN}.1{number}"),
            password=PASSWORD, advbase=1, advskew=[0, 1, 20][number], dead_ratio=3, preempt=False, broadcast=False,
        )  # fmt: skip

    def real(self, number: int) -> Child:
        """See ``Engine``."""
        return ucarp.Ucarp(self._candidacy(number))

    def model(self, host: Host, number: int) -> Child:
        """See ``Engine``."""
        return ucarp_model.Ucarp(host, self._candidacy(number))

    def hears(self, child: Child) -> Hears:
        """See ``Engine``."""
        return {child.channel: partial(self._hooks, child), child.stderr: partial(self._lines, child)}

    @staticmethod
    def _hooks(child: Child) -> list[str]:
        requests = child.requests()
        for request in requests:
            child.answer(request)
        return [request.hook for request in requests]

    @staticmethod
    def _lines(child: Child) -> list[str]:
        messages = [understand(line)[0] for line in child.lines()]
        return [each for each in messages if each in {Message.MASTER, Message.BACKUP}]

    def signal(self, child: Child, what: signal.Signals) -> None:
        """See ``Engine``."""
        if isinstance(child, ucarp.Ucarp):
            os.kill(child.pid, what)
        else:
            {
                signal.SIGKILL: partial(child.die, -what), signal.SIGSTOP: child.process.stop,
                signal.SIGTERM: child.terminate,
            }[what]()  # fmt: skip


class Keepalived:
    """keepalived, with adverts so often; SIGTERM and SIGKILL are for all of it, what stops it is for who elects."""

    def __init__(self, interval: float, directory: Path) -> None:
        self._interval, self._directory = interval, directory

    def _arguments(self, number: int) -> tuple[vrrpd.Candidacy, Any, vrrpd.Home, int]:
        run_dir = self._directory / str(number)
        candidacy = vrrpd.Candidacy(
            vip=IPv4Address(VIP), vip_id=100, interface="eth0", source=IPv4Address(f"{LAN}.1{number}"),
            password=PASSWORD, interval=self._interval, priority=[0, 50, 10][number], dead_ratio=3, preempt=False,
            realtime=False, run_dir=run_dir,
        )  # fmt: skip
        return candidacy, candidacy.group(), vrrpd.Home(run_dir, candidacy.vip), 100

    def real(self, number: int) -> Child:
        """See ``Engine``."""
        return vrrpd.Keepalived(*self._arguments(number))

    def model(self, host: Host, number: int) -> Child:
        """See ``Engine``."""
        return keepalived_model.Keepalived(host, *self._arguments(number))

    def hears(self, child: Child) -> Hears:
        """See ``Engine``."""
        return {child.events: child.states, child.stderr: partial(self._lines, child)}

    @staticmethod
    def _lines(child: Child) -> list[str]:
        child.lines()
        return []

    def signal(self, child: Child, what: signal.Signals) -> None:
        """See ``Engine``."""
        if what in {signal.SIGTERM, signal.SIGKILL}:
            {signal.SIGTERM: child.kill, signal.SIGKILL: child.end}[what]()
        elif isinstance(child, vrrpd.Keepalived):
            os.kill(child.pids()[-1], what)
        else:
            {signal.SIGSTOP: child.process.stop, signal.SIGCONT: child.process.carry_on}[what]()


class Watcher:
    """Keeps the watchdogs of children calm, and takes down what they say and do."""

    def __init__(self, engine: Engine, loop: Turning, clock: Callable[[], float]) -> None:
        self.engine = engine
        self._loop, self._clock = loop, clock
        self._begin = clock()
        self.children: dict[int, Child] = {}
        self.told: dict[int, list[tuple[str, float]]] = {1: [], 2: []}

    def add(self, number: int, child: Child) -> None:
        """Look after a child."""
        self.children[number] = child
        hears = self.engine.hears(child)
        for source, read in hears.items():
            self._loop.watch(source, partial(self._on_words, number, read))
        self._loop.watch(child.pidfd, partial(self._on_end, number, child, hears))
        self._beat(child)

    def _tell(self, number: int, what: str) -> None:
        self.told[number].append((what, self._clock() - self._begin))

    def _beat(self, child: Child) -> None:
        child.beat()
        self._loop.after(1, partial(self._beat, child))

    def _on_words(self, number: int, read: Callable[[], list[str]]) -> None:
        for each in read():
            self._tell(number, each)

    def _on_end(self, number: int, child: Child, hears: Hears) -> None:
        for source, read in hears.items():
            if source is not getattr(child, "channel", None):  # who would answer has ended
                self._on_words(number, read)
            self._loop.forget(source)
        self._loop.forget(child.pidfd)
        self._tell(number, f"ended {child.close()}")


class Stage(Protocol):
    """Two hosts on which an engine runs."""

    watcher: Watcher

    def run(self, seconds: float) -> None: ...  # noqa: D102

    def start(self, number: int) -> None: ...  # noqa: D102

    def signal(self, number: int, what: signal.Signals) -> None: ...  # noqa: D102

    def rank(self, number: int, rank: int) -> None: ...  # noqa: D102

    def send(self, number: int, packet: bytes) -> None: ...  # noqa: D102

    def cut(self, *, on: bool) -> None: ...  # noqa: D102

    def carrier(self, number: int, *, on: bool) -> None: ...  # noqa: D102


class Lab:
    """The real one in namespaces."""

    def __init__(self, network: Network, engine: Engine) -> None:
        self._network, self._engine = network, engine
        self._loop = Loop()
        self._end = time.monotonic()
        self.watcher = Watcher(engine, self._loop, time.monotonic)

    def run(self, seconds: float) -> None:
        """Turn until so many seconds after the end of the last run: what is done in between takes no time."""
        self._end += seconds
        while (left := self._end - time.monotonic()) > 0:
            self._loop.after(left, self._turned)
            self._loop.turn()

    def _turned(self) -> None:
        pass

    def start(self, number: int) -> None:
        """Start one."""
        with self._network.nodes[number - 1].entered():
            self.watcher.add(number, self._engine.real(number))

    def signal(self, number: int, what: signal.Signals) -> None:
        """Send a signal."""
        self._engine.signal(self.watcher.children[number], what)

    def rank(self, number: int, rank: int) -> None:
        """Change what a host has more than its own priority."""
        self.watcher.children[number].rerank(rank)

    def send(self, number: int, packet: bytes) -> None:
        """Send a packet from a host."""
        with (
            self._network.nodes[number - 1].entered(),
            closing(Wire("eth0", HEARS)) as wire,
        ):
            wire.send_ip(to=bytes.fromhex("01005e000012"), source=bytes(5) + b"\1", packet=packet)

    def cut(self, *, on: bool) -> None:
        """Part the hosts, or let them hear each other."""
        (self._network.cut if on else self._network.mend)(self._network.nodes[0])

    def carrier(self, number: int, *, on: bool) -> None:
        """Pull a cable, or plug it."""
        self._network.set_carrier(self._network.nodes[number - 1], on=on)

    def close(self) -> None:
        """End all that runs."""
        for child in self.watcher.children.values():
            with suppress(ProcessLookupError):  # it has ended
                self._engine.signal(child, signal.SIGKILL)
            child.close()
        self._loop.close()


class Model:
    """The model in virtual time."""

    def __init__(self, seed: int, engine: Engine) -> None:
        self.world, self._engine = World(seed), engine
        self._network = sim_network.Network(self.world)
        self._hosts = [Host(self._network, number, Simulated) for number in (1, 2)]
        self._loop = virtual.Loop(Process(self.world, self._main))
        self.watcher = Watcher(engine, self._loop, lambda: self.world.now)

    def _main(self) -> None:
        while True:
            self._loop.turn()

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.world.run(seconds)

    def start(self, number: int) -> None:
        """Start one."""
        self.watcher.add(number, self._engine.model(self._hosts[number - 1], number))

    def signal(self, number: int, what: signal.Signals) -> None:
        """Send a signal."""
        self._engine.signal(self.watcher.children[number], what)

    def rank(self, number: int, rank: int) -> None:
        """Change what a host has more than its own priority."""
        self.watcher.children[number].rerank(rank)

    def send(self, number: int, packet: bytes) -> None:
        """Send a packet from a host."""
        wire = sim_network.Wire(self._hosts[number - 1], "eth0", HEARS)
        wire.send_ip(to=bytes(6), source=bytes(6), packet=packet)
        wire.close()

    def cut(self, *, on: bool) -> None:
        """Part the hosts, or let them hear each other."""
        self._network.cuts = {("n1", "n2"), ("n2", "n1")} if on else set()

    def carrier(self, number: int, *, on: bool) -> None:
        """Pull a cable, or plug it."""
        self._hosts[number - 1].set_carrier(on=on)


def starts_alone(stage: Stage) -> None:
    stage.start(1)
    stage.run(5)


def a_second_one_joins(stage: Stage) -> None:
    starts_alone(stage)
    stage.start(2)
    stage.run(5)


def the_master_crashes(stage: Stage) -> None:
    a_second_one_joins(stage)
    stage.signal(1, signal.SIGKILL)
    stage.run(7)


def the_master_says_goodbye(stage: Stage) -> None:
    a_second_one_joins(stage)
    stage.signal(1, signal.SIGSTOP)
    group = Group(vhid=100, vip=IPv4Address(VIP), key=key(PASSWORD))
    stage.send(1, build(group, Advert(source=IPv4Address(f"{LAN}.11"), interval=GOODBYE, counter=1)))
    stage.run(4)


def a_preferred_master_is_heard(stage: Stage) -> None:
    stage.cut(on=True)
    stage.start(1)
    stage.start(2)
    stage.run(5)
    stage.cut(on=False)
    stage.run(4)


def both_are_told_to_end(stage: Stage) -> None:
    a_second_one_joins(stage)
    stage.signal(2, signal.SIGTERM)
    stage.signal(1, signal.SIGTERM)
    stage.run(1)


def the_master_has_no_carrier(stage: Stage) -> None:
    """Have it become a backup that sleeps for 10 s at a time, and begins that anew at a SIGTERM."""
    starts_alone(stage)
    stage.carrier(1, on=False)
    stage.run(4)
    stage.signal(1, signal.SIGTERM)
    stage.run(2)
    stage.carrier(1, on=True)
    stage.run(10)


def the_master_ends(stage: Stage) -> None:
    a_second_one_joins(stage)
    stage.signal(1, signal.SIGTERM)
    stage.run(3)


def a_preferred_one_joins(stage: Stage) -> None:
    stage.start(2)
    stage.run(5)
    stage.start(1)
    stage.run(5)


def the_master_falls_in_rank(stage: Stage) -> None:
    a_second_one_joins(stage)
    stage.rank(1, 0)
    stage.run(5)
    stage.rank(1, 200)
    stage.run(5)


def the_master_is_stopped(stage: Stage) -> None:
    """Have another one take over, and go on."""
    a_second_one_joins(stage)
    stage.signal(1, signal.SIGSTOP)
    stage.run(5)
    stage.signal(1, signal.SIGCONT)
    stage.run(2)


def the_carrier_comes_back(stage: Stage) -> None:
    a_second_one_joins(stage)
    stage.carrier(1, on=False)
    stage.run(5)
    stage.carrier(1, on=True)
    stage.run(5)


def compare(network: Network, engine: Engine, situation: Callable[[Stage], None]) -> None:
    """See the same events of each host in the same order, at a time at which the model has them with some seed.

    What ucarp says comes by another way than what its hooks do: of one moment, either may be read first.
    """
    models = [Model(seed, engine) for seed in SEEDS]
    for each in models:
        situation(each)
        each.world.close()
    with closing(Lab(network, engine)) as lab:
        situation(lab)
        told = {number: list(events) for number, events in lab.watcher.told.items()}
    for number, hooks in product(told, (True, False)):
        events = of_kind(told[number], hooks=hooks)
        wanted = [of_kind(each.watcher.told[number], hooks=hooks) for each in models]
        for said in wanted:
            assert [what for what, _ in said] == [what for what, _ in events]
        for at, (what, seconds) in enumerate(events):
            times = [said[at][1] for said in wanted]
            assert min(times) - GENEROUS <= seconds <= max(times) + GENEROUS, f"{what} of host {number}"


def of_kind(events: list[tuple[str, float]], *, hooks: bool) -> list[tuple[str, float]]:
    """Return what came from hooks, or what did not, in its order."""
    return [each for each in events if isinstance(each[0], Hook) is hooks]


@pytest.mark.parametrize(
    "situation",
    [
        starts_alone,
        a_second_one_joins,
        the_master_crashes,
        the_master_says_goodbye,
        a_preferred_master_is_heard,
        both_are_told_to_end,
        the_master_has_no_carrier,
    ],
)
def test_the_model_does_what_ucarp_does(network: Network, situation: Callable[[Stage], None]) -> None:
    compare(network, Ucarp(), situation)


@pytest.mark.parametrize(
    ("situation", "interval"),
    [
        (the_master_crashes, 0.1),
        (the_master_crashes, 1),
        (the_master_ends, 0.1),
        (the_master_ends, 1),
        (a_preferred_one_joins, 1),
        (a_preferred_master_is_heard, 0.1),
        (both_are_told_to_end, 1),
        (the_master_falls_in_rank, 1),
        (the_master_is_stopped, 0.1),
        (the_carrier_comes_back, 1),
    ],
)
def test_the_model_does_what_keepalived_does(
    network: Network, tmp_path: Path, situation: Callable[[Stage], None], interval: float
) -> None:
    """With version 3 of VRRP, and with 2, whose interval is whole seconds."""
    compare(network, Keepalived(interval, tmp_path), situation)
