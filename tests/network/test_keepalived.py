"""What is keepalived's own: its processes, its FIFO, its password, and peers that run it without kevip."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from lab.network import LAN, ROUTER, TARGET, VIP, VIP2, Namespace, Network, eventually, run
from lab.replica import PASSWORD, Replica, flags, invoke
from lab.traffic import Probe, answers, send_frame, tcp_source

from kevip.election.vrrp import Advert, Group, build

Start = Callable[..., Replica]

pytestmark = pytest.mark.parametrize("start", ["keepalived"], indirect=True)

WITHOUT_NICE = ("setpriv", "--inh-caps=-all,+net_admin,+net_raw", "--bounding-set=-all,+net_admin,+net_raw")
SHORT = "secret"
SETTINGS = {"vip": VIP, "target": TARGET, "password": PASSWORD}


def parent(replica: Replica) -> int:
    """Return the process id of the daemon's keepalived."""
    return int((replica.run_dir / f"{VIP}.keepalived/pid").read_text())


def child(replica: Replica) -> int:
    """Return the process id of the one that elects."""
    file = replica.run_dir / f"{VIP}.keepalived/child.pid"
    eventually(file.exists, what="it has written its number")
    return int(file.read_text())


def heals(network: Network) -> Namespace:
    """Wait until there is one holder, and traffic flows; return the holder."""
    eventually(lambda: len(network.holders()) == 1 and answers(network.client, VIP), within=30, what="one holder")
    holder = network.settled()
    assert tcp_source(network.client, VIP) == VIP
    return holder


@pytest.fixture
def pair(network: Network, start: Start) -> tuple[Replica, Replica]:
    """Give a master and a backup."""
    return start(network.nodes[0]).master(), start(network.nodes[1]).ready()


Pair = tuple[Replica, Replica]


@pytest.mark.parametrize("which", [parent, child])
def test_a_master_whose_keepalived_is_killed_hands_over(
    network: Network, pair: Pair, which: Callable[[Replica], int]
) -> None:
    master, backup = pair
    with Probe(network.client, VIP) as probe:
        os.kill(which(master), signal.SIGKILL)
        backup.master()
        assert heals(network) == backup.node
        assert probe.report().failed == 0
    master.logged("keepalived.exited")
    master.logged("handover.done")
    eventually(lambda: master.role() == "backup", what="it stands for election again")


@pytest.mark.parametrize("which", [parent, child])
def test_a_backup_whose_keepalived_is_stopped_starts_another(
    network: Network, pair: Pair, which: Callable[[Replica], int]
) -> None:
    master, backup = pair
    was = parent(backup)
    os.kill(which(backup), signal.SIGSTOP)
    backup.logged("keepalived.frozen")
    backup.logged("election.backup", times=2)
    assert parent(backup) != was
    assert heals(network) == master.node


def test_a_master_whose_keepalived_is_stopped_lets_go(network: Network, pair: Pair) -> None:
    master, backup = pair
    os.kill(child(master), signal.SIGSTOP)
    backup.master()
    assert "does not advertise" in master.logged("election.silent")["hint"]
    assert heals(network) == backup.node


def test_the_death_of_the_daemon_ends_all_and_another_host_serves_at_once(network: Network, pair: Pair) -> None:
    master, backup = pair
    with Probe(network.client, VIP) as probe:
        master.process.kill()
        backup.master()
        eventually(lambda: not master.node.pids(), what="its processes end")
        eventually(lambda: not master.node.has(VIP), what="the lease ends")
        assert heals(network) == backup.node
        assert probe.report().longest_gap < 1


def test_a_daemon_that_hangs_loses_its_keepalived(network: Network, pair: Pair) -> None:
    master, backup = pair
    master.process.send_signal(signal.SIGSTOP)
    backup.master(within=15)
    eventually(lambda: not master.node.has(VIP), what="the lease ends")
    assert answers(network.client, VIP)
    master.process.send_signal(signal.SIGCONT)
    master.logged("keepalived.exited")
    assert heals(network) == backup.node


def test_what_it_says_is_heard_though_its_fifo_is_removed(network: Network, pair: Pair) -> None:
    master, backup = pair
    for replica in pair:
        (replica.run_dir / f"{VIP}.keepalived/events").unlink()
    network.cut(master.node)
    master.kill()
    backup.master()
    assert heals(network) == backup.node


def test_a_master_whose_word_is_lost_as_its_fifo_is_full_is_ended_and_asked_anew(network: Network, pair: Pair) -> None:
    master, backup = pair
    backup.process.send_signal(signal.SIGSTOP)
    events = os.open(backup.run_dir / f"{VIP}.keepalived/events", os.O_WRONLY | os.O_NONBLOCK)
    for size in (4096, 1):
        with suppress(BlockingIOError):
            while os.write(events, b"\n" * size):
                pass
    os.close(events)
    network.cut(master.node)
    master.kill()
    time.sleep(1)  # keepalived is elected meanwhile, and says so in vain
    backup.process.send_signal(signal.SIGCONT)
    backup.logged("keepalived.untold")
    backup.master()
    assert heals(network) == backup.node


def test_words_that_came_together_count_as_the_last_of_them(network: Network, start: Start) -> None:
    replica = start(network.nodes[0]).master()
    with (replica.run_dir / f"{VIP}.keepalived/events").open("wb", buffering=0) as events:
        events.write(b'INSTANCE "kevip" BACKUP 100\nnonsense\nINSTANCE "kevip" MASTER 100\n')
    for _ in range(20):
        assert network.holders() == [replica.node]
        time.sleep(0.02)
    assert not replica.events("release.done")


def test_a_configuration_that_it_refuses_is_told_in_its_words(network: Network, start: Start, tmp_path: Path) -> None:
    wrapper = tmp_path / "keepalived"
    wrapper.write_text('#!/bin/sh\nexec /usr/sbin/keepalived "$@" --use-file=/nonexistent\n')
    wrapper.chmod(0o755)
    replica = start(network.nodes[0], env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert "/nonexistent" in replica.logged("keepalived.exited")["hint"]
    assert replica.logged("engine.ended")["retry_seconds"] == 1
    assert not network.holders()


def test_an_interface_that_is_renamed(network: Network, pair: Pair) -> None:
    master, backup = pair
    for change in (["down"], ["name", "lan0"], ["up"]):  # while it is up, old kernels refuse another name
        master.node.run("ip", "link", "set", "lan0" if change == ["up"] else "eth0", *change)
    master.node.run("ip", "route", "replace", "default", "via", ROUTER)
    backup.master()
    assert heals(network) == backup.node
    eventually(lambda: master.role() == "backup", within=60, what="it is back in the election")
    assert master.state()["interface"] == "lan0"
    backup.stop()
    assert network.settled() == master.node


def test_a_host_whose_address_changes_takes_part_with_the_new_one(network: Network, pair: Pair) -> None:
    master, backup = pair
    backup.node.run("ip", "address", "add", f"{LAN}.52/24", "dev", "eth0")
    backup.node.run("ip", "address", "delete", f"{LAN}.12/24", "dev", "eth0")
    backup.node.run("ip", "address", "replace", f"{LAN}.52/24", "dev", "eth0")  # it may have gone with the first one
    backup.node.run("ip", "route", "replace", "default", "via", ROUTER)
    assert backup.logged("keepalived.moved")["was"] == f"{LAN}.12"
    backup.logged("election.backup", times=2)
    master.stop()
    assert network.settled() == backup.node
    assert master.logged("handover.done")["to"] == f"{LAN}.52"


def test_two_masters_after_a_partition_are_one_again(network: Network, pair: Pair) -> None:
    _, backup = pair
    network.cut(backup.node)
    backup.master()
    assert len(network.holders()) == 2
    network.mend(backup.node)
    heals(network)
    eventually(lambda: sorted(str(each.role()) for each in pair) == ["backup", "master"], what="one is backup")


def test_a_target_that_is_not_reached_moves_the_vip_to_a_host_that_does(network: Network, start: Start) -> None:
    master = start(network.nodes[0], advskew=1).master()
    backup = start(network.nodes[1], advskew=50).ready()
    processes = parent(master)
    with Probe(network.client, VIP) as probe:
        master.node.run("ip", "route", "delete", "default")
        backup.master()
        assert heals(network) == backup.node
        assert probe.report().sources == [VIP]
    assert parent(master) == processes
    assert master.logged("handover.done")["to"] == f"{LAN}.12"
    backup.node.run("ip", "route", "delete", "default")
    time.sleep(3)
    assert network.holders() == [backup.node]


def test_another_password_is_another_group_and_told(network: Network, start: Start) -> None:
    good = start(network.nodes[0], advert_interval=1).master()
    bad = start(network.nodes[1], advert_interval=1, password="wrong").master()  # noqa: S106
    for replica in (good, bad):
        event = replica.logged("election.bad_advert")
        assert event["reason"] == "password"
        assert "compare --password" in event["hint"]
    bad.stop()
    joined = start(network.nodes[1], advert_interval=1).ready()
    eventually(lambda: network.holders() == [good.node] and joined.role() == "backup", what="the right one joins")


def test_adverts_of_no_use_put_off_its_own_which_is_no_silence(network: Network, start: Start) -> None:
    master = start(network.nodes[0], advert_interval=1).master()
    group = Group(version=2, vrid=100, vip=IPv4Address(VIP), interval=1, password=b"wrong")
    bad = build(group, Advert(source=IPv4Address(f"{LAN}.12"), priority=1, interval=1))
    for _ in range(5):
        send_frame(network.nodes[1], bytes.fromhex("01005e000012"), bad)
        time.sleep(1.7)
    assert master.logged("election.bad_advert")["reason"] == "password"
    assert not master.events("election.silent")


def test_the_password_is_seen_nowhere(network: Network, start: Start) -> None:
    """Not in a command line, an environment, a file, a log, nor on the wire."""
    replica = start(network.nodes[0], log_level="debug", advert_interval=1).master()
    for pid in replica.node.pids():
        with suppress(FileNotFoundError, ProcessLookupError):  # a program that has ended
            assert PASSWORD not in Path(f"/proc/{pid}/cmdline").read_text()
            assert PASSWORD not in Path(f"/proc/{pid}/environ").read_text()
    assert PASSWORD not in replica.log()
    for path in replica.run_dir.rglob("*"):
        assert not path.is_file() or PASSWORD not in path.read_text()
    assert not replica.events("election.password_in_clear")


def test_a_short_password_is_said_to_be_sent_in_clear(network: Network, start: Start) -> None:
    start(network.nodes[0], advert_interval=1, password=SHORT).logged("election.password_in_clear")


def test_it_has_the_rights_to_elect_and_no_others(network: Network, start: Start) -> None:
    replica = start(network.nodes[0]).master()
    expected = f"{1 << 13 | 1 << 23:016x}"
    for pid in (parent(replica), child(replica)):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        found = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        assert (found["CapPrm"], found["CapEff"], found["NoNewPrivs"]) == (expected, expected, "1")
    assert os.sched_getscheduler(child(replica)) & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR
    assert not any(VIP in line for line in replica.node.run("ip", "address", "show", "lo").splitlines())


def test_without_the_right_to_real_time_it_is_slower_and_says_so(network: Network, start: Start) -> None:
    replica = start(network.nodes[0], wrapper=WITHOUT_NICE).master()
    assert "SYS_NICE" in replica.logged("election.not_realtime")["hint"]
    assert replica.logged("election.standing")["advert_interval"] == 0.5
    assert os.sched_getscheduler(child(replica)) == os.SCHED_OTHER


ENTER = 'echo $$ >"$0/cgroup.procs"; exec "$@"'


@pytest.fixture
def fifth(tmp_path: Path) -> Iterator[Path]:
    """Give a control group with 20 % of a processor; it has all of its time for real-time processes, if it has that."""
    own, legacy = f"kevip-lab-{os.getpid()}", Path("/sys/fs/cgroup/cpu")
    if legacy.exists():
        group, limits = legacy / own, {"cpu.cfs_quota_us": "20000"}
    else:
        unified = tmp_path / "cgroup"
        unified.mkdir()
        run("mount", "-t", "cgroup2", "cgroup2", str(unified))
        (unified / "cgroup.subtree_control").write_text("+cpu")
        group, limits = unified / own, {"cpu.max": "20000 100000"}
    group.mkdir()
    for name, limit in limits.items():
        (group / name).write_text(limit)
    yield group
    eventually(lambda: not (group / "cgroup.procs").read_text(), what="all of the group have ended")
    group.rmdir()
    if not legacy.exists():
        run("umount", str(unified))


@pytest.mark.parametrize("realtime", [True, False])
def test_on_a_fifth_of_a_busy_processor_no_living_host_is_taken_for_dead(
    network: Network, fifth: Path, start: Start, realtime: bool
) -> None:
    """Neither at the interval of a real-time process, nor at that of others, though they have SYS_NICE."""
    knows = (fifth / "cpu.rt_runtime_us").exists()
    wrapper: tuple[str, ...] = "sh", "-c", ENTER, str(fifth)
    if realtime and knows:
        (fifth / "cpu.rt_runtime_us").write_text("20000")
    elif not realtime and not knows:
        wrapper = *wrapper, *WITHOUT_NICE
    first, second = start(network.nodes[0], wrapper=wrapper).master(60), start(network.nodes[1], wrapper=wrapper)
    eventually(lambda: second.role() == "backup", within=60, what="is backup")
    busy = "sh", "-c", ENTER, str(fifth), "sh", "-c", "while :; do :; done"
    loops = [first.node.popen(*busy) for _ in range(2)]
    try:
        for _ in range(200):
            assert network.holders() == [first.node]
            time.sleep(0.1)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    assert (os.sched_getscheduler(child(first)) & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR) is realtime
    assert not second.events("election.master")
    assert len(first.events("election.master")) == 1
    for replica in (first, second):
        assert replica.logged("election.standing")["advert_interval"] == (0.1 if realtime else 0.5)


def test_two_groups_with_an_engine_each_on_the_same_hosts(network: Network, start: Start) -> None:
    for node in network.nodes[:2]:
        start(node).ready()
        start(node, vip=VIP2, engine="ucarp").ready()
    eventually(lambda: network.holders() and network.holders(VIP2), what="both are served")
    network.settled()
    assert (tcp_source(network.client, VIP), tcp_source(network.client, VIP2)) == (VIP, VIP2)


def test_nothing_is_left_after_a_stop(network: Network, start: Start) -> None:
    node = network.nodes[0]
    before = node.rules(), node.addresses(), node.pids()
    replica = start(node).master()
    assert replica.stop()[0] == 0
    assert (node.rules(), node.addresses(), node.pids()) == before
    assert not replica.run_dir.exists()


@pytest.fixture
def without_multicast(network: Network) -> None:
    """Have the switch drop all multicast of the group."""
    drop = "add rule bridge filter forward ip daddr 224.0.0.18 drop"
    hook = "{ type filter hook forward priority 0; }"
    network.switch.run("nft", f"add table bridge filter; add chain bridge filter forward {hook}; {drop}")


@pytest.mark.usefixtures("without_multicast")
@pytest.mark.parametrize("interval", [0.1, 1])
def test_peers_elect_one_master_where_multicast_is_dropped(network: Network, start: Start, interval: float) -> None:
    peers = ",".join(f"{LAN}.{number}" for number in (11, 12))
    first, second = (start(node, peers=peers, advert_interval=interval).ready() for node in network.nodes[:2])
    eventually(network.holders, what="a master is elected")
    master = network.settled()
    old, new = (first, second) if master == first.node else (second, first)
    address = f"{LAN}.{11 + network.nodes.index(master)}"
    eventually(lambda: address in new.state()["peers"], what="the backup says that it hears the master")
    told = check(new.node, f"--peers={peers}", f"--advert-interval={interval}")
    assert "not needed with --peers" in told["multicast"][0]
    assert "is master" in told["election"][0]
    with Probe(network.client, VIP) as probe:
        os.kill(parent(old), signal.SIGKILL)
        new.master()
        assert heals(network) == new.node
        eventually(lambda: old.role() == "backup", what="it is back")
        assert new.stop()[0] == 0
        assert heals(network) == old.node
        assert probe.report().failed == 0


def test_a_cleanup_removes_what_killed_processes_left(network: Network, start: Start) -> None:
    replica = start(network.nodes[0]).master()
    replica.kill()
    told = invoke(replica.node, "cleanup", f"--vip={VIP}", f"--run-dir={replica.run_dir}").stdout.splitlines()
    assert f"removed {replica.run_dir}/{VIP}.keepalived" in told
    assert not replica.run_dir.exists()


PLAIN = """
global_defs {{
    script_user root
}}
vrrp_instance VI_1 {{
    state BACKUP
    interface eth0
    virtual_router_id 100
    priority {priority}
    advert_int {interval}
    {more}
    virtual_ipaddress {{
        10.77.0.100/24
    }}
}}
"""
V2, V3 = "authentication {\n auth_type PASS\n auth_pass secret\n }", "version 3"


@contextmanager
def plain(
    node: Namespace, directory: Path, priority: int, interval: float, more: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run keepalived without kevip, with a configuration as its manual shows them; it takes part by then."""
    config, said = directory / "keepalived.conf", directory / "said"
    config.write_text(PLAIN.format(priority=priority, interval=interval, more=more))
    argv = ["keepalived", f"--use-file={config}", "--dont-fork", "--vrrp", "--log-console", "--no-syslog"]
    with said.open("w") as log:
        process = node.popen(*argv, f"--pid={directory}/a", f"--vrrp_pid={directory}/b", stdout=log, stderr=log)
    try:
        eventually(lambda: "Entering" in said.read_text(), what="plain keepalived is in the election")
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        process.wait()


@pytest.mark.parametrize(
    ("theirs", "ours"), [((1, V2), (1, "auto")), ((0.1, V3), (0.1, "auto")), ((1, V3), (1, "3")), ((1, V3), (1.5, "3"))]
)
def test_takes_over_from_plain_keepalived_and_the_other_way_round(
    network: Network, start: Start, tmp_path: Path, theirs: tuple[float, str], ours: tuple[float, str]
) -> None:
    """Of another interval, too, in version 3, where each has the master's."""
    interval, version = ours
    node = network.nodes[1]
    with plain(node, tmp_path, 200, *theirs) as peer:
        eventually(lambda: node.has(VIP), what="plain keepalived is master")
        settings = {"advert_interval": interval, "vrrp_version": version, "password": SHORT}
        kevip = start(network.nodes[0], **settings).ready()
        time.sleep(4 * interval)
        assert kevip.role() == "backup"
        peer.terminate()
        kevip.master()
        assert heals(network) == kevip.node
    with plain(node, tmp_path, 100, *theirs):
        assert network.holders() == [kevip.node]
        assert kevip.stop()[0] == 0
        assert network.settled() == node
    assert kevip.logged("handover.done")["to"] == f"{LAN}.12"
    assert not kevip.events("election.bad_advert")


def test_plain_keepalived_with_a_higher_priority_takes_the_vip(network: Network, start: Start, tmp_path: Path) -> None:
    kevip = start(network.nodes[0], password=SHORT, advert_interval=1).master()
    with plain(network.nodes[1], tmp_path, 254, 1, V2):
        eventually(lambda: network.holders() == [network.nodes[1]], what="plain keepalived has the VIP")
        eventually(lambda: kevip.role() == "backup", what="kevip is backup")


def test_a_firewall_that_keeps_adverts_from_keepalived_makes_no_second_master(network: Network, start: Start) -> None:
    """The host is told, and serves all the same when nobody else does."""
    master, backup = network.nodes[:2]
    backup.iptables("-A", "INPUT", "-p", "112", "-j", "DROP")
    first, second = start(master).master(), start(backup)
    assert "-p 112" in second.logged("election.deaf")["hint"]
    for _ in range(50):
        assert network.holders() == [master]
        time.sleep(0.1)
    network.cut(master)
    first.kill()
    second.master()
    assert network.settled([backup]) == backup


@pytest.mark.parametrize("backend", ["nft", "legacy"])
@pytest.mark.parametrize(
    "settings", [{}, {"peers": f"{LAN}.11,{LAN}.12"}, {"target": None, "hold_only": True}], ids=str
)
def test_adverts_are_let_in_where_the_policy_of_input_is_to_drop(
    network: Network, start: Start, backend: str, settings: dict[str, object]
) -> None:
    """From the start, and as soon as somebody changes it; and no longer than kevip runs."""
    first, second = network.nodes[:2]
    before = second.rules()
    second.iptables("-P", "INPUT", "DROP", backend=backend)
    start(first, **settings).master()
    backup = start(second, **settings).ready()
    eventually(lambda: "kevip:" in second.iptables("-S", "INPUT", backend=backend), what="adverts are accepted")
    assert network.holders() == [first]
    first.iptables("-P", "INPUT", "DROP", backend=backend)
    first.iptables("-A", "INPUT", "-p", "udp", "-j", "DROP", backend=backend)
    eventually(lambda: "kevip:" in first.iptables("-S", "INPUT", backend=backend).splitlines()[-1], what="and here")
    assert not backup.events("election.deaf")
    backup.stop()
    assert second.iptables("-S", "INPUT", backend=backend) == "-P INPUT DROP\n"
    second.iptables("-P", "INPUT", "ACCEPT", backend=backend)
    assert second.rules() == before


def check(node: Namespace, *arguments: str) -> dict[str, list[str]]:
    """Return what `kevip check` found, by check."""
    told = invoke(node, "check", "--json", *flags({**SETTINGS, "engine": "keepalived"}), *arguments)
    found: dict[str, list[str]] = {}
    for each in json.loads(told.stdout)["findings"]:
        found.setdefault(each["check"], []).append(f"{each['verdict']} {each['found']}")
    return found


def test_a_check_hears_the_master_and_who_is_none_of_its_group(network: Network, start: Start) -> None:
    start(network.nodes[0], advskew=1).master()
    node = network.nodes[1]
    found = check(node)
    assert found["election"] == [f"ok {LAN}.11 is master, with priority 244, an advert every 0.1 s"]
    assert found["engine"] == ["ok keepalived, an advert every 0.1 s, VRRP version 3, as a real-time process"]
    assert found["other groups"] == ["ok no adverts of others with id 100"]
    assert [each[:2] for each in found["duplicates"]] == ["ok"]
    [stranger] = check(node, "--advert-interval=1")["other groups"]
    assert stranger.startswith(f"failed {LAN}.11 holds VIP {VIP}, and speaks CARP, or another version of VRRP")
    [stranger] = check(node, f"--vip={VIP2}", "--vip-id=100")["other groups"]
    assert stranger == f"warning {LAN}.11 uses id 100 for another VIP"


def test_a_check_finds_a_firewall_that_keeps_adverts_out(network: Network, start: Start) -> None:
    start(network.nodes[1]).master()
    node = network.nodes[0]
    assert check(node)["INPUT"] == ["ok nothing is seen that keeps adverts from keepalived"]
    node.iptables("-P", "INPUT", "DROP")
    node.run("nft", "add table inet own; add chain inet own in { type filter hook input priority 0; policy drop; }")
    [own] = check(node)["INPUT"]
    assert own.startswith("warning the policy of chain in of nftables table inet own is to drop")
    node.run("nft", "delete table inet own")
    assert check(node)["INPUT"] == ["ok policy DROP in iptables-nft: kevip lets adverts in, last of all"]
    node.iptables("-A", "INPUT", "-j", "REJECT")
    [refused] = check(node)["INPUT"]
    assert refused.startswith("warning iptables-nft refuses what no rule accepts, and none lets IP protocol 112")
    node.iptables("-I", "INPUT", "-i", "eth0", "-p", "112", "-j", "ACCEPT")
    assert [each[:2] for each in check(node)["INPUT"]] == ["ok"]


def test_a_status_names_the_firewall_that_has_to_let_adverts_in(network: Network, start: Start) -> None:
    replica = start(network.nodes[0]).master()
    asked = "status", f"--run-dir={replica.run_dir}"
    assert "firewall" not in invoke(replica.node, *asked).stdout
    replica.node.run(
        "nft", "add table inet own; add chain inet own in { type filter hook input priority 0; policy drop; }"
    )
    told = " ".join(invoke(replica.node, *asked).stdout.split())
    assert "firewall chain in of nftables table inet own: has to let IP protocol 112 in" in told
    [known] = json.loads(invoke(replica.node, *asked, "--json").stdout)["vips"]
    assert known["foreign_input"] == ["chain in of nftables table inet own"]


def test_a_check_with_the_other_engine_says_so(network: Network, start: Start) -> None:
    start(network.nodes[0], engine="ucarp").master()
    [stranger] = check(network.nodes[1])["other groups"]
    assert stranger.startswith(f"failed {LAN}.11 holds VIP {VIP}, and speaks CARP")


def test_a_check_finds_another_password(network: Network, start: Start) -> None:
    start(network.nodes[0], advert_interval=1).master()
    found = check(network.nodes[1], "--advert-interval=1", "--password=wrong")
    assert found["other groups"] == [f"failed {LAN}.11 holds VIP {VIP}, and advertises with another password"]
    assert "warning the password is in each advert as it is, for peers without kevip" in found["engine"]
