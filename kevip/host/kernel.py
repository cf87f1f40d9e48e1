"""What the kernel lets this process do: capabilities, IP forwarding, what others see of it; and since when it runs."""

import ctypes
import os
import socket
import struct
from collections.abc import Collection
from pathlib import Path

from kevip.errors import HostError
from kevip.host import netlink
from kevip.host.confine import confine

CAPABILITIES = {"NET_ADMIN": 12, "NET_RAW": 13}  # those that kevip needs, by their bit (linux/capability.h)
OPTIONAL = {"SYS_NICE": 23}  # those that it makes use of, likewise

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 23, 24, 38  # linux/prctl.h
_SYSCTL = Path("/proc/sys/net/ipv4")
_FORWARD = _SYSCTL / "ip_forward"
_CONF = {"forwarding": 1, "send_redirects": 6}  # sysctls of an interface, by their number (linux/ip.h)
_SET_LINK, _LINK = 19, struct.Struct("=BxHiII")  # linux/rtnetlink.h: family, type, index, flags, change
_LINK_FAMILIES, _INET_CONF = 26, 1  # linux/if_link.h: IFLA_AF_SPEC, IFLA_INET_CONF
_ARG_START, _ARG_END = 48, 49  # fields of /proc/self/stat (proc(5))


def uptime() -> float:
    """Return the seconds since the boot, suspended ones too, as a shell reads them: the same for all processes here."""
    return float(Path("/proc/uptime").read_text().split()[0])


def host_name() -> str:
    """Return this host's name, without what no terminal shows."""
    return "".join(each for each in os.uname().nodename if each.isprintable())


def missing_capabilities() -> list[str]:
    """Return which of the needed capabilities this process lacks."""
    return [name for name, bit in CAPABILITIES.items() if not _has(bit)]


def has_optional(name: str) -> bool:
    """Whether this process has one of the optional capabilities."""
    return _has(OPTIONAL[name])


def may_be_realtime(priority: int) -> bool:
    """Whether this process may be a real-time one: SYS_NICE is not enough in some control groups and sandboxes."""
    policy, usual = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(priority))
        os.sched_setscheduler(0, policy, usual)
    except OSError:
        return False
    return True


def _has(bit: int) -> bool:
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) >> bit & 1)


def drop_privileges(optional: Collection[str] = ()) -> None:
    """Give up all capabilities but those that kevip needs, for this process and what it will start; raises HostError.

    Of the ``optional`` ones, those stay that are there.

    Root's programs would get them back, but for the bounding set and no_new_privs. Each thread has its own, so there
    must not be others yet.
    """
    kept = [*CAPABILITIES.values(), *(OPTIONAL[name] for name in optional if has_optional(name))]
    for bit in range(64):
        if bit not in kept and _LIBC.prctl(_PR_CAPBSET_READ, bit, 0, 0, 0) == 1:
            _LIBC.prctl(_PR_CAPBSET_DROP, bit, 0, 0, 0)  # without SETPCAP it fails, and no_new_privs does the same
    if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or not confine(kept):
        raise HostError(f"cannot give up privileges: {os.strerror(ctypes.get_errno())}")


def _conf(interface: str, name: str) -> Path:
    return _SYSCTL / "conf" / interface / name


def forwards(*interfaces: str) -> bool:
    """Whether IPv4 packets that come in on each of these interfaces are forwarded; not if one is gone."""
    return all(_is_on(_conf(each, "forwarding")) for each in interfaces)


def enable_forwarding(*interfaces: str) -> list[str]:
    """Switch IPv4 forwarding on, for the whole host if that can be, and return the sysctls set; raises HostError."""
    done = []
    try:
        if not forwards(*interfaces) and not _is_on(_FORWARD) and os.access(_FORWARD, os.W_OK):
            _FORWARD.write_text("1")
            done.append("net.ipv4.ip_forward")
        for each in interfaces:
            if not forwards(each):
                _set(each, "forwarding", 1)
                done.append(f"net.ipv4.conf.{each}.forwarding")
    except OSError as error:
        raise HostError(f"IP forwarding is off: {error}: sysctl -w net.ipv4.ip_forward=1 on the host") from None
    return done


def redirecting(interface: str) -> list[str]:
    """Return what has ICMP redirects sent on the interface: itself, "all", or both (ip-sysctl.rst)."""
    return [each for each in (interface, "all") if _is_on(_conf(each, "send_redirects"))]


def may_redirect(names: Collection[str]) -> bool:
    """Whether this process can set all of these: for "all", /proc/sys must not be read-only."""
    return "all" not in names or os.access(_conf("all", "send_redirects"), os.W_OK)


def redirect(name: str, *, on: bool) -> None:
    """Have ICMP redirects sent, or not, by an interface, or "all"; raises OSError."""
    _set(name, "send_redirects", int(on))


def _set(interface: str, name: str, value: int) -> None:
    """Set a sysctl of an interface; raises OSError.

    In most containers /proc/sys is read-only. But who has NET_ADMIN may do the same by netlink, as to a property of the
    link (net/ipv4/devinet.c).
    """
    path = _conf(interface, name)
    if os.access(path, os.W_OK):
        path.write_text(str(value))
        return
    change = netlink.attribute(netlink.NESTED | _INET_CONF, netlink.attribute(_CONF[name], struct.pack("=I", value)))
    families = netlink.attribute(netlink.NESTED | _LINK_FAMILIES, netlink.attribute(socket.AF_INET, change))
    link = _LINK.pack(socket.AF_UNSPEC, 0, socket.if_nametoindex(interface), 0, 0)
    for _ in netlink.ask(socket.NETLINK_ROUTE, _SET_LINK, netlink.REQUEST | netlink.ACKNOWLEDGE, link + families):
        pass


def ipvs_tracks() -> bool:
    """Whether IPVS keeps its connections in conntrack, where ours are translated (ipvs-sysctl.rst)."""
    return _is_on(_SYSCTL / "vs" / "conntrack")


def _is_on(sysctl: Path) -> bool:
    try:
        return sysctl.read_text().strip() == "1"
    except FileNotFoundError:
        return False


def reverse_path_filter(interface: str) -> int:
    """Return how packets are filtered by the route back to their source: 0 not, 1 strictly, 2 loosely."""
    return _larger(interface, "rp_filter")


def answers_arp_for_all(interface: str) -> bool:
    """Whether this host answers ARP on the interface for addresses of its other ones, too."""
    return _larger(interface, "arp_ignore") == 0


def _larger(interface: str, name: str) -> int:
    """Return the interface's value or that for all interfaces: the larger one counts (ip-sysctl.rst)."""
    return max(int(_conf(each, name).read_text()) for each in ("all", interface))


def hide_argument(secret: str) -> None:
    """Overwrite a secret in this process's own command line, which every user of the host can read with ``ps``.

    The kernel shows the memory between arg_start and arg_end as /proc/PID/cmdline (proc(5)).
    """
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = (int(fields[number - 3]) for number in (_ARG_START, _ARG_END))
    needle = os.fsencode(secret)
    for argument in ctypes.string_at(start, end - start).split(b"\0"):
        if argument == needle or argument.endswith(b"=" + needle):
            ctypes.memset(start + len(argument) - len(needle), ord("*"), len(needle))
        start += len(argument) + 1
