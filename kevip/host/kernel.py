"""What the kernel lets this process do: capabilities, IP forwarding, and what others see of it."""

import ctypes
import os
from pathlib import Path

from kevip.errors import HostError

CAPABILITIES = {"NET_ADMIN": 12, "NET_RAW": 13}
"""The capabilities that kevip needs, by their bit in capability sets (linux/capability.h)."""

_SYSCTL = Path("/proc/sys/net/ipv4")
_ARG_START, _ARG_END = 48, 49
"""Fields of /proc/self/stat (proc(5))."""


def missing_capabilities() -> list[str]:
    """Return which of the needed capabilities this process lacks."""
    status = Path("/proc/self/status").read_text()
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    return [name for name, bit in CAPABILITIES.items() if not effective >> bit & 1]


def _forwarding(interface: str) -> list[Path]:
    return [_SYSCTL / "ip_forward", _SYSCTL / "conf" / interface / "forwarding"]


def forwards(interface: str) -> bool:
    """Whether IPv4 packets that come in on the interface are forwarded."""
    try:
        return all(path.read_text().strip() == "1" for path in _forwarding(interface))
    except FileNotFoundError:
        return False  # the interface is gone


def may_forward(interface: str) -> bool:
    """Whether this process can switch forwarding on (/proc/sys is read-only in most containers)."""
    return all(os.access(path, os.W_OK) for path in _forwarding(interface))


def enable_forwarding(interface: str) -> None:
    """Switch IPv4 forwarding on; raises HostError."""
    try:
        for path in _forwarding(interface):
            if path.read_text().strip() != "1":
                path.write_text("1")
    except OSError as error:
        raise HostError(f"IP forwarding is off: {error}: sysctl -w net.ipv4.ip_forward=1 on the host") from None


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
