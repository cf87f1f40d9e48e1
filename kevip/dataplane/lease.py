"""VIPs as addresses of an interface: leases that the kernel ends by itself if nobody renews them."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Interface

from kevip.errors import HostError
from kevip.host import command
from kevip.host.interface import Interface, listing, parse

LEASE = 6
"""Seconds that the kernel keeps the VIP after the last renewal. If kevip dies, no second holder is left behind."""

_EXISTS = ("File exists", "Address already assigned")
_ABSENT = ("Cannot assign requested address", "Address not found", "Cannot find device")
"""What ``ip`` says when an address is there already, and when there is none to delete, depending on its version."""

Lease = tuple[str, IPv4Address]
"""A VIP on an interface, as a lease of kevip's."""

_LIFETIME = f"valid_lft {LEASE} preferred_lft 0"


def standby() -> command.Standby:
    """Return what ``take`` runs, which can be started in advance."""
    return command.Standby(["ip", "-batch", "-"])


def take(vips: Sequence[IPv4Address], interface: str, ip: command.Standby) -> None:
    """Add VIPs for LEASE seconds; raises CommandError, or HostError if somebody else has added one of them before."""
    try:
        ip.run("".join(f"address add {vip}/32 dev {interface} {_LIFETIME}\n" for vip in vips))
    except command.CommandError as error:
        if not any(reason in error.stderr for reason in _EXISTS):
            raise
        here = [address for each in listing(command.run_now) if each.name == interface for address in each.addresses]
        for vip in vips:
            if any(each.ip == IPv4Interface(vip) and not each.is_lease(vip) for each in here):
                raise HostError(
                    f"somebody added VIP {vip} to {interface} by hand: ip address delete {vip}/32 dev {interface}"
                ) from None
        hold(vips, interface)


def on(interface: str, vips: Sequence[IPv4Address]) -> list[Lease]:
    """Return the leases of a group whose place is an interface."""
    return [(interface, vip) for vip in vips]


def hold(vips: Sequence[IPv4Address], interface: str) -> list[Lease]:
    """Renew VIPs, or add them again, for LEASE seconds; return the leases that there were. Raises CommandError."""
    orders = [" ".join(_show(vips)), *(f"address replace {vip}/32 dev {interface} {_LIFETIME}" for vip in vips)]
    return leases(parse(command.run_now(["ip", "-json", "-batch", "-"], stdin="\n".join([*orders, ""]))), vips)


def drop(there: Sequence[Lease]) -> None:
    """Remove VIPs from interfaces; nothing happens to one that is gone already, or whose interface is.

    Raises CommandError.
    """
    orders = [["address", "delete", f"{vip}/32", "dev", name] for name, vip in there]
    try:
        if len(orders) == 1:
            command.run_now(["ip", *orders[0]])
        elif orders:
            command.run_now(["ip", "-force", "-batch", "-"], stdin="".join(f"{' '.join(each)}\n" for each in orders))
    except command.CommandError as error:
        said = [line for line in error.stderr.splitlines() if not line.startswith("Command failed ")]
        if not all(any(reason in line for reason in _ABSENT) for line in said):
            raise


def held(vips: Sequence[IPv4Address]) -> list[Lease]:
    """Return the leases of VIPs that are here; raises CommandError."""
    return leases(parse(command.run_now(["ip", "-json", *_show(vips)])), vips)


def _show(vips: Sequence[IPv4Address]) -> list[str]:
    some = ["to", f"{vips[0]}/32"] if len(vips) == 1 else ["dynamic"]
    return ["address", "show", *some]


def leases(interfaces: Sequence[Interface], vips: Sequence[IPv4Address]) -> list[Lease]:
    """Return the leases of VIPs that these interfaces have."""
    wanted = frozenset(vips)
    addresses = [(each.name, address) for each in interfaces for address in each.addresses if address.ip.ip in wanted]
    return [(name, address.ip.ip) for name, address in addresses if address.is_lease(address.ip.ip)]
