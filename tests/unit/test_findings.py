"""What the checks of ``kevip check`` make of what they are given: tables, without a host."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest

from kevip.check import election, report, rules, traffic
from kevip.check.election import Heard, Stranger
from kevip.check.preflight import examine
from kevip.check.report import Finding, Verdict
from kevip.config import Config
from kevip.election.carp import Group, Interval
from kevip.host import kernel, kubernetes
from kevip.host.interface import Address, Interface
from kevip.host.kubernetes import Mode, has_ipvs_service, has_kube_services_rule, on_ipvs_interface
from kevip.host.nfnetlink import Chain
from kevip.host.route import Route, parse

VIP = IPv4Address("10.77.0.100")
TARGET = IPv4Address("203.0.113.10")
US, PEER, OTHER = (IPv4Address(f"10.77.0.{number}") for number in (11, 12, 13))
GROUP = Group(vhid=100, vip=VIP, key=b"secret")
OWN = Interval(1, 9)
HEARD: Heard[Interval] = Heard(seconds=4, source=US)


@pytest.mark.parametrize(("heard", "expected"), [
    (HEARD, ["ok"]),
    (replace(HEARD, ours=True), ["ok"]),
    (replace(HEARD, masters={PEER: Interval(1, 200)}), ["ok"]),
    (replace(HEARD, masters={PEER: Interval(2, 0)}), ["warning"]),
    (replace(HEARD, masters={PEER: Interval(3, 9)}), ["warning"]),
    (replace(HEARD, masters={PEER: Interval(3, 10)}), ["failed"]),
    (replace(HEARD, masters={PEER: Interval(4, 0)}), ["failed"]),
    (replace(HEARD, masters={US: OWN}), ["failed"]),
    (replace(HEARD, masters={PEER: OWN, OTHER: OWN}), ["ok", "ok", "warning"]),
    (replace(HEARD, masters={PEER: OWN}, ours=True), ["ok", "ok", "warning"]),
])  # fmt: skip
def test_judges_the_masters_that_were_heard(heard: Heard[Interval], expected: list[str]) -> None:
    assert [each.verdict for each in election.masters(heard, OWN, 3)] == expected


@pytest.mark.parametrize(("stranger", "holds", "verdict", "words"), [
    (Stranger("version", PEER), False, "warning", "speaks VRRP with id 100"),
    (Stranger("ttl", PEER), False, "warning", "bad adverts with id 100 (ttl)"),
    (Stranger("truncated", None), False, "warning", "an unknown sender sends bad adverts"),
    (Stranger("digest", PEER, OTHER), False, "warning", "uses id 100 for VIP 10.77.0.13, with our password"),
    (Stranger("digest", PEER), True, "failed", "holds VIP 10.77.0.100, and advertises with another password"),
    (Stranger("digest", PEER), False, "warning", "a password that is not ours; it does not hold VIP 10.77.0.100"),
    (Stranger("digest", US), False, "failed", "what advertises on this host has another password"),
])  # fmt: skip
def test_tells_strangers_apart(stranger: Stranger, holds: bool, verdict: str, words: str) -> None:
    heard = replace(HEARD, strangers={stranger}, macs={PEER: {"m"}}, claims={"m"} if holds else set())
    [finding] = election.strangers(heard, GROUP)
    assert finding.verdict == verdict
    assert words in finding.found


@pytest.mark.parametrize(("heard", "expected"), [
    (HEARD, ["ok"]),
    (replace(HEARD, masters={PEER: OWN}, macs={PEER: {"m"}}, claims={"m"}), ["ok"]),
    (replace(HEARD, masters={PEER: OWN}, macs={PEER: {"m"}}, claims={"m", "x"}), ["ok", "failed"]),
    (replace(HEARD, masters={PEER: OWN}, macs={PEER: {"m"}}), ["warning"]),
    (replace(HEARD, macs={PEER: {"m"}}, claims={"m"}), ["failed"]),
    (replace(HEARD, ours=True, claims={"x"}), ["failed"]),
])  # fmt: skip
def test_tells_the_master_from_a_duplicate(heard: Heard[Interval], expected: list[str]) -> None:
    assert [each.verdict for each in election.duplicates(heard, VIP)] == expected


def saved(policy: str, *nat: str) -> str:
    """Return what ``iptables-save`` prints."""
    return "\n".join(["*filter", f":FORWARD {policy} [0:0]", "COMMIT", "*nat", *nat, "COMMIT", ""])


def chain(family: str, table: str, name: str, *, drops: bool = True) -> Chain:
    """Return a chain of nftables at the forward hook."""
    return Chain(family=family, table=table, name=name, type="filter", hook="forward", priority=0, drops=drops)


@pytest.mark.parametrize(("nft", "legacy", "chains", "expected"), [
    ("ACCEPT", "ACCEPT", [], ["ok"]),
    ("DROP", "ACCEPT", [chain("ip", "filter", "FORWARD")], ["ok"]),
    ("ACCEPT", "DROP", [], ["ok"]),
    ("ACCEPT", "ACCEPT", [chain("inet", "corp", "fw"), chain("ip", "corp", "fw")], ["warning", "warning"]),
    ("ACCEPT", "ACCEPT", [chain("inet", "corp", "fw", drops=False)], ["ok"]),
])  # fmt: skip
def test_finds_what_drops_forwarded_packets(nft: str, legacy: str, chains: list[Chain], expected: list[str]) -> None:
    texts = {"iptables-nft": saved(nft), "iptables-legacy": saved(legacy)}
    assert [each.verdict for each in rules.forwarding(texts, VIP, chains)] == expected


JUMP = '-A POSTROUTING -m comment --comment "kevip:10.77.0.100" -j KEVIP-SNAT-10.77.0.100'
OTHERS = "-A POSTROUTING -s 10.9.0.0/16 -j MASQUERADE"


@pytest.mark.parametrize(("nat", "runs", "verdict", "found"), [
    ([], False, "ok", "no rules of others"),
    ([OTHERS, OTHERS], False, "ok", "2 of others: a master puts its own before them"),
    ([JUMP, OTHERS], True, "ok", "1 of others: a master puts its own before them"),
    ([OTHERS, JUMP], False, "ok", "1 of others: a master puts its own before them"),
    ([OTHERS, JUMP], True, "warning", "others' rules stand before ours: TARGET may not see the VIP as the source"),
])  # fmt: skip
def test_looks_who_translates_sources_first(nat: list[str], runs: bool, verdict: str, found: str) -> None:
    finding = rules.postrouting(saved("ACCEPT", *nat), VIP, runs=runs)
    assert (finding.verdict, finding.found) == (verdict, found)


@pytest.mark.parametrize(("rule", "matches"), [
    ("-A PREROUTING -d 10.77.0.100/32 -j DNAT --to-destination 10.9.9.9", True),
    ("-A POSTROUTING -s 10.77.0.100/32 -j ACCEPT", True),
    ("-A POSTROUTING -j SNAT --to-source 10.77.0.100", True),
    ("-A PREROUTING -d 10.77.0.10/32 -j ACCEPT", False),
    ("-A PREROUTING -d 110.77.0.100/32 -j ACCEPT", False),
    ("-A KEVIP-DNAT-10.77.0.100 -d 10.77.0.100/32 -j DNAT --to-destination 203.0.113.10", False),
    (JUMP, False),
])  # fmt: skip
def test_finds_rules_of_others_that_match_the_vip(rule: str, matches: bool) -> None:
    [finding] = rules.matching({"iptables": saved("ACCEPT", rule)}, [VIP])
    assert finding.verdict == ("warning" if matches else "ok")
    assert (rule in finding.found) is matches


def test_shows_a_few_of_many_rules_only() -> None:
    many = [f"-A PREROUTING -d {VIP}/32 -p tcp --dport {port} -j ACCEPT" for port in range(1, 8)]
    findings = list(rules.matching({"iptables": saved("ACCEPT", *many)}, [VIP]))
    assert [each.found for each in findings][3:] == ["and 4 more"]


STRAIGHT, ASIDE = Route(interface="eth0"), Route(interface="eth1")
HERE = Route(interface="lo", local=True)


@pytest.mark.parametrize(("mode", "way", "defaults", "expected"), [
    (0, ASIDE, {"eth1"}, ["ok"]),
    (2, ASIDE, {"eth1"}, ["ok"]),
    (1, STRAIGHT, {"eth0"}, ["ok"]),
    (1, STRAIGHT, set(), ["ok"]),
    (1, HERE, {"eth0"}, ["ok"]),
    (1, ASIDE, {"eth0"}, ["warning"]),
    (1, STRAIGHT, {"eth1"}, ["warning"]),
    (1, ASIDE, {"eth1"}, ["warning", "warning"]),
])  # fmt: skip
def test_a_strict_filter_matters_where_the_way_back_is_another(
    mode: int, way: Route, defaults: set[str], expected: list[str]
) -> None:
    assert [each.verdict for each in traffic.reverse_path("eth0", mode, way, defaults)] == expected


@pytest.mark.parametrize(("own", "way", "out", "verdict", "advice"), [
    (1500, STRAIGHT, 1500, "ok", ""),
    (1500, HERE, 65536, "ok", ""),
    (9000, ASIDE, 1500, "warning", "reach clients"),
    (1400, ASIDE, 1500, "warning", "reach TARGET"),
])  # fmt: skip
def test_tells_an_mtu_that_differs(own: int, way: Route, out: int, verdict: str, advice: str) -> None:
    finding = traffic.mtu("eth0", own, way, out)
    assert finding.verdict == verdict
    assert advice in finding.advice


@pytest.mark.parametrize(("table", "verdict"), [
    (None, "ok"), ((0, 100), "ok"), ((79, 100), "ok"), ((80, 100), "warning"), ((100, 100), "warning"), ((5, 0), "ok"),
])  # fmt: skip
def test_tells_a_full_table_of_connections(table: tuple[int, int] | None, verdict: str) -> None:
    assert traffic.fill(table).verdict == verdict


def test_says_who_may_use_the_vip() -> None:
    assert traffic.sources((), VIP) == Finding(
        "access", "anyone who can reach VIP 10.77.0.100 can use TARGET through it", verdict=Verdict.OK
    )
    assert traffic.sources(["10.0.0.0/8"], VIP).found == "VIP 10.77.0.100 is for 10.0.0.0/8 only"


@pytest.mark.parametrize("tracks", [True, False])
def test_the_start_refuses_ipvs_without_conntrack(tracks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "mode_of", lambda *_: Mode.IPVS)
    monkeypatch.setattr(kernel, "ipvs_tracks", lambda: tracks)
    fitness = examine(Config(vip=VIP, target=TARGET, password="secret"))  # noqa: S106 - no secret
    problems = fitness.problems.get("service", [])
    assert [problem.endswith("sysctl -w net.ipv4.vs.conntrack=1") for problem in problems] == [True] * (not tracks)


@pytest.mark.parametrize(("value", "tracks"), [("1\n", True), ("0\n", False), (None, False)])
def test_reads_whether_ipvs_uses_conntrack(
    value: str | None, tracks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "_SYSCTL", tmp_path)
    if value:
        (tmp_path / "vs").mkdir()
        (tmp_path / "vs" / "conntrack").write_text(value)
    assert kernel.ipvs_tracks() is tracks


def test_says_how_a_cluster_ip_is_handled() -> None:
    assert traffic.service(TARGET, None).found == f"TARGET {TARGET} is no cluster-IP that this node knows of"
    assert (
        traffic.service(TARGET, Mode.IPVS).found == f"TARGET {TARGET} is a cluster-IP, handled by IPVS with conntrack"
    )


IP_VS = """IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A60000A:01BB rr
  -> 0A610005:01BB      Masq    1      0          0
UDP  0A60000B:0035 rr
"""


@pytest.mark.parametrize(("address", "listed"), [
    ("10.96.0.10", True), ("10.96.0.11", True), ("10.97.0.5", False), ("10.96.0.1", False),
])  # fmt: skip
def test_reads_the_services_of_ipvs(address: str, listed: bool) -> None:
    assert has_ipvs_service(IPv4Address(address), IP_VS) is listed


@pytest.mark.parametrize(("rule", "handled"), [
    ("-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-X", True),
    ("-A KUBE-SERVICES -d 10.96.0.100/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-X", False),
    ("-A KUBE-SVC-X ! -s 10.244.0.0/16 -d 10.96.0.10/32 -j KUBE-MARK-MASQ", False),
    ("-A INPUT -d 10.96.0.10/32 -j ACCEPT", False),
])  # fmt: skip
def test_reads_the_services_of_kube_proxy(rule: str, handled: bool) -> None:
    assert has_kube_services_rule(IPv4Address("10.96.0.10"), saved("ACCEPT", rule)) is handled


@pytest.mark.parametrize(("name", "handled"), [("kube-ipvs0", True), ("eth0", False)])
def test_knows_the_interface_of_ipvs(name: str, handled: bool) -> None:
    interface = Interface(name=name, up=False, addresses=(Address(ip=IPv4Interface("10.96.0.10/32")),))
    assert on_ipvs_interface(IPv4Address("10.96.0.10"), [interface]) is handled


@pytest.mark.parametrize(("text", "route"), [
    ('[{"dst":"10.0.0.2","dev":"e0","prefsrc":"10.0.0.1","flags":[],"uid":0,"cache":[]}]', Route(interface="e0")),
    ('[{"dst":"1.1.1.1","gateway":"10.0.0.9","dev":"e0","flags":[],"cache":[],"metrics":[{"mtu":1300}]}]',
     Route(interface="e0", gateway="10.0.0.9", mtu=1300)),
    ('[{"type":"local","dst":"10.0.0.1","dev":"lo","flags":[],"cache":["local"]}]', Route(interface="lo", local=True)),
])  # fmt: skip
def test_parses_a_route(text: str, route: Route) -> None:
    assert parse(text) == route


def test_wraps_what_is_long_and_hangs_the_advice() -> None:
    finding = Finding("TARGET", "one two three four five six", "seven eight nine ten eleven", verdict=Verdict.WARNING)
    assert report.lines(finding, 43).splitlines() == [
        "TARGET        one two three four",
        "                       five six",
        "                       -> seven eight nine",
        "                          ten eleven",
    ]
