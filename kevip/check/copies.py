"""The copies of connections: where they go, and who else could write there."""

import re
from collections.abc import Iterator
from pathlib import Path

from kevip.check.report import Finding, ok, warning
from kevip.host import lock
from kevip.host.interface import Interface
from kevip.sync.conntrackd import Setup

_SOCKETS = Path("/proc/net/udp"), Path("/proc/net/udp6")


def copies(setup: Setup, there: Interface, vips: str) -> Iterator[Finding]:
    """Say how connections are copied ``there``; ``vips`` is the interface that the VIP belongs on."""
    channel, peers = setup.channel, ", ".join(map(str, setup.channel.peers))
    how = f"by {'unicast' if setup.unicast else 'multicast'}{f', with {peers}' if peers else ''}"
    yield ok("sync", f"UDP port {channel.port} on {there.name}, from {setup.source}, {how}")
    if not peers:
        yield warning(
            "sync",
            f"whoever can send on {there.name} can write connections into this host's kernel",
            "list the addresses that all hosts have there: --sync-peers",
        )
    if there.name == vips:
        yield warning(
            "sync",
            f"{vips} is the VIP's network too: who forges a host's address there can write into this host's kernel",
            "give the hosts a network of their own",
        )
    if not (setup.unicast or there.multicast):
        yield warning(
            "sync",
            f"{there.name} does not take multicast",
            f"ip link set dev {there.name} multicast on; or --sync-peers",
        )
    if is_taken(channel.port) and not lock.copies(setup.target):
        yield warning(
            "sync",
            f"another program here has UDP port {channel.port}: it may be what conntrackd hears",
            f"see which: ss --udp --listening --processes 'sport = {channel.port}'",
        )


def is_taken(port: int) -> bool:
    """Whether a program of this host has a UDP port (proc_net(5))."""
    found = "".join(each.read_text() for each in _SOCKETS if each.exists())
    return bool(re.search(rf"^ *\d+: [0-9A-F]+:{port:04X} ", found, re.MULTILINE))
