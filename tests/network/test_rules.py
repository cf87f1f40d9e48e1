"""The rules in a real kernel, through all back ends: put in place and taken away among rules of others."""

from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network

import pytest
from lab.network import Namespace

from kevip.dataplane.backend import Backend, texts
from kevip.dataplane.iptables import Iptables
from kevip.dataplane.nftables import Nftables
from kevip.dataplane.rules import Ports, Proxy

TARGET = IPv4Address("192.0.2.9")
VIP = IPv4Address("10.77.0.100")

LEGACY, NFT = Iptables("iptables-legacy", "legacy"), Iptables("iptables-nft", "nft")

everywhere = pytest.mark.parametrize("backend", [Nftables(), NFT, LEGACY], ids=lambda each: each.name)
in_iptables = pytest.mark.parametrize("backend", [NFT, LEGACY], ids=lambda each: each.name)


def up(host: Namespace, backend: Backend, vip: IPv4Address = VIP, *, global_masquerade: bool = False) -> None:
    with host.entered():
        proxy = Proxy(vip=vip, target=TARGET, global_masquerade=global_masquerade)
        backend.standby().run(backend.setup(proxy, proxy.parts | proxy.opens))


def down(host: Namespace, backend: Backend, vip: IPv4Address = VIP) -> None:
    with host.entered():
        backend.remove(vip, backend.save(vip))


def add_canaries(host: Namespace) -> dict[str, list[str]]:
    """Add rules of somebody else's that look a little like ours; return all rules."""
    tables = ("kevip-10.77.0.10", "kevip", "other")
    host.run("nft", "-f", "-", stdin="".join(f"table ip {name} {{ chain c {{ accept; }}; }}\n" for name in tables))
    for table, chain, rule in [
        ("nat", "PREROUTING", "-d 10.77.0.100 -p tcp --dport 22 -j ACCEPT"),
        ("nat", "POSTROUTING", "-m comment --comment kevip -j MASQUERADE"),
        ("filter", "FORWARD", "-m comment --comment kevip:10.77.0.10 -j ACCEPT"),
        ("mangle", "PREROUTING", '-m comment --comment "kevip:10.77.0.100 and more" -j ACCEPT'),
    ]:
        for kind in ("nft", "legacy"):
            host.run("sh", "-c", f"iptables-{kind} --wait -t {table} -A {chain} {rule}")
    for kind in ("nft", "legacy"):
        host.iptables("-t", "nat", "-N", "KEVIP-DNAT-10.77.0.1", backend=kind)
    return host.rules()


@everywhere
@pytest.mark.parametrize("global_masquerade", [False, True])
def test_what_is_put_in_place_is_taken_away_and_nothing_else(
    host: Namespace, backend: Backend, global_masquerade: bool
) -> None:
    before = add_canaries(host)
    for _ in range(2):
        up(host, backend, global_masquerade=global_masquerade)
        assert host.rules() != before
        down(host, backend)
        assert host.rules() == before
    down(host, backend)
    assert host.rules() == before


@in_iptables
def test_our_jumps_come_before_rules_that_were_there_first(host: Namespace, backend: Iptables) -> None:
    add_canaries(host)
    up(host, backend)
    for table, chain, name in [
        ("nat", "PREROUTING", "DNAT"),
        ("nat", "OUTPUT", "DNAT"),
        ("nat", "POSTROUTING", "SNAT"),
        ("mangle", "PREROUTING", "GUARD"),
    ]:
        first = host.iptables("-t", table, "-S", chain, backend=backend.kind).splitlines()[1]
        assert first.endswith(f"-j KEVIP-{name}-10.77.0.100")
        assert '--comment "kevip:10.77.0.100"' in first
    last = host.iptables("-S", "FORWARD", backend=backend.kind).splitlines()[-1]
    assert last.endswith('--ctorigdst 10.77.0.100 -m comment --comment "kevip:10.77.0.100" -j ACCEPT')


@in_iptables
def test_global_masquerade_is_exactly_the_host_wide_rule_with_our_mark(host: Namespace, backend: Iptables) -> None:
    host.iptables("-t", "nat", "-A", "POSTROUTING", "-j", "ACCEPT", backend=backend.kind)
    up(host, backend, global_masquerade=True)
    assert host.iptables("-t", "nat", "-S", "POSTROUTING", backend=backend.kind).splitlines() == [
        "-P POSTROUTING ACCEPT",
        "-A POSTROUTING -j ACCEPT",
        '-A POSTROUTING -m comment --comment "kevip:10.77.0.100" -j MASQUERADE',
    ]


@in_iptables
def test_rules_removed_twice_and_rules_half_gone_are_no_error(host: Namespace, backend: Iptables) -> None:
    before = host.rules()
    up(host, backend)
    host.iptables("-t", "nat", "-F", "PREROUTING", backend=backend.kind)
    host.iptables("-t", "mangle", "-F", backend=backend.kind)
    down(host, backend)
    down(host, backend)
    assert host.rules() == before


@everywhere
def test_ten_vips_at_once_do_not_disturb_each_other(host: Namespace, backend: Backend) -> None:
    before = add_canaries(host)
    vips = [IPv4Address("10.77.0.100") + number for number in range(10)]
    with ThreadPoolExecutor(10) as pool:
        for vip, done in [(vip, pool.submit(up, host, backend, vip)) for vip in vips]:
            done.result()
            assert f"kevip:{vip}" in str(host.rules()[backend.name])
        for done in [pool.submit(down, host, backend, vip) for vip in vips]:
            done.result()
    assert host.rules() == before


@pytest.mark.parametrize("backend", [Nftables()], ids=lambda each: each.name)
def test_what_is_in_large_sets_is_told_the_same_each_time(host: Namespace, backend: Nftables) -> None:
    """In whatever order the kernel has it, it is no drift."""
    networks = tuple(IPv4Network(f"20.{number // 250}.{number % 250}.0/25") for number in range(2000))
    ports = tuple(Ports("tcp", number, number + 3) for number in range(1000, 20_000, 10))
    proxy = Proxy(vip=VIP, target=TARGET, allow_from=networks, ports=ports)
    with host.entered():
        backend.standby().run(backend.setup(proxy, proxy.parts))
        found = {tuple(texts(backend, VIP, backend.save(VIP))) for _ in range(5)}
        assert len(found) == 1
        assert len(found.pop()) == backend.size(proxy, proxy.parts)
        assert list(backend.rules(backend.save())) == [VIP]
