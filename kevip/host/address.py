"""The VIP as an address of an interface: a lease that the kernel ends by itself if nobody renews it."""

from collections.abc import Sequence
from ipaddress import IPv4Address

from kevip.host import command
from kevip.host.interface import Interface

LEASE = 6
"""Seconds that the kernel keeps the VIP after the last renewal. If kevip dies, no second holder is left behind."""

_ABSENT = ("Cannot assign requested address", "Address not found", "Cannot find device")
"""What ``ip`` says when there is nothing to delete: without and with extended acks, and without the interface."""


def hold(vip: IPv4Address, interface: str) -> None:
    """Add the VIP, or renew it, for LEASE seconds. The host never chooses it as a source. Raises CommandError."""
    lifetime = ["valid_lft", str(LEASE), "preferred_lft", "0"]
    command.run_now(["ip", "address", "replace", f"{vip}/32", "dev", interface, *lifetime])


def drop(vip: IPv4Address, interface: str) -> None:
    """Remove the VIP; nothing happens if it is gone already, or the interface is. Raises CommandError."""
    try:
        command.run_now(["ip", "address", "delete", f"{vip}/32", "dev", interface])
    except command.CommandError as error:
        if not any(reason in error.stderr for reason in _ABSENT):
            raise


def leases(interfaces: Sequence[Interface], vip: IPv4Address) -> list[str]:
    """Return the names of the interfaces that hold the VIP as a lease of kevip's."""
    return [each.name for each in interfaces if any(address.is_lease(vip) for address in each.addresses)]
