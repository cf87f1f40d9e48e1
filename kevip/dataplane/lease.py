"""The VIP as an address of an interface: a lease that the kernel ends by itself if nobody renews it."""

from collections.abc import Sequence
from ipaddress import IPv4Address

from kevip.errors import HostError
from kevip.host import command
from kevip.host.interface import Interface, parse

LEASE = 6
"""Seconds that the kernel keeps the VIP after the last renewal. If kevip dies, no second holder is left behind."""

_EXISTS = ("File exists", "Address already assigned")
_ABSENT = ("Cannot assign requested address", "Address not found", "Cannot find device")
"""What ``ip`` says when an address is there already, and when there is none to delete, depending on its version."""

_LIFETIME = f"valid_lft {LEASE} preferred_lft 0"


def standby() -> command.Standby:
    """Return what ``take`` runs, which can be started in advance."""
    return command.Standby(["ip", "-batch", "-"])


def take(vip: IPv4Address, interface: str, ip: command.Standby) -> None:
    """Add the VIP for LEASE seconds; raises CommandError, or HostError if somebody else has added it before."""
    try:
        ip.run(f"address add {vip}/32 dev {interface} {_LIFETIME}\n")
    except command.CommandError as error:
        if not any(reason in error.stderr for reason in _EXISTS):
            raise
        if interface not in held(vip):
            raise HostError(
                f"somebody added VIP {vip} to {interface} by hand: ip address delete {vip}/32 dev {interface}"
            ) from None
        hold(vip, interface)


def hold(vip: IPv4Address, interface: str) -> list[str]:
    """Renew the VIP, or add it again, for LEASE seconds; return the interfaces that held it. Raises CommandError."""
    orders = f"{' '.join(_show(vip))}\naddress replace {vip}/32 dev {interface} {_LIFETIME}\n"
    return leases(parse(command.run_now(["ip", "-json", "-batch", "-"], stdin=orders)), vip)


def drop(vip: IPv4Address, interface: str) -> None:
    """Remove the VIP; nothing happens if it is gone already, or the interface is. Raises CommandError."""
    try:
        command.run_now(["ip", "address", "delete", f"{vip}/32", "dev", interface])
    except command.CommandError as error:
        if not any(reason in error.stderr for reason in _ABSENT):
            raise


def held(vip: IPv4Address) -> list[str]:
    """Return the interfaces that hold the VIP as a lease of kevip's; raises CommandError."""
    return leases(parse(command.run_now(["ip", "-json", *_show(vip)])), vip)


def _show(vip: IPv4Address) -> list[str]:
    return ["address", "show", "to", f"{vip}/32"]


def leases(interfaces: Sequence[Interface], vip: IPv4Address) -> list[str]:
    """Return the names of the interfaces that hold the VIP as a lease of kevip's."""
    return [each.name for each in interfaces if any(address.is_lease(vip) for address in each.addresses)]
