"""What a daemon says of itself while it runs: the runtime file, and the probes that read it."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from lab.network import VIP, Namespace, Network, eventually
from lab.replica import Replica, invoke, on_each_engine, wrapped

import kevip

Start = Callable[..., Replica]

PROBE = Path(kevip.__file__).with_name("kevip-probe")


def probe(replica: Replica, *arguments: str) -> tuple[int, str]:
    """Run a probe; return its exit status and what it said."""
    done = subprocess.run(
        [PROBE, *arguments], env={"RUN_DIR": str(replica.run_dir)}, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_a_backup_and_a_master_are_live_and_ready(network: Network, start: Start) -> None:
    replicas = [start(node) for node in network.nodes[:2]]
    network.settled()
    for replica in replicas:
        for arguments in (["live"], ["ready"], ["live", VIP], ["ready", VIP]):
            assert probe(replica, *arguments) == (0, "")


def test_a_daemon_that_hangs_is_not_live(host: Namespace, start: Start) -> None:
    replica = start(host).master()
    replica.process.send_signal(signal.SIGSTOP)
    status, said = eventually(lambda: found if (found := probe(replica, "live"))[0] else None, within=30)
    assert (status, "hangs or was killed" in said) == (1, True)
    assert probe(replica, "ready")[0] == 1


def set_interface(_: Network, host: Namespace, state: str) -> None:
    """Set a host's interface itself up or down, as an administrator does."""
    host.run("ip", "link", "set", "eth0", state)


def set_port(network: Network, host: Namespace, state: str) -> None:
    """Set the switch's port up or down: the host's carrier goes with it."""
    network.set_carrier(host, on=state == "up")


@on_each_engine
@pytest.mark.parametrize("role", ["master", "backup"])
@pytest.mark.parametrize("link", [set_interface, set_port])
def test_a_daemon_without_a_link_is_live_but_not_ready(
    network: Network, start: Start, role: str, link: Callable[[Network, Namespace, str], None]
) -> None:
    replicas = {node: start(node).ready() for node in network.nodes[:2]}
    master = network.settled(network.nodes[:2])
    [node] = [each for each in replicas if (each == master) == (role == "master")]
    replica = replicas[node]
    link(network, node, "down")
    eventually(lambda: replica.role() == "init", what="it takes no part in the election")
    status, said = probe(replica, "ready")
    assert (status, "not in the election" in said) == (1, True)
    assert probe(replica, "live") == (0, "")
    assert replica.state()["reason"] == "unlinked"
    link(network, node, "up")
    eventually(lambda: probe(replica, "ready")[0] == 0, what="it is ready again")


def test_a_host_whose_takeovers_fail_is_live_but_not_ready(network: Network, start: Start, tmp_path: Path) -> None:
    """Not between two attempts either, when it is backup: whoever relies on it would find nobody."""
    flaw = tmp_path / "flaw"
    flaw.touch()
    env = wrapped(tmp_path, "iptables-nft-restore", f'[ ! -e {flaw} ] || {{ echo "no nat table" >&2; exit 4; }}')
    replica = start(network.nodes[0], env=env)
    replica.logged("takeover.failed")
    unfit = {("init", "unfit"), ("backup", "unfit")}
    seen: set[tuple[str | None, str]] = set()
    while seen != unfit:
        before = replica.role(), replica.state()["reason"]
        status, said = probe(replica, "ready")
        asked = invoke(replica.node, "status", f"--run-dir={replica.run_dir}").stdout
        if before == (replica.role(), replica.state()["reason"]):
            seen.add(before)
            assert seen <= unfit
            assert (status, "takeover.failed" in said or "not in the election" in said) == (1, True)
            assert "PROBLEM this host cannot serve: its last takeover failed" in asked
    assert probe(replica, "live") == (0, "")
    flaw.unlink()
    replica.master(within=30)
    assert probe(replica, "ready") == (0, "")


@on_each_engine
@pytest.mark.parametrize("link", [set_interface, set_port])
def test_a_link_that_goes_as_the_host_becomes_master(
    network: Network, start: Start, link: Callable[[Network, Namespace, str], None]
) -> None:
    """What ucarp then writes takes the error that would have ended it; keepalived says that it is at fault."""
    node = network.nodes[0]
    replica = start(node)
    replica.logged("election.master")
    link(network, node, "down")
    eventually(lambda: probe(replica, "ready")[0] and replica.role() == "init", what="it takes no part")
    link(network, node, "up")
    replica.master()


def test_where_no_kevip_runs_the_probes_fail(host: Namespace, start: Start) -> None:
    replica = start(host).master()
    replica.stop()
    for name in ("live", "ready"):
        status, said = probe(replica, name)
        assert (status, "no kevip runs here" in said) == (1, True)


@pytest.mark.parametrize("arguments", [[], ["alive"]])
def test_a_probe_that_there_is_not_is_refused(host: Namespace, start: Start, arguments: list[str]) -> None:
    status, said = probe(start(host).master(), *arguments)
    assert (status, "usage" in said) == (2, True)


def test_the_runtime_file_says_who_is_master_and_why(network: Network, start: Start) -> None:
    replicas = {node: start(node).ready() for node in network.nodes}
    first = network.settled()
    assert replicas[first].state()["reason"] == "alone"
    replicas.pop(first).stop()
    second = network.settled()
    assert replicas[second].state()["reason"] == "goodbye"
    [third] = [node for node in replicas if node != second]
    assert list(replicas[third].state()["peers"]) == [second.addresses()[0][1].split("/")[0]]
    replicas.pop(second).kill()
    network.vanish(second)
    assert network.settled() == third
    state = eventually(lambda: found if (found := replicas[third].state())["role"] == "master" else None)
    assert (state["reason"], state["vip"], state["interface"]) == ("silence", VIP, "eth0")
    assert state["pid"] == replicas[third].process.pid
