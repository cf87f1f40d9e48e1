"""Which rules proxy a VIP to its TARGET, by what they are for; a back end has their text.

::

                    mangle PREROUTING     nat PREROUTING        filter FORWARD     nat POSTROUTING
   client ── VIP ──►──────────────────────► DNAT to TARGET ──────► (ACCEPT) ──────► SNAT to VIP ──► TARGET
   master itself ─── nat OUTPUT: DNAT to TARGET ──────────────────────────────────► SNAT to VIP ──► TARGET
   TARGET ── VIP ──► DROP what no                    (conntrack undoes DNAT and SNAT for replies)
                     connection here expects
   others ── VIP ──► DROP unless allowed
                                             ports not listed:  filter INPUT: REJECT

What is proxied is accepted in FORWARD only where the policy there is to drop, and last: what others refuse stays so. In
the same way INPUT accepts what this host has to hear of the others. What conntrackd hears, it takes from whomever: so
INPUT drops, first of all, what is none of the others'.

DNAT and DROP match only while the VIP is an address of this host, SNAT and ACCEPT only connections that came in for
it: on a host that does not hold the VIP, they do nothing. So they are there before it is, and a takeover is an address.
Only a global masquerade is not like that, and comes with the takeover.

A TARGET that somebody else translates, as kube-proxy does, is not for DNAT: see ``rewrite``.
"""

from dataclasses import dataclass
from enum import StrEnum, auto
from ipaddress import IPv4Address, IPv4Network
from socket import IPPROTO_UDP
from typing import Literal


class Part(StrEnum):
    """What a rule is for, which says what it counts. The names are labels of metrics."""

    GUARD = auto()
    """Drops what opens no connection that we want, or belongs to none."""
    REFUSE = auto()
    """Refuses what is sent to other ports than those that are proxied."""
    SHIELD = auto()
    """Drops what others than the hosts of the group send to conntrackd."""
    FORWARD = auto()
    """Counts what is forwarded."""
    ACCEPT = auto()
    """Lets that pass where the policy would drop it."""
    HEAR = auto()
    """Lets in what this host has to hear of the others, where the policy would drop it."""
    DNAT = auto()
    """Sends it to TARGET."""
    REWRITE = auto()
    """Makes it a packet to TARGET before it is tracked, for somebody else translates that."""
    UNDONE = auto()
    """Refuses what was rewritten, and is not translated."""
    SNAT = auto()
    """Gives it the VIP as its source."""
    MASQUERADE = auto()
    """Gives all that leaves this host its address."""


Parts = frozenset[Part]

OPENS = {Part.ACCEPT: "FORWARD", Part.HEAR: "INPUT"}
"""What is needed in each back end whose policy is to drop, and in which chain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule of ours in the kernel, and the packets and bytes that it matched since it is there.

    ``part`` is what it is for; None for one that only leads to others, or excepts something.
    """

    text: str
    part: Part | None
    packets: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP or UDP ports, from the first to the last of them."""

    protocol: Literal["tcp", "udp"]
    first: int
    last: int

    def has(self, protocol: str, port: int) -> bool:
        """Whether a port is one of these."""
        return self.protocol == protocol and self.first <= port <= self.last

    def __str__(self) -> str:
        numbers = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return numbers if self.protocol == "tcp" else f"{numbers}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class Forward:
    """What is sent to a VIP, at these ports or at all that no other forward of it names, goes to a target.

    ``port`` is the one of the target, where that is another.
    """

    vip: IPv4Address
    target: IPv4Address
    ports: Ports | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Inlet:
    """What this host has to hear of the others: an IP protocol, from or to an address, to a TCP or UDP port."""

    protocol: int
    port: int | None = None
    source: IPv4Address | None = None
    destination: IPv4Address | None = None
    interface: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """Where conntrackd hears the other hosts: a UDP port on an interface; with ``peers``, these and nobody else."""

    port: int
    interface: str
    peers: tuple[IPv4Address, ...] = ()

    @property
    def inlets(self) -> tuple[Inlet, ...]:
        """What is heard there."""
        sources = self.peers or (None,)
        return tuple(Inlet(IPPROTO_UDP, port=self.port, source=each, interface=self.interface) for each in sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """What is sent to the VIP goes to the target, which sees it come from the VIP.

    The VIP is the first one of its group, and its name; ``forwards`` has the others, and what goes elsewhere. Targets
    see the VIP that was connected to, or ``source``, which is one of the group.

    With ``global_masquerade``, everything that leaves this host is masqueraded instead, as older set-ups expect. With
    ``ports``, what is sent to others is refused. With ``allow_from``, what others send is dropped; ``here`` is this
    host's address there, for its own processes send to the VIP from the VIP. Without a target nothing is proxied. With
    a ``channel``, what others send there is dropped.
    """

    vip: IPv4Address
    target: IPv4Address | None
    here: IPv4Address | None = None
    global_masquerade: bool = False
    ports: tuple[Ports, ...] = ()
    allow_from: tuple[IPv4Network, ...] = ()
    inlets: tuple[Inlet, ...] = ()
    channel: Channel | None = None
    forwards: tuple[Forward, ...] = ()
    source: IPv4Address | None = None

    @property
    def routes(self) -> tuple[Forward, ...]:
        """All that is proxied."""
        return ((Forward(self.vip, self.target),) if self.target else ()) + self.forwards

    @property
    def vips(self) -> tuple[IPv4Address, ...]:
        """The addresses of the group, this one first."""
        return tuple(dict.fromkeys((self.vip, *(each.vip for each in self.forwards))))

    @property
    def targets(self) -> tuple[IPv4Address, ...]:
        """Where something is sent on to."""
        return tuple(dict.fromkeys(each.target for each in self.routes))

    @property
    def returns(self) -> tuple[tuple[IPv4Address, IPv4Address], ...]:
        """The targets, and the VIP that each of them answers to."""
        return tuple(dict.fromkeys((each.target, self.source or each.vip) for each in self.routes))

    @property
    def limited(self) -> tuple[IPv4Address, ...]:
        """The VIPs of which not all ports are proxied."""
        whole = set() if self.ports else {each.vip for each in self.routes if not each.ports}
        return tuple(each for each in self.vips if each not in whole) if self.routes else ()

    @property
    def parts(self) -> Parts:
        """What is needed in one back end, whatever the policies are in any."""
        if not self.routes:
            return frozenset()
        source = Part.SNAT if self.global_masquerade else Part.MASQUERADE
        return frozenset(Part) - OPENS.keys() - {source, Part.REWRITE, Part.UNDONE}

    @property
    def opens(self) -> Parts:
        """What is needed where the policy is to drop."""
        return frozenset(({Part.ACCEPT} if self.routes else set()) | ({Part.HEAR} if self.inlets else set()))

    @property
    def allows_itself(self) -> bool:
        """Whether processes of this host may use the VIP; what they then send is not seen by the guard."""
        return not self.allow_from or any(self.here in network for network in self.allow_from if self.here)

    def route(self, vip: IPv4Address, port: int) -> Forward | None:
        """Return how a TCP port of a VIP goes, or what goes of it at all, for port 0."""
        of_vip = [each for each in self.routes if each.vip == vip]
        whole = [each for each in of_vip if not each.ports]
        named = [each for each in of_vip if each.ports and each.ports.has("tcp", port)]
        return next(iter(named + whole if port else whole + of_vip), None)

    def serves(self, port: int) -> bool:
        """Whether a process of this host that asks the VIP for a TCP port is proxied."""
        return self.allows_itself and (not self.ports or any(each.has("tcp", port) for each in self.ports))

    @property
    def sources(self) -> tuple[IPv4Network, ...]:
        """The networks that may use the VIP, none if all may; this host among them sends from the VIP itself."""
        itself = map(IPv4Network, self.vips) if self.allow_from and self.allows_itself else ()
        return (*self.allow_from, *itself)


def rewriting(parts: Parts) -> Parts:
    """Return what is needed instead where somebody else translates TARGET, in nftables only."""
    return parts - {Part.DNAT} | {Part.REWRITE, Part.UNDONE}
