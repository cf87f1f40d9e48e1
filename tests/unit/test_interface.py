"""Which interface a VIP belongs on, from what ``ip -json address`` prints."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface

import pytest

from kevip.errors import HostError
from kevip.host.interface import FOREVER, Address, Interface, Placement, parse, place

JSON = """
[{"ifname":"lo","flags":["LOOPBACK","UP","LOWER_UP"],"mtu":65536,"link_type":"loopback","addr_info":[
   {"family":"inet","local":"127.0.0.1","prefixlen":8,"valid_life_time":4294967295,"preferred_life_time":4294967295}]},
 {},
 {"ifname":"eth0","flags":["BROADCAST","MULTICAST","UP"],"mtu":9000,"link_type":"ether","addr_info":[
   {"family":"inet","local":"10.0.0.11","prefixlen":24,"valid_life_time":4294967295,"preferred_life_time":4294967295},
   {"family":"inet","local":"10.0.0.12","prefixlen":24,"secondary":true,
    "valid_life_time":4294967295,"preferred_life_time":4294967295},
   {"family":"inet","local":"10.0.0.100","prefixlen":32,"valid_life_time":5,"preferred_life_time":0},
   {"family":"inet6","local":"fe80::1","prefixlen":64,"valid_life_time":4294967295,"preferred_life_time":4294967295}]},
 {"ifname":"eth1","flags":["BROADCAST","MULTICAST"],"mtu":1500,"link_type":"ether","addr_info":[]}]
"""

VIP = IPv4Address("10.0.0.100")


def interface(name: str, *addresses: str, up: bool = True, ethernet: bool = True) -> Interface:
    return Interface(
        name=name, up=up, ethernet=ethernet, addresses=tuple(Address(ip=IPv4Interface(each)) for each in addresses)
    )


LO = interface("lo", "127.0.0.1/8", ethernet=False)
ETH0 = interface("eth0", "10.0.0.11/24")


def test_parses_what_ip_prints() -> None:
    assert parse(JSON) == (
        replace(LO, multicast=False, mtu=65536),
        Interface(
            name="eth0",
            up=True,
            mtu=9000,
            addresses=(
                Address(ip=IPv4Interface("10.0.0.11/24")),
                Address(ip=IPv4Interface("10.0.0.12/24"), secondary=True),
                Address(ip=IPv4Interface("10.0.0.100/32"), valid=5, preferred=0),
            ),
        ),
        interface("eth1", up=False),
    )


@pytest.mark.parametrize(("address", "lease"), [
    (Address(ip=IPv4Interface("10.0.0.100/32"), valid=5, preferred=0), True),
    (Address(ip=IPv4Interface("10.0.0.100/32"), valid=FOREVER, preferred=0), False),
    (Address(ip=IPv4Interface("10.0.0.100/32"), valid=5, preferred=5), False),
    (Address(ip=IPv4Interface("10.0.0.100/24"), valid=5, preferred=0), False),
    (Address(ip=IPv4Interface("10.0.0.10/32"), valid=5, preferred=0), False),
])  # fmt: skip
def test_only_a_short_lived_address_that_is_never_a_source_is_ours(address: Address, lease: bool) -> None:
    assert address.is_lease(VIP) is lease


@pytest.mark.parametrize(("interfaces", "name", "placement"), [
    ((LO, ETH0), None, ("eth0", "10.0.0.11")),
    ((LO, ETH0), "eth0", ("eth0", "10.0.0.11")),
    (parse(JSON)[:2], None, ("eth0", "10.0.0.11")),  # our own lease, left by a killed daemon
    ((LO, interface("eth1", "10.0.0.0/8"), ETH0), None, ("eth0", "10.0.0.11")),  # the smaller subnet
    ((LO, ETH0, interface("eth1", "192.0.2.1/24")), "eth1", ("eth1", "192.0.2.1")),
    ((LO, ETH0, interface("tun0", "10.0.0.99/31")), None, ("eth0", "10.0.0.11")),  # point to point
])  # fmt: skip
def test_places(interfaces: tuple[Interface, ...], name: str | None, placement: tuple[str, str]) -> None:
    assert place(interfaces, [VIP], name) == Placement(interface=placement[0], source=IPv4Address(placement[1]))


NO_SUBNET = "VIP 10.9.0.1 is in no subnet of this host ({}): take one that is, or say with --interface where it belongs"
OWN_ADDRESS = (
    "VIP 10.0.0.11 is an address that this host already has on eth0: "
    "take one that no host has (or remove it there first)"
)


@pytest.mark.parametrize(("interfaces", "vip", "name", "problems"), [
    ((LO, ETH0), "10.9.0.1", None,
     [NO_SUBNET.format("10.0.0.0/24 on eth0")]),
    ((LO,), "10.9.0.1", None,
     [NO_SUBNET.format("it has none")]),
    ((LO, ETH0), "10.0.0.100", "eth9", ["interface eth9 does not exist: set --interface to one of lo, eth0"]),
    ((LO, ETH0), "10.0.0.100", "lo", ["interface lo is no Ethernet: CARP and ARP need one"]),
    ((LO, interface("eth0", "10.0.0.11/24", up=False)), "10.0.0.100", None,
     ["interface eth0 is down: ip link set dev eth0 up"]),
    ((LO, interface("eth0", up=False)), "10.0.0.100", "eth0",
     ["interface eth0 is down: ip link set dev eth0 up",
      "interface eth0 has no IPv4 address, and CARP needs one as its source: ip address add ADDRESS/PREFIX dev eth0"]),
    ((LO, ETH0), "10.0.0.0", None, ["VIP 10.0.0.0 is the network address of 10.0.0.0/24 on eth0: take another one"]),
    ((LO, ETH0), "10.0.0.255", None,
     ["VIP 10.0.0.255 is the broadcast address of 10.0.0.0/24 on eth0: take another one"]),
    ((LO, ETH0), "10.0.0.11", None,
     [OWN_ADDRESS]),
    ((LO, ETH0, interface("eth1", "10.0.0.12/24")), "10.0.0.100", None,
     ["VIP 10.0.0.100 is in the subnet of several interfaces: set --interface to one of eth0, eth1"]),
])  # fmt: skip
def test_refuses(interfaces: tuple[Interface, ...], vip: str, name: str | None, problems: list[str]) -> None:
    with pytest.raises(HostError) as caught:
        place(interfaces, [IPv4Address(vip)], name)
    assert list(caught.value.problems) == problems
