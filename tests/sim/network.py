"""One switch: frames, as bytes, that are lost, late, doubled or cut off, and packet sockets that hear them."""

import errno
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from kevip.host.wire import Instruction
from sim.world import Source, World

if TYPE_CHECKING:
    from sim.host import Host

CLIENT = "client"
"""Whoever uses the VIP: it hears and is heard, and has no packet socket."""

_LATENCY = 0.0002
_UDP = b"\x11"
_ROOM = 250
"""Packets that wait in a socket's queue, of the size of an advert; what comes then is dropped."""

_LOAD_BYTE, _LOAD_HALF, _LOAD_WORD, _LOAD_LENGTH, _LOAD_BEHIND, _LOAD_HALF_BEHIND = 0x30, 0x28, 0x20, 0xB1, 0x50, 0x48
_JUMP_EQUAL, _JUMP_ANY, _AND, _RETURN = 0x15, 0x45, 0x54, 0x06
_SIZES = {_LOAD_BYTE: 1, _LOAD_HALF: 2, _LOAD_WORD: 4}
_TYPE, _VLAN = 0xFFFFF004, 0xFFFFF030


@dataclass(slots=True)
class Carriage:
    """How frames are carried: how many of them get lost or come twice, and seconds that they may be late."""

    loss: float = 0.0
    duplication: float = 0.0
    delay: float = 0.0
    cuts: set[tuple[str, str]] = field(default_factory=set)


class Network:
    """Carries frames between hosts. ``cuts`` are the ways on which nothing passes: names of sender and receiver.

    What is said in presence can be lost, late, doubled and cut off besides (``presence``), by a chance of its own, so
    that it changes nothing of the chance that all else has. ``ears`` hear all that is sent.
    Copies of connections go over a network of their own: ``apart`` are the hosts that it does not reach.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.hosts: dict[str, Host] = {}
        self.cuts: set[tuple[str, str]] = set()
        self.loss = self.duplication = 0.0
        self.delay = 0.0
        self.presence = Carriage()
        self.ears: list[Callable[[bytes], None]] = []
        self.apart: set[str] = set()
        self.copy_loss = self.copy_delay = 0.0

    def passes(self, sender: str, receiver: str) -> bool:
        """Whether frames get from one to the other, if they are not lost."""
        ends = [self.hosts[name].is_linked for name in (sender, receiver) if name != CLIENT]
        return (sender, receiver) not in self.cuts and all(ends)

    def connects(self, one: str, other: str) -> bool:
        """Whether they hear each other."""
        return self.passes(one, other) and self.passes(other, one)

    def copy(
        self, sender: "Host", receiver: "Host", take: Callable[[set[int]], None], connections: Iterable[int]
    ) -> None:
        """Take what one host's conntrackd says of connections to that of another one, each in a packet of its own."""
        random = self.world.random
        arrived = {each for each in connections if not self.copy_loss or random.random() >= self.copy_loss}
        if not self.apart & {sender.name, receiver.name}:
            self.world.after(_LATENCY + self.copy_delay * random.random(), partial(take, arrived))

    def send(self, sender: "Host", frame: bytes) -> None:
        """Take a frame to all who are to hear it."""
        if not sender.is_linked:
            return
        sender.hear(frame, outgoing=True)
        for ear in self.ears:
            ear(frame)
        told = is_told(frame)
        for host in self.hosts.values():
            ends = sender.name, host.name
            if host is not sender and ends not in self.cuts and not (told and ends in self.presence.cuts):
                self._carry(host, frame, told=told)

    def _carry(self, host: "Host", frame: bytes, *, told: bool) -> None:
        random, more = (self.world.chance, self.presence) if told else (self.world.random, Carriage())
        for _ in range(1 + (random.random() < max(self.duplication, more.duplication))):
            if random.random() >= max(self.loss, more.loss):
                late = _LATENCY * (0.5 + random.random()) + max(self.delay, more.delay) * random.random()
                self.world.after(late, partial(host.hear, frame))


def is_told(frame: bytes) -> bool:
    """Whether a frame is of presence: nothing else is UDP."""
    return frame[12:14] == b"\x08\x00" and frame[23:24] == _UDP


def accepts(program: Sequence[Instruction], frame: bytes, *, outgoing: bool) -> bool:
    """Run a filter, in classic BPF, on a frame; raises NotImplementedError for what no filter of ours used so far."""
    known = {_TYPE: socket.PACKET_OUTGOING if outgoing else socket.PACKET_MULTICAST, _VLAN: 0}
    at = value = length = 0
    while True:
        code, jump, otherwise, operand = program[at]
        at += 1
        if size := _SIZES.get(code):
            value = known[operand] if operand in known else int.from_bytes(frame[operand : operand + size])
        elif code == _LOAD_LENGTH:
            length = (frame[operand] & 0xF) * 4 if len(frame) > operand else 0
        elif code in (_LOAD_BEHIND, _LOAD_HALF_BEHIND):
            size = 1 if code == _LOAD_BEHIND else 2
            found = frame[length + operand : length + operand + size]
            value = int.from_bytes(found) if len(found) == size else -1
        elif code == _AND:
            value &= operand
        elif code in (_JUMP_EQUAL, _JUMP_ANY):
            at += jump if (value == operand if code == _JUMP_EQUAL else value & operand) else otherwise
        elif code == _RETURN:
            return operand > 0
        else:
            raise NotImplementedError(f"BPF instruction {code:#x}")


class Wire:
    """Drop-in for ``kevip.host.wire.Wire``: belongs to the interface as it is now, and is deaf when that is gone."""

    def __init__(self, host: "Host", interface: str, instructions: Sequence[Instruction]) -> None:
        if interface != host.interface or host.link == "gone":
            raise OSError(errno.ENODEV, "No such device")
        self._host = host
        self._instructions = instructions
        self._source = Source(host.world)
        self._packets: deque[tuple[float, bytes]] = deque()
        host.wires.append(self)

    @property
    def mac(self) -> bytes:
        """The interface's MAC address."""
        return self._host.mac

    def join(self, interface: str, group: bytes) -> None:
        """Hear a multicast group: each host does."""

    def take(self, frame: bytes, *, outgoing: bool) -> None:
        """Queue a frame, if the filter lets it through and there is room."""
        if len(self._packets) < _ROOM and accepts(self._instructions, frame, outgoing=outgoing):
            self._packets.append((self._host.world.now, frame))
            self._source.set()

    def fileno(self) -> int:
        """Return what to select on."""
        return self._source.fileno()

    def hear(self) -> Iterator[tuple[float, bytes]]:
        """Yield what came, and when."""
        while self._packets:
            yield self._packets.popleft()
        self._source.clear()

    def send(self, *, to: bytes, source: bytes, kind: int, payload: bytes) -> None:
        """Send an Ethernet frame; raises OSError."""
        if self._host.link != "up" or self not in self._host.wires:
            raise OSError(errno.ENETDOWN, "Network is down")
        self._host.network.send(self._host, to + source + struct.pack("!H", kind) + payload)

    def send_ip(self, *, to: bytes, source: bytes, packet: bytes) -> None:
        """Send an IPv4 packet in an Ethernet frame; raises OSError."""
        self.send(to=to, source=source, kind=0x0800, payload=packet)

    def close(self) -> None:
        """Hear no more."""
        with suppress(ValueError):
            self._host.wires.remove(self)
