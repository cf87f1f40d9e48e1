"""Faults injected while a client connects: in the end one holder, traffic flowing, a log line that names the fault."""

import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from lab.network import CLIENT, LAN, ROUTER, VIP, Namespace, Network, eventually
from lab.replica import PASSWORD, Replica, invoke, on_each_engine, wrapped
from lab.traffic import answers, send_frame, tcp_source, track

from kevip.dataplane.announcer import MANY, OTHERS
from kevip.election.carp import Advert, Group, Interval, build
from kevip.election.ucarp import key
from kevip.host.wire import BROADCAST, Wire, arp_from

Start = Callable[..., Replica]


class Pair:
    """A master and a backup with a client that connects."""

    def __init__(self, network: Network, start: Start) -> None:
        self.network = network
        self.master = start(network.nodes[0], advskew=1).master()
        self.backup = start(network.nodes[1], advskew=20).ready()
        assert answers(network.client, VIP)

    def heals(self, within: float = 30) -> Namespace:
        """Wait until there is one holder and traffic flows; return the holder."""
        network = self.network

        def well() -> bool:
            return len(network.holders()) == 1 and answers(network.client, VIP)

        eventually(well, within=within, what="one holder, and traffic flows")
        holder = network.settled()
        assert tcp_source(network.client, VIP) == VIP
        return holder


@pytest.fixture
def pair(network: Network, start: Start) -> Pair:
    """Give a master and a backup."""
    return Pair(network, start)


def test_sigkill_of_the_daemon(pair: Pair) -> None:
    pair.master.process.kill()
    pair.backup.master()
    eventually(lambda: not pair.master.node.has(VIP), what="the lease ends")
    assert pair.heals() == pair.backup.node


def test_sigkill_of_ucarp(pair: Pair) -> None:
    os.kill(pair.master.engine_pid(), signal.SIGKILL)
    told = pair.master.logged("ucarp.exited")
    assert (told["status"], "ended by signal 9" in told["hint"]) == (-signal.SIGKILL, True)
    assert pair.heals() == pair.backup.node
    assert pair.master.logged("handover.done")


@on_each_engine
def test_sigkill_of_both(pair: Pair) -> None:
    pair.master.kill()
    pair.backup.master()
    eventually(lambda: not pair.master.node.has(VIP), what="the lease ends")
    assert pair.heals() == pair.backup.node


def test_a_daemon_stopped_for_twenty_seconds(pair: Pair) -> None:
    """The watchdog ends its ucarp, so a peer takes over long before it wakes."""
    pair.master.process.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    pair.backup.master(within=15)
    time.sleep(max(0.0, begin + 20 - time.monotonic()))
    assert answers(pair.network.client, VIP)
    pair.master.process.send_signal(signal.SIGCONT)
    assert pair.master.logged("ucarp.exited")["status"] == -signal.SIGKILL
    assert pair.heals() == pair.backup.node


@on_each_engine
def test_a_daemon_that_stalls_while_its_link_is_down_runs_no_second_engine(network: Network, start: Start) -> None:
    """As on a virtual machine that migrates: that what elects has ended, and the link is gone, are told in one turn."""
    alone = start(network.nodes[0]).master()
    alone.process.send_signal(signal.SIGSTOP)
    alone.node.run("ip", "link", "set", "eth0", "down")
    time.sleep(6)
    alone.process.send_signal(signal.SIGCONT)
    time.sleep(1)
    alone.node.run("ip", "link", "set", "eth0", "up")
    alone.node.run("ip", "route", "replace", "default", "via", ROUTER)
    end = time.monotonic() + 6
    while time.monotonic() < end:
        assert len(alone.engine_pids()) <= 1
        time.sleep(0.05)
    alone.master()
    assert network.settled() == alone.node
    assert tcp_source(network.client, VIP) == VIP


@on_each_engine
def test_a_watchdog_that_was_killed_is_replaced_and_ends_the_engine_of_a_daemon_that_hangs(pair: Pair) -> None:
    [watchdog] = pair.master.children("watchdog")
    os.kill(watchdog, signal.SIGKILL)
    pair.master.logged("watchdog.replaced")
    [another] = eventually(lambda: pair.master.children("watchdog"), what="a new one runs")
    assert another != watchdog
    engine = pair.master.engine_pid()
    pair.master.process.send_signal(signal.SIGSTOP)
    eventually(lambda: engine not in pair.master.engine_pids(), within=10, what="it ends what elects")
    pair.backup.master()
    eventually(lambda: answers(pair.network.client, VIP), what="the backup serves")
    assert pair.heals() == pair.backup.node


@on_each_engine
def test_a_backup_whose_engine_was_killed_again_and_again_serves_when_the_master_crashes(pair: Pair) -> None:
    """After so many ends it would wait for 8 s, were there a master."""
    for number in range(4):
        os.kill(eventually(pair.backup.engine_pids, what="it runs")[0], signal.SIGKILL)
        pair.backup.logged(f"{pair.backup.engine}.exited", times=number + 1)
    pair.network.cut(pair.master.node)
    pair.master.kill()
    pair.backup.master(within=9)
    assert pair.heals() == pair.backup.node


def test_a_stopped_ucarp_of_the_master(pair: Pair) -> None:
    os.kill(pair.master.engine_pid(), signal.SIGSTOP)
    assert "does not advertise" in pair.master.logged("election.silent")["hint"]
    assert pair.heals() == pair.backup.node


def test_a_stopped_ucarp_of_the_backup(pair: Pair) -> None:
    os.kill(pair.backup.engine_pid(), signal.SIGSTOP)
    pair.backup.logged("ucarp.frozen")
    pair.backup.logged("election.backup", times=2)
    assert pair.heals() == pair.master.node


def status(replica: Replica) -> str:
    """Return what `kevip status` says on a replica's node."""
    return invoke(replica.node, "status", f"--run-dir={replica.run_dir}").stdout


@on_each_engine
def test_carrier_loss_and_return(pair: Pair) -> None:
    pair.network.set_carrier(pair.master.node, on=False)
    pair.backup.master()
    pair.master.logged("release.done")
    assert "PROBLEM interface eth0 has no carrier: see to its cable" in status(pair.master)
    pair.network.set_carrier(pair.master.node, on=True)
    assert pair.heals() == pair.backup.node


@on_each_engine
def test_an_interface_deleted_and_made_again(pair: Pair) -> None:
    node = pair.master.node
    node.run("ip", "link", "delete", "eth0")
    pair.backup.master()
    assert "in no subnet of this host" in pair.master.logged(f"{pair.master.engine}.not_started")["error"]
    assert "PROBLEM interface eth0 is gone" in status(pair.master)
    pair.network.plug(node, f"{LAN}.11/24", port="node1")
    eventually(lambda: pair.master.role() == "backup", within=60, what="it is back in the election")
    assert pair.heals() == pair.backup.node


def renumber(node: Namespace, host: int) -> None:
    """Give a node another address instead of its own."""
    [(_, old, _)] = [each for each in node.addresses() if VIP not in each[1]]
    node.run("ip", "address", "add", f"{LAN}.{host}/24", "dev", "eth0")
    node.run("ip", "address", "delete", old, "dev", "eth0")
    node.run("ip", "address", "replace", f"{LAN}.{host}/24", "dev", "eth0")  # it may have gone with the first one
    node.run("ip", "route", "replace", "default", "via", ROUTER)


@on_each_engine
def test_another_host_with_the_address_that_the_master_had_is_heard(network: Network, start: Start) -> None:
    old = start(network.nodes[0], advskew=1).master()
    renumber(network.nodes[0], 51)
    renumber(network.nodes[1], 11)
    new = start(network.nodes[1], advskew=20).ready()
    assert old.logged(f"{old.engine}.moved")["was"] == f"{LAN}.11"
    old.logged("release.done")
    eventually(lambda: {old.role(), new.role()} == {"master", "backup"}, what="one master, one backup")
    holder = network.settled()
    master, backup, source = (new, old, f"{LAN}.11") if holder == new.node else (old, new, f"{LAN}.51")
    eventually(lambda: source in backup.state()["peers"], what="the backup hears the master")
    assert (master.role(), backup.role(), network.settled()) == ("master", "backup", holder)
    assert tcp_source(network.client, VIP) == VIP


@on_each_engine
def test_link_down_and_up(pair: Pair) -> None:
    pair.master.node.run("ip", "link", "set", "eth0", "down")
    pair.backup.master()
    assert "PROBLEM interface eth0 is down: ip link set dev eth0 up" in status(pair.master)
    pair.master.node.run("ip", "link", "set", "eth0", "up")
    pair.master.node.run("ip", "route", "replace", "default", "via", f"{LAN}.1")
    assert pair.master.logged("release.done")
    pair.heals()


def test_no_route_to_the_target(pair: Pair) -> None:
    pair.master.node.run("ip", "route", "delete", "default")
    assert "no route to" in pair.master.logged("election.resigned")["reason"]
    assert pair.heals() == pair.backup.node


@pytest.mark.parametrize("reason", ["digest", "truncated", "random"])
def test_bad_adverts(pair: Pair, reason: str) -> None:
    group = Group(vhid=100, vip=IPv4Address(VIP), key=key(PASSWORD if reason != "digest" else "wrong"))
    advert = Advert(source=IPv4Address(CLIENT), interval=Interval(1, 0), counter=1)
    packet = build(group, advert)
    if reason == "truncated":
        packet = packet[:30]
    elif reason == "random":
        packet = packet[:20] + bytes([0x21, 100, 0, 7]) + bytes(range(40))
    for _ in range(5):
        send_frame(pair.network.client, bytes.fromhex("01005e000012"), packet)
    event = pair.master.logged("election.bad_advert")
    assert event["reason"] == {"digest": "digest", "truncated": "truncated", "random": "checksum"}[reason]
    assert len(pair.master.events("election.bad_advert")) == 1
    assert pair.heals() == pair.master.node


def test_two_masters_after_a_partition(pair: Pair) -> None:
    pair.network.cut(pair.backup.node)
    pair.backup.master()
    assert len(pair.network.holders()) == 2
    track(pair.backup.node, 3)
    pair.network.mend(pair.backup.node)
    holder = pair.heals()
    assert holder == pair.master.node
    assert pair.master.logged("connections.pulled")["connections"] == 3  # what began on the other side goes on
    assert pair.backup.logged("election.yielded")["to"] == f"{LAN}.11"
    eventually(lambda: pair.backup.role() == "backup", what="it stands for election again")
    assert pair.backup.state()["reason"] == "yielded"
    assert len(pair.backup.events("takeover.done")) == 1
    assert pair.master.logged("election.rival")["source"] == f"{LAN}.12"
    assert pair.backup.logged("release.done")


@on_each_engine
def test_a_foreign_host_with_the_vip(pair: Pair) -> None:
    foreign = Namespace(f"{pair.network.client.name}-x")
    try:
        pair.network.plug(foreign, f"{VIP}/24", port="foreign")
        mac = foreign.mac
        assert pair.master.logged("address.duplicate", within=60)["mac"] == mac
        eventually(lambda: list(pair.master.state()["claims"]) == [mac], what="it is in the runtime file")
    finally:
        foreign.remove()
    assert pair.network.holders() == [pair.master.node]


def test_more_hosts_with_the_vip_than_can_be_told_apart_are_warned_about(pair: Pair) -> None:
    with pair.network.client.entered():
        wire = Wire("eth0", arp_from(IPv4Network(VIP)))
    packets = [arp_reply(bytes([2, 0, 0, 0, 0, number])) for number in range(30)]
    with closing(wire):

        def told() -> bool:
            for packet in packets:
                wire.send(to=BROADCAST, source=packet[8:14], kind=0x0806, payload=packet)
            return OTHERS in pair.master.state()["claims"]

        eventually(told, within=30, what="they are told")
    assert len(pair.master.state()["claims"]) == MANY + 1
    assert len(pair.master.events("address.duplicate")) == MANY  # that will do
    assert pair.network.holders() == [pair.master.node]


def arp_reply(mac: bytes) -> bytes:
    """Return an ARP packet that claims the VIP for a MAC address."""
    vip = IPv4Address(VIP).packed
    return struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 2, mac, vip, mac, vip)


def test_claims_of_a_master_that_was_not_heard_are_over_soon_when_it_is(pair: Pair) -> None:
    """Adverts are lost between them for a while, but ARP is not: each claims the VIP."""
    rule = "add rule bridge cut forward ip protocol 112 drop"
    lost = f"add table bridge cut; add chain bridge cut forward {{ type filter hook forward priority 0; }}; {rule}"
    pair.network.switch.run("nft", lost)
    pair.backup.master()
    eventually(lambda: pair.master.state()["claims"], within=40, what="the other one's claim is told")
    assert "PROBLEM" in status(pair.master)
    pair.network.switch.run("nft", "delete table bridge cut")
    eventually(lambda: "PROBLEM" not in status(pair.master), within=10, what="all is well")
    assert pair.heals() == pair.master.node


def test_a_mac_address_that_changes_is_announced_as_it_is(host: Namespace) -> None:
    """That of a bond does, at each of its own failovers."""
    with host.entered():
        wire = Wire("eth0", arp_from(IPv4Network(VIP)))
    with closing(wire):
        host.run("ip", "link", "set", "dev", "eth0", "address", "02:00:00:00:00:77")
        assert wire.mac.hex(":") == "02:00:00:00:00:77"


@on_each_engine
def test_ten_kevips_stopped_at_once(network: Network, start: Start) -> None:
    vips = [f"{LAN}.{number}" for number in range(101, 106)]
    before = [(node.rules(), node.addresses()) for node in network.nodes[:2]]
    replicas = [start(node, vip=vip) for vip in vips for node in network.nodes[:2]]
    for replica in replicas:
        replica.ready()
    for vip in vips:
        network.settled(vip=vip)
    for replica in replicas:
        replica.process.terminate()
    assert [replica.process.wait(20) for replica in replicas] == [0] * 10
    assert [(node.rules(), node.addresses()) for node in network.nodes[:2]] == before


@on_each_engine
@pytest.mark.parametrize("renews", [False, True])
def test_a_master_that_wakes_after_others_took_over_does_not_touch_the_vip(
    network: Network, start: Start, tmp_path: Path, renews: bool
) -> None:
    """Nor does one that was stopped in the middle of a renewal, for which the time is up when it wakes."""
    slow, begun = tmp_path / "slow", tmp_path / "begun"
    script = f'case "$*" in *-batch*) [ ! -e {slow} ] || {{ touch {begun}; sleep 1; }};; esac'
    master = start(network.nodes[0], advskew=1, env=wrapped(tmp_path, "ip", script)).master()
    backup = start(network.nodes[1], advskew=20).ready()
    if renews:
        slow.touch()
        eventually(begun.exists, what="a renewal is under way")
    master.process.send_signal(signal.SIGSTOP)
    slow.unlink(missing_ok=True)
    backup.master(within=15)
    eventually(lambda: not master.node.has(VIP), what="the lease ends")
    monitor = master.node.popen("ip", "monitor", "address", stdout=subprocess.PIPE, text=True)
    master.process.send_signal(signal.SIGCONT)
    master.logged("election.backup", times=2)
    monitor.terminate()
    assert VIP not in monitor.communicate(timeout=10)[0]
