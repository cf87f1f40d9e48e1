"""What is in nftables, asked of the kernel itself (nfnetlink), so that the program ``nft`` need not be there.

Numbers are those of linux/netlink.h, linux/netfilter/nfnetlink.h and linux/netfilter/nf_tables.h.
"""

import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

from kevip.errors import HostError
from kevip.host.netlink import DUMP, NESTED, REQUEST, ask, attribute, attributes, elements

_NETLINK_NETFILTER, _SUBSYSTEM = 12, 10
_GET_CHAIN, _GET_SET_ELEMENT, _GET_GENERATION = 4, 13, 16
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 1, 3, 4, 5, 7
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_LIST_ELEMENT = _ELEMENT_KEY = _DATA_VALUE = 1
_GENERATION = 1
_DROP = (0).to_bytes(4)
_FAMILIES = {1: "inet", 2: "ip"}  # those that IPv4 packets go through
_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")

DSTNAT, SRCNAT = -100, 100  # the usual priorities of NAT, and those of iptables

# Who makes which table.
_OWNERS = {
    "docker-bridges": "Docker",
    "flannel-ipv4": "flannel",
    "firewalld": "firewalld",
    "libvirt_network": "libvirt",
    "incus": "Incus",
    "lxd": "LXD",
    "netavark": "Podman",
    "kube-proxy": "kube-proxy",
    "calico": "Calico",
}

_TRIES = 10  # of a listing, which somebody who changes tables meanwhile interrupts
_ABSENT = (errno.EINVAL, errno.EPROTONOSUPPORT, errno.ENOENT)  # of a kernel without nftables


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A base chain that IPv4 packets go through; ``drops`` says that its policy is to drop."""

    family: str
    table: str
    name: str
    type: str
    hook: str
    priority: int
    drops: bool

    def __str__(self) -> str:
        return f"chain {self.name} of {self.origin}"

    @property
    def origin(self) -> str:
        """Where it is, and who is likely behind that: its table, or iptables."""
        if self.family not in _FAMILIES.values():
            return self.family
        by = f" ({_OWNERS[self.table]})" if self.table in _OWNERS else ""
        return f"nftables table {self.family} {self.table}{by}"

    @property
    def path(self) -> str:
        """Its family, table and name, as ``nft`` wants them."""
        return f"{self.family} {self.table} {self.name}"


def base_chains() -> list[Chain]:
    """Return all base chains, those of iptables-nft among them; none if the kernel has no nftables.

    Raises HostError if they cannot be listed.
    """
    for _ in range(_TRIES):
        try:
            return list(_base_chains())
        except InterruptedError:
            continue
        except OSError as error:
            if error.errno in _ABSENT:
                return []
            raise HostError(f"the chains of nftables cannot be listed: {error.strerror or error}") from None
    raise HostError("the chains of nftables cannot be listed: somebody changes them all the time")


def _base_chains() -> Iterator[Chain]:
    for family, chain in _ask(_GET_CHAIN, REQUEST | DUMP, 0, b""):
        if family in _FAMILIES and (hook := attributes(chain.get(_CHAIN_HOOK, b""))):
            number = int.from_bytes(hook[_HOOK_NUMBER])
            yield Chain(
                family=_FAMILIES[family],
                table=_text(chain[_CHAIN_TABLE]),
                name=_text(chain[_CHAIN_NAME]),
                type=_text(chain.get(_CHAIN_TYPE, b"")),
                hook=_HOOKS[number] if number < len(_HOOKS) else "ingress",
                priority=int.from_bytes(hook[_HOOK_PRIORITY], signed=True),
                drops=chain.get(_CHAIN_POLICY) == _DROP,
            )


def generation() -> int | None:
    """Return a number that is another one after each change of rules; None if the kernel tells none."""
    try:
        return next((int.from_bytes(told[_GENERATION]) for _, told in _ask(_GET_GENERATION, REQUEST, 0, b"")), None)
    except OSError:
        return None


def contains(table: str, name: str, address: IPv4Address) -> bool:
    """Whether a set of an ``ip`` table has an address; no if there is no such set, or no nftables."""
    key = attribute(NESTED | _ELEMENT_KEY, attribute(_DATA_VALUE, address.packed))
    wanted = (
        attribute(_LIST_TABLE, table.encode() + b"\0")
        + attribute(_LIST_SET, name.encode() + b"\0")
        + attribute(NESTED | _LIST_ELEMENTS, attribute(NESTED | _LIST_ELEMENT, key))
    )
    try:
        return any(True for _ in _ask(_GET_SET_ELEMENT, REQUEST, socket.AF_INET, wanted))
    except OSError:
        return False


def keys(table: str, name: str) -> list[bytes]:
    """Return the keys in a set or map of an ``ip`` table, each part of one padded to 4 bytes; none if it is not there.

    Raises HostError if they cannot be listed.
    """
    wanted = attribute(_LIST_TABLE, table.encode() + b"\0") + attribute(_LIST_SET, name.encode() + b"\0")
    for _ in range(_TRIES):
        try:
            return [
                attributes(attributes(element)[_ELEMENT_KEY])[_DATA_VALUE]
                for _, told in _ask(_GET_SET_ELEMENT, REQUEST | DUMP, socket.AF_INET, wanted)
                for _, element in elements(told.get(_LIST_ELEMENTS, b""))
            ]
        except InterruptedError:
            continue
        except OSError as error:
            if error.errno in _ABSENT:
                return []
            raise HostError(f"set {name} of table ip {table} cannot be listed: {error.strerror or error}") from None
    raise HostError(f"set {name} of table ip {table} cannot be listed: somebody changes it all the time")


def _ask(kind: int, flags: int, family: int, body: bytes) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Yield family and attributes of each answer of the kernel; raises OSError, InterruptedError if it is not whole."""
    head = struct.pack("=BBH", family, 0, 0)
    for content in ask(_NETLINK_NETFILTER, _SUBSYSTEM << 8 | kind, flags, head + body):
        yield content[0], attributes(content[4:])


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode()
