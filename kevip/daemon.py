"""The loop: takes all events that are waiting, then makes this host match what the election says."""

import selectors
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import monotonic
from types import FrameType
from typing import Self

from kevip.check import Host, locate
from kevip.config import Config
from kevip.election.ucarp import Candidacy, Hook, Message, Ucarp, understand
from kevip.errors import KevipError
from kevip.host import address, kernel
from kevip.log import logger
from kevip.nat import Proxy
from kevip.runtime import StateFile
from kevip.service import Service

RENEWAL = address.LEASE / 3
"""Seconds between renewals of the VIP's lease: two may come to nothing."""

TERM_DEADLINE = 2.0
"""Seconds that ucarp has to end after SIGTERM, before SIGKILL."""

FIRST_RETRY, LAST_RETRY = 1.0, 60.0
"""Seconds before ucarp is started again after a failure: doubled each time, forgotten once it ran for the longest."""

QUIET = 60.0
"""Seconds in which a complaint that may come with every advert is logged once."""

_EXPLAINED = {
    Message.BAD_DIGEST: "an advert for our id does not match: a replica has another password or VIP, or another group "
    "uses the id; compare --password and --vip on all replicas, or give this group another --vip-id",
    Message.RIVAL: "another replica advertised as master, less often than we do: we keep the VIP",
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
        self._selector = selectors.DefaultSelector()
        self._timers: dict[Callable[[], None], float] = {}

        self._ucarp: Ucarp | None = None
        self._elected = False
        self._hook_waits = False
        self._retry = FIRST_RETRY
        self._quiet: dict[Message, float] = {}
        self._stopping = False

    def run(self) -> None:
        """Serve until a signal says to stop; then leave the host as it was."""
        with self._catch_signals():
            self._announce()
            try:
                self._prepare()
                self._start_ucarp()
                while self._ucarp or not self._stopping:
                    self._turn()
            finally:
                self._leave()
        self._log.info("daemon.stopped")

    def _turn(self) -> None:
        """Take all that is waiting, then act on it once."""
        due = min(self._timers.values(), default=monotonic() + RENEWAL)
        for key, _ in self._selector.select(max(due - monotonic(), 0.0)):
            key.data()
        for action in [each for each, due in self._timers.items() if due <= monotonic()]:
            del self._timers[action]
            action()
        self._settle()

    def _settle(self) -> None:
        """Make the host match the election, then let the hook that asked for it, and so ucarp, go on."""
        if self._elected and not self._service.active:
            self._take_over()
        elif self._service.active and not self._elected:
            self._release()
        if self._hook_waits and self._ucarp:
            self._ucarp.answer()
            self._hook_waits = False
            self._write_state("master" if self._service.active else "backup")

    # Signals

    def _catch_signals(self) -> "_Signals":
        signals = _Signals(
            {
                signal.SIGTERM: self._on_stop,
                signal.SIGINT: self._on_stop,
                signal.SIGQUIT: self._on_stop,
                signal.SIGHUP: self._on_hangup,
            }
        )
        self._selector.register(signals, selectors.EVENT_READ, signals.dispatch)
        return signals

    def _on_stop(self, number: signal.Signals) -> None:
        self._log.info("daemon.stopping", signal=number.name)
        self._stopping = True
        self._timers.pop(self._start_ucarp, None)
        if self._ucarp:
            self._ucarp.terminate()
            self._timers[self._end_ucarp] = monotonic() + TERM_DEADLINE

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
            ucarp = Ucarp(
                Candidacy(
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
            )
        except KevipError as error:
            self._try_again("ucarp.not_started", error=str(error))
            return
        self._ucarp, self._interface = ucarp, place.interface
        self._selector.register(ucarp.channel, selectors.EVENT_READ, partial(self._on_hooks, ucarp))
        self._selector.register(ucarp.stderr, selectors.EVENT_READ, partial(self._on_lines, ucarp))
        self._selector.register(ucarp.pidfd, selectors.EVENT_READ, partial(self._on_exit, ucarp))

    def _on_hooks(self, ucarp: Ucarp) -> None:
        for hook in ucarp.hooks():
            self._elected = hook is Hook.UP
            self._hook_waits = True

    def _on_lines(self, ucarp: Ucarp) -> None:
        for line in ucarp.lines():
            self._on_message(*understand(line))

    def _on_message(self, message: Message, text: str) -> None:
        match message:
            case Message.MASTER | Message.BACKUP:
                self._log.info(message)
            case Message.SPAWNING:
                self._log.debug(message, ucarp=text)
            case Message.HOOK_LOST:
                self._resign(text)
            case Message.BAD_DIGEST | Message.RIVAL:
                if monotonic() >= self._quiet.get(message, 0.0):
                    self._quiet[message] = monotonic() + QUIET
                    self._log.warning(message, hint=_EXPLAINED[message], ucarp=text)
            case Message.OTHER:
                self._log.warning(message, ucarp=text)
            case _:
                self._log.info(message, ucarp=text)

    def _on_exit(self, ucarp: Ucarp) -> None:
        """Let go of the VIP when ucarp is gone, whatever the reason, and start it again."""
        self._on_lines(ucarp)
        for source in (ucarp.channel, ucarp.stderr, ucarp.pidfd):
            self._selector.unregister(source)
        status = ucarp.close()
        self._ucarp = None
        self._elected = self._hook_waits = False
        self._timers.pop(self._end_ucarp, None)
        self._write_state("init")
        if not self._stopping:
            if ucarp.age() >= LAST_RETRY:
                self._retry = FIRST_RETRY
            self._try_again("ucarp.exited", status=status)

    def _try_again(self, event: str, **context: object) -> None:
        self._log.error(event, retry_seconds=self._retry, **context)
        self._timers[self._start_ucarp] = monotonic() + self._retry
        self._retry = min(2 * self._retry, LAST_RETRY)

    def _end_ucarp(self) -> None:
        if self._ucarp:
            self._ucarp.kill()

    def _resign(self, reason: str) -> None:
        """Leave the election, because this host cannot serve: ucarp must not advertise what does not work."""
        self._log.error("election.resigned", reason=reason)
        self._elected = False
        self._end_ucarp()

    # The VIP

    def _take_over(self) -> None:
        begin = monotonic()
        try:
            self._service.take_over(self._interface)
        except KevipError as error:
            self._log.error("takeover.failed", error=str(error))
            self._resign("the takeover failed")
            return
        self._log.info("takeover.done", interface=self._interface, ms=_milliseconds_since(begin))
        self._timers[self._renew] = monotonic() + RENEWAL

    def _renew(self) -> None:
        """Renew the lease, unless ucarp is stopped: it advertises nothing then, and a peer takes over."""
        self._timers[self._renew] = monotonic() + RENEWAL
        if self._ucarp and self._ucarp.is_frozen():
            self._log.warning("lease.withheld", hint=f"ucarp is stopped: kill -CONT {self._ucarp.pid}, or kill it")
            return
        try:
            self._service.renew()
        except KevipError as error:
            self._log.error("lease.failed", error=str(error))
            self._resign("the lease cannot be renewed")

    def _release(self) -> None:
        begin = monotonic()
        self._timers.pop(self._renew, None)
        try:
            self._service.release()
        except KevipError as error:
            self._log.error("release.failed", error=str(error), hint="the next start removes what is left")
            return
        self._log.info("release.done", interface=self._interface, ms=_milliseconds_since(begin))

    # Start and stop

    def _announce(self) -> None:
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
        if removed := self._service.remove_leftovers():
            self._log.warning("leftovers.removed", what=removed)
        if not self._host.forwards:
            kernel.enable_forwarding(self._interface)
            self._log.info("forwarding.enabled", sysctl="net.ipv4.ip_forward", interface=self._interface)
        self._write_state("init")

    def _write_state(self, role: str) -> None:
        try:
            self._state.write(role)
        except OSError as error:
            self._log.warning("state.not_written", path=str(self._state.path), error=str(error))

    def _leave(self) -> None:
        """Leave nothing behind, also when the loop ended with an error."""
        if self._ucarp:
            self._ucarp.kill()
            self._ucarp.close()
        if self._service.active:
            self._release()
        self._selector.close()
        with suppress(OSError):
            self._state.remove()


class _Signals:
    """Signals as events of the loop: the handlers only queue."""

    def __init__(self, methods: dict[signal.Signals, Callable[[signal.Signals], None]]) -> None:
        self._methods = methods
        self._reader, self._writer = socket.socketpair()

    def fileno(self) -> int:
        """Return what to select on."""
        return self._reader.fileno()

    def dispatch(self) -> None:
        """Call the methods of the signals that came."""
        for number in self._reader.recv(64):
            if number in self._methods:
                self._methods[signal.Signals(number)](signal.Signals(number))

    def __enter__(self) -> Self:
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno())
        self._previous = {number: signal.signal(number, _queued) for number in self._methods}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()


def _queued(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the interpreter has written the number to the wakeup socket by now."""


def _milliseconds_since(begin: float) -> float:
    return round((monotonic() - begin) * 1000, 1)
