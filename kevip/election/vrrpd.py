"""The keepalived child: what it is told, where it is, and how it says who is master.

keepalived (facts of 2.2.7 and 2.3.3) only elects here. Without NET_ADMIN it can touch no address, is MASTER all the
same, and with ``VIP/32 dev lo`` its gratuitous ARP goes nowhere. Its configuration is in memory, so that no secret
touches a disk; what it says comes through a FIFO, whose last line counts. SIGTERM is its goodbye: an advert with
priority 0.
"""

import hashlib
import os
import shutil
import signal
import sys
from base64 import urlsafe_b64encode
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address
from pathlib import Path
from random import SystemRandom
from typing import BinaryIO, Literal

from kevip.election.child import Child
from kevip.election.vrrp import PASSWORD, Group
from kevip.host import confine, kernel

# A priority is a host's own one, with more for each reason to prefer it, and each outweighs what is below it: a master
# keeps the VIP before a backup that is as fit, and who reaches TARGET takes it from one that does not.
RANKS = 1, 61  # own priorities
MASTER, FIT = 61, 122
MOST_DEAD = 100  # adverts missed that it can wait for

VrrpVersion = Literal["auto", "2", "3"]  # auto is 2 for whole seconds, which that can say, else 3

REALTIME = 50  # its priority as a real-time process: without one, a busy host is taken for dead at short intervals
REALTIME_NEEDS = "SYS_NICE"  # the capability
_LAST = 5  # lines that are kept, for its end


class State(StrEnum):
    """What keepalived says that it is."""

    MASTER = "MASTER"
    BACKUP = "BACKUP"
    FAULT = "FAULT"  # its interface is down
    STOP = "STOP"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidacy:
    """What this host stands for election with: ``interval`` in seconds, ``dead_ratio`` in adverts.

    ``realtime`` says that it may be a real-time process; what needs a path is in ``run_dir``. With ``peers``, of which
    it may be one itself, it advertises to these.
    """

    vip: IPv4Address
    vip_id: int
    interface: str
    source: IPv4Address
    password: str = field(repr=False)
    interval: float
    priority: int
    dead_ratio: int
    preempt: bool
    realtime: bool
    run_dir: Path
    vrrp_version: VrrpVersion = "auto"
    peers: tuple[IPv4Address, ...] = ()
    settling: float = 0.0  # seconds after its start before it preempts

    @property
    def version(self) -> Literal[2, 3]:
        """The version of VRRP."""
        return version(self.vrrp_version, self.interval)

    def group(self) -> Group:
        """Return what the members of its group share; that takes 50 ms if a password has to be derived."""
        password = secret(self.password, self.vip) if self.version == 2 else b""  # noqa: PLR2004
        return Group(
            version=self.version,
            vrid=self.vip_id,
            vip=self.vip,
            interval=self.interval,
            password=password,
            peers=self.peers,
        )

    @property
    def patience(self) -> float:
        """The seconds after which it takes a silent master for dead."""
        skew = (256 - self.priority - FIT) / 256
        return self.interval * self.dead_ratio + skew * (1 if self.version == 2 else self.interval)  # noqa: PLR2004


def version(wanted: VrrpVersion, interval: float) -> Literal[2, 3]:
    """Return the version of VRRP for an interval in seconds; auto is 2 where that can say it, for it has a password."""
    return 2 if wanted == "2" or (wanted == "auto" and interval == int(interval)) else 3


def random_priority() -> int:
    """Choose a priority that differs between replicas, as a rule, by enough for one of them to come first."""
    return SystemRandom().randint(*RANKS)


def default_interval(*, realtime: bool) -> float:
    """Return the seconds between adverts at which no busy host was taken for dead."""
    return 0.1 if realtime else 0.5


def secret(password: str, vip: IPv4Address) -> bytes:
    """Return the 8 bytes that version 2 sends in clear for a password.

    Up to 8 letters and digits, the password itself, so that plain peers understand us. Else something that does not
    tell it: one try to guess it costs 50 ms.
    """
    if _is_plain(password):
        return password.encode()
    derived = hashlib.scrypt(os.fsencode(password), salt=f"kevip {vip}".encode(), n=1 << 14, r=8, p=1, dklen=6)
    return urlsafe_b64encode(derived)


def _is_plain(password: str) -> bool:
    return len(password) <= PASSWORD and password.isascii() and password.isalnum()


def is_in_clear(candidacy: Candidacy) -> bool:
    """Whether the password itself is in each advert."""
    return candidacy.version == 2 and _is_plain(candidacy.password)  # noqa: PLR2004


def configuration(candidacy: Candidacy, group: Group, home: "Home") -> str:
    """Return keepalived's configuration."""
    password = _block("authentication", ["auth_type PASS", f"auth_pass {group.password.decode()}"])
    others = [str(peer) for peer in candidacy.peers if peer != candidacy.source]
    unicast = f"    unicast_src_ip {candidacy.source}\n" + _block("unicast_peer", others)
    source = unicast if candidacy.peers else f"    mcast_src_ip {candidacy.source}\n"
    realtime = f"    vrrp_rt_priority {REALTIME}\n"
    return f"""\
global_defs {{
    router_id kevip
    vrrp_notify_fifo {home.events}
    script_user root
    enable_script_security
    vrrp_garp_master_refresh 0
{realtime if candidacy.realtime else ""}}}
track_file rank {{
    file {home.rank}
    weight 1
}}
vrrp_instance kevip {{
    interface {candidacy.interface}
    state BACKUP
    virtual_router_id {candidacy.vip_id}
    priority {candidacy.priority}
    version {group.version}
    advert_int {candidacy.interval:g}
    down_timer_adverts {candidacy.dead_ratio}
{source}{password if group.password else ""}    track_file {{
        rank
    }}
    virtual_ipaddress {{
        {candidacy.vip}/32 dev lo
    }}
}}
"""


def _block(name: str, lines: list[str]) -> str:
    return "".join([f"    {name} {{\n", *(f"        {line}\n" for line in lines), "    }\n"])


class Home:
    """The directory of a VIP's keepalived, in kevip's: what cannot be without a path, and no secret."""

    def __init__(self, run_dir: Path, vip: IPv4Address) -> None:
        self.path = run_dir.absolute() / f"{vip}.keepalived"
        self.events, self.rank = self.path / "events", self.path / "rank"
        self.pid, self.child = self.path / "pid", self.path / "child.pid"

    def make(self) -> None:
        """Make it anew; raises OSError."""
        self.remove()
        self.path.mkdir(mode=0o700, parents=True)
        os.mkfifo(self.events, mode=0o600)

    def remove(self) -> bool:
        """Remove it, and say whether there was one."""
        there = self.path.exists()
        shutil.rmtree(self.path, ignore_errors=True)
        return there


def argv(home: Home, *, config_fd: int) -> list[str]:
    """Return keepalived's command line, which has given up what elects nobody. There is no secret in it."""
    bits = kernel.CAPABILITIES["NET_RAW"], kernel.OPTIONAL["SYS_NICE"]
    kept = [str(bit) for bit in bits if bit != kernel.OPTIONAL["SYS_NICE"] or kernel.has_optional("SYS_NICE")]
    return [
        *(sys.executable, "-I", "-S", confine.__file__, ",".join(kept)),
        "keepalived",
        f"--use-file=/proc/self/fd/{config_fd}",
        "--dont-fork",
        "--vrrp",
        "--dont-respawn",
        "--log-console",
        "--no-syslog",
        "--log-detail",
        f"--pid={home.pid}",
        f"--vrrp_pid={home.child}",
    ]


class Keepalived(Child):
    """A running keepalived; ``events`` is the FIFO that it writes to, ``last`` what it said last."""

    program = "keepalived"

    def __init__(self, candidacy: Candidacy, group: Group, home: Home, rank: int) -> None:
        self._home = home
        self.last: deque[str] = deque(maxlen=_LAST)
        self._said, self._rank = b"", -1
        home.make()
        self.rerank(rank)
        with ExitStack() as parts, _readable(configuration(candidacy, group, home)) as config:
            self.events = os.open(home.events, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)  # for writing, it has no end
            parts.callback(os.close, self.events)
            fd = config.fileno()
            super().__init__(argv(home, config_fd=fd), parts, pass_fds=[fd])

    def rerank(self, rank: int) -> None:
        """Stand with so much more than the own priority; raises OSError."""
        if rank != self._rank:
            self._home.rank.write_text(f"{rank}\n")
            self._rank = rank

    def states(self) -> list[State]:
        """Return what it has become since the last call."""
        with suppress(BlockingIOError):
            self._said += os.read(self.events, 1 << 16)
        *lines, self._said = self._said.split(b"\n")
        words = [line.decode(errors="replace").split() for line in lines]
        return [State(word[2]) for word in words if len(word) > 2 and word[2] in list(State)]  # noqa: PLR2004

    def lines(self) -> list[str]:
        """Return what it has written, without the date."""
        lines = [line.partition(": ")[2] or line for line in super().lines()]
        self.last.extend(lines)
        return lines

    def pids(self) -> list[int]:
        """Return the parent, and the child that elects."""
        with suppress(OSError, ValueError):  # it has none yet, or none any more
            return [self.pid, int(self._home.child.read_text())]
        return [self.pid]

    def kill(self) -> None:
        """Have it say goodbye, and end; at once, if it was stopped, for then it hears no signal."""
        self.killed = True
        self._signal(signal.SIGKILL if self.is_frozen() else signal.SIGTERM)

    def end(self) -> None:
        """End parent and child at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def close(self) -> int:
        """Free what belongs to it, when it has ended."""
        self.end()  # a child that outlives its parent takes a second to end
        status = super().close()
        self._home.remove()
        return status


def _readable(text: str) -> BinaryIO:
    """Return a file to read a text from, which is on no disk; keepalived takes none that could be a program."""
    file = os.fdopen(os.memfd_create("keepalived.conf"), "r+b")
    os.fchmod(file.fileno(), 0o400)
    file.write(text.encode())
    file.flush()
    return file
