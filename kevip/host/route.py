"""How this host reaches an address."""

import json
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from kevip.errors import HostError
from kevip.host import command, netlink

_ANY_PORT = 9
_GET_ROUTE, _ROUTE = 26, struct.Struct("=8BI")  # linux/rtnetlink.h: family, 32 bits of destination, and what is asked
_DESTINATION, _OUT, _LOCAL = 1, 4, 2
_AT_ONCE = 16  # routes that are looked at each time


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where packets for an address go; ``mtu`` is the route's own one, ``local`` says that they stay here."""

    interface: str
    gateway: str | None = None
    mtu: int | None = None
    local: bool = False


def require(target: IPv4Address) -> Route:
    """Return the route to an address; raises HostError if there is none, CommandError if that is not to be had."""
    try:
        return parse(command.run_now(["ip", "-json", "route", "get", str(target)]))
    except command.CommandError as error:
        if error.exit_status is None:
            raise
        raise HostError(f"no route to {target}: {' '.join(error.stderr.split())}: ip route get {target}") from None


def parse(text: str) -> Route:
    """Parse the output of ``ip -json route get``."""
    [entry] = json.loads(text)
    metrics = entry.get("metrics") or [{}]
    return Route(
        interface=entry["dev"],
        gateway=entry.get("gateway"),
        mtu=metrics[0].get("mtu"),
        local=entry.get("type") == "local",
    )


def problem(target: IPv4Address) -> str:
    """Say why there is no route to an address, "" if there is one; a datagram socket knows, and starts no process."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(target), _ANY_PORT))
        except OSError as error:
            return f"no route to {target}: {error.strerror}: ip route get {target}"
    return ""


def outgoing(target: IPv4Address) -> str:
    """Return the interface by which packets for an address leave this host, "" if none do; starts no process."""
    wanted = _ROUTE.pack(socket.AF_INET, target.max_prefixlen, *[0] * 7) + netlink.attribute(
        _DESTINATION, target.packed
    )
    try:
        for told in netlink.ask(socket.NETLINK_ROUTE, _GET_ROUTE, netlink.REQUEST, wanted):
            kind, found = _ROUTE.unpack_from(told)[7], netlink.attributes(told[_ROUTE.size :])
            return "" if kind == _LOCAL else socket.if_indextoname(struct.unpack("=i", found[_OUT])[0])
    except OSError:
        pass
    return ""


def incoming(interface: str, targets: Iterable[IPv4Address]) -> tuple[str, ...]:
    """Return the interfaces on which packets come in that are to be forwarded: the VIP's, and those of answers."""
    return tuple(dict.fromkeys(filter(None, (interface, *map(outgoing, targets)))))


class Routes:
    """The routes to any number of addresses, of which a few are looked at each time, in turn."""

    def __init__(self) -> None:
        self._next = 0
        self._lost: dict[IPv4Address, str] = {}

    def problem(self, targets: Sequence[IPv4Address], *, any_counts: bool = False) -> str:
        """Say to which of them there is no route, as far as that was looked at; "" if there is to all, or to any."""
        turn = range(self._next, self._next + min(_AT_ONCE, len(targets)))
        self._next = turn.stop % len(targets)
        some = [targets[each % len(targets)] for each in turn]
        for each in dict.fromkeys([*(lost for lost in self._lost if lost in targets), *some]):
            self._lost.pop(each, None)
            if text := problem(each):
                self._lost[each] = text
        lost = [text for each, text in self._lost.items() if each in targets]
        return lost[0] if lost and not (any_counts and len(lost) < len(targets)) else ""


def default_interfaces() -> set[str]:
    """Return the interfaces of the default route; raises CommandError."""
    routes = json.loads(command.run(["ip", "-json", "-4", "route", "show", "default"]) or "[]")
    hops = [hop for route in routes for hop in route.get("nexthops", [route])]
    return {hop["dev"] for hop in hops if "dev" in hop}
