"""What facts come to: a problem of each kind, with what to do, and what is none."""

from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from kevip.core.messages import Reason, Role
from kevip.dataplane.conntrack import Tracked
from kevip.dataplane.rules import Part, Rule
from kevip.host.kubernetes import Mode
from kevip.presence.group import Member
from kevip.status.observe import Facts, Held
from kevip.status.record import Health, Record
from kevip.status.verdict import verdict
from kevip.sync.replication import Copies

VIP = IPv4Address("10.0.0.100")
PEER = IPv4Address("10.0.0.12")
NOW = 2e9
RULES = tuple(
    Rule(text=f"nat -A KEVIP-DNAT-{VIP} -d {number} -j DNAT", part=Part.DNAT, packets=1, bytes=60)
    for number in range(3)
)
HERE = Held(vip=VIP, interface="eth0", prefix=32, seconds=5)


def ago(seconds: float) -> float:
    return NOW - seconds


def report(role: Role = Role.MASTER, *, since: float = 100, written: float = 1, **peers: float) -> Record:
    """Return a report; times are seconds ago, ``peer`` when the peer advertised."""
    heard = dict.fromkeys([PEER], ago(peers["peer"])) if peers else {}
    return Record(
        vip=VIP, target=IPv4Address("192.0.2.9"), vip_id=100, interface="eth0", dataplane="iptables-nft", patience=3.1,
        role=role, reason=Reason.ALONE, since=ago(since), peers=heard, started=ago(1000), turned=ago(written),
        rules={"iptables-nft": [rule.text for rule in RULES]} if role is Role.MASTER else {},
    )  # fmt: skip


MASTER = Facts(
    vip=VIP,
    at=NOW,
    run_dir=Path("/run/kevip"),
    report=report(),
    held=(HERE,),
    rules={"iptables-nft": RULES},
    tracked=Tracked(2),
)
BACKUP = replace(MASTER, report=report(Role.BACKUP, peer=0.5), held=(), rules={})
COPIES = Copies(interface="eth1", since=ago(60), heard_last=ago(60), resynced=ago(60))
UP = Health(check="tcp:443", up=True, since=ago(60), round_trip_ms=1.2)
DOWN = Health(check="tcp:443", up=False, since=ago(60), problem="connection refused")


def changed(facts: Facts, **changes: Any) -> Facts:
    """Return the facts with another report."""
    assert facts.report
    return replace(facts, report=replace(facts.report, **changes))


def with_health(facts: Facts, health: Health) -> Facts:
    return changed(facts, health=health)


REWRITTEN = tuple(replace(rule, part=Part.REWRITE) for rule in RULES)
LIMITED = (*REWRITTEN, Rule(text="set ports 0123456789abcdef", part=None))


@pytest.mark.parametrize(("facts", "text"), [
    (MASTER, "this host serves the VIP"),
    (replace(MASTER, service=Mode.IPVS, served=("80",)), "this host serves the VIP"),
    (replace(MASTER, rules={"iptables-nft": REWRITTEN}, service=Mode.NFTABLES, served=("80",)),
     "this host serves the VIP"),
    (replace(MASTER, rules={"iptables-nft": REWRITTEN}, service=Mode.NFTABLES, served=("80",), refused=("81",)),
     "this host serves the VIP"),  # nobody has named that port
    (replace(MASTER, tracked=Tracked(2, unanswered=1)), "this host serves the VIP"),  # TARGET is somebody else's
    (BACKUP, "10.0.0.12 serves the VIP, this host is ready to take over"),
    (replace(BACKUP, report=report(Role.BACKUP, peer=6)), "no master was heard for 6 s: one takes over soon"),
    (replace(BACKUP, report=report(Role.BACKUP, since=2)), "it joins the election"),
    (replace(BACKUP, report=report(Role.INIT, since=2)), "it joins the election"),
    (replace(MASTER, report=report(Role.LEAVING)), "this host serves the VIP until another one has taken over"),
    (replace(MASTER, report=report(since=1, peer=0.5)), "this host serves the VIP"),  # it took over just now
    (replace(MASTER, report=report(peer=30)), "this host serves the VIP"),  # the peer was master long ago
    (replace(BACKUP, report=report(Role.BACKUP, since=1, peer=0.5), rules={"iptables-nft": RULES}),
     "10.0.0.12 serves the VIP, this host is ready to take over"),  # they drain
    (with_health(MASTER, UP), "this host serves the VIP"),
    (changed(MASTER, sync=replace(COPIES, running=True)), "this host serves the VIP"),
    (changed(MASTER, sync=replace(COPIES, elsewhere=True)), "this host serves the VIP"),
    (changed(MASTER, sync=replace(COPIES, since=ago(2))), "this host serves the VIP"),
    (changed(BACKUP, reason=Reason.NOBODY), "10.0.0.12 serves the VIP, this host is ready to take over"),
    (with_health(changed(BACKUP, target=None), DOWN), "10.0.0.12 serves the VIP, this host is ready to take over"),
    (changed(replace(MASTER, held=(HERE, replace(HERE, interface="kube-ipvs0", seconds=None))), target=None),
     "this host serves the VIP"),
])  # fmt: skip
def test_what_fits_together_is_ok(facts: Facts, text: str) -> None:
    found = verdict(facts)
    assert (found.ok, found.text) == (True, text)


@pytest.mark.parametrize(("facts", "start", "hint"), [
    (replace(MASTER, privileged=False), "cannot tell", "sudo kevip status"),
    (replace(MASTER, flaws=("iptables-nft cannot read nat",)), "iptables-nft cannot read nat", ""),
    (replace(MASTER, running=False), "no kevip runs here, and one left the VIP on eth0 and rules in iptables-nft",
     "kevip cleanup --vip 10.0.0.100"),
    (replace(MASTER, running=False, report=None), "no kevip runs here, and one left the VIP on eth0 and rules",
     "kevip cleanup --vip 10.0.0.100"),
    (replace(BACKUP, running=False), "its kevip was killed", "kevip cleanup --vip 10.0.0.100"),
    (replace(BACKUP, running=False, report=None), "no kevip serves this VIP here", ""),
    (replace(MASTER, report=None), "its kevip does not write to /run/kevip", "--run-dir"),
    (replace(MASTER, report=report(written=20)), "its kevip (process ", "and start it again"),
    (replace(BACKUP, report=report(Role.BACKUP, written=20)), "its kevip (process ", "and start it again"),
    (replace(MASTER, held=()), "it is master without the VIP on eth0", "log"),
    (replace(MASTER, held=(replace(HERE, interface="eth1"),)), "it is master without the VIP on eth0", "log"),
    (replace(MASTER, held=(HERE, replace(HERE, seconds=None, prefix=24))), "the VIP is on eth0, but not by kevip",
     "ip address delete 10.0.0.100/24 dev eth0"),
    (replace(MASTER, rules={}), "it is master without its rules", "log"),
    (replace(MASTER, rules={"iptables-nft": RULES[:1]}), "it is master without 2 of 3 rules", "log"),
    (replace(MASTER, rules={"iptables-legacy": RULES}), "it is master without its rules", "log"),
    (replace(MASTER, rules={"iptables-nft": REWRITTEN}, service=Mode.NFTABLES, served=("80",), refused=("80",)),
     "clients are refused at 80 of ", "kubectl get services"),
    (replace(MASTER, rules={"iptables-nft": LIMITED}, service=Mode.NFTABLES, served=("80",), refused=("81",)),
     "clients are refused at 81 of ", "kube-proxy serves 80 there"),
    (replace(MASTER, rules={"iptables-nft": REWRITTEN}, service=Mode.NFTABLES, tracked=Tracked(2, unanswered=1)),
     "pods have not answered 1 connect of the last 30 s", "keeps out this node"),
    (replace(MASTER, cilium=True, tracked=Tracked(2, unanswered=1)), "TARGET has not answered 1 connect of", "Cilium"),
    (replace(MASTER, rules={"iptables-nft": LIMITED}, service=Mode.NFTABLES, tracked=Tracked(2, unanswered=2)),
     "pods have not answered 2 connects of the last 30 s", "keeps out the VIP"),
    (replace(MASTER, report=report(peer=0.5)), "two masters: 10.0.0.12 advertises too", "kevip status"),
    (replace(BACKUP, held=(HERE,)), "the VIP is on eth0, but this host is not master",
     "ip address delete 10.0.0.100/32 dev eth0"),
    (replace(BACKUP, rules={"iptables-nft": RULES}), "rules in iptables-nft, where they do not belong", "log"),
    (changed(BACKUP, rules=report().rules),
     "it is backup without its rules", "log"),
    (replace(BACKUP, report=report(Role.INIT)), "it takes no part in the election (no master was heard)", "log"),
    (replace(BACKUP, report=report(Role.BACKUP, peer=60)), "nobody advertises: no master was heard for 60 s",
     "restart kevip"),
    (replace(BACKUP, report=report(Role.BACKUP)), "nobody advertises: no master was heard for 100 s", "restart kevip"),
    (with_health(MASTER, DOWN), "192.0.2.9 does not answer tcp:443 (connection refused)", "route"),
    (replace(BACKUP, link="interface eth0 is down: do this"), "interface eth0 is down", "do this"),
    (changed(BACKUP, sync=COPIES), "conntrackd does not run", "conntrackd.ended"),
    (changed(BACKUP, reason=Reason.NOBODY, peers={}), "nobody holds the VIP", "log"),
    (changed(BACKUP, reason=Reason.UNFIT), "this host cannot serve", "takeover.failed"),
    (changed(BACKUP, role=Role.INIT, reason=Reason.UNFIT, since=ago(1)), "this host cannot serve", "takeover.failed"),
    (changed(MASTER, claims={"02:00:00:00:00:01": NOW}), "02:00:00:00:00:01 answers ARP for the VIP", "kevip check"),
    (with_health(changed(MASTER, target=None), DOWN), "what serves the VIP does not answer tcp:443", "peer"),
    (with_health(BACKUP, DOWN), "192.0.2.9 does not answer tcp:443 (connection refused)", "route"),
])  # fmt: skip
def test_what_does_not_fit_together_is_a_problem_with_what_to_do(facts: Facts, start: str, hint: str) -> None:
    found = verdict(facts)
    assert not found.ok
    assert found.text.startswith(start)
    assert hint in found.text


def test_of_several_problems_the_one_that_explains_most_is_told() -> None:
    facts = replace(MASTER, held=(), rules={}, running=False)
    assert verdict(facts).text.startswith("its kevip was killed")


def member(heard: float, **changes: Any) -> Member:
    """Return another replica, heard so many seconds ago."""
    given: dict[str, Any] = {"name": "node2", "version": "1", "engine": "ucarp", "rank": 9, "role": Role.BACKUP}
    return Member(**given | changes, since=ago(500), heard=ago(heard))


NO_BACKUP = "no backup: a failure of this host takes the VIP down"
TWO_OF_THREE = "2 of 3 replicas are here: node3 silent: look there with kevip status"
NODE3 = {PEER + 1: member(16, name="node3")}


@pytest.mark.parametrize(("facts", "expect", "members", "started", "problem"), [
    (MASTER, None, {}, 1000, ""),
    (MASTER, None, {PEER: member(14)}, 1000, ""),
    (MASTER, None, {PEER: member(14, stopped=True)}, 1000, ""),  # it may be started anew
    (MASTER, None, {PEER: member(16)}, 1000, NO_BACKUP),
    (MASTER, None, {PEER: member(16, stopped=True)}, 1000, NO_BACKUP),
    (MASTER, None, {PEER: member(1)} | NODE3, 1000, ""),
    (BACKUP, None, {PEER: member(16)}, 1000, ""),
    (MASTER, 1, {PEER: member(16)}, 1000, ""),
    (MASTER, 2, {}, 1000, NO_BACKUP),
    (MASTER, 2, {}, 14, ""),
    (BACKUP, 2, {}, 1000, "1 of 2 replicas are here: the others were never heard: look there with kevip status"),
    (MASTER, 3, {PEER: member(1)} | NODE3, 1000, TWO_OF_THREE),
    (BACKUP, 3, {PEER: member(1)} | NODE3, 1000, TWO_OF_THREE),
])  # fmt: skip
def test_a_group_that_lacks_replicas_is_a_problem(
    facts: Facts, expect: int | None, members: dict[IPv4Address, Member], started: float, problem: str
) -> None:
    lacks = changed(facts, expect=expect, members=members, started=ago(started), since=ago(min(started, 100)))
    assert verdict(lacks).ok is not bool(problem)
    assert verdict(lacks).text.startswith(problem or verdict(facts).text)
    assert verdict(lacks, group=False) == verdict(facts)


def test_settings_that_differ_are_a_problem_where_they_have_to_be_alike() -> None:
    members = {
        PEER: member(1, differs=["CHECK", "TARGET"]),
        PEER + 1: member(1, name="node3", differs=["ALLOW_FROM", "PORTS"]),
        PEER + 2: member(16, name="node4", differs=["TARGET"]),
    }
    found = verdict(changed(BACKUP, members=members))
    assert found.text.startswith("settings differ: TARGET on node2; ALLOW_FROM, PORTS on node3: set them")
    assert verdict(changed(BACKUP, members={PEER: member(1, differs=["CHECK"])})).ok


def test_a_replica_that_copies_no_connections_though_it_should_is_a_problem() -> None:
    copying = changed(BACKUP, sync=replace(COPIES, running=True))
    members = {PEER: member(1, copies=True), PEER + 1: member(1, name="node3", copies=False)}
    where = "connections are not copied to node3, where conntrackd does not run"
    assert verdict(changed(copying, members=members)).text == f"{where}: look there with kevip status"
    assert verdict(changed(copying, members={PEER: member(1, copies=True)})).ok
    assert verdict(changed(BACKUP, members=members)).ok
