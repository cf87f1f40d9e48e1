"""How this host reaches an address."""

import json
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address

from kevip.errors import HostError
from kevip.host import command

_ANY_PORT = 9


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


def default_interfaces() -> set[str]:
    """Return the interfaces of the default route; raises CommandError."""
    routes = json.loads(command.run(["ip", "-json", "-4", "route", "show", "default"]) or "[]")
    hops = [hop for route in routes for hop in route.get("nexthops", [route])]
    return {hop["dev"] for hop in hops if "dev" in hop}
