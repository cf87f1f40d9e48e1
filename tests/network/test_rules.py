"""The rules in a real kernel, through both back ends: put in place and taken away among rules of others."""

from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address

import pytest
from lab.network import Namespace

from kevip.dataplane.iptables import BACKENDS, Backend, setup, teardown
from kevip.dataplane.rules import Proxy

TARGET = IPv4Address("192.0.2.9")
VIP = IPv4Address("10.77.0.100")

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def up(host: Namespace, backend: Backend, vip: IPv4Address = VIP, *, global_masquerade: bool = False) -> None:
    text = setup(Proxy(vip=vip, target=TARGET, global_masquerade=global_masquerade))
    host.run(f"iptables-{backend}-restore", "--noflush", "--wait=4", stdin=text)


def down(host: Namespace, backend: Backend, vip: IPv4Address = VIP) -> None:
    for text in teardown(host.run(f"iptables-{backend}-save"), vip):
        host.run(f"iptables-{backend}-restore", "--noflush", "--wait=4", stdin=text)


def add_canaries(host: Namespace, backend: Backend) -> dict[str, list[str]]:
    """Add rules of somebody else's that look a little like ours; return all rules."""
    for table, chain, rule in [
        ("nat", "PREROUTING", "-d 10.77.0.100 -p tcp --dport 22 -j ACCEPT"),
        ("nat", "POSTROUTING", "-m comment --comment kevip -j MASQUERADE"),
        ("filter", "FORWARD", "-m comment --comment kevip:10.77.0.10 -j ACCEPT"),
        ("mangle", "PREROUTING", '-m comment --comment "kevip:10.77.0.100 and more" -j ACCEPT'),
    ]:
        host.run("sh", "-c", f"iptables-{backend} --wait -t {table} -A {chain} {rule}")
    host.iptables("-t", "nat", "-N", "KEVIP-DNAT-10.77.0.1", backend=backend)
    return host.rules()


@pytest.mark.parametrize("global_masquerade", [False, True])
def test_what_is_put_in_place_is_taken_away_and_nothing_else(
    host: Namespace, backend: Backend, global_masquerade: bool
) -> None:
    before = add_canaries(host, backend)
    for _ in range(2):
        up(host, backend, global_masquerade=global_masquerade)
        assert host.rules() != before
        down(host, backend)
        assert host.rules() == before
    down(host, backend)
    assert host.rules() == before


def test_our_jumps_come_before_rules_that_were_there_first(host: Namespace, backend: Backend) -> None:
    add_canaries(host, backend)
    up(host, backend)
    for table, chain, name in [
        ("nat", "PREROUTING", "DNAT"),
        ("nat", "OUTPUT", "DNAT"),
        ("nat", "POSTROUTING", "SNAT"),
        ("filter", "FORWARD", "FWD"),
        ("mangle", "PREROUTING", "GUARD"),
    ]:
        first = host.iptables("-t", table, "-S", chain, backend=backend).splitlines()[1]
        assert first.endswith(f"-j KEVIP-{name}-10.77.0.100")
        assert '--comment "kevip:10.77.0.100"' in first


def test_global_masquerade_is_exactly_the_host_wide_rule_with_our_mark(host: Namespace, backend: Backend) -> None:
    host.iptables("-t", "nat", "-A", "POSTROUTING", "-j", "ACCEPT", backend=backend)
    up(host, backend, global_masquerade=True)
    assert host.iptables("-t", "nat", "-S", "POSTROUTING", backend=backend).splitlines() == [
        "-P POSTROUTING ACCEPT",
        "-A POSTROUTING -j ACCEPT",
        '-A POSTROUTING -m comment --comment "kevip:10.77.0.100" -j MASQUERADE',
    ]


def test_rules_removed_twice_and_rules_half_gone_are_no_error(host: Namespace, backend: Backend) -> None:
    before = host.rules()
    up(host, backend)
    host.iptables("-t", "nat", "-F", "PREROUTING", backend=backend)
    host.iptables("-t", "mangle", "-F", backend=backend)
    down(host, backend)
    down(host, backend)
    assert host.rules() == before


def test_ten_vips_at_once_do_not_disturb_each_other(host: Namespace, backend: Backend) -> None:
    before = add_canaries(host, backend)
    vips = [IPv4Address("10.77.0.100") + number for number in range(10)]
    with ThreadPoolExecutor(10) as pool:
        for vip, done in [(vip, pool.submit(up, host, backend, vip)) for vip in vips]:
            done.result()
            assert f"KEVIP-DNAT-{vip}" in host.run(f"iptables-{backend}-save")
        for done in [pool.submit(down, host, backend, vip) for vip in vips]:
            done.result()
    assert host.rules() == before
