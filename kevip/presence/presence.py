"""Says what this replica is, every few seconds and at once when that changes, and hears what the others are."""

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from kevip.core.messages import Role
from kevip.host.interface import Placement
from kevip.log import Warn
from kevip.loop import Loop, Moment
from kevip.presence.channel import Channel, Way
from kevip.presence.frame import RUN, Frame, FrameError, Said, Seal
from kevip.presence.group import Group, Member

EVERY = 5.0  # seconds between frames
_APART = 0.1  # seconds between frames at least, however often something changes

_HINTS = {
    "signature": "its password or VIP is not ours: compare --password, --vip and --vip-id on all replicas",
    "version": "another version of kevip, whose frames this one does not read",
}


@dataclass(frozen=True, slots=True)
class Now:
    """What changes of a replica: its role and since when, whether it has the VIP, reaches TARGET, is in standby.

    ``copies`` is whether it copies connections, None if it is not to.
    """

    role: Role = Role.INIT
    since: Moment = 0.0
    holds: bool = False
    target: bool | None = None
    standby: bool = False
    copies: bool | None = None


class Presence:
    """Makes this replica known, and knows the others. ``own`` is what it is, but for what changes."""

    def __init__(self, loop: Loop, seal: Seal, way: Way, own: Said, warn: Warn) -> None:
        self._loop, self._seal, self._way, self._own, self._warn = loop, seal, way, own, warn
        self._group = Group(own.settings)
        self._run, self._number = os.urandom(RUN), 0
        self._now, self._sent = Now(), 0.0
        self._channel: Channel | None = None

    @property
    def members(self) -> dict[IPv4Address, Member]:
        """The other replicas, as far as they were heard."""
        return self._group.members

    @property
    def names(self) -> dict[IPv4Address, str]:
        """What they are called."""
        return {source: each.name for source, each in self.members.items()}

    def successor(self) -> int | None:
        """Return the rank of the backup that comes first of those that are fit, None if none is known."""
        return self._group.successor(self._own.engine, self._loop.now())

    def attach(self, place: Placement) -> None:
        """Be at this place from now on."""
        self._detach()
        self._own = replace(self._own, source=place.source)
        with suppress(OSError):  # the interface went just now: there is nobody to hear
            channel = self._channel = Channel(place, self._way)
            self._loop.watch(channel, self._hear)
            self._soon()

    def _detach(self) -> None:
        if self._channel:
            self._loop.forget(self._channel)
            self._channel.close()
            self._channel = None

    def update(self, now: Now) -> None:
        """Take in what this replica is now; say so, if that is news."""
        if now != self._now:
            self._now = now
            self._soon()

    def _soon(self) -> None:
        self._loop.after(max(self._sent + _APART - self._loop.now(), 0.0), self._send)

    def _send(self) -> None:
        self._loop.after(EVERY, self._send)
        self._sent = self._loop.now()
        self._say()

    def _say(self, *, stopped: bool = False) -> None:
        now, self._number = self._now, self._number + 1
        said = replace(
            self._own,
            role=now.role,
            since=round(max(self._loop.now() - now.since, 0.0), 1),
            holds=now.holds,
            target=now.target,
            copies=now.copies,
            standby=now.standby,
            stopped=stopped,
        )
        with suppress(OSError):  # the interface is down: nobody would hear it
            if self._channel:
                self._channel.send(self._seal.build(Frame(self._run, self._number, said)))

    def _hear(self) -> None:
        for at, source, data in self._channel.hear() if self._channel else ():
            try:
                frame = self._seal.parse(data)
            except FrameError as error:
                reason = str(error)
                hint = _HINTS.get(reason, "damaged or forged")
                self._warn("presence.bad_frame", str(source), reason=reason, source=str(source), hint=hint)
                continue
            if frame.said.source == source != self._own.source and self._group.take_in(frame, at):
                self._soon()  # who has joined is to know us at once

    def close(self) -> None:
        """Say that this replica is no more, and hear no more."""
        self._say(stopped=True)
        self._loop.cancel(self._send)
        self._detach()
