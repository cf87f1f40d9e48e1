"""The daemon: takes all events that are waiting, then makes this host match what the election says."""

import signal
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import IPv4Address
from time import monotonic

from kevip.check import Host, locate
from kevip.config import Config
from kevip.election.carp import Advert, BadAdvertError, Farewell, farewell
from kevip.election.ucarp import Candidacy, Hook, Message, Request, Ucarp, understand
from kevip.errors import KevipError
from kevip.host import address, conntrack, interface, kernel, systemd
from kevip.loop import Loop
from kevip.nat import Proxy
from kevip.presence import Presence
from kevip.record import Reason, Record, Role
from kevip.reporter import Reporter
from kevip.runtime import StateFile
from kevip.segment import LATE, Segment
from kevip.service import Service, kind_of
from kevip.vigil import Vigil

TICK = address.LEASE / 3
"""Seconds between renewals of the lease, and looks at what else should be so: two may come to nothing."""

TERM_DEADLINE = 2.0
"""Seconds that ucarp has to end after SIGTERM, before SIGKILL."""

HANDOVER, HANDOVER_ALONE = 3.5, 2.5
"""Seconds to wait for a peer to take over: where one was heard before, and where none was.

Backups are silent, so none heard does not mean that none is there. That is what a goodbye takes, with and without its
first stages, until a backup has acted on it whose ucarp is late.
"""

DRAIN = 1.0
"""Seconds for which connections are still translated after the address went: neighbours may not know yet."""

FIRST_RETRY, LAST_RETRY = 1.0, 60.0
"""Seconds before ucarp is started again after a failure: doubled each time, forgotten once it ran for the longest."""

LOOK_AGAIN = 2.0
"""Seconds before ucarp is started again where the interface was not fit: that is cheap to find out."""

STUCK = 3
"""How often rules that cannot be removed are tried again during a stop, a second apart."""

PROMPT = 0.5
"""Seconds after which a master that should have advertised is none any more."""

GLANCE = 0.25
"""Seconds between looks at whether adverts go out."""

READY = 10.0
"""Seconds after which systemd is told that the start is done, also out of the election: a cable may be unplugged."""

_BAD_ADVERTS = {
    "digest": "its password or VIP is not ours, or another group uses our id: compare --password and --vip on all "
    "replicas, or give this group another --vip-id",
    "version": "VRRP with our id: give this group another --vip-id",
    "ttl": "it came through a router: CARP must not",
}


class Daemon:
    """Serves one VIP on this host until SIGTERM, SIGINT or SIGQUIT. The only writer of what kevip changes on it.

    ``record`` is what it has seen and done so far.
    """

    def __init__(self, config: Config, host: Host, state: StateFile) -> None:
        self._config = config
        self._host = host
        proxy = Proxy(
            vip=config.vip,
            target=config.target,
            here=host.placement.source,
            global_masquerade=config.global_masquerade,
            ports=config.ports,
            allow_from=config.allow_from,
        )
        self._service = Service(proxy, host.iptables)
        self._interface = host.placement.interface
        self.record = Record(
            vip=config.vip,
            target=config.target,
            vip_id=config.vip_id,
            interface=host.placement.interface,
            iptables=host.iptables.prefix,
            patience=config.advbase * config.dead_ratio + config.advskew / 256,
        )
        self._reporter = Reporter(self.record, state, self._refresh)
        self._log = self._reporter.log
        self._loop = Loop()
        self._presence = Presence(self._loop, self._reporter, config.dead_ratio)
        self._vigil = Vigil(config, self._loop, self._reporter)
        self._ucarp: Ucarp | None = None
        self._segment: Segment | None = None
        self._elected = False
        self._waiting: list[Request] = []
        self._stopping = False
        self._stuck = 0
        self._handover: float | None = None
        self._retry = FIRST_RETRY
        self._rejoins: Reason | None = None
        self._stays = False
        self._farewell: Farewell = []

    def run(self) -> None:
        """Serve until a signal says to stop; then leave the host as it was."""
        stop = dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGQUIT), self._on_stop)
        with self._loop.signals({**stop, signal.SIGHUP: self._on_hangup}):
            self._announce_start()
            try:
                self._prepare()
                self._start_ucarp()
                self._loop.after(READY, partial(systemd.notify, "READY=1"))
                self._vigil.start(lambda: self._service.active, self._stand)
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
        elif self._elected and self._stays:
            self._keep()
        elif self._service.active and not self._elected and self._handover is None:
            self._let_go()
        if self._waiting and self._ucarp:
            while self._waiting:
                request = self._waiting.pop()
                if request.hook is Hook.UP and not self._service.active:
                    self._end_ucarp()  # before it can advertise what is not served
                self._ucarp.answer(request)
            self._enter_as_told()

    def _enter_as_told(self) -> None:
        """Enter the role that ucarp has, and we now have too."""
        if self._handover is not None:
            return
        if self._service.active:
            self._reporter.enter(Role.MASTER, self._segment.reason() if self._segment else Reason.ALONE)
        else:
            self._reporter.enter(Role.BACKUP, self._reason_to_be_backup())

    def _reason_to_be_backup(self) -> Reason:
        """Return why this host is a backup now: what made it leave the last time, if it did."""
        record = self.record
        if record.role is Role.INIT:
            return Reason.JOINED if record.reason in {Reason.STARTED, Reason.UCARP} else record.reason
        if self._segment and self._segment.master(LATE + self._segment.own.seconds):
            return Reason.YIELDED
        return Reason.UNLINKED

    # Signals

    def _on_stop(self, number: signal.Signals) -> None:
        if self._stopping:
            return
        self._log.info("daemon.stopping", signal=number.name)
        systemd.notify("STOPPING=1")
        self._stopping, self._stuck = True, 0
        self._loop.cancel(self._start_ucarp)
        if self._service.active:
            self._hand_over(Reason.STOPPED)
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
            place = locate(config)
            interface.require_carrier(place.interface)
            candidacy = Candidacy(
                vip=config.vip,
                vip_id=config.vip_id,
                interface=place.interface,
                source=place.source,
                password=config.password,
                advbase=config.advbase,
                advskew=self._vigil.advskew,
                dead_ratio=config.dead_ratio,
                preempt=config.preempt,
                broadcast=config.broadcast,
            )
            self._open_segment(candidacy)
            ucarp = Ucarp(candidacy)
        except (KevipError, OSError) as error:
            self._reporter.warn_once("ucarp.not_started", str(error), error=str(error), retry_seconds=LOOK_AGAIN)
            self._loop.after(LOOK_AGAIN, self._start_ucarp)
            return
        self._ucarp, self._interface = ucarp, place.interface
        self.record.ucarp_starts += 1
        self._loop.watch(ucarp.channel, partial(self._on_hooks, ucarp))
        self._loop.watch(ucarp.stderr, partial(self._on_lines, ucarp))
        self._loop.watch(ucarp.pidfd, partial(self._on_exit, ucarp))

    def _open_segment(self, candidacy: Candidacy) -> None:
        peers = self._segment.peers if self._segment else {}
        self._close_segment()
        segment = self._segment = Segment(candidacy, peers)
        self._loop.watch(segment, partial(self._on_adverts, segment))
        self._presence.enter(segment)

    def _close_segment(self) -> None:
        if self._segment:
            self._presence.leave()
            self._loop.forget(self._segment)
            self._segment.close()
            self._segment = None

    def _on_hooks(self, ucarp: Ucarp) -> None:
        for request in ucarp.requests():
            self._elected = request.hook is Hook.UP and not self._is_declined()
            self._waiting.append(request)

    def _is_declined(self) -> bool:
        """Decline the election if this daemon stops, or another host won it and ucarp, which is late, does not know."""
        other = self._segment.superior() if self._segment else None
        if other:
            self._log.info("election.declined", master=str(other))
            self._rejoins = Reason.LATE
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
                    self._reporter.warn_once(message, text, ucarp=text)
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
        if not interface.is_running(self._interface):
            self._rejoins = self._rejoins or Reason.UNLINKED
        if self._stays:
            self._loop.after(0 if ucarp.age() > FIRST_RETRY else FIRST_RETRY, self._start_ucarp)
        elif self._handover is None and not self._stopping:
            self._replace_ucarp(ucarp, status)
        if self._handover is None:
            self._reporter.enter(Role.INIT, Reason.STOPPED if self._stopping else self._rejoins or Reason.UCARP)
        self._rejoins = None

    def _replace_ucarp(self, ucarp: Ucarp, status: int) -> None:
        """Start another ucarp: at once where that was the aim; after an end of its own once the VIP is handed over."""
        if self._rejoins:
            self._start_ucarp()
        elif self._service.active:
            self._log.error("ucarp.exited", status=status, hint=_hint_at_end(ucarp, status))
            self._hand_over(Reason.UCARP)
        else:
            self._try_again("ucarp.exited", status=status, hint=_hint_at_end(ucarp, status))

    def _try_again(self, event: str, **context: object) -> None:
        if self._loop.awaits(self._start_ucarp):
            return
        self._log.error(event, retry_seconds=self._retry, **context)
        self._loop.after(self._retry, self._start_ucarp)
        self._retry = min(2 * self._retry, LAST_RETRY)

    def _end_ucarp(self) -> None:
        if self._ucarp:
            self._ucarp.kill()

    def _rejoin(self, reason: Reason) -> None:
        """End ucarp only to start another one."""
        self._elected = False
        if self._ucarp:
            self._rejoins = reason
            self._end_ucarp()

    def _resign(self, detail: str, reason: Reason = Reason.UNFIT) -> None:
        """Leave the election, because this host cannot serve: ucarp must not advertise what does not work."""
        self._log.error("election.resigned", reason=detail)
        self._hand_over(reason)

    def _on_adverts(self, segment: Segment) -> None:
        for heard in segment.listen():
            if isinstance(heard, BadAdvertError):
                hint = _BAD_ADVERTS.get(heard.reason, "damaged or forged")
                source = str(heard.source or "unknown")
                self.record.bad_adverts[heard.reason] += 1
                self._reporter.warn_once("election.bad_advert", source, reason=heard.reason, source=source, hint=hint)
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
            self._rejoin(Reason.YIELDED)
            self._let_go()
        elif heard.source in segment.peers:
            self._reporter.warn_once("election.rival", heard.source, source=str(heard.source), hint="we keep the VIP")
            self._presence.announce()

    # The VIP: taking it over

    def _take_over(self) -> None:
        begin = monotonic()
        self._beat()
        self._loop.cancel(self._leave_rules)
        try:
            self._service.take_over(self._interface)
        except KevipError as error:
            self._log.error("takeover.failed", error=str(error))
            self._resign("the takeover failed")
            return
        if self._segment:
            self._segment.advertised = monotonic()
        self.record.takeovers.add(monotonic() - begin)
        milliseconds = _milliseconds_since(begin)
        self._loop.after(0, partial(self._complete_takeover, milliseconds))
        self._loop.after(0, self._check_adverts)

    def _complete_takeover(self, milliseconds: float) -> None:
        """Do what need not be done before ucarp goes on."""
        if self._service.active and self._handover is None:
            self._presence.announce()
        self._log.info("takeover.done", interface=self._interface, ms=milliseconds)
        self._beat()
        try:
            self._service.complete()
        except KevipError as error:
            self._reporter.warn_once("takeover.incomplete", None, error=str(error))
        self._reporter.write()

    # The VIP: keeping it

    def _tick(self) -> None:
        """Look after all that should be so, several times in a lease."""
        self._loop.after(TICK, self._tick)
        self._reporter.turn()
        self._beat()
        if self._handover is not None:
            if self._stays:
                with suppress(KevipError):
                    self._service.extend()
            return
        if self._ucarp and not self._service.active:
            self._end_deaf_ucarp(self._ucarp)
        self._tend()

    def _end_deaf_ucarp(self, ucarp: Ucarp) -> None:
        """End a backup's ucarp that hears nothing; another one is started at once, or when there is a link."""
        if ucarp.is_frozen():
            self._log.error("ucarp.frozen", hint=f"ucarp ({ucarp.pid}) was stopped: it is ended")
            self._end_ucarp()
        elif not interface.is_running(self._interface):  # ucarp would sleep for 10 s at a time, as a backup
            self._rejoin(Reason.UNLINKED)

    def _beat(self) -> None:
        """Tell the watchdog that all is well; also before what may take a while."""
        if self._ucarp:
            self._ucarp.beat()

    def _check_adverts(self) -> None:
        """Hand the VIP over if ucarp, as master, has stopped to advertise: a peer takes over soon anyway."""
        if not (self._service.active and self._ucarp and self._segment) or self._handover is not None:
            return
        if self._segment.is_silent():
            self._log.error("election.silent", hint=f"ucarp ({self._ucarp.pid}) does not advertise: it is ended")
            self._resign("ucarp does not advertise", Reason.UCARP)
        else:
            self._loop.after(GLANCE, self._check_adverts)

    def _tend(self) -> None:
        try:
            wrong = self._service.tend()
            self._beat()
        except KevipError as error:
            if self._service.active:
                self._resign(str(error))
            else:
                self._reporter.warn_once("drift.not_repaired", None, error=str(error))
            return
        if wrong:
            self.record.repairs.update(map(kind_of, wrong))
            self._log.warning("drift.repaired", what=wrong, repairs=self.record.repairs.total())

    # The VIP: handing it over

    def _hand_over(self, reason: Reason, *, stay: bool = False) -> None:
        """Make a peer take over, and serve on until it does; or, to stay master then, until we are elected again."""
        self._end_ucarp()
        self._elected = False
        if self._stays:  # by now there is another reason
            self._stays = False
            self._loop.after(HANDOVER, self._end_handover)
            if self._segment:
                self._farewell = farewell(self._segment.own, self._config.dead_ratio, staged=False)
                self._say_goodbye()
        if not self._service.active or self._handover is not None or not self._segment:
            return
        for _ in self._segment.listen():  # what came while this process was stopped, say
            pass
        if heir := self._segment.master(self._segment.own.seconds + PROMPT):
            self.record.handovers.add(0.0)
            self._log.info("handover.done", to=str(heir), seconds=0.0)
            self._followed(heir)
            return
        self._handover = monotonic()
        self._presence.hush()
        self._log.info("handover.started", reason=reason.value, peers=[str(each) for each in self._segment.peers])
        self._reporter.enter(Role.LEAVING, reason)
        known, own = bool(self._segment.peers), self._segment.own
        self._stays = stay
        self._farewell = farewell(own, self._config.dead_ratio, staged=known, to_all=not stay)
        self._say_goodbye()
        patience = HANDOVER + own.advbase * (self._config.dead_ratio + 2) if stay else 0.0
        self._loop.after(patience or (HANDOVER if known else HANDOVER_ALONE), self._end_handover)
        with suppress(KevipError):
            self._service.extend()

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
            self.record.handovers.add(seconds)
            self._log.info("handover.done", to=str(heir), seconds=seconds)
        else:
            self._log.warning("handover.nobody", seconds=seconds, hint="no peer took over: nobody holds the VIP now")
        self._followed(heir)

    def _keep(self) -> None:
        """Go on as master: nobody took over, and we were elected again."""
        self._loop.cancel(self._say_goodbye, self._end_handover)
        self._handover, self._stays = None, False
        self._log.warning("handover.declined", hint="no peer that reaches TARGET took over: the VIP stays here")
        self._reporter.enter(Role.MASTER, Reason.KEPT)
        if self._segment:
            self._segment.advertised = monotonic()
        self._loop.after(0, self._check_adverts)
        self._presence.announce()

    def _followed(self, heir: IPv4Address | None) -> None:
        self._let_go(drain=heir is not None)
        reason = Reason.FOLLOWED if heir else Reason.NOBODY
        stays, self._stays, self._elected = self._stays, False, False
        if stays and self._ucarp:
            self._reporter.enter(Role.BACKUP, reason)
            return
        self._reporter.enter(Role.INIT, reason)
        if not self._stopping:
            self._try_again("ucarp.ended")

    def _let_go(self, *, drain: bool = True) -> None:
        """Remove the address now, and the rules, if another host serves, when the neighbours know."""
        begin = monotonic()
        self._presence.hush()
        try:
            self._service.leave_address()
        except KevipError as error:
            self._log.error(
                "release.failed", error=str(error), hint="the kernel removes the address when its lease ends"
            )
        self._log.info("release.done", interface=self._interface, ms=_milliseconds_since(begin))
        self._loop.after(DRAIN if drain else 0, self._leave_rules)

    def _leave_rules(self) -> None:
        self._beat()
        try:
            self._service.leave_rules()
            self._stuck = 0
            if not self._stopping:
                self._service.stand_by()
        except KevipError as error:
            hint = "it is tried again; rules that are left do nothing"
            self._reporter.warn_once("release.failed", "rules", error=str(error), hint=hint)
            self._stuck += 1
            if not self._stopping or self._stuck < STUCK:
                self._loop.after(1.0 if self._stopping else LOOK_AGAIN * self._stuck, self._leave_rules)

    # The health of TARGET

    def _stand(self) -> None:
        """Stand for election as this host deserves, and as master let a peer take over that deserves it more.

        A backup waits for that until a master is heard: meanwhile its ucarp may be about to be elected.
        """
        segment, vigil = self._segment, self._vigil
        if not segment or not self._ucarp or self._handover is not None or self._stopping:
            return
        as_deserved = segment.own.advskew == vigil.advskew
        if not self._service.active:
            if not as_deserved and segment.master(segment.own.seconds + LATE):
                self._rejoin(Reason.TARGET)
        elif vigil.is_well is not None and not (vigil.is_well and as_deserved) and vigil.may_resign():
            self._hand_over(Reason.TARGET, stay=True)

    # Start and stop

    def _announce_start(self) -> None:
        self._log.info(
            "daemon.started",
            target=str(self._config.target or "none: the VIP is only held"),
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
        if self._config.target and not conntrack.picks_up_connections():
            self._log.warning(
                "conntrack.strict",
                hint="a failover cuts open connections: sysctl -w net.netfilter.nf_conntrack_tcp_loose=1",
            )
        self._reporter.write()

    def _refresh(self, record: Record) -> None:
        """Bring the record up to date."""
        record.interface, record.rules = self._interface, self._service.rules
        if self._segment:
            now, clock = datetime.now(UTC), monotonic()
            record.peers = {peer: now - timedelta(seconds=clock - heard) for peer, heard in self._segment.peers.items()}

    def _leave(self) -> None:
        """Leave nothing behind, also when the loop ended with an error."""
        self._vigil.close()
        if self._ucarp:
            self._ucarp.kill()
            self._ucarp.close()
        try:
            self._service.end()
        except KevipError as error:
            self._log.error("release.failed", error=str(error))
            self._stuck += 1
        self._close_segment()
        self._reporter.close()


def _hint_at_end(ucarp: Ucarp, status: int) -> str:
    """Say what an exit status, or a signal that is negative, tells of a ucarp's end."""
    if ucarp.killed:
        return "kevip ended it, for the reason that it has logged before"
    if status < 0:
        return f"ended by signal {-status}: by the watchdog if kevip stalled, else see dmesg for memory that ran out"
    return "it said why in ucarp.message, if it knew"


def _milliseconds_since(begin: float) -> float:
    return round((monotonic() - begin) * 1000, 1)
