"""What the kernel says of nftables, compared with what ``nft`` made there."""

from ipaddress import IPv4Address

from lab.network import Namespace

from kevip.host.nftables import Chain, contains, forward_chains

RULESET = """
table ip kube-proxy {
    set cluster-ips { type ipv4_addr; elements = { 10.96.0.1, 10.96.0.10 }; }
    chain filter-forward { type filter hook forward priority -110; policy accept; }
    chain services { }
}
table inet corp {
    chain fw { type filter hook forward priority 10; policy drop; }
    chain in { type filter hook input priority 10; policy drop; }
}
table ip6 corp {
    chain fw { type filter hook forward priority 10; policy drop; }
}
"""


def test_lists_the_chains_that_forwarded_ipv4_goes_through(host: Namespace) -> None:
    host.run("nft", "-f", "-", stdin=RULESET)
    host.iptables("-P", "FORWARD", "DROP")
    with host.entered():
        chains = forward_chains()
    assert {(each.family, each.table, each.name, each.drops) for each in chains} == {
        ("ip", "kube-proxy", "filter-forward", False),
        ("inet", "corp", "fw", True),
        ("ip", "filter", "FORWARD", True),
    }


def test_lists_all_of_many_chains(host: Namespace) -> None:
    """More than fit into one answer of the kernel."""
    chains = [f"chain c{number} {{ type filter hook forward priority 0; }}\n" for number in range(900)]
    host.run("nft", "-f", "-", stdin=f"table ip many {{\n{''.join(chains)}}}\n")
    with host.entered():
        assert set(forward_chains()) == {
            Chain(family="ip", table="many", name=f"c{number}", drops=False) for number in range(900)
        }


def test_finds_an_address_in_a_set(host: Namespace) -> None:
    with host.entered():
        assert forward_chains() == []
        assert not contains("kube-proxy", "cluster-ips", IPv4Address("10.96.0.10"))
    host.run("nft", "-f", "-", stdin=RULESET)
    with host.entered():
        assert contains("kube-proxy", "cluster-ips", IPv4Address("10.96.0.10"))
        assert not contains("kube-proxy", "cluster-ips", IPv4Address("10.96.0.11"))
        assert not contains("kube-proxy", "service-ips", IPv4Address("10.96.0.10"))
