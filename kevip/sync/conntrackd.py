"""conntrackd, which copies connections to the kernels of other hosts: what it is told, and what it tells.

Facts of version 1.4.7. It sends what its filter lets pass, of which ``Address`` knows client and TARGET, never the VIP:
so there must be one for each TARGET of a host, on a port of its own. Another one would take what the first has written
for news, send it back, and so on, until the connection is deleted. What it is sent, from whomever, it writes into the
kernel: its protocol has neither a password nor a filter. By UDP it has one peer, by multicast any number.
"""

import re
import shutil
import sys
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

from kevip.dataplane.rules import Channel
from kevip.host import confine, kernel

GROUP = IPv4Address("225.0.0.50")  # the one of its examples
# By the last bits of TARGET: those of neighbours differ. Below the ports that a kernel gives to clients.
_FIRST_PORT, _PORTS = 26000, 2048
_SOCKET_BUFFER = 1 << 25  # bytes that wait to be taken in, at most: 100,000 connections that are sent at once
_EVENT_BUFFER, _LARGEST_EVENT_BUFFER = 1 << 21, 1 << 25
_REALTIME = 1  # its priority as a real-time process, if it may be one: below that of keepalived


def port(target: IPv4Address) -> int:
    """Return the UDP port of the hosts that copy connections to a TARGET."""
    return _FIRST_PORT + int(target) % _PORTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is copied, and how: ``source`` is this host's address there. With ``unicast``, the channel has one peer."""

    target: IPv4Address
    channel: Channel
    source: IPv4Address
    unicast: bool = False


class Home:
    """The directory of a VIP's conntrackd, in kevip's. There is no secret in it."""

    def __init__(self, run_dir: Path, vip: IPv4Address) -> None:
        self.path = run_dir.absolute() / f"{vip}.conntrackd"
        self.config = self.path / "conf"

    def make(self, setup: Setup) -> None:
        """Make it anew; raises OSError."""
        self.remove()
        self.path.mkdir(mode=0o700, parents=True)
        self.config.touch(mode=0o600)
        self.config.write_text(configuration(setup, self.path))

    def remove(self) -> bool:
        """Remove it, and say whether there was one."""
        there = self.path.exists()
        shutil.rmtree(self.path, ignore_errors=True)
        return there

    def argv(self, *command: str) -> list[str]:
        """Return the command line that asks the running one for something, or without a command is the one to run."""
        return ["conntrackd", "-C", str(self.config), *command]

    def confined(self) -> list[str]:
        """Return the command line to run it with, which has given up what it does not need."""
        kept = [str(kernel.CAPABILITIES["NET_ADMIN"])]
        kept += [str(bit) for name, bit in kernel.OPTIONAL.items() if kernel.has_optional(name)]
        return [sys.executable, "-I", "-S", confine.__file__, ",".join(kept), *self.argv()]


def configuration(setup: Setup, path: Path) -> str:
    """Return its configuration, for a directory of its own.

    A connection is copied from ESTABLISHED on: before, two hosts that are both master for a moment would know it, and
    each would take the other's packets for none of it. ``DisableExternalCache`` has it in the other kernels at once.
    """
    channel = setup.channel
    if setup.unicast:
        how, ends = "UDP", f"IPv4_Destination_Address {channel.peers[0]}\n        Port {channel.port}"
        source = f"IPv4_address {setup.source}"
    else:
        how, ends = "Multicast", f"IPv4_interface {setup.source}\n        Group {channel.port}"
        source = f"IPv4_address {GROUP}"
    return f"""\
Sync {{
    Mode NOTRACK {{
        DisableInternalCache no
        DisableExternalCache yes
        StartupResync yes
    }}
    {how} {{
        {source}
        {ends}
        Interface {channel.interface}
        SndSocketBuffer {_SOCKET_BUFFER}
        RcvSocketBuffer {_SOCKET_BUFFER}
        Checksum on
    }}
    Options {{
        TCPWindowTracking off
    }}
}}
{_general(setup.target, path)}"""


def _general(target: IPv4Address, path: Path) -> str:
    return f"""\
General {{
    Systemd no
    HashSize 32768
    HashLimit 1048576
    LogFile off
    Syslog off
    LockFile {path}/lock
    UNIX {{
        Path {path}/control
    }}
    NetlinkBufferSize {_EVENT_BUFFER}
    NetlinkBufferSizeMaxGrowth {_LARGEST_EVENT_BUFFER}
    NetlinkOverrunResync yes
    Scheduler {{
        Type RR
        Priority {_REALTIME}
    }}
    Filter From Userspace {{
        Protocol Accept {{
            TCP
            UDP
        }}
        Address Accept {{
            IPv4_address {target}
        }}
        State Accept {{
            ESTABLISHED CLOSED TIME_WAIT CLOSE_WAIT for TCP
        }}
    }}
}}
"""


class Stats(NamedTuple):
    """What it has counted since it runs: ``sent_on`` are the connections of this host that it copies now."""

    sent_on: int
    written: int  # connections of others that it has put into the kernel
    failed: int  # those that the kernel did not take
    heard: int  # packets


_STATS = re.compile(
    r"current active connections:\s+(\d+).*?"
    r"external inject:\s+connections created:\s+(\d+)\s+failed:\s+(\d+).*?"
    r"(\d+) Pckts recv",
    re.DOTALL,
)


def stats(told: str) -> Stats | None:
    """Return what its answer to ``-s`` says, None if that is something else."""
    found = _STATS.search(told)
    return Stats(*map(int, found.groups())) if found else None
