"""The network interfaces of this host, and which of them a VIP belongs on."""

import fcntl
import json
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from kevip.errors import HostError
from kevip.host import command

FOREVER = 2**32 - 1  # the lifetime of an address that does not expire (rtnetlink's INFINITY_LIFE_TIME)

_SIOCGIFFLAGS, _SIOCGIFADDR = 0x8913, 0x8915
_IFREQ = struct.Struct("16sH22x")  # name and flags (netdevice(7))
_IFF_RUNNING = 0x40
_POINT_TO_POINT = 31  # the prefix length from which on a subnet has no room for a VIP (RFC 3021)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An IPv4 address of an interface; lifetimes in seconds, FOREVER if it does not expire."""

    ip: IPv4Interface
    secondary: bool = False
    valid: int = FOREVER
    preferred: int = FOREVER

    def is_lease(self, vip: IPv4Address) -> bool:
        """Whether this is the VIP as kevip adds it: a /32 that expires and is never a source (our mark)."""
        return self.preferred == 0 and self.valid != FOREVER and self.ip == IPv4Interface(vip)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A network interface as ``ip address`` shows it."""

    name: str
    up: bool
    ethernet: bool = True
    carrier: bool = True
    multicast: bool = True
    mtu: int = 1500
    addresses: tuple[Address, ...] = ()

    def subnet_of(self, vip: IPv4Address) -> IPv4Network | None:
        """Return the smallest subnet of this interface that holds the VIP."""
        subnets = [subnet for subnet in self.subnets() if vip in subnet]
        return max(subnets, key=lambda subnet: subnet.prefixlen, default=None)

    def subnets(self) -> list[IPv4Network]:
        """Return the subnets that have room for a VIP."""
        networks = [address.ip.network for address in self.addresses]
        return [network for network in networks if network.prefixlen < _POINT_TO_POINT]

    def primaries(self) -> list[IPv4Address]:
        """Return the primary addresses, of which leases of kevip's are none."""
        return [each.ip.ip for each in self.addresses if not each.secondary and not each.is_lease(each.ip.ip)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a VIP belongs: the interface, and that interface's primary address, the source of CARP adverts."""

    interface: str
    source: IPv4Address


def parse(text: str) -> tuple[Interface, ...]:
    """Parse the output of ``ip -json address show``."""
    return tuple(
        Interface(
            name=entry["ifname"],
            up="UP" in entry["flags"],
            ethernet=entry.get("link_type") == "ether",
            carrier="NO-CARRIER" not in entry["flags"],
            multicast="MULTICAST" in entry["flags"],
            mtu=entry["mtu"],
            addresses=tuple(
                Address(
                    ip=IPv4Interface(f"{each['local']}/{each['prefixlen']}"),
                    secondary=each.get("secondary", False),
                    valid=each["valid_life_time"],
                    preferred=each["preferred_life_time"],
                )
                for each in entry["addr_info"]
                if each.get("family") == "inet"
            ),
        )
        for entry in json.loads(text)
        if entry  # iproute2 prints {} for what a filter left out, also for an address
    )


def listing(run: command.Runner = command.run) -> tuple[Interface, ...]:
    """Return this host's interfaces; raises CommandError."""
    return parse(run(["ip", "-json", "address", "show"]))


def place(
    interfaces: Sequence[Interface], vips: Sequence[IPv4Address], name: str | None, *, shared: str = ""
) -> Placement:
    """Find where VIPs belong: on the named interface, else on the one whose subnet holds the first one, as the others.

    They may be on the ``shared`` interface too. Raises HostError with every reason why they cannot be there.
    """
    wanted = frozenset(vips)
    problems = [
        f"VIP {address.ip.ip} is an address that this host already has on {interface.name}: "
        "take one that no host has (or remove it there first)"
        for interface in interfaces
        for address in interface.addresses
        if address.ip.ip in wanted and not address.is_lease(address.ip.ip) and interface.name != shared
    ]
    try:
        chosen = named(interfaces, name) if name else _holding(interfaces, vips[0])
        problems += _unfit(chosen, vips)
    except HostError as error:
        raise HostError(*problems, *error.problems) from None
    if not name:
        strays = [each for each in vips[1:] if not chosen.subnet_of(each)]
        where = f"is in no subnet of {chosen.name}, where the group's first VIP belongs"
        problems += [f"VIP {each} {where}: take one that is, or say so with --interface" for each in strays]
    if problems:
        raise HostError(*problems)
    return Placement(interface=chosen.name, source=chosen.primaries()[0])


def named(interfaces: Sequence[Interface], name: str, setting: str = "--interface") -> Interface:
    """Return the interface of a name that somebody has set; raises HostError."""
    for interface in interfaces:
        if interface.name == name:
            return interface
    raise HostError(f"interface {name} does not exist: set {setting} to one of {_names(interfaces)}")


def _holding(interfaces: Sequence[Interface], vip: IPv4Address) -> Interface:
    """Return the interface with the smallest subnet that holds the VIP."""
    holding = [(subnet.prefixlen, interface) for interface in interfaces if (subnet := interface.subnet_of(vip))]
    if not holding:
        subnets = [(subnet, each.name) for each in interfaces for subnet in each.subnets() if not subnet.is_loopback]
        raise HostError(
            f"VIP {vip} is in no subnet of this host "
            f"({', '.join(f'{subnet} on {name}' for subnet, name in subnets) or 'it has none'}): "
            "take one that is, or say with --interface where it belongs"
        )
    smallest = max(length for length, _ in holding)
    best = [interface for length, interface in holding if length == smallest]
    if len(best) > 1:
        raise HostError(f"VIP {vip} is in the subnet of several interfaces: set --interface to one of {_names(best)}")
    return best[0]


def _names(interfaces: Sequence[Interface]) -> str:
    return ", ".join(interface.name for interface in interfaces)


def _unfit(interface: Interface, vips: Sequence[IPv4Address]) -> list[str]:
    """Say what keeps VIPs from this interface."""
    problems = []
    if not interface.ethernet:
        problems.append(f"interface {interface.name} is no Ethernet: CARP and ARP need one")
    if not interface.up:
        problems.append(_DOWN.format(interface.name))
    if not interface.primaries():
        problems.append(
            f"interface {interface.name} has no IPv4 address, and CARP needs one as its source: "
            f"ip address add ADDRESS/PREFIX dev {interface.name}"
        )
    for vip in vips:
        subnet = interface.subnet_of(vip)
        if subnet and vip in (subnet.network_address, subnet.broadcast_address):
            kind = "network" if vip == subnet.network_address else "broadcast"
            problems.append(f"VIP {vip} is the {kind} address of {subnet} on {interface.name}: take another one")
    return problems


_DOWN = "interface {0} is down: ip link set dev {0} up"
_UNPLUGGED = "interface {0} has no carrier: see to its cable, and to the port of the switch"


def link_problem(interfaces: Sequence[Interface], name: str) -> str:
    """Say what keeps packets from an interface, and what to do; "" if nothing is seen."""
    found = next((each for each in interfaces if each.name == name), None)
    if not found:
        return f"interface {name} is gone: see what has removed it"
    if not found.up:
        return _DOWN.format(name)
    return "" if found.carrier else _UNPLUGGED.format(name)


def require_carrier(name: str) -> None:
    """Raise HostError if nothing can be heard on an interface that is up."""
    if not is_running(name):
        raise HostError(_UNPLUGGED.format(name))


def is_running(name: str) -> bool:
    """Whether an interface is there, up, and has a carrier (IFF_RUNNING); starts no process."""
    try:
        return bool(_IFREQ.unpack(_inquire(_SIOCGIFFLAGS, name))[1] & _IFF_RUNNING)
    except OSError:
        return False


def first_address(name: str) -> IPv4Address | None:
    """Return the first IPv4 address of an interface, None if there is none; starts no process."""
    try:
        return IPv4Address(_inquire(_SIOCGIFADDR, name)[20:24])
    except OSError:
        return None


def _inquire(request: int, name: str) -> bytes:
    """Return the kernel's answer about an interface (netdevice(7)); raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inquirer:
        return fcntl.ioctl(inquirer, request, _IFREQ.pack(name.encode(), 0))
