"""What the kernel says of nftables, compared with what ``nft`` made there."""

import sys
from contextlib import suppress
from ipaddress import IPv4Address

from lab.network import Namespace

from kevip.errors import HostError
from kevip.host.nfnetlink import base_chains, contains, generation

RULESET = """
table ip kube-proxy {
    set cluster-ips { type ipv4_addr; elements = { 10.96.0.1, 10.96.0.10 }; }
    chain filter-forward { type filter hook forward priority -110; policy accept; }
    chain nat-postrouting { type nat hook postrouting priority 100; }
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


def test_lists_the_base_chains_that_ipv4_goes_through(host: Namespace) -> None:
    host.run("nft", "-f", "-", stdin=RULESET)
    host.iptables("-P", "FORWARD", "DROP")
    with host.entered():
        chains = base_chains()
    assert {(each.path, each.type, each.hook, each.priority, each.drops) for each in chains} == {
        ("ip kube-proxy filter-forward", "filter", "forward", -110, False),
        ("ip kube-proxy nat-postrouting", "nat", "postrouting", 100, False),
        ("inet corp fw", "filter", "forward", 10, True),
        ("inet corp in", "filter", "input", 10, True),
        ("ip filter FORWARD", "filter", "forward", 0, True),
    }


def test_lists_all_of_many_chains(host: Namespace) -> None:
    """More than fit into one answer of the kernel."""
    chains = [f"chain c{number} {{ type filter hook forward priority 0; }}\n" for number in range(900)]
    host.run("nft", "-f", "-", stdin=f"table ip many {{\n{''.join(chains)}}}\n")
    with host.entered():
        assert {each.path for each in base_chains()} == {f"ip many c{number}" for number in range(900)}


def test_a_generation_is_another_one_after_each_change(host: Namespace) -> None:
    seen = set[int | None]()
    for change in ("add table ip mine", "add chain ip mine one", "add rule ip mine one accept", "flush ruleset"):
        host.run("nft", change)
        with host.entered():
            assert generation() == generation()
            seen.add(generation())
    assert len(seen - {None}) == 4


def test_finds_an_address_in_a_set(host: Namespace) -> None:
    with host.entered():
        assert base_chains() == []
        assert not contains("kube-proxy", "cluster-ips", IPv4Address("10.96.0.10"))
    host.run("nft", "-f", "-", stdin=RULESET)
    with host.entered():
        assert contains("kube-proxy", "cluster-ips", IPv4Address("10.96.0.10"))
        assert not contains("kube-proxy", "cluster-ips", IPv4Address("10.96.0.11"))
        assert not contains("kube-proxy", "service-ips", IPv4Address("10.96.0.10"))


def test_a_listing_that_others_interrupt_is_whole_all_the_same(host: Namespace) -> None:
    """As a kube-proxy does that syncs thousands of chains."""
    chains = "".join(f"chain c{number} {{ type filter hook forward priority 0; }}\n" for number in range(300))
    change = f"table ip many\ndelete table ip many\ntable ip many {{\n{chains}}}\n"
    host.run(
        "nft", "-f", "-", stdin=f"table ip mine {{ chain c {{ type filter hook forward priority 0; }}; }}\n{change}"
    )
    script = f"import subprocess\nfor _ in range(5): subprocess.run(['nft', '-f', '-'], input={change!r}, text=True)\n"
    changer = host.popen(sys.executable, "-c", script)
    while changer.poll() is None:
        with host.entered(), suppress(HostError):  # which says so
            paths = [each.path for each in base_chains()]
            assert len(paths) == len(set(paths)) == 301
