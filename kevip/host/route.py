"""Whether this host has a route to an address."""

from ipaddress import IPv4Address

from kevip.errors import HostError
from kevip.host import command


def require(target: IPv4Address) -> None:
    """See to it that there is a route; raises HostError."""
    try:
        command.run_now(["ip", "route", "get", str(target)])
    except command.CommandError as error:
        raise HostError(f"no route to {target}: {' '.join(error.stderr.split())}: ip route get {target}") from None
