"""Presence, with real replicas: each sees the others, and says who is gone, or not set as it is."""

import json
import re
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from lab.network import TARGET, VIP, Namespace, Network, eventually
from lab.replica import PASSWORD, Replica, invoke, on_each_engine
from lab.traffic import Conversations, Probe

from kevip.election.adverts import CarpAdverts
from kevip.election.carp import Advert, Group, Interval
from kevip.election.ucarp import key
from kevip.host.interface import Placement
from kevip.presence.channel import Channel, Way
from kevip.presence.frame import Frame, Said, Seal
from kevip.sync import wire

Start = Callable[..., Replica]

PORT = 25100
SEAL = Seal(wire.derive(PASSWORD, IPv4Address(VIP)), 100)
NODE1 = Said(source=IPv4Address("10.77.0.11"), name="node1", version="1", engine="ucarp", rank=1)
NAMED = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"')
"""Gives what follows a host name of its own."""


def named(node: Namespace, start: Start, **settings: Any) -> Replica:
    """Start a replica on a host with a name: that of its port."""
    return start(node, wrapper=(*NAMED, node.name.rpartition("-")[2]), **settings)


def status(replica: Replica) -> tuple[int, str]:
    """Run ``kevip status`` where a replica is; return exit status and what it says."""
    done = invoke(replica.node, "status", f"--run-dir={replica.run_dir}", f"--vip={VIP}")
    return done.returncode, done.stdout


def members(replica: Replica) -> dict[str, dict[str, Any]]:
    """Return the others that a replica knows, by the end of their address."""
    found = replica.state().get("members", {})
    return {address.rpartition(".")[2]: member for address, member in found.items()}


def problem(replica: Replica, text: str, within: float) -> None:
    """Wait until the status is a problem that says so."""
    eventually(lambda: f"PROBLEM {text}" in " ".join(status(replica)[1].split()), within=within, what=f"PROBLEM {text}")


def group(network: Network, start: Start, **settings: Any) -> list[Replica]:
    """Start three replicas of which the first is master, and wait until all know each other."""
    replicas = [named(network.nodes[0], start, advskew=1, **settings).master()]
    for number, node in enumerate(network.nodes[1:], 1):
        replicas.append(named(node, start, advskew=20 * number, **settings))
    for each in replicas:
        knows(each.ready(), 2)
    return replicas


def knows(replica: Replica, others: int) -> None:
    """Wait until a replica knows so many others."""
    eventually(lambda: len(members(replica)) == others, what=f"it knows {others} others")


@pytest.mark.parametrize(("start", "way"), [
    ("ucarp", "multicast"), ("ucarp", "broadcast"), ("keepalived", "multicast"), ("keepalived", "peers"),
], indirect=["start"])  # fmt: skip
def test_three_replicas_see_each_other(network: Network, start: Start, way: str) -> None:
    engine = start.engine  # type: ignore[attr-defined]
    ways: dict[str, dict[str, Any]] = {
        "multicast": {},
        "broadcast": {"broadcast": True},
        "peers": {"peers": "10.77.0.11,10.77.0.12,10.77.0.13"},
    }
    given = ways[way]
    for node in network.nodes:  # a firewall is no hindrance
        node.run("iptables", "-P", "INPUT", "DROP")
        node.run("iptables", "-P", "OUTPUT", "DROP")
        if engine == "keepalived":
            node.run("iptables", "-A", "OUTPUT", "-p", "112", "-j", "ACCEPT")
    master, backup, other = group(network, start, **given)
    eventually(lambda: members(backup)["11"]["holds"], what="the backup knows who has the VIP")
    eventually(
        lambda: {end: each["role"] for end, each in members(other).items()} == {"11": "master", "12": "backup"},
        what="all roles are known",
    )
    found = members(other)
    assert {member["engine"] for member in found.values()} == {engine}
    assert all(member["differs"] == [] for member in found.values())
    code, text = status(other)
    assert code == 0, text
    assert text.count(" backup ") >= 3
    assert text.count(" master ") == 1
    assert status(master)[0] == 0
    for each in (master, backup, other):
        assert each.events("presence.bad_frame") == []
        assert each.events("election.bad_advert") == []


@on_each_engine
def test_a_last_backup_that_dies_is_a_problem_within_20_seconds(network: Network, start: Start) -> None:
    master, *backups = group(network, start)
    for each in backups:
        each.kill()
    begin = time.monotonic()
    problem(master, "no backup: a failure of this host takes the VIP down", within=20)
    assert time.monotonic() - begin > 5, "one frame may be lost"
    assert "silent" in status(master)[1]
    again = start(backups[0].node, advskew=20)
    again.ready()
    eventually(lambda: status(master)[0] == 0, within=10, what="a backup is there again")
    again.stop()
    eventually(lambda: "stopped" in status(master)[1], within=5, what="who stops says so")
    problem(master, "no backup", within=20)


def shape(text: str) -> list[str]:
    """Return the lines of a status, as they are whatever the numbers in them."""
    numberless = re.sub(r"# [kM]?B\b", "# B", re.sub(r"\d+(\.\d+)?", "#", text))
    return [" ".join(line.split()) for line in numberless.split("\n") if line]


def test_the_pictures_in_the_readme_are_what_a_status_shows(network: Network, start: Start) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    well, dead = map(shape, re.findall(r"^```\n([\d.]+\n.*?  peers .*?)```$", readme, flags=re.MULTILINE | re.DOTALL))
    first = named(network.nodes[0], start, advskew=1, check="tcp:7000").master()
    others = [
        named(node, start, advskew=skew, check="tcp:7000").ready()
        for node, skew in zip(network.nodes[1:], (10, 19), strict=True)
    ]
    with Conversations(network.client, VIP, 200):
        eventually(lambda: shape(status(first)[1]) == well, what="the whole group")
    for each in others:
        each.kill()
    eventually(lambda: set(dead) <= set(shape(status(first)[1])), within=30, what="both backups are dead")


def test_fewer_than_expected_is_a_problem_on_each(network: Network, start: Start) -> None:
    replicas = [start(node, expect=3) for node in network.nodes[:2]]
    for each in replicas:
        problem(each, "2 of 3 replicas are here: the others were never heard", within=30)
        state = each.state()
        assert state["role"] in {"master", "backup"}


def test_a_way_that_is_lost_is_seen_by_the_one_that_does_not_hear(network: Network, start: Start) -> None:
    master = start(network.nodes[0], advskew=1).master()
    backup = start(network.nodes[1], advskew=20).ready()
    for each in (master, backup):
        knows(each, 1)
    port = network.port(backup.node)
    network.switch.run("nft", "add", "table", "bridge", "loss")
    network.switch.run("nft", "add", "chain", "bridge", "loss", "way", "{ type filter hook forward priority 0; }")
    network.switch.run("nft", "add", "rule", "bridge", "loss", "way", "iifname", port, "drop")
    problem(master, "no backup", within=22)
    assert status(backup)[0] == 0
    heard = members(backup)["11"]["heard"]
    eventually(lambda: members(backup)["11"]["heard"] > heard, within=10, what="it still hears the master")
    assert backup.role() == "backup"


def test_settings_that_differ_are_told_everywhere_and_by_a_check(network: Network, start: Start) -> None:
    one = named(network.nodes[0], start, advskew=1).master()
    odd = {"target": "203.0.113.11", "port": "80,53/udp", "allow_from": "10.0.0.0/8", "check_interval": 7}
    other = named(network.nodes[1], start, advskew=20, **odd).ready()
    for each in (one, other):
        knows(each, 1)
        [member] = members(each).values()
        assert member["differs"] == ["ALLOW_FROM", "CHECK_INTERVAL", "PORTS", "TARGET"]
        name = member["name"]
        problem(each, f"settings differ: ALLOW_FROM, PORTS, TARGET on {name}", within=10)
    done = invoke(network.nodes[2], "check", f"--vip={VIP}", f"--target={TARGET}", f"--password={PASSWORD}", "--json")
    findings = [each for each in json.loads(done.stdout)["findings"] if each["check"] in {"group", "settings"}]
    told = [(each["verdict"], each["found"]) for each in findings]
    version = one.state()["version"]
    assert told[:2] == [
        ("ok", f"node1 (10.77.0.11) is master, ucarp, rank 1, kevip {version}"),
        ("ok", f"node2 (10.77.0.12) is backup, ucarp, rank 20, kevip {version}"),
    ]
    who = "node2 (10.77.0.12)"
    assert told[2:] == [
        ("failed", f"{who} has another ALLOW_FROM, another PORTS, another TARGET"),
        ("warning", f"{who} has another CHECK_INTERVAL"),
    ]


def test_hosts_whose_clocks_are_days_apart_know_each_other(network: Network, start: Start) -> None:
    """The clock since boot, which is what kevip goes by."""
    plain = named(network.nodes[0], start, advskew=1).master()
    days = ("unshare", "--time", f"--monotonic={5 * 86400}", f"--boottime={5 * 86400}")
    later = start(network.nodes[1], advskew=20, wrapper=(*days, *NAMED, "node2")).ready()
    for each, others in ((plain, "node2"), (later, "node1")):
        eventually(lambda each=each: len(members(each)) == 1, what="they know each other")  # type: ignore[misc]
        [member] = members(each).values()
        assert (member["name"], each.role()) == (others, "master" if each is plain else "backup")
    assert str(5 * 86400) in Path(f"/proc/{later.process.pid}/timens_offsets").read_text()
    assert status(plain)[0] == 0
    assert re.search(r"node2 +backup .* \d+\.\d s ago", status(plain)[1])
    later.kill()
    problem(plain, "no backup", within=25)


def test_one_with_another_password_is_no_member_and_is_told(network: Network, start: Start) -> None:
    one = start(network.nodes[0]).master()
    start(network.nodes[1], password="another").ready()  # noqa: S106
    told = one.logged("presence.bad_frame")
    assert (told["source"], told["reason"]) == ("10.77.0.12", "signature")
    assert members(one) == {}
    done = invoke(network.nodes[2], "check", f"--vip={VIP}", f"--target={TARGET}", f"--password={PASSWORD}", "--json")
    found = [each["found"] for each in json.loads(done.stdout)["findings"] if each["check"] == "group"]
    assert "10.77.0.12 runs a kevip with id 100, and its password, VIP or version is not ours" in found


def test_a_replayed_frame_keeps_no_dead_backup_alive(network: Network, start: Start) -> None:
    master = start(network.nodes[1]).master()
    frames = [SEAL.build(Frame(b"12345678", number, NODE1)) for number in (1, 2)]
    with network.nodes[0].entered():
        channel = Channel(Placement(interface="eth0", source=NODE1.source), Way(port=PORT))
    try:
        for each in frames:
            channel.send(each)
        eventually(lambda: members(master), what="it is heard")
        end = time.monotonic() + 18
        while time.monotonic() < end:
            for each in frames:
                channel.send(each)
            time.sleep(1)
        problem(master, "no backup", within=3)
    finally:
        channel.close()


def test_a_goodbye_begins_with_the_backup_that_comes_first(network: Network, start: Start) -> None:
    """With skews as large as these, no stage before the last one would reach any without that."""
    first = start(network.nodes[0], advskew=100).master()
    second = start(network.nodes[1], advskew=120).ready()
    eventually(lambda: second.state()["peers"], what="it has heard the master")
    first.kill()
    second.master()  # and its goodbye will be said in stages
    problem(second, "no backup", within=25)
    first = start(first.node, advskew=100).ready()
    third = start(network.nodes[2], advskew=150).ready()
    eventually(lambda: status(second)[1].count(" backup ") == 2, what="both are known to be backups")
    with third.node.entered():
        adverts = CarpAdverts("eth0", NODE1.source, Group(vhid=100, vip=IPv4Address(VIP), key=key(PASSWORD)))
    with Probe(network.client, VIP) as probe:
        second.stop()
        first.master()
        assert probe.report().failed == 0
    said = [heard.interval for _, heard in adverts.hear() if isinstance(heard, Advert)]
    adverts.close()
    assert next(interval for interval in said if interval.advbase > 1) == Interval(3, 101)
    assert third.role() == "backup"


UCARP = [
    "ucarp", "--interface=eth0", "--srcip=10.77.0.13", "--vhid=100", f"--addr={VIP}", f"--pass={PASSWORD}",
    "--upscript=/bin/true", "--downscript=/bin/true",
]  # fmt: skip
KEEPALIVED = ["keepalived", "--use-file=plain.conf", "--dont-fork", "--vrrp", "--log-console", "--log-detail",
              "--no-syslog", "--pid=a", "--vrrp_pid=b"]  # fmt: skip
PLAIN = f"""
global_defs {{
    log_unknown_vrids
}}
vrrp_instance plain {{
    interface eth0
    garp_master_delay 1
    virtual_router_id 100
    priority 100
    advert_int 1
    virtual_ipaddress {{
        {VIP}/24
    }}
}}
"""


@pytest.mark.parametrize(("argv", "begins"), [(UCARP, "state: MASTER"), (KEEPALIVED, "MASTER STATE")])
def test_others_that_speak_carp_or_vrrp_with_the_same_id_do_not_notice(
    network: Network, tmp_path: Path, argv: list[str], begins: str
) -> None:
    """While many frames pass they stay master, say nothing about them, and advertise as often."""
    (tmp_path / "plain.conf").write_text(PLAIN)
    with (
        (tmp_path / "log").open("w") as log,
        network.nodes[2].popen(*argv, stdout=log, stderr=log, cwd=tmp_path) as process,
        network.nodes[0].entered(),
    ):
        eventually(lambda: begins in (tmp_path / "log").read_text(), what="it is master")
        time.sleep(3)  # it has announced the VIP a second time
        before = (tmp_path / "log").read_text()
        channel = Channel(Placement(interface="eth0", source=NODE1.source), Way(port=PORT))
        group = Group(vhid=100, vip=IPv4Address(VIP), key=key(PASSWORD))
        adverts = CarpAdverts("eth0", NODE1.source, group) if argv is UCARP else None
        for number in range(1, 500):
            channel.send(SEAL.build(Frame(b"12345678", number, NODE1)))
            time.sleep(0.008)
        said = (tmp_path / "log").read_text().removeprefix(before)
        if adverts:
            assert 3 <= len(list(adverts.hear())) <= 5
            adverts.close()
        channel.close()
        process.terminate()
    assert said == ""
