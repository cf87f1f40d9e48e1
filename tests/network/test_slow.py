"""Programs that are slow, as on a host with the rules of a large cluster: that moves no VIP, and loses nothing."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lab.network import CLIENT, VIP, Network, eventually
from lab.replica import Replica, on_each_engine, wrapped
from lab.traffic import Probe, answers

Start = Callable[..., Replica]


@on_each_engine
@pytest.mark.parametrize("seconds", [2.5, 6])
def test_looks_at_rules_that_take_long_cost_no_engine_and_no_connect(
    network: Network, start: Start, tmp_path: Path, seconds: float
) -> None:
    slow = tmp_path / "slow"
    env = wrapped(tmp_path, "iptables-nft-save", f"[ ! -e {slow} ] || sleep {seconds}")
    old, new = start(network.nodes[0], advskew=1, env=env).master(), start(network.nodes[1], env=env).ready()
    slow.touch()
    with Probe(network.client, VIP) as probe:
        os.kill(old.engine_pid(), signal.SIGKILL)
        new.master()
        time.sleep(seconds + 4)  # the first look is over
        report = probe.report()
    assert (report.failed, report.sources) == (0, [VIP])
    assert network.holders() == [new.node]
    for replica, ends in (old, 1), (new, 0):
        assert len(replica.events("takeover.done")) == 1
        assert len(replica.events(f"{replica.engine}.exited")) == ends
        assert not replica.events("election.silent")
    eventually(lambda: new.state()["rules"], within=60, what="a look came to its end")


def test_a_takeover_that_takes_longer_than_a_look_is_due_finds_nothing_to_repair(
    network: Network, start: Start, tmp_path: Path
) -> None:
    orders = tmp_path / "orders"
    script = f'cat >{orders}.$$; sleep 2.2; exec "$real" "$@" <{orders}.$$'
    env = wrapped(tmp_path, "iptables-nft-restore", script)
    alone = start(network.nodes[0], env=env, global_masquerade=True).master()  # the one rule that comes with the VIP
    assert alone.logged("takeover.done")["ms"] > 2000
    eventually(lambda: alone.state()["rules"], what="the rules were looked at")
    time.sleep(3)
    assert not alone.events("drift.repaired")
    assert answers(network.client, VIP)


def test_a_thousand_networks_make_no_line_of_the_log_long(network: Network, start: Start) -> None:
    networks = ",".join(f"10.{number >> 8}.{number & 255}.0/24" for number in range(1000))
    alone = start(network.nodes[0], allow_from=f"{networks},{CLIENT}").master()
    eventually(lambda: alone.state()["rules"], what="the rules were looked at")
    alone.node.iptables("-t", "mangle", "-F", f"KEVIP-GUARD-{VIP}")
    assert alone.logged("drift.repaired")["what"][-1].startswith("and ")
    assert alone.stop()[0] == 0
    assert max(map(len, alone.log().splitlines())) < 10_000
