"""What of a group's VIPs goes where: ``[VIP][:PORT[-PORT]][/udp]=TARGET[:PORT]``, parsed and checked."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address
from itertools import combinations

from kevip.dataplane.rules import Forward, Ports

_PORTS = range(1, 2**16)
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")  # of a name (RFC 1123; some have underscores, too)
_LONGEST_NAME = 253
_SPEC = re.compile(
    r"(?P<vip>[^:/=]*)(?::(?P<ports>[^/=]*))?(?:/(?P<protocol>[^=]*))?=(?P<target>[^:]*)(?::(?P<port>.*))?"
)


@dataclass(frozen=True, slots=True)
class Spec:
    """A forward as it is written: without a VIP, it is of the group's first one. A target may be a name."""

    target: IPv4Address | str
    vip: IPv4Address | None = None
    ports: Ports | None = None
    port: int | None = None

    def __str__(self) -> str:
        numbers, _, protocol = str(self.ports or "").partition("/")
        source = f"{self.vip or ''}{f':{numbers}' if numbers else ''}{f'/{protocol}' if protocol else ''}"
        return f"{source}={self.target}{f':{self.port}' if self.port else ''}"

    def of(self, first: IPv4Address) -> Forward:
        """Return what it says in a group of which this is the first VIP; its target is an address by now."""
        assert isinstance(self.target, IPv4Address)  # noqa: S101 - see ``Config.at``
        return Forward(self.vip or first, self.target, self.ports, self.port)


def parse_ipv4(text: str) -> IPv4Address:
    """Parse an IPv4 address; the error has a hint for what else it may be. Raises ValueError."""
    with suppress(AddressValueError):
        return IPv4Address(text)
    if ":" in text:
        raise ValueError(f"{text!r} is not an IPv4 address (ucarp and kevip do not speak IPv6)")
    if re.fullmatch(r"(?=.*[A-Za-z])[\w.-]+", text):
        raise ValueError(f"{text!r} is a name, not an IPv4 address: getent ahostsv4 {text} shows its address")
    raise ValueError(f"{text!r} is not an IPv4 address, such as 192.0.2.10")


def parse_target(text: str) -> IPv4Address | str:
    """Parse an IPv4 address, or the name of a host; raises ValueError."""
    labels = text.removesuffix(".").split(".")
    is_name = all(map(_LABEL.fullmatch, labels)) and re.search("[A-Za-z]", labels[-1]) and len(text) <= _LONGEST_NAME
    return text if is_name else parse_ipv4(text)


def parse_ports(text: str) -> Ports:
    """Parse a port, or a range of them, of TCP or with ``/udp``; raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(tcp|udp))?", text)
    if not found or not 0 < int(found[1]) <= int(found[2] or found[1]) <= _PORTS[-1]:
        raise ValueError(f"{text!r} is no port, such as 443, 53/udp or 8000-8010")
    return Ports("udp" if found[3] == "udp" else "tcp", int(found[1]), int(found[2] or found[1]))


def _parse_port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) not in _PORTS:
        raise ValueError(f"{text!r} is no port of TARGET, such as 8443")
    return int(text)


def parse_spec(text: str) -> Spec:
    """Parse a forward; raises ValueError."""
    found = _SPEC.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no forward, such as 10.0.0.101:443=192.0.2.10")
    try:
        vip = parse_ipv4(found["vip"]) if found["vip"] else None
        port = _parse_port(found["port"]) if found["port"] is not None else None
        ports = None
        if found["ports"] is not None or found["protocol"] is not None:
            numbers = "1-65535" if found["ports"] is None else found["ports"]
            ports = parse_ports(numbers if found["protocol"] is None else f"{numbers}/{found['protocol']}")
        return Spec(parse_target(found["target"]), vip, ports, port)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None


def parse_specs(text: str) -> tuple[Spec, ...]:
    """Parse forwards that are separated by white space or commas, with comments from # on to the end of their line.

    Raises ValueError, of all that are malformed.
    """
    specs, problems = [], []
    for word in re.sub(r"#.*", "", text).replace(",", " ").split():
        try:
            specs.append(parse_spec(word))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    return tuple(specs)


def problems(specs: Sequence[tuple[str, Spec]], ports: Sequence[Ports]) -> Iterator[str]:
    """Say what is wrong with the forwards of a group, by their names; all of them have a VIP.

    ``ports`` are what is proxied, all if there are none.
    """
    vips = {each.vip for _, each in specs}
    for name, each in specs:
        if each.target in vips:
            yield f"{name}: {each.target} is a VIP of this group: a target is another host"
        if each.port and not each.ports:
            example = replace(each, ports=Ports("tcp", each.port, each.port))
            yield f"{name}: which port becomes {each.port} is missing: write {example}, say"
        elif each.port and each.ports and each.ports.first != each.ports.last:
            yield f"{name}: several ports cannot all become {each.port}: write a forward for each"
        if each.ports and ports and not _covers(ports, each.ports):
            yield f"{name}: not all of it is among --port (PORTS)"
    for (first, one), (name, other) in combinations(specs, 2):
        if one.vip == other.vip and _overlap(one.ports, other.ports):
            what = "some of these ports are" if one.ports else f"all else of {one.vip} is"
            yield f"{name}: {what} for {one.target} already, by {first}"


def _overlap(one: Ports | None, other: Ports | None) -> bool:
    if not one or not other:
        return one is other
    return one.protocol == other.protocol and one.first <= other.last and other.first <= one.last


def _covers(many: Iterable[Ports], one: Ports) -> bool:
    """Whether all ports of one are among many."""
    wanted = set(range(one.first, one.last + 1))
    return not wanted.difference(*(range(each.first, each.last + 1) for each in many if each.protocol == one.protocol))
