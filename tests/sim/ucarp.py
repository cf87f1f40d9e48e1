"""A model of ucarp 1.5.2, along its carp.c, and of the watchdog: a drop-in for ``kevip.election.ucarp.Ucarp``."""

import signal
from collections import deque
from functools import partial
from itertools import count
from math import ceil
from typing import TYPE_CHECKING

from kevip.election.carp import Advert, Group, Interval, build, parse
from kevip.election.packet import PROTOCOL, BadAdvertError
from kevip.election.ucarp import Candidacy, Hook, Request, key
from kevip.host import arp
from kevip.host.wire import BROADCAST
from sim.world import Process, Source

if TYPE_CHECKING:
    from sim.host import Host

_START, _HOOK = 0.02, 0.002
"""Seconds for all that is done before the election; for a hook to start, and to end."""

_CAPTURE = 1.004
"""Seconds between deliveries of libpcap: a packet is that late at most."""

_DEAF = 10.0
"""Seconds between looks at the carrier, without one; it does nothing else meanwhile."""

_WATCH = 5.0
"""Seconds without a beat after which the watchdog ends ucarp."""

_MULTICAST_MAC, _CARP_MAC = bytes.fromhex("01005e000012"), bytes.fromhex("00005e0000")


class Ucarp:
    """A ucarp child of a host's daemon, from fork to close, with its watchdog."""

    program = "ucarp"

    def __init__(self, host: "Host", candidacy: Candidacy) -> None:
        self._host, self._world = host, host.world
        self.pid = host.pid()
        self.channel, self._errors, self._end = (Source(self._world) for _ in range(3))
        self.stderr, self.pidfd = self._errors.fileno(), self._end.fileno()
        self.guard()
        self.killed = False
        self.status: int | None = None
        self._beaten = self._world.now
        self._requests: list[Request] = []
        self._lines: list[str] = []
        self._tokens = count(1)
        self._token = ""
        self._carp = _Carp(host, candidacy, self)
        self.process = self._carp.process
        host.engines.append(self)
        host.note("ucarp.started")
        self._world.after(_WATCH, self._watch)

    # What the daemon does

    def beat(self) -> None:
        """Tell the watchdog that the daemon is well."""
        self._beaten = self._world.now

    def guard(self) -> None:
        """Have a watchdog."""
        self._barks = Source(self._world)
        self.watchdog = self._barks.fileno()
        self._watchdog = True

    @property
    def is_guarded(self) -> bool:
        """Whether its watchdog lives."""
        return self._watchdog

    def guard_anew(self) -> None:
        """Have another one."""
        self.guard()
        self._world.after(_WATCH, self._watch)

    def requests(self) -> list[Request]:
        """Return what hooks have asked for."""
        self.channel.clear()
        requests, self._requests = self._requests, []
        return requests

    def answer(self, request: Request) -> None:
        """Let the hook that waits go on."""
        if request.token == self._token:
            self._token = ""
            self.process.wake(_HOOK)

    def lines(self) -> list[str]:
        """Return what ucarp has written."""
        self._errors.clear()
        lines, self._lines = self._lines, []
        return lines

    def is_frozen(self) -> bool:
        """Whether ucarp was stopped."""
        return self.process.stopped

    def terminate(self) -> None:
        """Ask ucarp to end."""
        self._carp.terminate()

    def kill(self) -> None:
        """End ucarp at once."""
        self.killed = True
        self.die(-signal.SIGKILL)

    def close(self) -> int:
        """Return the exit status of a ucarp that has ended."""
        self._watchdog = False
        return self.status or 0

    # What happens to it

    def die(self, status: int) -> None:
        """End, by a signal or by itself."""
        if self.status is None:
            self.status = status
            self.process.kill()
            self._host.engines.remove(self)
            self._host.note("ucarp.ended", status=status)
            self._end.set()

    def lose_watchdog(self) -> None:
        """Have nobody who ends this if the daemon hangs."""
        self._watchdog = False
        self._barks.set()

    def _watch(self) -> None:
        if not self._watchdog or self.status is not None:
            return
        if self._world.now >= self._beaten + _WATCH:
            self.die(-signal.SIGKILL)
        else:
            self._world.at(self._beaten + _WATCH, self._watch)

    def take(self, frame: bytes) -> None:
        """Get a frame."""
        self._carp.capture(frame)

    def hang_up(self) -> None:
        """See that the interface went down, or is gone."""
        self._carp.hang_up()

    # What its process does

    def say(self, text: str) -> None:
        """Write a line to stderr."""
        self._lines.append(f"ucarp: {text}")
        self._errors.set()

    def ask(self, hook: Hook) -> None:
        """Run a hook, and wait for the daemon's answer."""
        self.process.sleep(_HOOK)
        self._token = str(next(self._tokens))
        self._requests.append(Request(hook, self._token))
        self.channel.set()
        while self._token:
            self.process.wait()


class _Carp:
    """What ucarp's process does, from docarp on. Times that are due are 0 if nothing is."""

    def __init__(self, host: "Host", candidacy: Candidacy, child: Ucarp) -> None:
        self._host, self._world = host, host.world
        self._candidacy, self._child = candidacy, child
        self._group = Group(vhid=candidacy.vip_id, vip=candidacy.vip, key=key(candidacy.password))
        self._own = Interval(candidacy.advbase, candidacy.advskew)
        self._limit = Interval(candidacy.advbase * candidacy.dead_ratio, candidacy.advskew)
        self._packets: deque[bytes] = deque()
        self._phase = self._world.random.random() * _CAPTURE
        self._polls = self._sleeps = self._terminated = self._hung_up = self._deaf = False
        self._state = ""
        self._master_due = self._advert_due = 0.0
        self._arps = -1
        self.process = Process(self._world, self._main)

    def terminate(self) -> None:
        """Take SIGTERM; one that sleeps without a carrier wakes, and sleeps on."""
        self._terminated = True
        if self._polls or self._sleeps:
            self.process.wake()

    def hang_up(self) -> None:
        """Have poll say that the interface is not what it was."""
        self._hung_up = True
        if self._polls:
            self.process.wake()

    def capture(self, frame: bytes) -> None:
        """Get a frame through libpcap, which keeps it for a while, and drops what this ucarp has sent."""
        if frame[12:14] == b"\x08\0" and frame[23] == PROTOCOL and frame[26:30] != self._candidacy.source.packed:
            late = ceil((self._world.now - self._phase) / _CAPTURE) * _CAPTURE + self._phase
            self._world.at(late, partial(self._deliver, frame))

    def _deliver(self, frame: bytes) -> None:
        self._packets.append(frame)
        if self._polls:
            self.process.wake()

    def _main(self) -> None:
        self.process.sleep(_START)
        self._enter_backup()
        self._expect_master()
        while self._host.link != "gone":
            if not self._host.is_linked:
                self._sleep_without_carrier()
                continue
            if self._deaf:
                self._deaf = False
                self._expect_master()
            if self._terminated or self._poll():
                break
        if self._state == "MASTER":
            self._child.ask(Hook.DOWN)
        self._child.die(0)

    def _sleep_without_carrier(self) -> None:
        self._enter_backup()
        self._deaf, self._master_due = True, 0.0
        self._sleeps = True
        self.process.wait(self._world.now + _DEAF)
        self._sleeps = False

    def _poll(self) -> bool:
        """Wait for a packet or a time, and act; say whether to end."""
        if not self._packets and not self._hung_up:
            self._polls = True
            due = self._advert_due or self._world.now + self._own.seconds
            self.process.wait(max(due, self._world.now + 0.001))
            self._polls = False
        if self._terminated:
            return False
        if self._hung_up:
            self._child.say("[ERROR] exiting: pfds[0].revents = 8")
            return True
        now = self._world.now
        if self._packets:
            self._on_packet(self._packets.popleft(), now)
        if self._master_due and now > self._master_due:
            self._take_over(now)
        if self._advert_due and self._world.now >= self._advert_due - 0.001:
            self._advertise(self._world.now)
        return False

    def _on_packet(self, frame: bytes, now: float) -> None:
        try:
            advert = parse(self._group, frame[14:])
        except BadAdvertError:
            self._child.say("[WARNING] Bad digest - Check vhid, password and virtual IP address")
            return
        if not advert:
            return
        if self._state == "MASTER":
            self._on_rival(advert)
        elif (self._candidacy.preempt and self._own < advert.interval) or self._limit < advert.interval:
            self._take_over(now)
            self._child.say("[WARNING] Putting MASTER DOWN (going to time out)")
        else:
            self._expect_master()

    def _on_rival(self, advert: Advert) -> None:
        if (advert.interval, advert.source) < (self._own, self._candidacy.source):
            self._advertise(self._world.now)
            self._enter_backup()
            self._expect_master()
            self._child.say("[WARNING] Preferred master advertised: going back to BACKUP state")
        else:
            self._announce()
            self._arps = 2
            self._child.say("[WARNING] Non-preferred master advertising: reasserting control of VIP")

    def _enter_backup(self) -> None:
        if self._state != "BACKUP":
            self._child.say("[WARNING] Switching to state: BACKUP")
            self._child.ask(Hook.DOWN)
            self._state, self._advert_due = "BACKUP", 0.0

    def _expect_master(self) -> None:
        self._master_due = self._world.now + self._limit.seconds

    def _take_over(self, now: float) -> None:
        self._child.say("[WARNING] Switching to state: MASTER")
        self._child.ask(Hook.UP)
        self._announce()
        self._state, self._master_due = "MASTER", 0.0
        self._advertise(now)
        self._arps = 2

    def _advertise(self, now: float) -> None:
        """Send an advert; the next one is due an interval after a time which may be long ago by now."""
        counter = self._world.random.getrandbits(64)
        advert = Advert(source=self._candidacy.source, interval=self._own, counter=counter)
        to = BROADCAST if self._candidacy.broadcast else _MULTICAST_MAC
        frame = to + _CARP_MAC + bytes([self._group.vhid]) + b"\x08\0" + build(self._group, advert)
        self._host.note("ucarp.advert")
        self._host.network.send(self._host, frame)
        self._advert_due = now + self._own.seconds
        self._arps -= self._arps > 0
        if self._arps == 0:
            self._announce()
            self._arps = -1

    def _announce(self) -> None:
        mac, vip = self._host.mac, self._candidacy.vip
        packet = arp.build(1, mac, vip, BROADCAST, vip)
        self._host.network.send(self._host, BROADCAST + mac + b"\x08\x06" + packet)
