"""The daemon as it is now, over the models: all that has to be patched for it is patched here."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from kevip import check, daemon, presence, record, reporter, segment, service, vigil
from kevip.config import Config
from kevip.errors import KevipError
from kevip.health import parse_check
from kevip.host import arp, command, conntrack, firewall, interface, kernel, systemd
from kevip.runtime import StateFile
from sim.host import TARGET, VIP, Host, Prober
from sim.loop import Loop
from sim.network import Network, Wire
from sim.ucarp import Ucarp
from sim.world import BOOT

_PASSWORD = "correct horse"  # noqa: S105 - for the simulation alone
_RUN_DIR = Path("/nonexistent")
_IMPORTS = 0.3
"""Seconds from exec to the daemon."""

DEFECTS = {
    "common fault": "without a route to TARGET on all hosts the VIP goes round",
    "one holder": "and then nobody has it, while all wait longer and longer",
    "calm": "some of them until long after the route is back",
    "held if advertised": "a program that hangs for 10 s outlasts lease and watchdog",
    "two holders": "as long as a daemon waits for a program, it does not hear its rival",
    "nothing left": "SIGTERM before its handlers are there ends kevip with -15, whatever is on the host",
    "one engine": "a start that is due is not cancelled by a handover",
}
"""What checkers are known to find, and why."""


class Today:
    """A ``kevip.daemon.Daemon`` on a host."""

    def __init__(self, host: Host, loop: Loop) -> None:
        self.host, self.loop = host, loop
        self._state = _State(host)

    @property
    def role(self) -> str:
        """The role that it says it has."""
        return self._state.role

    def run(self) -> int:
        """Do what the command line does: look at the host, then serve."""
        if self.host.node.process:
            self.host.node.process.sleep(_IMPORTS)
        config = _config(self.host)
        try:
            here = check.Host(
                placement=_locate(config),
                iptables=firewall.Iptables("iptables-nft"),
                iptables_reason="it is the model's",
                forwards=self.host.forwarding,
            )
            daemon.Daemon(config, here, self._state).run()
        except KevipError as error:
            self.host.note("daemon.failed", error=str(error))
            return error.status
        return 0


def _config(host: Host) -> Config:
    settings = dict(host.settings)
    question = parse_check("tcp:80") if settings.pop("check", False) else None
    return Config(vip=VIP, target=TARGET, password=_PASSWORD, check=question, **settings)  # type: ignore[arg-type]


def _locate(config: Config) -> interface.Placement:
    return interface.place(interface.listing(command.run_now), config.vip, config.interface)


class _State(StateFile):
    """The runtime file: what is written there is noted when the role changes."""

    role = "init"

    def __init__(self, host: Host) -> None:
        super().__init__(_RUN_DIR, VIP)
        self._host: Host
        self.__dict__.update(_host=host)  # the runtime file is frozen

    def write(self, record: record.Record) -> None:
        if record.role != self.role:
            self.__dict__.update(role=record.role.value)
            self._host.note("role", role=record.role.value, reason=record.reason.value)

    def remove(self) -> bool:
        return True


class _Log:
    """A logger whose events are noted."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def debug(self, event: str, **fields: object) -> None:
        pass

    def info(self, event: str, **fields: object) -> None:
        self._host.note(event, **fields)

    warning = error = info


class _Standby:
    """A program that waits for its orders."""

    def __init__(self, argv: list[str]) -> None:
        self._argv = argv

    def start(self) -> None:
        pass

    def run(self, stdin: str) -> None:
        command.run_now(self._argv, stdin=stdin)

    def stop(self) -> None:
        pass


def _patches(network: Network) -> Mapping[Any, Mapping[str, Any]]:
    """Return what stands for what, by module."""
    world = network.world

    def here() -> Host:
        return next(host for host in network.hosts.values() if host.node.process is world.running)

    def on(make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **named: make(here(), *arguments, **named)

    def run_now(argv: list[str], *, stdin: str = "") -> str:
        return here().tools.run(argv, stdin=stdin)

    def clock(_zone: object) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=world.now - BOOT + here().clock)

    timed = {"monotonic": lambda: world.now}
    dated = {"datetime": mock.Mock(now=clock)}
    return {
        daemon: {
            **timed, **dated, "Loop": lambda: here().node.loop, "Ucarp": on(Ucarp), "locate": _locate,
        },
        presence: {**timed, **dated},
        record: dated,
        reporter: {**timed, "logger": lambda **_: _Log(here())},
        segment: {**timed, "Wire": on(Wire), "SystemRandom": lambda: world.random},
        arp: {"Wire": on(Wire)},
        service: {**timed, "run_now": run_now},
        vigil: {**timed, "Prober": on(Prober)},
        command: {"run_now": run_now, "Standby": _Standby},
        conntrack: {"picks_up_connections": lambda: True},
        firewall: {"installed": dict},
        interface: {"is_running": lambda _: here().is_linked},
        kernel: {
            "forwards": lambda _: here().forwarding,
            "enable_forwarding": lambda _: setattr(here(), "forwarding", True),
        },
        systemd: {"notify": lambda *_: None},
    }  # fmt: skip


@contextmanager
def patched(network: Network) -> Iterator[None]:
    """Have ``kevip.daemon`` and what it imports live on this network."""
    with ExitStack() as patches:
        for module, names in _patches(network).items():
            patches.enter_context(mock.patch.multiple(module, **names))
        yield
