"""The rules of nftables, literally, and what is read of its listings."""

import re
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given, strategies

from kevip.dataplane.backend import flaws, texts
from kevip.dataplane.iptables import Iptables
from kevip.dataplane.nftables import Nftables
from kevip.dataplane.rewrite import chains
from kevip.dataplane.rules import Part, Ports, Proxy, rewriting
from kevip.dataplane.select import ahead
from kevip.election.packet import checksum
from kevip.host.nfnetlink import Chain

VIP = IPv4Address("10.0.0.100")
TARGET = IPv4Address("192.0.2.9")
PROXY = Proxy(vip=VIP, target=TARGET)
NFT = Nftables()

SETUP = """\
table ip kevip-10.0.0.100 {
	comment "kevip:10.0.0.100"
	map targets {
		type ipv4_addr : ipv4_addr
		elements = { 10.0.0.100 : 192.0.2.9 }
	}
	chain guard {
		type filter hook prerouting priority -155; policy accept;
		ip saddr 192.0.2.9 ip daddr 10.0.0.100 fib daddr type local ct state invalid,new counter drop
	}
	chain forward {
		type filter hook forward priority -155; policy accept;
		ct status dnat ct original ip daddr 10.0.0.100 counter
	}
	chain prerouting {
		type nat hook prerouting priority -105; policy accept;
		ip daddr 10.0.0.100 fib daddr type local counter dnat to ip daddr map @targets
	}
	chain output {
		type nat hook output priority -105; policy accept;
		ip daddr 10.0.0.100 fib daddr type local counter dnat to ip daddr map @targets
	}
	chain postrouting {
		type nat hook postrouting priority 95; policy accept;
		ct status dnat ct original ip daddr 10.0.0.100 counter snat to 10.0.0.100
	}
}
"""

SAVED = """\
table ip kevip-10.0.0.100 {
	comment "kevip:10.0.0.100"
	map targets {
		type ipv4_addr : ipv4_addr
		elements = { 10.0.0.100 : 192.0.2.9 }
	}

	chain guard {
		type filter hook prerouting priority mangle - 5; policy accept;
		ip saddr 192.0.2.9 ip daddr 10.0.0.100 ct state invalid,new counter packets 4 bytes 240 drop
	}

	chain prerouting {
		type nat hook prerouting priority dstnat - 5; policy accept;
		ip daddr 10.0.0.100 fib daddr type local counter packets 3 bytes 180 dnat to ip daddr map @targets
	}
}
table ip kevip-10.0.0.101 {
	comment "somebody else's"

	chain prerouting {
		type nat hook prerouting priority dstnat - 5; policy accept;
	}
}
table ip kevip-mine {
	comment "kevip:mine"

	chain prerouting {
		type nat hook prerouting priority dstnat - 5; policy accept;
	}
}
"""


def test_the_rules_are_these() -> None:
    assert NFT.setup(PROXY, PROXY.parts) == SETUP


REWRITING = """\
table ip kevip-10.0.0.100 {
	comment "kevip:10.0.0.100"
	set ports {
		type inet_proto . inet_service; flags interval
		elements = { tcp . 80-80 }
	}
	set refused {
		type inet_proto . inet_service; size 1024; flags dynamic,timeout; timeout 10s;
	}
	chain forward {
		type filter hook forward priority -155; policy accept;
		ct original zone 38500 counter
	}
	chain refuse {
		type filter hook input priority -5; policy accept;
		LOCAL icmp type echo-request accept
		LOCAL ct state invalid,new,untracked meta l4proto tcp counter reject with tcp reset
		LOCAL ct state invalid,new,untracked counter reject
	}
	chain stray {
		type filter hook prerouting priority -155; policy accept;
		LOCAL ct state invalid,new,untracked tcp flags & (syn | ack) != syn counter drop
	}
	chain rewrite {
		type filter hook prerouting priority -301; policy accept;
		ct direction reply return
		LOCAL tcp dport { 80-80 } ct original zone set 38500 counter ip daddr set 10.96.0.50
		LOCAL icmp type { 3, 11 } @th,64,8 0x45 @th,136,8 6 @th,224,16 { 80-80 } ct original zone set \
38500 counter @th,160,32 0xa000064 @th,32,16 set @th,32,16 map { 0 : 65489, 32 : 65521 } @th,160,32 set 0xa600032 \
ip daddr set 10.96.0.50
	}
	chain own {
		type route hook output priority -301; policy accept;
		ct direction reply return
		LOCAL tcp dport { 80-80 } ct original zone set 38500 counter ip daddr set 10.96.0.50
	}
	chain undone {
		type filter hook prerouting priority -95; policy accept;
		UNDONE update @refused { meta l4proto . th dport }
		UNDONE meta l4proto tcp ip daddr set 10.0.0.100 counter reject with tcp reset
		UNDONE ip daddr set 10.0.0.100 counter reject
	}
	chain unsent {
		type filter hook output priority -95; policy accept;
		UNDONE update @refused { meta l4proto . th dport }
		UNDONE meta l4proto tcp ip daddr set 10.0.0.100 counter reject with tcp reset
		UNDONE ip daddr set 10.0.0.100 counter reject
	}
	chain postrouting {
		type nat hook postrouting priority 95; policy accept;
		ct original zone 38500 meta l4proto . th sport @ports counter masquerade
		ct original zone 38500 counter snat to 10.0.0.100
	}
	chain reply {
		type filter hook postrouting priority 301; policy accept;
		ct original zone 38500 ct direction reply oifname != "lo" icmp type { 3, 11 } @th,64,8 0x45 \
@th,192,32 0xa600032 @th,32,16 set @th,32,16 map { 0 : 46, 32 : 78 } @th,192,32 set 0xa000064
		ct original zone 38500 ct direction reply ip saddr set 10.0.0.100
	}
	chain inward {
		type filter hook input priority 301; policy accept;
		ct original zone 38500 ct direction reply icmp type { 3, 11 } @th,64,8 0x45 @th,192,32 0xa600032 @th,32,16 set \
@th,32,16 map { 0 : 46, 32 : 78 } @th,192,32 set 0xa000064
		ct original zone 38500 ct direction reply ip saddr set 10.0.0.100
		iifname lo icmp type { 3, 11 } @th,64,8 0x45 @th,160,32 0xa000064 @th,192,32 0xa600032 @th,32,16 set \
@th,32,16 map { 0 : 46, 32 : 78 } @th,192,32 set 0xa000064
	}
}
"""


def test_the_rules_for_a_target_that_somebody_else_translates_are_these() -> None:
    proxy = Proxy(vip=VIP, target=IPv4Address("10.96.0.50"), ports=(Ports("tcp", 80, 80),))
    expected = REWRITING.replace("LOCAL", "ip daddr 10.0.0.100 fib daddr type local").replace(
        "UNDONE", "ct original zone 38500 ct status & dnat == 0 ct state new"
    )
    assert NFT.setup(proxy, rewriting(proxy.parts)) == expected


def test_sources_and_ports_are_limited_by_sets() -> None:
    ports = (Ports("udp", 53, 54), Ports("tcp", 8005, 8020), Ports("tcp", 443, 443), Ports("tcp", 8000, 8010))
    proxy = Proxy(vip=VIP, target=TARGET, ports=ports, allow_from=(IPv4Network("10.1.0.0/16"),))
    text = NFT.setup(proxy, proxy.parts)
    assert "elements = { 10.1.0.0/16 }" in text
    assert "elements = { tcp . 443-443, tcp . 8000-8020, udp . 53-54 }" in text
    assert "ct state invalid,new,untracked ip saddr != @sources counter drop" in text
    assert "meta l4proto . th dport @ports counter dnat to" in text
    assert text.count("counter reject") == 2
    assert "chain output" not in text  # processes of this host are not allowed


def test_a_host_wide_masquerade_comes_behind_that_of_others() -> None:
    proxy = Proxy(vip=VIP, target=TARGET, global_masquerade=True)
    text = NFT.setup(proxy, proxy.parts)
    assert "type nat hook postrouting priority 105; policy accept;\n\t\tcounter masquerade\n" in text
    assert "snat" not in text


def test_reads_rules_with_their_counters_from_tables_with_our_mark() -> None:
    found = NFT.rules(SAVED)
    assert {vip: [(rule.part, rule.packets, rule.bytes) for rule in rules] for vip, rules in found.items()} == {
        VIP: [(None, 0, 0), (Part.GUARD, 4, 240), (Part.DNAT, 3, 180)],
    }
    assert found[VIP][2].text == (
        "prerouting ip daddr 10.0.0.100 fib daddr type local counter dnat to ip daddr map @targets"
    )


def test_counts_the_rules_that_there_should_be() -> None:
    assert NFT.size(PROXY, PROXY.parts) == 6
    assert NFT.size(PROXY, frozenset({Part.GUARD, Part.DNAT})) == 4


@pytest.mark.parametrize(("old", "new", "wrong"), [
    ("packets 4 bytes 240", "packets 5 bytes 300", []),
    ("192.0.2.9 }", "192.0.2.10 }", ["map rule missing", "map rule foreign"]),
    ("\t\tip daddr", "\t\tudp dport 53 accept\n\t\tip daddr",
     ["prerouting rule foreign: udp dport 53 accept"]),
    (' {\n\tcomment "kevip:10.0.0.100"', " {", ["map", "guard rule missing", "prerouting rule missing"]),
])  # fmt: skip
def test_what_is_wrong_with_the_rules(old: str, new: str, wrong: list[str]) -> None:
    found = flaws(NFT, VIP, SAVED.replace(old, new), texts(NFT, VIP, SAVED))
    assert len(found) == len(wrong)
    assert all(flaw.startswith(start) for flaw, start in zip(found, wrong, strict=True))


def nat(path: str, hook: str, priority: int, kind: str = "nat") -> Chain:
    """Return a base chain."""
    family, table, name = path.split()
    return Chain(family=family, table=table, name=name, type=kind, hook=hook, priority=priority, drops=False)


@pytest.mark.parametrize(("chain", "before_iptables", "before_nftables"), [
    (nat("ip docker-bridges nat-POSTROUTING", "postrouting", 100), True, False),
    (nat("ip flannel-ipv4 postrtg", "postrouting", 100), True, False),
    (nat("inet other dnat", "prerouting", -101), True, False),
    (nat("inet other out", "output", -100), True, False),
    (nat("ip other post", "postrouting", 95), True, True),
    (nat("inet firewalld nat_POSTROUTING", "postrouting", 110), False, False),
    (nat("inet firewalld nat_PREROUTING", "prerouting", -90), False, False),
    (nat("ip other in", "input", 100), False, False),
    (nat("ip other post", "postrouting", 0, "filter"), False, False),
    (nat("iptables-legacy nat POSTROUTING", "postrouting", 100), True, False),
    (nat("ip nat mine", "postrouting", 100), True, False),
    (nat("ip kevip-10.0.0.101 postrouting", "postrouting", 95), False, False),
])  # fmt: skip
def test_knows_who_translates_first(chain: Chain, before_iptables: bool, before_nftables: bool) -> None:
    assert bool(ahead(Iptables("iptables-nft", "nft"), [chain])) is before_iptables
    assert bool(ahead(NFT, [chain])) is before_nftables


def rewritten(rule: str, message: bytes) -> bytes:
    """Return what a rule makes of an ICMP message, byte by byte; unchanged if it does not match."""
    found = bytearray(message)

    def field(offset: str, length: str) -> slice:
        return slice(int(offset) // 8, (int(offset) + int(length)) // 8)

    for offset, length, value in re.findall(r"@th,(\d+),(\d+) (0x\w+)", rule):
        if int.from_bytes(message[field(offset, length)]) != int(value, 16):
            return message
    for offset, length, pairs in re.findall(r"@th,(\d+),(\d+) set \S+ map { (.*?) }", rule):
        known = dict(pair.split(" : ") for pair in pairs.split(", "))
        if (new := known.get(str(int.from_bytes(message[field(offset, length)])))) is None:
            return message
        found[field(offset, length)] = int(new).to_bytes(int(length) // 8)
    for offset, length, new in re.findall(r"@th,(\d+),(\d+) set (0x\w+)", rule):
        found[field(offset, length)] = int(new, 16).to_bytes(int(length) // 8)
    return bytes(found)


addresses = strategies.integers(0x01000000, 0xDFFFFFFF).map(IPv4Address)


@given(
    vip=addresses, target=addresses, client=addresses,
    quoted=strategies.binary(min_size=28, max_size=128), more=strategies.sampled_from([0, 32]),
)  # fmt: skip
def test_an_error_that_quotes_target_quotes_the_vip_and_its_checksum_holds(
    vip: IPv4Address, target: IPv4Address, client: IPv4Address, quoted: bytes, more: int
) -> None:
    """The message is "fragmentation needed", with and without what more may follow (RFC 4884)."""
    proxy = Proxy(vip=vip, target=target)
    table = {each.name: each.rules for each in chains(proxy, rewriting(proxy.parts), [], 95)}
    header = b"\x45" + quoted[1:12] + client.packed
    rest = more.to_bytes(2) + quoted[:2] + header
    head, tail = b"\x03\x04", rest + target.packed + quoted[20:]
    message = head + checksum(head + b"\0\0" + tail).to_bytes(2) + tail
    expected = rest[2:] + vip.packed + quoted[20:]
    for name in ("reply", "inward"):
        got = rewritten(table[name][0], message)
        assert got[:4] + got[6:] == message[:4] + expected
        assert checksum(got) == 0
    other = message[:24] + IPv4Address(int(target) ^ 1).packed + message[28:]
    assert rewritten(table["reply"][0], other) == other
