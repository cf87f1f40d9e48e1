"""The model of ucarp in tests/sim is held to the real one: the same is done to both, and the same has to come of it."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from ipaddress import IPv4Address
from itertools import product
from typing import Protocol

import pytest
from lab.network import LAN, VIP, Network
from sim import loop as virtual
from sim import network as sim_network
from sim import ucarp as model
from sim.daemon import Simulated
from sim.host import Host
from sim.world import Process, World

from kevip.election import ucarp as real
from kevip.election.carp import Advert, Group, Interval, build
from kevip.election.packet import GROUP, PROTOCOL
from kevip.election.ucarp import Candidacy, Hook, Message, key, understand
from kevip.host.wire import Wire, adverts
from kevip.loop import Action, Loop, Readable

HEARS = adverts(PROTOCOL, GROUP, 100, outgoing=False)
PASSWORD = "correct horse"  # noqa: S105 - for the lab alone
SEEDS = range(20)
GENEROUS = 0.7
"""Seconds by which the real one may be earlier or later than the model of all seeds: hosts of tests are busy."""

GOODBYE = Interval(4, 0)
Ucarp = real.Ucarp | model.Ucarp


class Turning(Protocol):
    """What both loops can do."""

    def watch(self, source: Readable | int, action: Action) -> None: ...  # noqa: D102

    def forget(self, source: Readable | int) -> None: ...  # noqa: D102

    def after(self, seconds: float, action: Action) -> None: ...  # noqa: D102


class Watcher:
    """Answers the hooks of ucarps at once, keeps their watchdogs calm, and takes down what they say and do."""

    def __init__(self, loop: Turning, clock: Callable[[], float]) -> None:
        self._loop, self._clock = loop, clock
        self._begin = clock()
        self.ucarps: dict[int, Ucarp] = {}
        self.told: dict[int, list[tuple[str, float]]] = {1: [], 2: []}

    def add(self, number: int, ucarp: Ucarp) -> None:
        """Look after a ucarp."""
        self.ucarps[number] = ucarp
        self._loop.watch(ucarp.channel, partial(self._on_hook, number, ucarp))
        self._loop.watch(ucarp.stderr, partial(self._on_lines, number, ucarp))
        self._loop.watch(ucarp.pidfd, partial(self._on_end, number, ucarp))
        self._beat(ucarp)

    def _tell(self, number: int, what: str) -> None:
        self.told[number].append((what, self._clock() - self._begin))

    def _beat(self, ucarp: Ucarp) -> None:
        ucarp.beat()
        self._loop.after(1, partial(self._beat, ucarp))

    def _on_hook(self, number: int, ucarp: Ucarp) -> None:
        for request in ucarp.requests():
            self._tell(number, request.hook)
            ucarp.answer(request)

    def _on_lines(self, number: int, ucarp: Ucarp) -> None:
        for line in ucarp.lines():
            message, _ = understand(line)
            if message in {Message.MASTER, Message.BACKUP}:
                self._tell(number, message)

    def _on_end(self, number: int, ucarp: Ucarp) -> None:
        self._on_lines(number, ucarp)
        for source in (ucarp.channel, ucarp.stderr, ucarp.pidfd):
            self._loop.forget(source)
        self._tell(number, f"ended {ucarp.close()}")


def candidacy(number: int) -> Candidacy:
    return Candidacy(
        vip=IPv4Address(VIP), vip_id=100, interface="eth0", source=IPv4Address(f"{LAN}.1{number}"), password=PASSWORD,
        advbase=1, advskew=[0, 1, 20][number], dead_ratio=3, preempt=False, broadcast=False,
    )  # fmt: skip


class Stage(Protocol):
    """Two hosts on which ucarp runs."""

    watcher: Watcher

    def run(self, seconds: float) -> None: ...  # noqa: D102

    def start(self, number: int) -> None: ...  # noqa: D102

    def signal(self, number: int, what: signal.Signals) -> None: ...  # noqa: D102

    def send(self, number: int, packet: bytes) -> None: ...  # noqa: D102

    def cut(self, *, on: bool) -> None: ...  # noqa: D102

    def carrier(self, number: int, *, on: bool) -> None: ...  # noqa: D102


class Lab:
    """The real ucarp in namespaces."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._loop = Loop()
        self.watcher = Watcher(self._loop, time.monotonic)

    def run(self, seconds: float) -> None:
        """Turn for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._loop.after(end - time.monotonic(), self._turned)
            self._loop.turn()

    def _turned(self) -> None:
        pass

    def start(self, number: int) -> None:
        """Start a ucarp."""
        with self._network.nodes[number - 1].entered():
            self.watcher.add(number, real.Ucarp(candidacy(number)))

    def signal(self, number: int, what: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.watcher.ucarps[number].pid, what)

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
        for ucarp in self.watcher.ucarps.values():
            ucarp.kill()
            ucarp.close()
        self._loop.close()


class Model:
    """The model in virtual time."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self._network = sim_network.Network(self.world)
        self._hosts = [Host(self._network, number, Simulated) for number in (1, 2)]
        self._loop = virtual.Loop(Process(self.world, self._main))
        self.watcher = Watcher(self._loop, lambda: self.world.now)

    def _main(self) -> None:
        while True:
            self._loop.turn()

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.world.run(seconds)

    def start(self, number: int) -> None:
        """Start a ucarp."""
        self.watcher.add(number, model.Ucarp(self._hosts[number - 1], candidacy(number)))

    def signal(self, number: int, what: signal.Signals) -> None:
        """Send a signal."""
        [ucarp] = self._hosts[number - 1].engines
        match what:
            case signal.SIGKILL:
                ucarp.die(-what)
            case signal.SIGSTOP:
                ucarp.process.stop()
            case _:
                ucarp.terminate()

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
        self._hosts[number - 1].carrier = on


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
    """The same events of each host in the same order, at a time at which the model, too, has them with some seed.

    What it says comes by another way than what its hooks do: of one moment, either may be read first.
    """
    models = [Model(seed) for seed in SEEDS]
    for each in models:
        situation(each)
        each.world.close()
    with closing(Lab(network)) as lab:
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
