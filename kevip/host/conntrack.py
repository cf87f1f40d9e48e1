"""The kernel's connection tracking of what goes to the VIP."""

from ipaddress import IPv4Address
from pathlib import Path

from kevip.host import command

_LOOSE = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_loose")
_NONE_DELETED = "0 flow entries have been deleted"


def picks_up_connections() -> bool:
    """Whether the kernel tracks a TCP connection from its middle: what lets it survive a failover."""
    try:
        return _LOOSE.read_text().strip() != "0"
    except FileNotFoundError:
        return True  # conntrack is not loaded yet, and on by default


def forget_untranslated(vip: IPv4Address) -> None:
    """Delete connections to the VIP that were tracked before our rules were there; raises CommandError.

    They are the ones whose replies are expected from the VIP itself. With such an entry, a process of this host that
    used the VIP while it was elsewhere would get a reset.
    """
    _delete("--orig-dst", str(vip), "--reply-src", str(vip))


def forget(vip: IPv4Address) -> None:
    """Delete all connections to the VIP: if it comes back, none must be found here; raises CommandError."""
    _delete("--orig-dst", str(vip))


def _delete(*conditions: str) -> None:
    try:
        command.run_now(["conntrack", "--delete", "--family", "ipv4", *conditions])
    except command.CommandError as error:
        if _NONE_DELETED not in error.stderr:
            raise
