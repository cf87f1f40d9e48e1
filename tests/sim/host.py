"""A host: its interface and address, its lease of the VIP, rules, routes, programs, and the kevip that runs there."""

import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from ipaddress import IPv4Address
from itertools import count
from math import inf
from typing import Any, Literal, Protocol

from kevip.core.messages import Standby
from kevip.health.ask import Answer
from kevip.presence.group import Member
from sim.child import Child
from sim.conntrackd import Conntrackd
from sim.handoff import Offer
from sim.loop import COST, Loop
from sim.network import Network, Wire
from sim.tools import SLOW, Tools
from sim.world import Process, Source

VIP = IPv4Address("10.77.0.100")
TARGET = IPv4Address("203.0.113.10")

Link = Literal["up", "down", "gone"]

_PATIENCE = 3.0
"""Seconds after which a question to TARGET without an answer has failed."""


class Kevip(Protocol):
    """What the simulation knows of a kevip on a host; ``kevip.daemon`` comes as ``sim.daemon``."""

    @property
    def role(self) -> str:
        """The role that it says it has."""

    @property
    def known(self) -> Mapping[IPv4Address, Member]:
        """The others that it knows."""

    def run(self) -> int:
        """Do all that kevip does from its start to its end, as a process of the host; return the exit status."""


Start = Callable[["Host", Loop], Kevip]
"""Makes the kevip of a host, to be run as a process that turns this loop."""


class Host:
    """A host of the network. What changes is noted, so that the observers of the world see it."""

    interface = "eth0"

    def __init__(self, network: Network, number: int, kevip: Start) -> None:
        self.network, self.world = network, network.world
        self.name = f"n{number}"
        self.address = IPv4Address(f"10.77.0.{10 + number}")
        self.mac = bytes([2, 0, 0, 0, 0, number])
        self.link: Link = "up"
        self.carrier = True
        self.forwarding = self.route = self.target = True
        self.refused = False
        self.clock = 0.0
        self.lease: float | None = None
        self.deleted = -inf
        self.tools = Tools(self)
        self.settings: dict[str, Any] = {}
        self.asked = Standby(-inf)
        self.tracked: set[int] = set()
        self.offer: Offer | None = None
        self.conntrackd: Conntrackd | None = None
        self.wires: list[Wire] = []
        self.engines: list[Child] = []
        self.node = Node(self, kevip)
        self._pids = count(100 * number)
        network.hosts[self.name] = self

    @property
    def is_in_standby(self) -> bool:
        """Whether it was asked to let fit hosts come first, and that is not over."""
        return self.asked.until > self.world.now

    def note(self, event: str, **fields: object) -> None:
        """Tell the world that something happened here."""
        self.world.note(self.name, event, **fields)

    def pid(self) -> int:
        """Return the number of a new process."""
        return next(self._pids)

    # The interface

    @property
    def is_linked(self) -> bool:
        """Whether the interface is up and has a carrier."""
        return self.link == "up" and self.carrier

    def set_link(self, link: Link) -> None:
        """Set the interface up or down, delete it, or make it again; the kernel tells those who have it open."""
        self.link = link
        self._tell_link()
        if link == "gone":
            self.wires.clear()
            self.drop()

    def set_carrier(self, *, on: bool) -> None:
        """Pull the cable, or plug it."""
        self.carrier = on
        self._tell_link()

    def _tell_link(self) -> None:
        for engine in tuple(self.engines):
            engine.see_link()

    def hear(self, frame: bytes, *, outgoing: bool = False) -> None:
        """Give a frame to all who listen, and answer it if it asks for an address that is here."""
        if not self.is_linked:
            return
        for wire in tuple(self.wires):
            wire.take(frame, outgoing=outgoing)
        for engine in () if outgoing else tuple(self.engines):
            engine.take(frame)
        asks = frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\1"
        if asks and not outgoing and self.lease and frame[38:42] == VIP.packed and frame[28:32] != VIP.packed:
            answer = frame[14:20] + b"\0\2" + self.mac + VIP.packed + frame[22:28] + frame[28:32]
            self.network.send(self, frame[6:12] + self.mac + b"\x08\x06" + answer)

    # The VIP

    @property
    def holds(self) -> bool:
        """Whether the VIP is an address of this host."""
        return self.lease is not None

    @property
    def serves(self) -> bool:
        """Whether a client that sends to the VIP here reaches TARGET."""
        return self.holds and self.tools.has_rules and self.forwarding and self.route and self.target

    def hold(self, seconds: float) -> None:
        """Add the VIP, or renew it."""
        end = self.lease = self.world.now + seconds
        self.world.at(end, lambda: self.drop("its lease ends") if self.lease == end else None)

    def drop(self, why: str = "") -> None:
        """Remove the VIP."""
        if self.lease is not None:
            self.lease = None
            self.note("vip.gone", **({"why": why} if why else {}))

    def track(self, connections: Iterable[int]) -> None:
        """Have the kernel know connections."""
        new = set(connections) - self.tracked
        self.tracked |= new
        if self.conntrackd:
            self.conntrackd.see(new)

    def forget(self) -> None:
        """Have the kernel forget all connections."""
        old = set(self.tracked)
        self.tracked.clear()
        if self.conntrackd:
            self.conntrackd.miss(old)

    @property
    def is_astray(self) -> bool:
        """Whether its engine does as it likes: the daemon hangs, and the watchdog that would end it then is gone."""
        hangs = self.node.is_frozen or not self.is_well
        return hangs and any(not engine.is_guarded for engine in self.engines)

    @property
    def is_well(self) -> bool:
        """Whether programs and processor are as they should be."""
        return self.node.slowness < SLOW and self.tools.are_well

    def reaches_target(self) -> bool:
        """Whether this host gets an answer of TARGET."""
        return self.is_linked and self.route and self.target


class Node:
    """The kevip of a host as its process: started, stopped by signals, killed."""

    def __init__(self, host: Host, kevip: Start) -> None:
        self._host, self._kevip = host, kevip
        self.process: Process | None = None
        self.kevip: Kevip | None = None
        self.stopping = False
        self.slowness = 0.0
        self.loop: Loop | None = None
        self.beside: list[Process] = []

    @property
    def runs(self) -> bool:
        """Whether the process is there, be it stopped."""
        return bool(self.process and not self.process.dead)

    @property
    def is_live(self) -> bool:
        """Whether it runs, is meant to, and is not stopped."""
        return bool(self.process and not self.process.dead and not self.process.stopped and not self.stopping)

    @property
    def is_stopping(self) -> bool:
        """Whether it runs, and was told to stop."""
        return self.runs and self.stopping

    @property
    def has_begun(self) -> bool:
        """Whether the process has come as far as to take signals: what it does before leaves no trace."""
        return bool(self.process and self.process.has_caught)

    @property
    def is_frozen(self) -> bool:
        """Whether the process was stopped."""
        return bool(self.process and not self.process.dead and self.process.stopped)

    @property
    def role(self) -> str:
        """The role that kevip has, in its own words; "off" if it does not run."""
        return self.kevip.role if self.runs and self.kevip else "off"

    @property
    def known(self) -> Mapping[IPv4Address, Member]:
        """The others that kevip knows."""
        return self.kevip.known if self.kevip else {}

    def start(self) -> None:
        """Start kevip, unless it runs."""
        if not self.runs:
            self.stopping = False
            self.process = Process(self._host.world, self._main)
            self.loop = Loop(self.process)
            self.starve(self.slowness)
            self.kevip = self._kevip(self._host, self.loop)

    def _main(self) -> None:
        if self.kevip:
            try:
                status = self.kevip.run()
            except Exception as error:  # noqa: BLE001 - a daemon's end, not the simulation's
                self._host.note("daemon.crashed", error=repr(error))
                status = 1
            self._end(status)

    def starve(self, seconds: float) -> None:
        """Have each turn of the loop take so long; 0 for as long as one does."""
        self.slowness = seconds
        if self.loop:
            self.loop.cost = seconds or COST

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the daemon."""
        if not self.process or not self.runs:
            return
        match number:
            case signal.SIGSTOP:
                self._threads("stop")
            case signal.SIGCONT:
                self._threads("carry_on")
            case signal.SIGKILL:
                self._end(-number)
            case signal.SIGUSR1:  # stands for the operator's socket
                self._deliver(self.process, number)
            case _:
                self.stopping = True
                self._deliver(self.process, number)

    def _deliver(self, process: Process, number: signal.Signals) -> None:
        if process.catch:
            process.catch(number)
        else:
            self._end(-number)

    def _end(self, status: int) -> None:
        """End the process, and with it, by the kernel's doing, its engines and sockets."""
        for engine in tuple(self._host.engines):
            engine.lose_parent()
        self._host.wires.clear()
        self._host.offer = None
        if self._host.conntrackd:
            self._host.conntrackd.kill()
        self._host.note("daemon.ended", status=status)
        self._threads("kill")
        self.beside.clear()

    def _threads(self, action: Literal["stop", "carry_on", "kill"]) -> None:
        for each in (self.process, *self.beside):
            if each and not each.dead:
                getattr(each, action)()


class Prober:
    """Drop-in for ``kevip.health.Prober``: asks as long as its process runs."""

    def __init__(self, host: Host, *, interval: float) -> None:
        self._host, self._world = host, host.world
        self._process = host.node.process
        self._interval, self.period = interval, max(interval, _PATIENCE)
        self._source = Source(host.world)
        self._answers: list[tuple[IPv4Address | None, Answer]] = []
        self.source: IPv4Address | None = None
        self._open = True
        self._world.after(0.01, self._ask)

    def _ask(self) -> None:
        if self._open and self._process and not self._process.dead:
            self._world.after(self._interval, self._ask)
            well = self._host.reaches_target()
            late = 0.003 if well or self._host.refused or not self._host.route else min(self._interval, _PATIENCE)
            answer = Answer(seconds=late) if well else Answer(problem="no answer in time")
            if not self._process.stopped:
                self._world.after(late, partial(self._hear, self.source, answer))

    def _hear(self, source: IPv4Address | None, answer: Answer) -> None:
        self._answers.append((source, answer))
        self._source.set()

    def fileno(self) -> int:
        """Return what to select on."""
        return self._source.fileno()

    def answers(self) -> Sequence[Answer]:
        """Return the answers since the last call to what was asked from ``source``, as it is now."""
        self._source.clear()
        answers, self._answers = self._answers, []
        return [answer for source, answer in answers if source == self.source]

    def close(self) -> None:
        """Ask no more."""
        self._open = False
