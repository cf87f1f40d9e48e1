"""Somebody on the network who tampers with presence, with the password and without: now and then, by chance."""

from collections import deque
from dataclasses import replace
from ipaddress import IPv4Address

from kevip.core.messages import Role
from kevip.election.packet import GROUP, wrap
from kevip.presence.channel import unwrap
from kevip.presence.frame import MOST, RUN, Frame, Seal
from sim.daemon import PORT, SEAL
from sim.network import Network, is_told

KINDS = ("garbage", "damage", "stranger", "replay", "readdress", "forge")
"""What he does: noise, what was heard with a byte changed, frames with another password, what was heard, the same from
another host, and, for he knows the password here, whatever he likes."""

_PAUSE = 2.0
"""Seconds between two attacks, at most."""

_MANY = 500
"""Frames to remember."""

_UDP, _HEAD = 17, 8
_ETHER = bytes([0xFF] * 6 + [2] * 6 + [8, 0])
_STRANGER = Seal(b"another password", 100)


class Attacker:
    """Hears what replicas say, and sends them frames of some kinds until it is told to end."""

    def __init__(self, network: Network, kinds: list[str]) -> None:
        self._network, self._chance = network, network.world.chance
        self._kinds = [getattr(self, f"_{kind}") for kind in kinds]
        self._heard: deque[tuple[IPv4Address, bytes]] = deque(maxlen=_MANY)
        self._number = 0
        network.ears.append(self._hear)
        self._attack()

    def end(self) -> None:
        """Do no more."""
        self._kinds.clear()

    def _hear(self, frame: bytes) -> None:
        if is_told(frame):
            self._heard.append(unwrap(frame[len(_ETHER) :]))

    def _attack(self) -> None:
        if not self._kinds:
            return
        self._network.world.after(self._chance.uniform(0, _PAUSE), self._attack)
        if self._heard:
            source, data = self._chance.choice(self._kinds)(*self._chance.choice(self._heard))
            length = _HEAD + len(data)
            udp = b"".join(each.to_bytes(2) for each in (PORT, PORT, length, 0)) + data
            packet = wrap(source, udp, identity=0, service=0, target=GROUP, protocol=_UDP)
            hosts = list(self._network.hosts.values())
            for host in hosts if self._chance.random() < 0.5 else [self._chance.choice(hosts)]:
                host.hear(_ETHER + packet)

    def _garbage(self, source: IPv4Address, data: bytes) -> tuple[IPv4Address, bytes]:
        noise = self._chance.randbytes(self._chance.randrange(MOST + 50))
        return source, data[: self._chance.randrange(30)] + noise

    def _damage(self, source: IPv4Address, data: bytes) -> tuple[IPv4Address, bytes]:
        at, change = self._chance.randrange(len(data)), self._chance.randrange(1, 256)
        return source, data[:at] + bytes([data[at] ^ change]) + data[at + 1 :]

    def _stranger(self, source: IPv4Address, data: bytes) -> tuple[IPv4Address, bytes]:
        return source, _STRANGER.build(SEAL.parse(data))

    def _replay(self, source: IPv4Address, data: bytes) -> tuple[IPv4Address, bytes]:
        return source, data

    def _readdress(self, _source: IPv4Address, data: bytes) -> tuple[IPv4Address, bytes]:
        return self._someone(), data

    def _someone(self) -> IPv4Address:
        """Return the address of a host, or of none."""
        real = [host.address for host in self._network.hosts.values()]
        return self._chance.choice([*real, self._chance.choice(real) + 100])

    def _forge(self, source: IPv4Address, data: bytes) -> tuple[IPv4Address, bytes]:
        chance, heard = self._chance, SEAL.parse(data)
        self._number += 1
        source = chance.choice([source, self._someone()])
        said = replace(
            heard.said,
            source=source,
            rank=chance.choice([0, heard.said.rank, 203, 255]),
            role=chance.choice(list(Role)),
            since=chance.choice([0.0, 1e9]),
            holds=chance.random() < 0.5,
            target=chance.choice([None, True, False]),
            standby=chance.random() < 0.3,
            stopped=chance.random() < 0.3,
        )
        run = chance.choice([heard.run, chance.randbytes(RUN)])
        number = chance.choice([heard.number + 1, 10**6 + self._number, 2**64 - 1])
        return source, SEAL.build(Frame(run, number, said))
