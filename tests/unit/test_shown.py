"""How the status is shown: in 80 columns whatever there is to say, and the same for programs."""

import json
import re
from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address
from math import inf
from pathlib import Path
from typing import Any

import click
import pytest

from kevip.core.messages import Reason, Role
from kevip.dataplane.conntrack import Tracked
from kevip.dataplane.rules import Part, Rule
from kevip.presence.group import Member
from kevip.status.observe import Facts, Held
from kevip.status.record import PROSE, Health, Record, standby
from kevip.status.text import as_json, as_text, duration, is_ok, size
from kevip.sync.replication import Copies

VIP = IPv4Address("10.77.0.100")
NOW = 2e9
WIDTH = 80


def ago(seconds: float) -> float:
    return NOW - seconds


PARTS = {"DNAT": Part.DNAT, "FWD": Part.FORWARD, "GUARD": Part.GUARD}


def rule(table: str, kind: str, action: str, packets: int, octets: int) -> Rule:
    text = f"{table} -A KEVIP-{kind}-{VIP} -m x -j {action}"
    return Rule(text=text, part=PARTS[kind], packets=packets, bytes=octets)


def member(heard: float, **changes: Any) -> Member:
    """Return another replica, heard so many seconds ago."""
    given: dict[str, Any] = {"name": "node2", "version": "0.1.0", "engine": "ucarp", "rank": 9, "role": Role.BACKUP}
    return Member(**given | changes, since=ago(1e4), heard=ago(heard))


LAN = IPv4Address("10.77.0.0")
MEMBERS = {
    LAN + 15: member(10000, name="", stopped=True),
    LAN + 14: member(3600, name="a-host-with-a-name-of-some-length", rank=255),
    LAN + 13: member(2, name="node3", version="0.2.0", rank=20, target=False, differs=["CHECK", "TARGET"]),
}
REPORT = Record(
    vip=VIP, target=IPv4Address("203.0.113.10"), vip_id=100, interface="eth0", dataplane="iptables-nft", patience=3.1,
    role=Role.MASTER, reason=Reason.GOODBYE, since=ago(11520), peers={LAN + 12: ago(11521)},
    name="node1", rank=5, version="0.1.0", members=MEMBERS,
    started=ago(20000), turned=ago(1), transitions=3, repairs=Counter(rules=2, address=1),
    bad_adverts=Counter(digest=5), health=Health(check="tcp:443", up=True, since=ago(11000), round_trip_ms=1.2),
)  # fmt: skip
RULES = (
    Rule(text=f"nat -A PREROUTING -m x -j KEVIP-DNAT-{VIP}", part=None, packets=99, bytes=9999),
    rule("nat", "DNAT", "DNAT --to-destination 203.0.113.10", 12, 720),
    rule("filter", "FWD", "ACCEPT", 1234, 1_234_567),
    rule("mangle", "GUARD", "DROP", 1, 60),
)
FACTS = Facts(
    vip=VIP,
    at=NOW,
    run_dir=Path("/run/kevip"),
    report=REPORT,
    held=(Held(vip=VIP, interface="eth0", prefix=32, seconds=5),),
    rules={"iptables-nft": RULES},
    tracked=Tracked(8, 0, {("tcp", 443): 5, ("udp", 53): 3}),
)

SHOWN = """\
10.77.0.100
  OK      this host serves the VIP
  role         master for 3 h 12 min: the master said goodbye; 3 transitions
  target       203.0.113.10, answers tcp:443 in 1.2 ms, for 3 h 3 min
  address      on eth0, expires in 5 s if not renewed
  rules        4 in iptables-nft
  connections  12 new since the rules are there, 8 tracked now
  source ports 5 of 64512 in use, to tcp 443
  forwarded    1234 packets, 1.23 MB, both directions
  dropped      1 packet, 60 B, not expected or not allowed
  peers        name              role    rank TARGET version  last heard
               node1             master  5    up     0.1.0    this host
               10.77.0.12        master  -    -      -        3 h 12 min ago
               node3             backup  20   down   0.2.0    2.0 s ago
               a-host-with-a-na… silent  255  -      0.1.0    1 h ago
               10.77.0.15        stopped 9    -      0.1.0    2 h 46 min ago
  settings     not as here: CHECK, TARGET on node3
  repairs      address 1, rules 2
  bad adverts  digest 5"""


def shown(facts: Facts) -> str:
    return click.unstyle(as_text([facts], privileged=True))


def test_a_master_as_people_see_it() -> None:
    healthy = replace(
        FACTS, report=replace(REPORT, members=MEMBERS | {LAN + 13: replace(MEMBERS[LAN + 13], differs=[])})
    )
    assert shown(healthy) == SHOWN.replace("  settings     not as here: CHECK, TARGET on node3\n", "")


def test_a_setting_that_differs_is_told() -> None:
    problem = "  PROBLEM settings differ: TARGET on node3: set them to the same on all hosts,"
    more = "          and restart kevip there"
    assert shown(FACTS) == SHOWN.replace("  OK      this host serves the VIP", f"{problem}\n{more}")


def test_says_how_it_is_with_the_copies_of_connections() -> None:
    copies = Copies(
        interface="eth1", running=True, since=ago(180), starts=1, sent_on=150, written=2, heard=9, heard_last=ago(1),
        resynced=ago(180),
    )  # fmt: skip
    told = {
        "on eth1 for 3 min: 150 connections of this host copied, 2 of others written here; "
        "9 packets heard, the last 1.0 s ago; compared with the kernel 3 min ago": copies,
        "conntrackd does not run, for 3 min": replace(copies, running=False),
        "by another kevip of this host, which has the same target, for 3 min": replace(
            copies, running=False, elsewhere=True
        ),
    }
    for line, sync in told.items():
        assert f" sync {line} " in " ".join(shown(replace(FACTS, report=replace(REPORT, sync=sync))).split())


def test_it_fits_80_columns_whatever_there_is_to_say() -> None:
    vip = IPv4Address("255.255.255.255")
    report = replace(
        REPORT,
        target=vip,
        role=Role.INIT,
        reason=max(Reason, key=lambda each: len(PROSE[each])),
        since=ago(1e9),
        transitions=10**12,
        peers={vip - number: ago(1e8) for number in range(255)},
        repairs=Counter(dict.fromkeys(("address", "forwarding", "rules"), 10**12)),
        bad_adverts=Counter(dict.fromkeys(("truncated", "malformed", "version", "ttl", "checksum", "digest"), 10**12)),
        rules={"iptables-nft": [f"nat -A KEVIP-DNAT-{vip} {'x' * number}" for number in range(90)]},
        health=Health(check="http://" + "x" * 200, up=False, since=ago(1e9), problem="y" * 200),
    )
    held = tuple(Held(vip=VIP, interface="i" * 15, prefix=32, seconds=number) for number in (None, 4 * 10**9))
    for facts in (
        replace(FACTS, vip=vip, report=report, held=held),
        replace(FACTS, vip=vip, report=report, held=held[1:], tracked=Tracked(10**12, 10**12, {("tcp", 65535): 10**5})),
        replace(FACTS, vip=vip, report=replace(report, interface="z" * 15, role=Role.MASTER), held=held[1:]),
        replace(FACTS, vip=vip, report=None, run_dir=Path("/" + "r" * 200)),
        replace(FACTS, vip=vip, running=False, held=held[1:] * 5),
        replace(FACTS, vip=vip, flaws=("f" * 300,)),
    ):
        lines = shown(facts).splitlines()
        assert max(map(len, lines)) <= WIDTH
        assert lines[1].startswith("  PROBLEM ")


def test_a_group_that_is_well_is_a_table_and_one_that_is_large_is_cut() -> None:
    many = {LAN + number: member(1, name=f"node{number}") for number in range(2, 60)}
    lines = shown(replace(FACTS, report=replace(REPORT, members=many, peers={LAN + 2: ago(7)}))).splitlines()
    assert lines[1] == "  OK      this host serves the VIP"
    assert "               node2             backup  9    -      0.1.0    1.0 s ago" in lines
    assert lines[-3] == "               50 more"
    off = {LAN + 2: member(1, standby=True), LAN + 3: member(1, role=Role.MASTER, standby=True, holds=True)}
    text = shown(replace(FACTS, report=replace(REPORT, members=off, peers={})))
    assert [line.split()[1] for line in text.splitlines() if " node2 " in line] == ["standby", "master"]
    alone = shown(replace(FACTS, report=replace(REPORT, members={}, peers={})))
    assert "  peers        none heard\n  repairs" in alone


def test_a_standby_is_shown() -> None:
    told = shown(replace(FACTS, report=replace(REPORT, members={}, standby=standby(inf), notify_failures=1)))
    assert "OK      this host serves the VIP, though in standby: no peer that is fit has" in told
    assert "  standby      until it is resumed\n" in told
    assert "  notify       1 failure: its log says why, at notify.failed" in told
    assert re.fullmatch(r"until 2\d\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC", standby(60))
    assert standby(0) == standby(-inf) == ""


def test_what_a_killed_daemon_said_is_told_as_the_past() -> None:
    assert "role         was master when last heard of, 1 min 40 s ago" in shown(
        replace(FACTS, running=False, report=replace(REPORT, turned=ago(100)))
    )


def test_without_a_vip_it_says_so() -> None:
    assert click.unstyle(as_text([], privileged=True)).startswith("  PROBLEM no kevip runs on this host")
    assert "sudo kevip status" in as_text([], privileged=False)
    assert not is_ok([])


def test_programs_get_the_same() -> None:
    found = json.loads(json.dumps(as_json([replace(FACTS, report=replace(REPORT, members={}))])))
    [vip] = found["vips"]
    assert (found["ok"], vip["ok"], vip["vip"], vip["report"]["role"]) == (True, True, str(VIP), "master")
    assert vip["counters"] == {
        "dnat": {"packets": 12, "bytes": 720},
        "forward": {"packets": 1234, "bytes": 1_234_567},
        "guard": {"packets": 1, "bytes": 60},
    }
    assert (vip["conntrack_entries"], vip["addresses"][0]["lease_seconds"]) == (8, 5)


@pytest.mark.parametrize(("seconds", "shown"), [
    (-1, "0.0 s"), (0.04, "0.0 s"), (9.94, "9.9 s"), (10, "10 s"), (60, "1 min"), (61, "1 min 1 s"), (3600, "1 h"),
    (11520, "3 h 12 min"), (86400, "1 d"), (86400 * 400 + 7200, "400 d 2 h"), (86405, "1 d"),
])  # fmt: skip
def test_durations_are_for_people(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(("octets", "shown"), [
    (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1234567, "1.23 MB"), (10**9, "1 GB"), (5 * 10**15, "5 PB"),
    (2**64, "18.4 EB"),
])  # fmt: skip
def test_sizes_are_for_people(octets: int, shown: str) -> None:
    assert size(octets) == shown
