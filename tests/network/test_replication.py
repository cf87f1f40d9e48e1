"""Copies of connections, made by conntrackd all the time: silent ones outlive a master that crashes."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from lab.network import DATAPLANES, LAN, SYNC, TARGET, VIP, VIP2, Namespace, Network, eventually
from lab.replica import Replica, invoke, on_each_engine
from lab.traffic import SPEAKS, Conversations, Flow, Probe, Speaker, hears, speaker

from kevip.dataplane.rules import Channel
from kevip.sync.conntrackd import Home, Setup, port

PEERS = ",".join(f"{SYNC}.{number}" for number in (11, 12, 13))

Start = Callable[..., Replica]


@pytest.fixture(autouse=True)
def apart(network: Network) -> Network:
    """Connect the nodes by a network of their own, too."""
    network.connect_apart()
    return network


def cut(network: Network, node: Namespace) -> None:
    """Take a node's link to the others' conntrackd away, and the carrier stays."""
    network.switch.run("ip", "link", "set", f"sync{network.nodes.index(node) + 1}", "nomaster")


def mend(network: Network, node: Namespace) -> None:
    """Give it back."""
    network.switch.run("ip", "link", "set", f"sync{network.nodes.index(node) + 1}", "master", "br1")


def copying(start: Start, node: Namespace, **settings: object) -> Replica:
    """Start a replica that copies connections."""
    replica = start(node, **{"sync": True, "sync_interface": "eth1", **settings}).ready()
    replica.logged("conntrackd.started")
    return replica


def several(network: Network, start: Start, number: int = 2, **settings: object) -> dict[Namespace, Replica]:
    """Start replicas that copy connections; return them when they have a master."""
    replicas = {node: copying(start, node, **settings) for node in network.nodes[:number]}
    eventually(network.holders, what="a master is elected")
    network.settled()
    return replicas


def tracked(node: Namespace, vip: str = VIP) -> int:
    """Return how many connections of silent clients a node knows."""
    return node.run("conntrack", "-L", "-p", "tcp", "-d", vip, "--dport", str(SPEAKS)).count("ESTABLISHED")


def silent_ones(speaks: Speaker, network: Network, number: int, address: str = VIP) -> list[socket.socket]:
    """Connect so many clients, half of them from afar."""
    return [speaks.connect(network.client if each % 2 else network.far_client, address) for each in range(number)]


def known(nodes: list[Namespace], number: int, vip: str = VIP, within: float = 20.0) -> None:
    """Wait until all of these nodes know so many connections."""
    wanted = [number] * len(nodes)
    eventually(lambda: [tracked(node, vip) for node in nodes] == wanted, within=within, what=f"{number} are known")


def crash(network: Network, replica: Replica) -> None:
    """Have a host be gone at once, for all others."""
    network.cut(replica.node)
    replica.kill()


def conntrackd(replica: Replica) -> int:
    """Return the process id of its conntrackd, which now and then is asked by another one."""
    found: list[int] = eventually(
        lambda: pids if len(pids := replica.children("conntrackd")) == 1 else None, what="one conntrackd runs"
    )
    return found[0]


@on_each_engine
@pytest.mark.parametrize(("number", "dataplane"), [(2, "nftables"), (2, "iptables-legacy"), (3, "iptables-nft")])
def test_a_crash_cuts_no_connection_on_which_the_client_is_silent(
    network: Network, start: Start, number: int, dataplane: str
) -> None:
    replicas = several(network, start, number, dataplane=dataplane)
    master = network.settled()
    others = [node for node in replicas if node != master]
    with speaker(network) as speaks, Conversations(network.client, VIP, 100) as talk:
        silent = silent_ones(speaks, network, 100)
        known(others, 100)
        crash(network, replicas[master])
        network.settled(others)
        speaks.speak()
        assert [hears(each) for each in silent] == [True] * 100
        assert talk.survivors() == 100


@on_each_engine
@pytest.mark.parametrize("dataplane", ["nftables", "iptables-nft"])
@pytest.mark.parametrize("loses", ["the cable", "its daemon"])
def test_no_other_loss_of_the_master_does_either(network: Network, start: Start, loses: str, dataplane: str) -> None:
    replicas = several(network, start, dataplane=dataplane)
    master = network.settled()
    [heir] = set(replicas) - {master}
    with speaker(network) as speaks, Conversations(network.client, VIP, 100) as talk:
        silent = silent_ones(speaks, network, 100)
        known([heir], 100)
        if loses == "the cable":
            network.set_carrier(master, on=False)
        else:
            replicas[master].process.kill()
        network.settled([heir])
        speaks.speak()
        assert [hears(each) for each in silent] == [True] * 100
        assert talk.survivors() == 100


@on_each_engine
def test_a_rolling_restart_cuts_none_and_a_crash_after_it_either(network: Network, start: Start) -> None:
    replicas = several(network, start, 3)
    with speaker(network) as speaks, Conversations(network.client, VIP, 50) as talk:
        silent = silent_ones(speaks, network, 50)
        for node in network.nodes:
            assert replicas[node].stop()[0] == 0
            replicas[node] = copying(start, node)
            network.settled()
        known(network.nodes, 50)
        master = network.settled()
        crash(network, replicas[master])
        network.settled([node for node in network.nodes if node != master])
        speaks.speak()
        assert [hears(each) for each in silent] == [True] * 50
        assert talk.survivors() == 50


@on_each_engine
@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_a_planned_stop_cuts_no_connection_either_and_no_copy_of_it(
    network: Network, start: Start, dataplane: str
) -> None:
    """A leaving host forgets its connections; that must not be copied."""
    replicas = several(network, start, 3, dataplane=dataplane)
    master = network.settled()
    others = [node for node in replicas if node != master]
    with speaker(network) as speaks, Conversations(network.client, VIP, 50) as talk:
        with Probe(network.client, VIP) as probe:
            silent = silent_ones(speaks, network, 50)
            known(others, 50)
            assert replicas[master].stop()[0] == 0
            network.settled(others)
            assert probe.report().failed == 0
        assert tracked(master) == 0
        known(others, 50)
        speaks.speak()
        assert [hears(each) for each in silent] == [True] * 50
        assert talk.survivors() == 50


def _fetches(replica: Replica) -> int:
    """Return how often a replica had others send their connections."""
    return sum(event["argv"][-1] == "-n" for event in replica.events("command.run"))


@on_each_engine
def test_a_crash_soon_after_a_move_cuts_none_either(network: Network, start: Start) -> None:
    """The VIP comes back to a host that still knows its connections, whose TCP windows have gone on elsewhere."""
    replicas = several(network, start, log_level="debug")
    master = network.settled()
    [heir] = set(replicas) - {master}
    with speaker(network) as speaks, Conversations(network.client, VIP, 50) as talk:
        silent = silent_ones(speaks, network, 50)
        known([heir], 50)
        more = replicas[master].state()["sync"]["written"] + 100
        os.kill(replicas[master].engine_pid(), signal.SIGKILL)
        eventually(lambda: network.holders() == [heir], what="the other host has the VIP")
        eventually(lambda: _fetches(replicas[master]), what="the old master has fetched what goes on elsewhere")
        eventually(lambda: replicas[master].state()["sync"]["written"] >= more, what="and has it")
        crash(network, replicas[heir])
        eventually(lambda: master.has(VIP), what="the VIP is back")
        speaks.speak()
        assert [hears(each) for each in silent] == [True] * 50
        assert talk.survivors() == 50


@on_each_engine
@pytest.mark.parametrize("move", [crash, lambda _, replica: replica.stop()], ids=["crash", "stop"])
def test_datagrams_and_clients_with_one_source_port_are_copied_too(
    network: Network, start: Start, move: Callable[[Network, Replica], object]
) -> None:
    replicas = several(network, start)
    master = network.settled()
    [heir] = set(replicas) - {master}
    hosts = network.client, network.far_client
    with speaker(network) as speaks, Flow(network.client, network.target, sport=30000) as flow:
        silent = [speaks.connect(each, sport=port) for each in hosts for port in range(30000, 30025)]
        known([heir], 50)
        eventually(lambda: "sport=30000" in heir.run("conntrack", "-L", "-p", "udp", "-d", VIP), what="the flow is")
        move(network, replicas[master])
        network.settled([heir])
        speaks.speak()
        assert [hears(each) for each in silent] == [True] * 50
        assert flow.is_answered()


def test_a_host_that_was_away_gets_what_it_missed(network: Network, start: Start) -> None:
    replicas = several(network, start)
    master = network.settled()
    [other] = set(replicas) - {master}
    with speaker(network) as speaks:
        silent = silent_ones(speaks, network, 20)
        known([other], 20)
        third = copying(start, network.nodes[2])
        known([third.node], 20)
        crash(network, replicas[master])  # the heir then copies what it was sent itself
        heir = network.settled([other, third.node])
        replicas |= {third.node: third}
        replicas[heir].logged("conntrackd.resynced")
        network.mend(master)
        known([copying(start, master).node], 20)
        crash(network, replicas[heir])
        network.settled([each for each in network.nodes if each != heir])
        speaks.speak()
        assert [hears(each) for each in silent] == [True] * 20


def test_a_conntrackd_that_is_killed_is_started_again_and_the_vip_stays(network: Network, start: Start) -> None:
    replicas = several(network, start)
    master = network.settled()
    [other] = set(replicas) - {master}
    with speaker(network) as speaks, Probe(network.client, VIP) as probe:
        silent = silent_ones(speaks, network, 10)
        known([other], 10)
        for node in replicas:
            os.kill(conntrackd(replicas[node]), signal.SIGKILL)
        ended = replicas[master].logged("conntrackd.ended")
        for replica in replicas.values():
            replica.logged("conntrackd.started", times=2)
        silent += silent_ones(speaks, network, 10)
        known([other], 20)
        assert probe.report().failed == 0
        assert network.holders() == [master]
        crash(network, replicas[master])
        network.settled([other])
        speaks.speak()
        assert [hears(each) for each in silent] == [True] * 20
    assert (ended["status"], ended["retry_seconds"]) == (-signal.SIGKILL, 1)
    eventually(lambda: replicas[other].state()["sync"]["starts"] == 2, what="it says so")


@on_each_engine
def test_no_conntrackd_and_no_file_of_it_outlives_its_daemon(network: Network, start: Start) -> None:
    for end in (signal.SIGKILL, signal.SIGTERM):
        replica = copying(start, network.nodes[0])
        conntrackd(replica)
        replica.process.send_signal(end)
        replica.process.wait(20)
        eventually(lambda: not network.nodes[0].pids(), what="nothing runs any more")
        # A killed one leaves files, which the next start or a clean-up removes.
        invoke(network.nodes[0], "cleanup", f"--vip={VIP}", f"--run-dir={replica.run_dir}")
        assert not list(replica.run_dir.glob("*conntrackd*"))


def test_after_a_cut_of_their_network_a_backup_fetches_what_was_lost(network: Network, start: Start) -> None:
    replicas = several(network, start, 3)
    master = network.settled()
    other, third = set(replicas) - {master}
    with speaker(network) as speaks:
        silent = silent_ones(speaks, network, 5)
        known([other, third], 5)
        cut(network, other)
        silent += silent_ones(speaks, network, 5)
        known([third], 10)
        assert tracked(other) == 5
        mend(network, other)
        known([other], 10, within=60)
        replicas[third].kill()
        crash(network, replicas[master])
        network.settled([other])
        speaks.speak()
        assert [hears(each) for each in silent] == [True] * 10


def test_two_hosts_copy_by_unicast_where_multicast_is_dropped(network: Network, start: Start) -> None:
    network.switch.run(
        "nft", "add table bridge b; add chain bridge b f { type filter hook forward priority 0; }; "
        f"add rule bridge b f ip daddr 224.0.0.0/4 udp dport {port(IPv4Address(TARGET))} drop",
    )  # fmt: skip
    peers = ",".join(f"{SYNC}.{number}" for number in (11, 12))
    replicas = several(network, start, sync_interface=None, sync_peers=peers)
    master = network.settled()
    [other] = set(replicas) - {master}
    with speaker(network) as speaks:
        silent = silent_ones(speaks, network, 10)
        known([other], 10)
        crash(network, replicas[master])
        network.settled([other])
        speaks.speak()
        assert [hears(each) for each in silent] == [True] * 10


@contextmanager
def stranger(node: Namespace, directory: Path, interface: str, peer: str = "") -> Iterator[None]:
    """Run a conntrackd on a host, which sends a connection to the others, again and again."""
    [address] = [each.partition("/")[0] for name, each, _ in node.addresses() if name == interface]
    channel = Channel(port=port(IPv4Address(TARGET)), interface=interface, peers=(IPv4Address(peer),) if peer else ())
    target = IPv4Address(TARGET)
    home = Home(directory, target)
    home.make(Setup(target=target, channel=channel, source=IPv4Address(address), unicast=bool(peer)))
    node.run("nft", "add table ip x; add chain ip x y { type nat hook prerouting priority 0; }")
    program = node.popen(*home.argv(), stdout=subprocess.DEVNULL)
    try:
        node.run(
            "conntrack", "-I", "-p", "tcp", "-s", "192.0.2.66", "-d", "198.51.100.77", "-g", TARGET, "-t", "300",
            "--sport", "1", "--dport", "2", "--state", "ESTABLISHED", "-u", "SEEN_REPLY,ASSURED",
        )  # fmt: skip
        eventually(lambda: _asked(node, home, "-R") == 0 and _asked(node, home, "-B") == 0, what="it sends")
        yield
    finally:
        program.kill()
        program.wait()
        node.run("conntrack", "-F")


def _asked(node: Namespace, home: Home, what: str) -> int:
    return subprocess.run(node.command(*home.argv(what)), capture_output=True, check=False).returncode


def knows_stranger(node: Namespace) -> bool:
    """Whether a node has taken the stranger's connection."""
    return "192.0.2.66" in node.run("conntrack", "-L", "-s", "192.0.2.66")


def kept_out(node: Namespace) -> int:
    """Return how many packets our rules have kept from conntrackd."""
    told = json.loads(invoke(node, "status", "--json").stdout)["vips"][0]
    return int(told["counters"]["shield"]["packets"])


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_nobody_else_writes_connections_into_a_kernel(
    network: Network, start: Start, tmp_path: Path, dataplane: str
) -> None:
    node, third = network.nodes[0], network.nodes[2]
    run_dir = Path("/run/kevip")
    replica = copying(start, node, sync_peers=f"{SYNC}.11,{SYNC}.12", dataplane=dataplane, run_dir=run_dir)
    replica.master()
    for sender, interface, to in [
        (network.client, "eth0", f"{LAN}.11"),  # of the network of the VIP
        (network.client, "eth0", f"{SYNC}.11"),
        (third, "eth1", ""),  # of the hosts' network, but no peer
        (third, "eth1", f"{SYNC}.11"),
    ]:
        if sender is network.client and to.startswith(SYNC):
            network.client.run("ip", "route", "add", f"{SYNC}.0/24", "via", f"{LAN}.11")
        before = kept_out(node)
        with stranger(sender, tmp_path, interface, to):
            eventually(lambda before=before: kept_out(node) > before, what="it is kept out")  # type: ignore[misc]
        assert not knows_stranger(node)
    replica.process.send_signal(signal.SIGTERM)
    replica.process.wait(20)


def test_without_a_rule_a_stranger_would(network: Network, start: Start, tmp_path: Path) -> None:
    """What the test above shows would show nothing else."""
    copying(start, network.nodes[0], sync_peers=f"{SYNC}.11,{SYNC}.13").master()
    with stranger(network.nodes[2], tmp_path, "eth1"):
        eventually(lambda: knows_stranger(network.nodes[0]), what="a peer's connection is taken")


def test_check_says_who_could_write_there(network: Network) -> None:
    node = network.nodes[0]
    basic = ["check", f"--vip={VIP}", f"--target={TARGET}", "--password=x", "--sync", "--json", "--seconds=1"]

    def found(*options: str) -> list[tuple[str, str]]:
        told = json.loads(invoke(node, *basic, *options).stdout)["findings"]
        return [(each["verdict"], each["found"]) for each in told if each["check"] == "sync"]

    number = port(IPv4Address(TARGET))
    assert found(f"--sync-peers={SYNC}.11,{SYNC}.12") == [
        ("ok", f"UDP port {number} on eth1, from {SYNC}.11, by unicast, with {SYNC}.12")
    ]
    assert [verdict for verdict, _ in found("--sync-interface=eth1", f"--sync-peers={PEERS}")] == ["ok"]
    assert "whoever can send on eth1" in found("--sync-interface=eth1")[1][1]
    assert "the VIP's network too" in found("--sync-interface=eth0", f"--sync-peers={LAN}.11,{LAN}.12")[1][1]
    assert found("--sync-interface=eth7")[0][0] == "failed"
    with node.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("", number))
        assert "another program" in found("--sync-interface=eth1", f"--sync-peers={PEERS}")[1][1]


def test_copies_are_taken_where_the_firewall_takes_nothing(network: Network, start: Start) -> None:
    copying(start, network.nodes[0], sync_peers=PEERS).master()
    network.nodes[1].run("iptables-nft", "-P", "INPUT", "DROP")
    backup = copying(start, network.nodes[1], sync_peers=PEERS)
    with speaker(network) as speaks:
        silent_ones(speaks, network, 5)
        known([backup.node], 5)


@pytest.mark.parametrize("together", [True, False])
def test_two_vips_with_one_target_have_one_conntrackd_on_each_host(
    network: Network, start: Start, together: bool
) -> None:
    """Two would send each other's entries back and forth. Where one of the kevips ends, the other takes over."""
    first, second = network.nodes[:2]
    ones = {first: copying(start, first, advskew=1), second: copying(start, second, advskew=20)}
    ones[first].master()
    others = {}
    for node in (first, second) if together else (second, first):  # the first one is master
        others[node] = start(node, vip=VIP2, sync=True, sync_interface="eth1").ready()
        eventually(lambda: network.holders(VIP2), what="it has a master")
    for replica in others.values():
        eventually(lambda replica=replica: replica.state()["sync"]["elsewhere"], what="it says so")  # type: ignore[misc]
    with speaker(network) as speaks:
        silent = silent_ones(speaks, network, 10) + silent_ones(speaks, network, 10, VIP2)
        for vip in (VIP, VIP2):
            known([first, second], 10, vip)
        time.sleep(1)  # what goes back and forth would have gone many times
        heard = ones[second].state()["sync"]["heard"]
        assert heard < 200
        ones[first].stop()
        others[first].logged("conntrackd.started")
        eventually(lambda: second.has(VIP), what="the VIP has moved")
        for vip in (VIP, VIP2):
            known([second], 10, vip)
        network.cut(first)
        others[first].kill()
        eventually(lambda: second.has(VIP2), what="the other VIP is there")
        speaks.speak()
        assert [hears(each) for each in silent] == [True] * 20
