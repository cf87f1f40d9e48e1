"""The daemon: takes all events that are waiting, then makes this host match what the election says."""

import signal
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address
from time import monotonic

from kevip.check import Host, locate
from kevip.config import Config
from kevip.election.carp import Advert, BadAdvertError, Farewell, farewell
from kevip.election.ucarp import Candidacy, Hook, Message, Request, Ucarp, understand
from kevip.errors import KevipError
from kevip.host import address, conntrack, kernel
from kevip.log import logger
from kevip.loop import Loop
from kevip.nat import Proxy
from kevip.runtime import StateFile
from kevip.segment import LATE, Segment
from kevip.service import Service

TICK = address.LEASE / 3
"""Seconds between renewals of the lease, and looks at what else should be so: two may come to nothing."""

TERM_DEADLINE = 2.0
"""Seconds that ucarp has to end after SIGTERM, before SIGKILL."""

HANDOVER, HANDOVER_ALONE = 3.0, 1.4
"""Seconds to wait for a peer to take over: where one was heard before, and where none was.

Backups are silent, so none heard does not mean that none is there. The second is what a goodbye without stages takes
until a backup has acted on it whose ucarp is late.
"""

DRAIN = 1.0
"""Seconds for which connections are still translated after the address went: neighbours may not know yet."""

ANNOUNCEMENTS = (0.1, 0.4, 0.5, 1.0, 2.0)
"""Seconds between announcements of the VIP after a takeover: one ARP lost must not leave a neighbour behind."""

REFRESH = 30.0
"""Seconds between announcements, and between questions who else has the VIP, later on."""

FIRST_RETRY, LAST_RETRY = 1.0, 60.0
"""Seconds before ucarp is started again after a failure: doubled each time, forgotten once it ran for the longest."""

LOOK_AGAIN = 2.0
"""Seconds before ucarp is started again where the interface was not fit: that is cheap to find out."""

STUCK = 3
"""How often rules that cannot be removed are tried again during a stop, a second apart."""

PROMPT = 0.5
"""Seconds after which a master that should have advertised is none any more."""

QUIET = 60.0
"""Seconds in which the same warning is logged once."""

_BAD_ADVERTS = {
    "digest": "its password or VIP is not ours, or another group uses our id: compare --password and --vip on all "
    "replicas, or give this group another --vip-id",
    "version": "VRRP with our id: give this group another --vip-id",
    "ttl": "it came through a router: CARP must not",
}


class Daemon:
    """Serves one VIP on this host until SIGTERM, SIGINT or SIGQUIT. The only writer of what kevip changes on it."""

    def __init__(self, config: Config, host: Host, state: StateFile) -> None:
        self._config = config
        self._host = host
        self._service = Service(
            Proxy(vip=config.vip, target=config.target, global_masquerade=config.global_masquerade), host.iptables
        )
        self._interface = host.placement.interface
        self._state = state
        self._log = logger(vip=str(config.vip))
        self._loop = Loop()
        self._ucarp: Ucarp | None = None
        self._segment: Segment | None = None
        self._elected = False
        self._waiting: list[Request] = []
        self._stopping = False
        self._stuck = 0
        self._handover: float | None = None
        self._retry = FIRST_RETRY
        self._quiet: dict[object, float] = {}
        self._claims: dict[str, float] = {}
        self._repairs = 0
        self._declined = False
        self._farewell: Farewell = []
        self._pauses: list[float] = []

    def run(self) -> None:
        """Serve until a signal says to stop; then leave the host as it was."""
        stop = dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGQUIT), self._on_stop)
        with self._loop.signals({**stop, signal.SIGHUP: self._on_hangup}):
            self._announce_start()
            try:
                self._prepare()
                self._start_ucarp()
                self._tick()
                while not self._stopping or self._is_busy():
                    self._loop.turn()
                    self._settle()
            finally:
                self._leave()
        self._loop.close()
        if self._stuck:
            raise KevipError(f"rules for {self._config.vip} are left on this host: the next start removes them")
        self._log.info("daemon.stopped")

    def _is_busy(self) -> bool:
        """Whether a stop has to wait for something."""
        return self._ucarp is not None or self._handover is not None or self._loop.awaits(self._leave_rules)

    def _settle(self) -> None:
        """Make the host match the election, then let the hook that asked for it, and so ucarp, go on."""
        if self._elected and not self._service.active:
            self._take_over()
        elif self._service.active and not self._elected and self._handover is None:
            self._let_go()
        if self._waiting and self._ucarp:
            while self._waiting:
                self._ucarp.answer(self._waiting.pop())
            self._write_state("master" if self._service.active else "backup")

    # Signals

    def _on_stop(self, number: signal.Signals) -> None:
        if self._stopping:
            return
        self._log.info("daemon.stopping", signal=number.name)
        self._stopping = True
        self._loop.cancel(self._start_ucarp)
        if self._service.active:
            self._hand_over("stop")
        elif self._ucarp:
            self._ucarp.terminate()
            self._loop.after(TERM_DEADLINE, self._end_ucarp)

    def _on_hangup(self, number: signal.Signals) -> None:
        self._log.warning(
            "signal.ignored", signal=number.name, hint="settings are read at start: restart to change them"
        )

    # The election

    def _start_ucarp(self) -> None:
        """Start ucarp on the interface as it is now; if that fails, try again later."""
        config = self._config
        try:
            place = locate(config.vip, config.interface)
            candidacy = Candidacy(
                vip=config.vip,
                vip_id=config.vip_id,
                interface=place.interface,
                source=place.source,
                password=config.password,
                advbase=config.advbase,
                advskew=config.advskew,
                dead_ratio=config.dead_ratio,
                preempt=config.preempt,
                broadcast=config.broadcast,
            )
            self._open_segment(candidacy)
            ucarp = Ucarp(candidacy)
        except (KevipError, OSError) as error:
            self._warn_once("ucarp.not_started", str(error), error=str(error), retry_seconds=LOOK_AGAIN)
            self._loop.after(LOOK_AGAIN, self._start_ucarp)
            return
        self._ucarp, self._interface = ucarp, place.interface
        self._loop.watch(ucarp.channel, partial(self._on_hooks, ucarp))
        self._loop.watch(ucarp.stderr, partial(self._on_lines, ucarp))
        self._loop.watch(ucarp.pidfd, partial(self._on_exit, ucarp))

    def _open_segment(self, candidacy: Candidacy) -> None:
        peers = self._segment.peers if self._segment else {}
        self._close_segment()
        segment = self._segment = Segment(candidacy, peers)
        self._loop.watch(segment, partial(self._on_adverts, segment))
        self._loop.watch(segment.neighbours, partial(self._on_claims, segment))
        self._loop.after(segment.own.seconds + LATE, self._ask)

    def _close_segment(self) -> None:
        if self._segment:
            self._loop.forget(self._segment)
            self._loop.forget(self._segment.neighbours)
            self._segment.close()
            self._segment = None

    def _on_hooks(self, ucarp: Ucarp) -> None:
        for request in ucarp.requests():
            self._elected = request.hook is Hook.UP and not self._is_declined()
            self._waiting.append(request)

    def _is_declined(self) -> bool:
        """Decline the election if this daemon stops, or another host won it and ucarp, which is late, does not know."""
        other = self._segment.master(LATE) if self._segment else None
        if other:
            self._log.info("election.declined", master=str(other))
            self._declined = True
        if other or self._stopping:
            self._end_ucarp()
        return bool(other or self._stopping)

    def _on_lines(self, ucarp: Ucarp) -> None:
        for line in ucarp.lines():
            message, text = understand(line)
            match message:
                case Message.MASTER | Message.BACKUP:
                    self._log.info(message)
                case Message.HOOK_LOST:
                    self._resign(text)
                case Message.OTHER:
                    self._warn_once(message, text, ucarp=text)
                case _:
                    self._log.debug(message, ucarp=text)

    def _on_exit(self, ucarp: Ucarp) -> None:
        """Hand the VIP over when ucarp is gone, whatever the reason, and start it again."""
        self._on_lines(ucarp)
        for source in (ucarp.channel, ucarp.stderr, ucarp.pidfd):
            self._loop.forget(source)
        status = ucarp.close()
        self._ucarp = None
        self._elected = False
        self._waiting.clear()
        self._loop.cancel(self._end_ucarp)
        if ucarp.age() >= LAST_RETRY:
            self._retry = FIRST_RETRY
        if self._handover is None and not self._stopping:
            if self._declined:
                self._declined = False
                self._start_ucarp()
            elif self._service.active:
                self._log.error("ucarp.exited", status=status)
                self._hand_over("ucarp exited")
            else:
                self._try_again("ucarp.exited", status=status)
        self._write_state("init")

    def _try_again(self, event: str, **context: object) -> None:
        self._log.error(event, retry_seconds=self._retry, **context)
        self._loop.after(self._retry, self._start_ucarp)
        self._retry = min(2 * self._retry, LAST_RETRY)

    def _end_ucarp(self) -> None:
        if self._ucarp:
            self._ucarp.kill()

    def _resign(self, reason: str) -> None:
        """Leave the election, because this host cannot serve: ucarp must not advertise what does not work."""
        self._log.error("election.resigned", reason=reason)
        self._hand_over(reason)

    def _on_adverts(self, segment: Segment) -> None:
        for heard in segment.listen():
            if isinstance(heard, BadAdvertError):
                hint = _BAD_ADVERTS.get(heard.reason, "damaged or forged")
                source = str(heard.source or "unknown")
                self._warn_once("election.bad_advert", source, reason=heard.reason, source=source, hint=hint)
            elif self._handover is not None and (heir := segment.master(monotonic() - self._handover)):
                self._end_handover(heir)
            elif self._service.active and self._handover is None:
                self._on_rival(segment, heard)

    def _on_rival(self, segment: Segment, heard: Advert) -> None:
        """Settle at once who of two masters stays it; ucarp, being late, would take a second."""
        if segment.yields_to(heard):
            self._log.warning("election.yielded", to=str(heard.source))
            with suppress(OSError):
                segment.advertise(segment.own)  # it then knows of us, and tells the neighbours where the VIP is
            self._end_ucarp()
            self._declined = True
            self._let_go()
        elif heard.source in segment.peers:
            self._warn_once("election.rival", heard.source, source=str(heard.source), hint="we keep the VIP")
            self._announce()

    # The VIP: taking it over

    def _take_over(self) -> None:
        begin = monotonic()
        self._loop.cancel(self._leave_rules)
        try:
            self._service.take_over(self._interface)
        except KevipError as error:
            self._log.error("takeover.failed", error=str(error))
            self._resign("the takeover failed")
            return
        if self._segment:
            self._segment.advertised = monotonic()
        milliseconds = _milliseconds_since(begin)
        self._loop.after(0, partial(self._complete_takeover, milliseconds))
        self._loop.after(0, self._check_adverts)

    def _complete_takeover(self, milliseconds: float) -> None:
        """Do what need not be done before ucarp goes on."""
        self._announce()
        self._log.info("takeover.done", interface=self._interface, ms=milliseconds)
        try:
            self._service.complete()
        except KevipError as error:
            self._warn_once("takeover.incomplete", None, error=str(error))

    def _announce(self) -> None:
        """Tell the neighbours where the VIP is: now, several times soon, and rarely later."""
        self._pauses = list(ANNOUNCEMENTS)
        self._announce_next()

    def _announce_next(self) -> None:
        if self._segment and self._service.active and self._handover is None:
            with suppress(OSError):
                self._segment.neighbours.announce()
            self._loop.after(self._pauses.pop(0) if self._pauses else REFRESH, self._announce_next)

    # The VIP: keeping it

    def _tick(self) -> None:
        """Look after all that should be so, several times in a lease."""
        self._loop.after(TICK, self._tick)
        if self._ucarp:
            self._ucarp.beat()
        if self._handover is not None:
            return
        if self._ucarp and not self._service.active and self._ucarp.is_frozen():
            self._log.error("ucarp.frozen", hint=f"ucarp ({self._ucarp.pid}) was stopped: it is ended")
            self._end_ucarp()
            return
        self._tend()

    def _check_adverts(self) -> None:
        """Hand the VIP over if ucarp, as master, has stopped to advertise: a peer takes over soon anyway."""
        if not (self._service.active and self._ucarp and self._segment) or self._handover is not None:
            return
        if self._segment.is_silent():
            self._log.error("election.silent", hint=f"ucarp ({self._ucarp.pid}) does not advertise: it is ended")
            self._resign("ucarp does not advertise")
        else:
            self._loop.after(0.25, self._check_adverts)

    def _tend(self) -> None:
        try:
            wrong = self._service.tend()
        except KevipError as error:
            if self._service.active:
                self._resign(str(error))
            else:
                self._warn_once("drift.not_repaired", None, error=str(error))
            return
        if wrong:
            self._repairs += len(wrong)
            self._log.warning("drift.repaired", what=wrong, repairs=self._repairs)

    # The VIP: handing it over

    def _hand_over(self, reason: str) -> None:
        """Make a peer take over, and serve on until it does."""
        self._end_ucarp()
        self._elected = False
        if not self._service.active or self._handover is not None or not self._segment:
            return
        for _ in self._segment.listen():  # what came while this process was stopped, say
            pass
        if heir := self._segment.master(self._segment.own.seconds + PROMPT):
            self._log.info("handover.done", to=str(heir), seconds=0.0)
            self._followed(drain=True)
            return
        self._handover = monotonic()
        self._log.info("handover.started", reason=reason, peers=[str(each) for each in self._segment.peers])
        self._write_state("leaving")
        known = bool(self._segment.peers)
        self._farewell = farewell(self._segment.own, self._config.dead_ratio, staged=known)
        self._say_goodbye()
        self._loop.after(HANDOVER if known else HANDOVER_ALONE, self._end_handover)
        with suppress(KevipError):
            self._service.renew()

    def _say_goodbye(self) -> None:
        if self._farewell and self._segment and self._handover is not None:
            (at, interval), *self._farewell = self._farewell
            with suppress(OSError):
                self._segment.advertise(interval)
            if self._farewell:
                self._loop.after(self._farewell[0][0] - at, self._say_goodbye)

    def _end_handover(self, heir: IPv4Address | None = None) -> None:
        """Let go: a peer has taken over, or none does."""
        if self._handover is None:
            return
        seconds = round(monotonic() - self._handover, 3)
        self._loop.cancel(self._say_goodbye, self._end_handover)
        self._handover = None
        if heir:
            self._log.info("handover.done", to=str(heir), seconds=seconds)
        else:
            self._log.warning("handover.nobody", seconds=seconds, hint="no peer took over: nobody holds the VIP now")
        self._followed(drain=bool(heir))

    def _followed(self, *, drain: bool) -> None:
        self._let_go(drain=drain)
        if not self._stopping:
            self._try_again("ucarp.ended")

    def _let_go(self, *, drain: bool = True) -> None:
        """Remove the address now, and the rules, if another host serves, when the neighbours know."""
        begin = monotonic()
        self._loop.cancel(self._announce_next)
        try:
            self._service.leave_address()
        except KevipError as error:
            self._log.error(
                "release.failed", error=str(error), hint="the kernel removes the address when its lease ends"
            )
        self._log.info("release.done", interface=self._interface, ms=_milliseconds_since(begin))
        self._loop.after(DRAIN if drain else 0, self._leave_rules)

    def _leave_rules(self) -> None:
        try:
            self._service.leave_rules()
            self._stuck = 0
            if not self._stopping:
                self._service.stand_by()
        except KevipError as error:
            self._log.error(
                "release.failed", error=str(error), hint="it is tried again; rules that are left do nothing"
            )
            self._stuck += 1
            if not self._stopping or self._stuck < STUCK:
                self._loop.after(1.0, self._leave_rules)

    # Who else has the VIP

    def _ask(self) -> None:
        self._loop.after(REFRESH, self._ask)
        if self._segment:
            with suppress(OSError):
                self._segment.neighbours.ask()

    def _on_claims(self, segment: Segment) -> None:
        """Warn of a host that keeps claiming the VIP for longer than a lease, while no peer of ours is master."""
        for mac in segment.neighbours.claims():
            if segment.master(segment.own.seconds * self._config.dead_ratio):
                self._claims.clear()
            elif monotonic() - self._claims.setdefault(mac, monotonic()) > address.LEASE:
                self._warn_once(
                    "address.duplicate", mac, mac=mac, hint="this host claims the VIP and is no peer of ours"
                )
            else:
                self._loop.after(address.LEASE + 1, self._ask)

    # Start and stop

    def _announce_start(self) -> None:
        self._log.info(
            "daemon.started",
            target=str(self._config.target),
            interface=self._interface,
            source=str(self._host.placement.source),
            vip_id=self._config.vip_id,
            advskew=self._config.advskew,
            iptables=self._host.iptables.prefix,
            iptables_reason=self._host.iptables_reason,
        )

    def _prepare(self) -> None:
        """Remove what a killed kevip left, and see to it that the host forwards."""
        try:
            if removed := self._service.clear():
                self._log.warning("leftovers.removed", what=removed)
        except KevipError as error:
            self._log.warning("leftovers.stay", error=str(error))
        if not self._host.forwards:
            kernel.enable_forwarding(self._interface)
            self._log.info("forwarding.enabled", sysctl="net.ipv4.ip_forward", interface=self._interface)
        if not conntrack.picks_up_connections():
            self._log.warning(
                "conntrack.strict",
                hint="a failover cuts open connections: sysctl -w net.netfilter.nf_conntrack_tcp_loose=1",
            )
        self._write_state("init")

    def _warn_once(self, event: str, subject: object, **context: object) -> None:
        """Warn of something about a subject, unless that was done a short while ago."""
        if monotonic() >= self._quiet.get((event, subject), 0.0):
            self._quiet[event, subject] = monotonic() + QUIET
            self._log.warning(event, **context)

    def _write_state(self, role: str) -> None:
        try:
            self._state.write(role)
        except OSError as error:
            self._warn_once("state.not_written", None, path=str(self._state.path), error=str(error))

    def _leave(self) -> None:
        """Leave nothing behind, also when the loop ended with an error."""
        if self._ucarp:
            self._ucarp.kill()
            self._ucarp.close()
        try:
            self._service.end()
        except KevipError as error:
            self._log.error("release.failed", error=str(error))
            self._stuck += 1
        self._close_segment()
        with suppress(OSError):
            self._state.remove()


def _milliseconds_since(begin: float) -> float:
    return round((monotonic() - begin) * 1000, 1)
