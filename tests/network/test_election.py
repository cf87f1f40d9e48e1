"""Who is master: real ucarp and keepalived, started by real daemons, on one switch."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.network import LAN, VIP, VIP2, Namespace, Network, eventually
from lab.replica import PASSWORD, Replica, keepalived_version, on_each_engine
from lab.traffic import answers, tcp_source

Start = Callable[..., Replica]


@on_each_engine
def test_a_first_master_serves_within_six_seconds(network: Network, start: Start) -> None:
    begin = time.monotonic()
    start(network.nodes[0])
    eventually(lambda: answers(network.client, VIP), within=10, what="the VIP serves")
    assert time.monotonic() - begin < 6


@on_each_engine
def test_one_of_three_is_master_and_another_follows_it(network: Network, start: Start) -> None:
    """After SIGKILL of the master's processes another takes over; the old one, back, stays backup."""
    replicas = {node.name: start(node, advskew=5 * number) for number, node in enumerate(network.nodes)}
    for replica in replicas.values():
        replica.ready()
    first = network.settled()
    assert sorted(replica.role() or "" for replica in replicas.values()) == ["backup", "backup", "master"]

    replicas[first.name].kill()
    eventually(lambda: not first.has(VIP), what="the old master's lease ends")
    second = network.settled()
    assert tcp_source(network.client, VIP) == VIP

    again = start(first, advskew=5).ready()
    again.logged("election.backup")
    assert not again.events("election.master")
    for _ in range(40):  # two master-down intervals and more
        time.sleep(0.2)
        assert network.holders() == [second]
    assert again.role() == "backup"


@on_each_engine
def test_takes_over_from_a_master_whose_link_is_cut_and_heals(network: Network, start: Start) -> None:
    old, new = start(network.nodes[0], advskew=1).master(), start(network.nodes[1], advskew=10).ready()
    network.cut(old.node)
    new.master()
    assert tcp_source(network.client, VIP) == VIP
    network.mend(old.node)
    eventually(lambda: len(network.holders()) == 1, what="one of two masters gives way")
    eventually(lambda: answers(network.client, VIP), what="the VIP serves")


@on_each_engine
def test_takes_over_from_a_master_whose_host_vanishes(network: Network, start: Start) -> None:
    old, new = start(network.nodes[0], advskew=1).master(), start(network.nodes[1], advskew=10).ready()
    network.vanish(old.node)
    new.master()
    assert tcp_source(network.client, VIP) == VIP


def test_a_replica_with_another_password_never_joins_and_says_so(network: Network, start: Start) -> None:
    good = start(network.nodes[0]).master()
    bad = start(network.nodes[1], password="wrong").master()  # noqa: S106
    assert len(network.holders()) == 2
    for replica in (good, bad):
        event = replica.logged("election.bad_advert")
        assert event["reason"] == "digest"
        assert event["source"] in {f"{LAN}.11", f"{LAN}.12"} - {replica.events("daemon.started")[0]["source"]}
        assert "compare --password and --vip on all replicas" in event["hint"]
    bad.stop()
    joined = start(network.nodes[1]).ready()
    eventually(lambda: network.holders() == [good.node] and joined.role() == "backup", what="the right password joins")


@on_each_engine
def test_a_long_password_from_a_file_is_one_with_the_same_from_a_variable(
    network: Network, start: Start, tmp_path: Path
) -> None:
    secret = tmp_path / "password"
    secret.write_text("a password of more than nineteen bytes\n")
    first = start(network.nodes[0], password=None, password_file=secret, advert_interval=1).master()
    second = start(
        network.nodes[1], password=None, env={"PASSWORD": secret.read_text().rstrip()}, advert_interval=1
    ).ready()
    time.sleep(4)  # longer than a master-down interval: it would be master by now
    assert (first.role(), second.role()) == ("master", "backup")
    assert not first.events("election.bad_advert") + second.events("election.bad_advert")


def test_broadcast_adverts_elect_one_master_too(network: Network, start: Start) -> None:
    first = start(network.nodes[0], broadcast=True).master()
    second = start(network.nodes[1], broadcast=True).ready()
    time.sleep(4)
    assert (first.role(), second.role()) == ("master", "backup")


@on_each_engine
def test_preempt_takes_over_from_a_living_master(network: Network, start: Start) -> None:
    old = start(network.nodes[0], advskew=100, preempt=True).master()
    start(network.nodes[1], advskew=1, preempt=True).master()
    eventually(lambda: network.holders() == [network.nodes[1]], what="the old master lets go")
    assert old.logged("release.done")
    eventually(lambda: old.role() == "backup", what="it is a backup")


@on_each_engine
def test_a_master_that_preempts_hands_over_like_any_other(network: Network, start: Start) -> None:
    """Its heir has a higher skew, which it would take the VIP from if it were not leaving."""
    heir = start(network.nodes[0], advskew=20, preempt=True).ready()
    master = start(network.nodes[1], advskew=1, preempt=True).master()
    network.settled()
    status, seconds = master.stop()
    assert (status, seconds < 8) == (0, True)
    assert master.logged("handover.done")["to"] == f"{LAN}.11"
    assert network.settled() == heir.node


@contextmanager
def plain_ucarp(node: Namespace, address: str, skew: int, hooks: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ucarp without kevip, with hooks as its manual shows them."""
    for name, action in (("up", "add"), ("down", "del")):
        (hooks / name).write_text(f'#!/bin/sh\nip address {action} "$2"/32 dev "$1"\n')
        (hooks / name).chmod(0o755)
    ucarp = node.popen(
        "ucarp", "--interface=eth0", f"--srcip={address}", "--vhid=100", f"--pass={PASSWORD}", f"--addr={VIP}",
        f"--advskew={skew}", f"--upscript={hooks}/up", f"--downscript={hooks}/down", "--shutdown", "--neutral",
        "--facility=none", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield ucarp
    finally:
        ucarp.kill()
        ucarp.wait()


def test_takes_over_from_plain_ucarp_and_the_other_way_round(network: Network, start: Start, tmp_path: Path) -> None:
    with plain_ucarp(network.nodes[1], f"{LAN}.12", 20, tmp_path) as plain:
        eventually(lambda: network.nodes[1].has(VIP), what="plain ucarp is master")
        kevip = start(network.nodes[0], advskew=10).ready()
        time.sleep(4)
        assert kevip.role() == "backup"
        plain.terminate()
        kevip.master()
        assert tcp_source(network.client, VIP) == VIP
    with plain_ucarp(network.nodes[1], f"{LAN}.12", 20, tmp_path):
        time.sleep(4)
        assert network.holders() == [network.nodes[0]]
        assert kevip.stop()[0] == 0
        eventually(lambda: network.nodes[1].has(VIP), what="plain ucarp is master again")
    assert not kevip.events("election.bad_advert")


@on_each_engine
def test_another_group_with_the_same_id_is_warned_about(network: Network, start: Start) -> None:
    """On both sides, if both serve; keepalived from 2.3 on does not look at the VIP, and has one master for both."""
    first, second = start(network.nodes[0]).master(), start(network.nodes[1], vip=VIP2, vip_id=100).ready()
    assert "give this group another --vip-id" in second.logged("election.bad_advert")["hint"]
    if first.engine == "ucarp" or keepalived_version() < (2, 3):
        second.master()
        assert "give this group another --vip-id" in first.logged("election.bad_advert")["hint"]
        assert tcp_source(network.client, VIP2) == VIP2
    assert tcp_source(network.client, VIP) == VIP
