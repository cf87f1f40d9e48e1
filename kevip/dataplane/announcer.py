"""Who has the VIPs of a group, as the neighbours see it: told by gratuitous ARP, and asked."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address

from kevip.dataplane.lease import LEASE
from kevip.host.arp import Neighbours
from kevip.log import Warn
from kevip.loop import Loop

ANNOUNCEMENTS = (0.1, 0.4, 0.5, 1.0, 2.0)
"""Seconds between announcements of the VIP after a takeover: one ARP lost must not leave a neighbour behind."""

REFRESH = 30.0
"""Seconds between announcements, and between questions who else has the VIP, later on."""

AT_ONCE, PACE = 25, 0.1
"""How many VIPs are announced at a time, but for the first round, and seconds between: switches limit broadcasts."""

ANSWER = LEASE + 1.0
"""Seconds after a question in which whoever claims the VIP has answered, and a host that lost it has it no more."""

MANY = 10
"""MAC addresses to tell apart: they can be forged."""

OTHERS = "others"
"""What stands for all further ones."""


@dataclass(slots=True)
class _Claim:
    """When a host has claimed the VIP first, and last."""

    first: float
    last: float


class Announcer:
    """Announces VIPs while this host has them, and warns of others that claim one while no peer ``is_led``."""

    def __init__(
        self, loop: Loop, vips: Sequence[IPv4Address], is_led: Callable[[], bool], warn: Warn, *, first: float = 2.5
    ) -> None:
        self._loop = loop
        self._vips = vips
        self._is_led = is_led
        self._warn = warn
        self._first = first
        self._neighbours: Neighbours | None = None
        self._pauses: list[float] = []
        self._left: Sequence[IPv4Address] = ()  # of this round
        self._heard: dict[str, _Claim] = {}
        self._asked = 0.0

    @property
    def claims(self) -> dict[str, float]:
        """The MAC addresses that claim a VIP for longer than a lease, and when each did last."""
        return {mac: claim.last for mac, claim in self._valid().items() if claim.last - claim.first > LEASE}

    def attach(self, interface: str) -> None:
        """Be on this interface from now on; raises OSError."""
        self.detach()
        self._neighbours = Neighbours(interface, *self._vips)
        self._loop.watch(self._neighbours, self._on_claims)
        self._loop.after(self._first, self._ask)

    def detach(self) -> None:
        """Be on no interface."""
        self._loop.cancel(self._ask)
        self._heard.clear()
        if self._neighbours:
            self._loop.forget(self._neighbours)
            self._neighbours.close()
            self._neighbours = None

    def announce(self) -> None:
        """Tell the neighbours that the VIPs are here: now, several times soon, and rarely later."""
        self._pauses, self._left = list(ANNOUNCEMENTS), ()
        self._say(self._vips)

    def _say(self, vips: Sequence[IPv4Address]) -> None:
        if self._neighbours:
            with suppress(OSError):
                self._neighbours.announce(vips)
        rest = self._pauses.pop(0) if self._pauses and not self._left else REFRESH
        self._loop.after(PACE if self._left else rest, self._say_next)

    def _say_next(self) -> None:
        some = self._left or self._vips
        self._left = some[AT_ONCE:]
        self._say(some[:AT_ONCE])

    def hush(self) -> None:
        """Announce no more."""
        self._loop.cancel(self._say_next)

    def _ask(self) -> None:
        """Ask who else has the VIPs, and forget who has not answered the last time."""
        self._heard = {mac: claim for mac, claim in self._valid().items() if claim.last >= self._asked}
        self._asked = self._loop.now()
        self._loop.after(ANSWER if self._heard else REFRESH, self._ask)
        if self._neighbours:
            with suppress(OSError):
                self._neighbours.ask()

    def _on_claims(self) -> None:
        """Warn of a host that keeps claiming a VIP for longer than a lease."""
        claims = self._neighbours.claims() if self._neighbours else []
        heard, now = self._valid(), self._loop.now()
        for mac, vip in claims if not self._is_led() else ():
            if not heard:
                self._loop.after(ANSWER, self._ask)
            name = mac if vip == self._vips[0] else f"{mac} ({vip})"
            name = name if name in heard or len(heard) < MANY else OTHERS
            claim = heard.setdefault(name, _Claim(now, now))
            claim.last = now
            if claim.last - claim.first > LEASE:
                hint = "this host claims the VIP and is no peer of ours"
                self._warn("address.duplicate", name, mac=name, hint=hint)

    def _valid(self) -> dict[str, _Claim]:
        """Return the claims, none while a peer is heard as master, or just was: that was its right, and before."""
        if self._is_led():
            self._heard.clear()
        return self._heard
