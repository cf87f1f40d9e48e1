"""The VIP as an address with a lease, in a real kernel."""

from ipaddress import IPv4Address

import pytest
from lab.network import Namespace, eventually

from kevip.dataplane import lease
from kevip.host.command import CommandError

VIP = IPv4Address("10.77.0.100")
OWN = ("eth0", "10.77.0.11/24", "forever")
LEASE = ("eth0", "10.77.0.100/32", "lease")
FOREIGN = ("eth0", "10.77.0.10/32", "forever")


@pytest.fixture(autouse=True)
def _foreign_address(host: Namespace) -> None:
    host.run("ip", "address", "add", "10.77.0.10/32", "dev", "eth0")


def test_is_held_and_dropped_as_often_as_you_like(host: Namespace) -> None:
    with host.entered():
        lease.hold([VIP], "eth0")
        lease.hold([VIP], "eth0")
        assert LEASE in host.addresses()
        lease.drop([("eth0", VIP)])
        lease.drop([("eth0", VIP)])
    assert host.addresses() == [OWN, FOREIGN]


def test_ends_by_itself_unless_renewed(host: Namespace) -> None:
    with host.entered():
        lease.hold([VIP], "eth0")
    eventually(lambda: not host.has(str(VIP)), within=2 * lease.LEASE, what="the kernel removes the VIP")
    assert host.addresses() == [OWN, FOREIGN]


def test_is_never_the_source_of_the_hosts_own_traffic(host: Namespace) -> None:
    with host.entered():
        lease.hold([VIP], "eth0")
    assert "src 10.77.0.11 " in host.run("ip", "route", "get", "10.77.0.50")


def test_an_interface_that_is_gone_is_an_error_for_hold_and_none_for_drop(host: Namespace) -> None:
    with host.entered():
        lease.drop([("eth9", VIP)])
        with pytest.raises(CommandError, match="Cannot find device"):
            lease.hold([VIP], "eth9")
