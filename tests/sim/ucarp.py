"""A model of ucarp 1.5.2, along its carp.c: a drop-in for ``kevip.election.ucarp.Ucarp``."""

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
from sim.child import Child
from sim.world import Process, Source

if TYPE_CHECKING:
    from sim.host import Host

_START, _HOOK = 0.02, 0.002
"""Seconds for all that is done before the election; for a hook to start, and to end."""

_CAPTURE = 1.004
"""Seconds between deliveries of libpcap: a packet is that late at most."""

_DEAF = 10.0
"""Seconds between looks at the carrier, without one; it does nothing else meanwhile."""

_MULTICAST_MAC, _CARP_MAC = bytes.fromhex("01005e000012"), bytes.fromhex("00005e0000")


class Ucarp(Child):
    """A ucarp of a host's daemon."""

    program = "ucarp"

    def __init__(self, host: "Host", candidacy: Candidacy) -> None:
        super().__init__(host)
        self.channel = Source(self._world)
        self._requests: list[Request] = []
        self._tokens = count(1)
        self._token = ""
        self._carp = _Carp(host, candidacy, self)
        self.process = self._carp.process

    # What the daemon does

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

    def terminate(self) -> None:
        """Ask ucarp to end."""
        self._carp.terminate()

    # What happens to it

    def take(self, frame: bytes) -> None:
        """Get a frame."""
        self._carp.capture(frame)

    def see_link(self) -> None:
        """See that the interface went down, or is gone; of a carrier it is told nothing."""
        if self._host.link != "up":
            self._carp.hang_up()

    # What its process does

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
