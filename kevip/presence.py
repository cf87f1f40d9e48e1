"""Who has the VIP, as the neighbours see it: told by gratuitous ARP, and asked."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from time import monotonic

from kevip.host import address
from kevip.loop import Loop
from kevip.reporter import MANY, Reporter
from kevip.segment import LATE, Segment

ANNOUNCEMENTS = (0.1, 0.4, 0.5, 1.0, 2.0)
"""Seconds between announcements of the VIP after a takeover: one ARP lost must not leave a neighbour behind."""

REFRESH = 30.0
"""Seconds between announcements, and between questions who else has the VIP, later on."""

FORGET = timedelta(seconds=2.5 * REFRESH)
"""Time after which nobody claims the VIP any more who has not answered."""


class Presence:
    """Announces the VIP while this host has it, and warns of others that claim it."""

    def __init__(self, loop: Loop, reporter: Reporter, dead_ratio: int) -> None:
        self._loop = loop
        self._reporter = reporter
        self._dead_ratio = dead_ratio
        self._segment: Segment | None = None
        self._pauses: list[float] = []
        self._claims: dict[str, float] = {}

    def enter(self, segment: Segment) -> None:
        """Be on this segment from now on."""
        self._segment = segment
        self._loop.watch(segment.neighbours, partial(self._on_claims, segment))
        self._loop.after(segment.own.seconds + LATE, self._ask)

    def leave(self) -> None:
        """Be on no segment; to be called before it is closed."""
        if self._segment:
            self._loop.forget(self._segment.neighbours)
            self._segment = None

    def announce(self) -> None:
        """Tell the neighbours that the VIP is here: now, several times soon, and rarely later."""
        self._pauses = list(ANNOUNCEMENTS)
        self._announce_next()

    def _announce_next(self) -> None:
        if self._segment:
            with suppress(OSError):
                self._segment.neighbours.announce()
        self._loop.after(self._pauses.pop(0) if self._pauses else REFRESH, self._announce_next)

    def hush(self) -> None:
        """Announce no more."""
        self._loop.cancel(self._announce_next)

    def _ask(self) -> None:
        self._loop.after(REFRESH, self._ask)
        claims, now = self._reporter.record.claims, datetime.now(UTC)
        for mac in [mac for mac, seen in claims.items() if now - seen > FORGET]:
            del claims[mac]
        if self._segment:
            with suppress(OSError):
                self._segment.neighbours.ask()

    def _on_claims(self, segment: Segment) -> None:
        """Warn of a host that keeps claiming the VIP for longer than a lease, while no peer of ours is master."""
        for mac in segment.neighbours.claims():
            if segment.master(segment.own.seconds * self._dead_ratio) or len(self._claims) > MANY:
                self._claims.clear()
                self._reporter.record.claims.clear()
            elif monotonic() - self._claims.setdefault(mac, monotonic()) > address.LEASE:
                self._reporter.record.claims[mac] = datetime.now(UTC)
                hint = "this host claims the VIP and is no peer of ours"
                self._reporter.warn_once("address.duplicate", mac, mac=mac, hint=hint)
            elif not self._loop.awaits(self._ask_again):
                self._loop.after(address.LEASE + 1, self._ask_again)

    def _ask_again(self) -> None:
        self._ask()
