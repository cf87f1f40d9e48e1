"""Connections as ``conntrack`` saves them: which are a group's, and how they come out of a kernel and into another.

Of the tool's lines, those are taken that are TCP from ESTABLISHED on and not over, or UDP that was replied to, and that
our rules have translated: to TARGET, from the VIP. ``--global-masquerade`` gives others another source, which an heir
does not have: nothing is handed on. Where kube-proxy translates, conntrack sees TARGET for the VIP, in the VIP's zone,
and a pod that answers; with ports the source is the VIP, without them it is the host, and such a one stays here.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, collapse_addresses
from socket import inet_aton
from time import monotonic
from typing import NamedTuple

from kevip.dataplane import conntrack
from kevip.dataplane.rewrite import zone
from kevip.dataplane.rules import Ports, Proxy
from kevip.errors import HostError
from kevip.host import command

_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IP, _PORT = rf"{_OCTET}(?:\.{_OCTET}){{3}}", r"[1-9]\d{0,4}"
_LINE = re.compile(
    rf"^(?P<head>-A -t \d{{1,7}} -u SEEN_REPLY(?:,ASSURED)?(?: --orig-zone (?P<zone>\d{{1,5}}))?"
    rf" -s (?P<source>{_IP}) -d (?P<to>{_IP}) -g (?P<from>{_IP})) -n (?P<vip>{_IP})"
    rf"(?P<tail> -p (?:(?P<tcp>tcp)|udp) --sport (?P<sport>{_PORT}) --dport (?P<dport>{_PORT})"
    rf" --reply-port-src (?P<answers>{_PORT}) --reply-port-dst (?P<translated>{_PORT})"
    r"(?(tcp) --state (?:ESTABLISHED|FIN_WAIT|CLOSE_WAIT|LAST_ACK)))$".encode(),
    re.MULTILINE,
)
# What is once in a kernel: the packets of either direction.
_DIRECTIONS = (
    re.compile(r" -s ([\d.]+) -d ([\d.]+) .*-p (tcp|udp) --sport (\d+) --dport (\d+)"),
    re.compile(r" -g ([\d.]+).* -n ([\d.]+).* -p (tcp|udp) .*--reply-port-src (\d+) --reply-port-dst (\d+)"),
)
_MOST_PORT = 65535
_FULL = 0.9  # of the kernel's table that may be in use when connections were added


class Entries:
    """The connections of a group's VIPs, as far as their proxies here allow: the sources, and the ports.

    ``rewrites`` says whether there may be some here that others translate.
    """

    def __init__(self, proxies: Iterable[Proxy], rewrites: Callable[[], bool] = lambda: False) -> None:
        self._routes: dict[bytes, list[_Route]] = {}  # by VIP
        self._zones: dict[bytes, tuple[bytes, bytes]] = {}  # by the VIP of a single target: that, and the zone
        self._access: dict[bytes, _Access] = {}
        self._rewrites = rewrites
        for each in proxies:
            self.also(each)

    def also(self, proxy: Proxy) -> None:
        """Take those of a proxy, too: of one whose targets have other addresses now, say."""
        access = _Access(proxy)
        for each in proxy.routes:
            vip = _text(each.vip)
            route = _Route(_text(each.target), _text(proxy.source or each.vip), each.ports, _text(each.port or ""))
            routes = self._routes.setdefault(vip, [])
            routes += [route] if route not in routes else []
            self._access[vip] = access
        if proxy.target and not proxy.forwards:
            self._zones[_text(proxy.vip)] = _text(proxy.target), _text(zone(proxy.vip))

    def own(self, lines: bytes) -> bytes:
        """Return the lines of the group's connections, as they were saved."""
        return b"".join(b"%b\n" % found[0] for found in self._found(lines))

    def loadable(self, lines: bytes) -> list[bytes]:
        """Return the group's connections among saved lines, as a kernel is to be given them.

        A port goes with each address, or two clients with the same one would be translated as chance has it.
        """
        of_line = "head", "answers", "vip", "translated", "tail"
        return [b"%b:%b -n %b:%b%b\n" % found.group(*of_line) for found in self._found(lines)]

    def _found(self, lines: bytes) -> Iterator[re.Match[bytes]]:
        for found in _LINE.finditer(lines):
            vip = found["vip"] if found["zone"] else found["to"]
            # What comes from a VIP is of the leaving host's own processes, and of no use elsewhere.
            if self._is_ours(found) and found["source"] not in self._routes and self._access[vip].allows(found):
                yield found

    def _is_ours(self, found: re.Match[bytes]) -> bool:
        """Whether a connection is of a VIP, which we have translated, or others for us."""
        if found["zone"]:
            return self._zones.get(found["vip"]) == (found["to"], found["zone"])
        return any(each.leads(found) for each in self._routes.get(found["to"], ()))

    def _dumps(self) -> Iterator[list[str]]:
        """Yield the command lines that save the connections which may be the group's."""
        ways = [("--orig-dst", each) for each in conntrack.networks(IPv4Address(vip.decode()) for vip in self._routes)]
        if self._rewrites():
            ways += [("--orig-zone", number.decode()) for _, number in self._zones.values()]
        for condition, value in ways:
            yield ["conntrack", "--dump", "--family", "ipv4", condition, value, "--output", "save"]

    def dump(self, size: int) -> Iterator[bytes]:
        """Yield the lines of the group's connections here, some ``size`` bytes at a time; raises CommandError."""
        for argv in self._dumps():
            text = bytearray()
            for piece in command.stream(argv):
                text += piece
                if len(text) >= size:
                    end = text.rfind(b"\n") + 1
                    yield self.own(bytes(text[:end]))
                    del text[:end]
            yield self.own(bytes(text))

    def absent(self, lines: list[bytes], seconds: float) -> list[bytes]:
        """Return those of some loadable lines that the kernel has nothing of; raises CommandError."""
        end, here = monotonic() + seconds, set[tuple[object, ...]]()
        for argv in self._dumps():
            here.update(_directions(command.run_now(argv, seconds=end - monotonic())))
        return [line for line in lines if here.isdisjoint(_directions(line.decode()))]


def _directions(text: str) -> Iterator[tuple[object, ...]]:
    return ((at, *found) for at, pattern in enumerate(_DIRECTIONS) for found in pattern.findall(text))


class _Route(NamedTuple):
    """Where a forward leads to: the target, what that sees, which ports go there, and to which one, if to another."""

    target: bytes
    source: bytes
    ports: Ports | None
    port: bytes

    def leads(self, found: re.Match[bytes]) -> bool:
        """Whether a connection went that way."""
        if (found["from"], found["vip"], found["answers"]) != (self.target, self.source, self.port or found["dport"]):
            return False
        return not self.ports or self.ports.has("tcp" if found["tcp"] else "udp", int(found["dport"]))


class _Access:
    """Who may use a proxy, and for what, known at once: a hundred thousand connections are asked about."""

    def __init__(self, proxy: Proxy) -> None:
        networks = list(collapse_addresses(proxy.allow_from))
        self._first = [each.network_address.packed for each in networks]
        self._last = [each.broadcast_address.packed for each in networks]
        self._ports = {(each.protocol, port) for each in proxy.ports for port in range(each.first, each.last + 1)}

    def allows(self, found: re.Match[bytes]) -> bool:
        """Whether a connection may be, and can."""
        used = int(found["dport"])
        if max(used, *(int(found[each]) for each in ("sport", "translated", "answers"))) > _MOST_PORT:
            return False
        if self._ports and ("tcp" if found["tcp"] else "udp", used) not in self._ports:
            return False
        if not self._first:
            return True
        source = inet_aton(found["source"].decode())
        at = bisect_right(self._first, source) - 1
        return at >= 0 and source <= self._last[at]


def load(lines: list[bytes], seconds: float) -> None:
    """Give loadable lines to the kernel, in so many seconds at most; it keeps what it has already.

    Raises CommandError, and HostError if that would leave no room for new connections. ``conntrack`` has the kernel not
    look at the TCP windows of what it loads, which are not known. Version 1.4.8 ends at the first line that the kernel
    has already, with 1; 1.4.7 does not.
    """
    fill = conntrack.fill()
    if fill and fill[0] + len(lines) > fill[1] * _FULL:
        raise HostError("the kernel's table of connections is nearly full")
    command.run_now(["conntrack", "--load-file", "-"], stdin=b"".join(lines).decode(), seconds=seconds)


def _text(address: object) -> bytes:
    return str(address).encode()
