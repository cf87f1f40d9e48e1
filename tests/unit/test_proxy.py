"""The rules of iptables, literally, and their removal from what iptables-save prints."""

import re
from ipaddress import IPv4Address, IPv4Network
from unittest import mock

import pytest

from kevip.dataplane.backend import flaws, texts
from kevip.dataplane.iptables import Iptables, teardown
from kevip.dataplane.rules import Channel, Inlet, Part, Ports, Proxy

VIP = IPv4Address("10.0.0.100")
TARGET = IPv4Address("192.0.2.9")
IPTABLES = Iptables("iptables-nft", "nft")


def setup(proxy: Proxy) -> str:
    """Return what installs all that translates."""
    return IPTABLES.setup(proxy, proxy.parts)


GUARD = """\
*mangle
:KEVIP-GUARD-10.0.0.100 - [0:0]
-A KEVIP-GUARD-10.0.0.100 -s 192.0.2.9 -d 10.0.0.100 -m addrtype --dst-type LOCAL -m conntrack --ctstate NEW,INVALID \
-m comment --comment kevip:10.0.0.100 -j DROP
-I PREROUTING 1 -m comment --comment kevip:10.0.0.100 -j KEVIP-GUARD-10.0.0.100
-I FORWARD 1 -m conntrack --ctstate DNAT --ctorigdst 10.0.0.100 -m comment --comment kevip:10.0.0.100
COMMIT
"""

SCOPED = (
    GUARD
    + """\
*nat
:KEVIP-DNAT-10.0.0.100 - [0:0]
:KEVIP-SNAT-10.0.0.100 - [0:0]
-A KEVIP-DNAT-10.0.0.100 -d 10.0.0.100 -m addrtype --dst-type LOCAL -m comment --comment kevip:10.0.0.100 \
-j DNAT --to-destination 192.0.2.9
-I PREROUTING 1 -m comment --comment kevip:10.0.0.100 -j KEVIP-DNAT-10.0.0.100
-I OUTPUT 1 -m comment --comment kevip:10.0.0.100 -j KEVIP-DNAT-10.0.0.100
-A KEVIP-SNAT-10.0.0.100 -m conntrack --ctstate DNAT --ctorigdst 10.0.0.100 -m comment --comment kevip:10.0.0.100 \
-j SNAT --to-source 10.0.0.100
-I POSTROUTING 1 -m comment --comment kevip:10.0.0.100 -j KEVIP-SNAT-10.0.0.100
COMMIT
"""
)

GLOBAL = (
    GUARD
    + """\
*nat
:KEVIP-DNAT-10.0.0.100 - [0:0]
-A KEVIP-DNAT-10.0.0.100 -d 10.0.0.100 -m addrtype --dst-type LOCAL -m comment --comment kevip:10.0.0.100 \
-j DNAT --to-destination 192.0.2.9
-I PREROUTING 1 -m comment --comment kevip:10.0.0.100 -j KEVIP-DNAT-10.0.0.100
-I OUTPUT 1 -m comment --comment kevip:10.0.0.100 -j KEVIP-DNAT-10.0.0.100
-A POSTROUTING -m comment --comment kevip:10.0.0.100 -j MASQUERADE
COMMIT
"""
)


@pytest.mark.parametrize(("global_masquerade", "text"), [(False, SCOPED), (True, GLOBAL)])
def test_the_rules_are_these(global_masquerade: bool, text: str) -> None:
    assert setup(Proxy(vip=VIP, target=TARGET, global_masquerade=global_masquerade)) == text


GUARDED = """\
*mangle
:KEVIP-GUARD-10.0.0.100 - [0:0]
-A KEVIP-GUARD-10.0.0.100 -s 192.0.2.9 -d 10.0.0.100 -m addrtype --dst-type LOCAL -m conntrack --ctstate NEW,INVALID \
-m comment --comment kevip:10.0.0.100 -j DROP
-A KEVIP-GUARD-10.0.0.100 ! -d 10.0.0.100 -m comment --comment kevip:10.0.0.100 -j RETURN
-A KEVIP-GUARD-10.0.0.100 -s 10.1.0.0/16 -m comment --comment kevip:10.0.0.100 -j RETURN
-A KEVIP-GUARD-10.0.0.100 -d 10.0.0.100 -m addrtype --dst-type LOCAL -m conntrack --ctstate NEW,INVALID,UNTRACKED \
-m comment --comment kevip:10.0.0.100 -j DROP
-I PREROUTING 1 -m comment --comment kevip:10.0.0.100 -j KEVIP-GUARD-10.0.0.100
-I FORWARD 1 -m conntrack --ctstate DNAT --ctorigdst 10.0.0.100 -m comment --comment kevip:10.0.0.100
COMMIT
*filter
:KEVIP-IN-10.0.0.100 - [0:0]
-A KEVIP-IN-10.0.0.100 -d 10.0.0.100 -m addrtype --dst-type LOCAL -m conntrack --ctstate NEW,INVALID,UNTRACKED -p tcp \
-m comment --comment kevip:10.0.0.100 -j REJECT --reject-with tcp-reset
-A KEVIP-IN-10.0.0.100 -d 10.0.0.100 -m addrtype --dst-type LOCAL -m conntrack --ctstate NEW,INVALID,UNTRACKED \
-m comment --comment kevip:10.0.0.100 -j REJECT
-I INPUT 1 -m comment --comment kevip:10.0.0.100 -j KEVIP-IN-10.0.0.100
"""

DNAT = """\
-A KEVIP-DNAT-10.0.0.100 -d 10.0.0.100 -m addrtype --dst-type LOCAL -p tcp -m tcp --dport 443:443 \
-m comment --comment kevip:10.0.0.100 -j DNAT --to-destination 192.0.2.9
-A KEVIP-DNAT-10.0.0.100 -d 10.0.0.100 -m addrtype --dst-type LOCAL -p udp -m udp --dport 53:54 \
-m comment --comment kevip:10.0.0.100 -j DNAT --to-destination 192.0.2.9
-I PREROUTING 1 -m comment --comment kevip:10.0.0.100 -j KEVIP-DNAT-10.0.0.100
-A KEVIP-SNAT"""


def test_sources_and_ports_are_limited_by_these_rules() -> None:
    ports = (Ports("tcp", 443, 443), Ports("udp", 53, 54))
    text = setup(Proxy(vip=VIP, target=TARGET, ports=ports, allow_from=(IPv4Network("10.1.0.0/16"),)))
    assert text.startswith(GUARDED)
    assert DNAT in text  # and no jump from OUTPUT: processes of this host are not allowed


def test_processes_of_a_host_that_is_allowed_may_use_the_vip() -> None:
    """They send from the VIP itself."""
    here, networks = IPv4Address("10.1.2.3"), (IPv4Network("10.1.0.0/16"),)
    text = setup(Proxy(vip=VIP, target=TARGET, here=here, allow_from=networks))
    assert "-A KEVIP-GUARD-10.0.0.100 -s 10.0.0.100/32 -m comment --comment kevip:10.0.0.100 -j RETURN\n" in text
    assert "-I OUTPUT 1 -m comment --comment kevip:10.0.0.100 -j KEVIP-DNAT-10.0.0.100\n" in text


def test_what_is_proxied_is_accepted_behind_all_else() -> None:
    text = IPTABLES.setup(Proxy(vip=VIP, target=TARGET), frozenset({Part.ACCEPT}))
    assert text == (
        "*filter\n-A FORWARD -m conntrack --ctstate DNAT --ctorigdst 10.0.0.100 "
        "-m comment --comment kevip:10.0.0.100 -j ACCEPT\nCOMMIT\n"
    )


def test_what_has_to_be_heard_is_accepted_behind_all_else() -> None:
    inlets = (Inlet(112, destination=IPv4Address("224.0.0.18")), Inlet(112, source=IPv4Address("10.0.0.12")))
    proxy = Proxy(vip=VIP, target=None, inlets=inlets)
    assert (proxy.parts, proxy.opens) == (frozenset(), frozenset({Part.HEAR}))
    assert IPTABLES.setup(proxy, proxy.opens) == (
        "*filter\n-A INPUT -d 224.0.0.18 -p 112 -m comment --comment kevip:10.0.0.100 -j ACCEPT\n"
        "-A INPUT -s 10.0.0.12 -p 112 -m comment --comment kevip:10.0.0.100 -j ACCEPT\nCOMMIT\n"
    )


def test_what_strangers_send_to_conntrackd_is_dropped() -> None:
    peers = IPv4Address("10.1.0.2"), IPv4Address("10.1.0.3")
    mark = "-m comment --comment kevip:10.0.0.100"
    chain = "-A KEVIP-SYNC-10.0.0.100"
    rest = f"{chain} -p udp -m udp --dport 26010 {mark} -j DROP\n"
    text = setup(Proxy(vip=VIP, target=TARGET, channel=Channel(port=26010, interface="eth1")))
    assert f"{chain} -i eth1 -p 17 -m udp --dport 26010 {mark} -j RETURN\n{rest}" in text
    assert f"-I INPUT 1 {mark} -j KEVIP-SYNC-10.0.0.100\n" in text
    channel = Channel(port=26010, interface="eth1", peers=peers)
    returns = "".join(f"{chain} -i eth1 -s {peer} -p 17 -m udp --dport 26010 {mark} -j RETURN\n" for peer in peers)
    assert returns + rest in setup(Proxy(vip=VIP, target=TARGET, channel=channel))
    proxy = Proxy(vip=VIP, target=TARGET, channel=channel, inlets=channel.inlets)
    accepted = "".join(f"-A INPUT -i eth1 -s {peer} -p 17 -m udp --dport 26010 {mark} -j ACCEPT\n" for peer in peers)
    assert IPTABLES.setup(proxy, frozenset({Part.HEAR})) == f"*filter\n{accepted}COMMIT\n"


def test_the_longest_chain_name_fits_the_kernel() -> None:
    text = setup(Proxy(vip=IPv4Address("100.100.100.100"), target=TARGET))
    names = [line.split()[0][1:] for line in text.splitlines() if line.startswith(":")]
    assert max(map(len, names)) <= 28


SAVED = """\
# Generated by iptables-nft-save v1.8.9 (nf_tables)
*filter
:INPUT DROP [3:180]
:FORWARD ACCEPT [0:0]
-A INPUT -p tcp -m comment --comment "kevip:10.0.0.1000 is not ours" -j ACCEPT
COMMIT
# Completed
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KEVIP-DNAT-10.0.0.100 - [0:0]
:KEVIP-DNAT-10.0.0.10 - [0:0]
-A PREROUTING -m comment --comment "kevip:10.0.0.100" -j KEVIP-DNAT-10.0.0.100
-A PREROUTING -m comment --comment "kevip:10.0.0.10" -j KEVIP-DNAT-10.0.0.10
-A POSTROUTING -m comment --comment kevip:10.0.0.100 -j MASQUERADE
-A POSTROUTING -j MASQUERADE
-A KEVIP-DNAT-10.0.0.100 -d 10.0.0.100/32 -m comment --comment "kevip:10.0.0.100" -j DNAT --to-destination 192.0.2.9
-A KEVIP-DNAT-10.0.0.10 -d 10.0.0.10/32 -m comment --comment "kevip:10.0.0.10" -j DNAT --to-destination 192.0.2.9
COMMIT
"""


def test_teardown_removes_what_is_ours_and_nothing_else() -> None:
    disarm, delete = teardown(SAVED, VIP)
    assert disarm.splitlines() == [
        "*nat",
        '-D PREROUTING -m comment --comment "kevip:10.0.0.100" -j KEVIP-DNAT-10.0.0.100',
        "-D POSTROUTING -m comment --comment kevip:10.0.0.100 -j MASQUERADE",
        "-F KEVIP-DNAT-10.0.0.100",
        "COMMIT",
    ]
    assert delete.splitlines() == ["*nat", "-X KEVIP-DNAT-10.0.0.100", "COMMIT"]


@pytest.mark.parametrize("saved", ["", SAVED])
def test_teardown_of_nothing_is_nothing(saved: str) -> None:
    assert teardown(saved, IPv4Address("10.0.0.1")) == ("", "")


WHOLE = """\
*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -m comment --comment "kevip:10.0.0.10" -j KEVIP-DNAT-10.0.0.10
-A PREROUTING -m comment --comment "kevip:10.0.0.100" -j KEVIP-DNAT-10.0.0.100
-A PREROUTING -j DOCKER
-A KEVIP-DNAT-10.0.0.100 -d 10.0.0.100/32 -m comment --comment "kevip:10.0.0.100" -j DNAT --to-destination 192.0.2.9
COMMIT
"""
ACCEPT = '-A FORWARD -m comment --comment "kevip:10.0.0.100" -j ACCEPT\n'


@pytest.mark.parametrize(("chain", "wrong"), [
    (ACCEPT, []),
    ("-A FORWARD -j DOCKER\n" + ACCEPT, []),
    (ACCEPT + ACCEPT.replace(".100", ".101"), []),
    (ACCEPT + "-A FORWARD -j DOCKER\n", ["filter FORWARD: others behind our rule"]),
    (ACCEPT.replace("FORWARD", "INPUT") + "-A INPUT -j DROP\n", ["filter INPUT: others behind our rule"]),
    (ACCEPT.replace("FORWARD", "INPUT").replace("ACCEPT", "KEVIP-IN-10.0.0.100") + "-A INPUT -j DROP\n", []),
])  # fmt: skip
def test_what_is_accepted_stands_last(chain: str, wrong: list[str]) -> None:
    assert list(IPTABLES.misplaced(VIP, f"*filter\n:FORWARD DROP [0:0]\n{chain}COMMIT\n")) == wrong


JUMP = '-A PREROUTING -m comment --comment "kevip:10.0.0.100" -j KEVIP-DNAT-10.0.0.100\n'
RULE = WHOLE.splitlines(keepends=True)[5]


@pytest.mark.parametrize(("saved", "wrong"), [
    (WHOLE, []),
    (WHOLE.replace(JUMP, ""), [f"nat rule missing: {JUMP.strip()}"]),
    (WHOLE.replace(RULE, ""), [f"nat rule missing: {RULE.strip()}"]),
    (WHOLE.replace(JUMP, "").replace("-j DOCKER\n", "-j DOCKER\n" + JUMP), ["nat PREROUTING: others before our jump"]),
    (WHOLE.replace(RULE, RULE + "-A KEVIP-DNAT-10.0.0.100 -j RETURN\n"),
     ["nat rule foreign: -A KEVIP-DNAT-10.0.0.100 -j RETURN"]),
    ("", [f"nat rule missing: {JUMP.strip()}", f"nat rule missing: {RULE.strip()}"]),
])  # fmt: skip
def test_what_is_wrong_with_the_rules(saved: str, wrong: list[str]) -> None:
    assert flaws(IPTABLES, VIP, saved, texts(IPTABLES, VIP, WHOLE)) == wrong


def test_repair_replaces_our_jumps_in_the_same_transaction() -> None:
    with mock.patch("kevip.host.command.run_now") as run:
        proxy = Proxy(vip=VIP, target=TARGET)
        IPTABLES.repair(proxy, proxy.parts, WHOLE)
    assert run.call_args.kwargs["stdin"] == SCOPED.replace("*nat\n", f"*nat\n-D{JUMP.removeprefix('-A')}")


@pytest.mark.parametrize("global_masquerade", [False, True])
def test_counts_the_rules_that_there_should_be(global_masquerade: bool) -> None:
    proxy = Proxy(vip=VIP, target=TARGET, global_masquerade=global_masquerade)
    found = [line for line in setup(proxy).splitlines() if line.startswith("-")]
    assert IPTABLES.size(proxy, proxy.parts) == len(found)
    assert IPTABLES.size(proxy, proxy.parts | {Part.ACCEPT}) == len(found) + 1


COUNTED = """\
*nat
:PREROUTING ACCEPT [7:420]
:KEVIP-DNAT-10.0.0.100 - [0:0]
[5:300] -A PREROUTING -m comment --comment "kevip:10.0.0.100" -j KEVIP-DNAT-10.0.0.100
[4:240] -A KEVIP-DNAT-10.0.0.100 -m comment --comment "kevip:10.0.0.100" -j DNAT --to-destination 192.0.2.9
[3:180] -A KEVIP-DNAT-10.0.0.100 -j RETURN
[2:120] -A POSTROUTING -m comment --comment kevip:10.0.0.101 -j MASQUERADE
[1:60] -A POSTROUTING -m comment --comment "kevip:10.0.0.999" -j MASQUERADE
[1:60] -A POSTROUTING -m comment --comment "kevip:10.0.0.100 and more" -j MASQUERADE
[1:60] -A POSTROUTING -j MASQUERADE
COMMIT
*mangle
[8:800] -A FORWARD -m conntrack --ctstate DNAT --ctorigdst 10.0.0.100 -m comment --comment "kevip:10.0.0.100"
COMMIT
*filter
[9:900] -A FORWARD -m conntrack --ctstate DNAT -m comment --comment "kevip:10.0.0.100" -j ACCEPT
COMMIT
"""


def test_counters_are_told_apart_by_vip_and_by_what_the_rules_do() -> None:
    found = IPTABLES.rules(COUNTED)
    assert {vip: [(rule.part, rule.packets, rule.bytes) for rule in rules] for vip, rules in found.items()} == {
        VIP: [(None, 5, 300), ("dnat", 4, 240), (None, 3, 180), ("forward", 8, 800), ("accept", 9, 900)],
        VIP + 1: [("masquerade", 2, 120)],
    }
    plain = re.sub(r"^\[.*?\] (?=-A)", "", COUNTED, flags=re.MULTILINE)
    assert [rule.text for rule in found[VIP]] == texts(IPTABLES, VIP, plain)
