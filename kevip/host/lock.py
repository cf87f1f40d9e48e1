"""One kevip per VIP and host: two would not hear each other's adverts and would both be master."""

import re
import socket
import struct
from contextlib import suppress
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path

from kevip.errors import BusyError

_SOCKETS = Path("/proc/self/net/unix")


def take(vip: IPv4Address) -> socket.socket:
    """Take the lock for this VIP; it lasts until the returned socket is closed, or the process ends.

    An abstract Unix socket (unix(7)) belongs to the network namespace, so it also holds between containers on the
    host's network, and the kernel frees it. Raises BusyError.
    """
    name = f"\0kevip/{vip}"
    lock = socket.socket(socket.AF_UNIX)
    try:
        lock.bind(name)
    except OSError:
        lock.close()
        raise BusyError(f"another kevip{_holder(name)} serves VIP {vip} on this host already: stop it first") from None
    lock.listen()
    return lock


def taken() -> set[IPv4Address]:
    """Return the VIPs whose lock is taken in this network namespace, also by a container on it (proc_net(5), unix)."""
    found = set()
    for name in re.findall(r" @kevip/([0-9.]+)$", _SOCKETS.read_text(errors="replace"), re.MULTILINE):
        with suppress(AddressValueError):  # anybody may take any name
            found.add(IPv4Address(name))
    return found


def take_copying(target: IPv4Address) -> socket.socket | None:
    """Take the lock for the copies of connections to a TARGET, which one kevip of a host makes; None if it is taken.

    Others can connect to it.
    """
    copying = socket.socket(socket.AF_UNIX)
    try:
        copying.bind(_copying(target))
    except OSError:
        copying.close()
        return None
    copying.listen()
    return copying


def find_copying(target: IPv4Address) -> socket.socket | None:
    """Connect to who holds that lock; None if nobody does."""
    copying = socket.socket(socket.AF_UNIX)
    try:
        copying.setblocking(False)  # when the backlog is full, connect would wait
        copying.connect(_copying(target))
    except OSError:
        copying.close()
        return None
    return copying


def copies(target: IPv4Address) -> bool:
    """Whether somebody holds it."""
    found = find_copying(target)
    if found:
        found.close()
    return bool(found)


def peer_uid(peer: socket.socket) -> int:
    """Return the user that is at the other end of a connection (unix(7), SO_PEERCRED)."""
    uid: int = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
    return uid


def _copying(target: IPv4Address) -> str:
    return f"\0kevip-sync/{target}"


def _holder(name: str) -> str:
    """Say which process holds a lock, if it can be told."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.setblocking(False)  # nobody accepts: when the backlog is full, connect would wait
        try:
            peer.connect(name)
            pid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        except OSError:
            return ""
    return f" (process {pid})" if pid else ""
