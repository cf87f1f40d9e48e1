"""What others change on a host is found, told and put right, in each dataplane, and the VIP stays where it is."""

from collections.abc import Callable

import pytest
from lab.network import DATAPLANES, VIP, Namespace, Network, eventually, iptables_beside
from lab.replica import Replica, on_each_engine
from lab.traffic import tcp_source

Start = Callable[..., Replica]

SOON = 60
"""Seconds in which all is repaired: 5 s as a rule; where a look takes long, as on a busy machine, looks are rare."""

IN_NFTABLES = [
    ("nft flush ruleset", "map rule missing: targets"),
    (f"nft delete table ip kevip-{VIP}", "map rule missing: targets"),
    (f"nft flush chain ip kevip-{VIP} output", "output rule missing: ip daddr"),
    (f"nft insert rule ip kevip-{VIP} postrouting masquerade", "postrouting rule foreign: masquerade"),
]
IN_IPTABLES = [
    ("iptables -t nat -F", "nat rule missing: -A"),
    ("iptables -t mangle -F", "mangle rule missing: -A"),
    ("iptables -t nat -D PREROUTING 1", "nat rule missing: -A PREROUTING"),
    (f"iptables -t nat -F KEVIP-DNAT-{VIP}", f"nat rule missing: -A KEVIP-DNAT-{VIP}"),
    (f"iptables -t nat -I KEVIP-SNAT-{VIP} -j MASQUERADE", f"nat rule foreign: -A KEVIP-SNAT-{VIP} -j MASQUERADE"),
]
"""What somebody does to the rules, and how what is told of it begins."""


def serving(node: Namespace, start: Start, **settings: object) -> Replica:
    """Start a master that knows its rules."""
    return knowing(start(node, **settings).master())


def knowing(replica: Replica) -> Replica:
    """Wait until the rules were looked at: from then on it knows what they are when all is well."""
    eventually(lambda: replica.state()["rules"], what="the first look at the rules is over")
    return replica


def does(node: Namespace, deed: str, dataplane: str) -> None:
    """Do to the rules of a dataplane what somebody does."""
    node.run(*deed.replace("iptables", dataplane, 1).split())


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_rules_that_others_remove_or_add_are_put_right(network: Network, start: Start, dataplane: str) -> None:
    master = serving(network.nodes[0], start, dataplane=dataplane)
    whole = master.node.rules()
    deeds = IN_NFTABLES if dataplane == "nftables" else IN_IPTABLES
    for number, (deed, told) in enumerate(deeds, 1):
        does(master.node, deed, dataplane)
        what = master.logged("drift.repaired", times=number, within=SOON)["what"]
        assert what[0].startswith(told)
        assert (master.node.rules(), tcp_source(network.client, VIP)) == (whole, VIP)
    assert len(master.events("takeover.done")) == 1


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_a_backup_has_its_rules_and_not_the_address_whatever_others_do(
    network: Network, start: Start, dataplane: str
) -> None:
    master = start(network.nodes[0], advskew=1, dataplane=dataplane).master()
    backup = knowing(start(network.nodes[1], advskew=20, dataplane=dataplane).ready())
    node, whole = backup.node, backup.node.rules()
    deed, told = (IN_NFTABLES if dataplane == "nftables" else IN_IPTABLES)[0]
    node.run("ip", "address", "add", f"{VIP}/32", "dev", "eth0", "valid_lft", "60", "preferred_lft", "0")
    does(node, deed, dataplane)
    eventually(lambda: (node.rules(), node.has(VIP)) == (whole, False), within=SOON, what="all is as it was")
    what = [each for event in backup.events("drift.repaired") for each in event["what"]]
    assert "address on eth0" in what
    assert any(each.startswith(told) for each in what)
    assert network.holders() == [master.node]


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_a_masquerade_that_others_put_first_does_not_take_the_source(
    network: Network, start: Start, dataplane: str
) -> None:
    """In iptables ours has to move before it; a table of ours is before it already."""
    master = serving(network.nodes[0], start, dataplane=dataplane)
    beside = iptables_beside(dataplane)
    master.node.iptables("-t", "nat", "-I", "POSTROUTING", "-j", "MASQUERADE", backend=beside)
    if dataplane != "nftables":
        what = master.logged("drift.repaired", within=SOON)["what"]
        assert what == ["nat POSTROUTING: others before our jump"]
    assert tcp_source(network.client, VIP) == VIP
    assert "-A POSTROUTING -j MASQUERADE" in master.node.rules()[f"iptables-{beside}"]


@on_each_engine
def test_the_address_deleted_by_hand(network: Network, start: Start) -> None:
    master = serving(network.nodes[0], start)
    master.node.run("ip", "address", "delete", f"{VIP}/32", "dev", "eth0")
    assert master.logged("drift.repaired", within=SOON)["what"] == ["address missing on eth0"]
    assert tcp_source(network.client, VIP) == VIP
    assert len(master.events("takeover.done")) == 1


def test_forwarding_switched_off(network: Network, start: Start) -> None:
    master = serving(network.nodes[0], start)
    master.node.sysctl("net.ipv4.ip_forward", "0")
    assert master.logged("drift.repaired", within=SOON)["what"] == ["forwarding off"]
    assert tcp_source(network.client, VIP) == VIP
