"""What an operator asks of a running kevip: to move the VIP, to come last, and to be as before."""

import re
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lab.network import VIP, Namespace, Network, eventually
from lab.replica import Replica, invoke, on_each_engine, wrapped
from lab.traffic import Probe, hears, speaker

Start = Callable[..., Replica]

NOBODY = f"{VIP}: no peer took over: the VIP stays here; --force gives it up\n"


def ask(replica: Replica, command: str, *arguments: str) -> tuple[int, str]:
    done = invoke(replica.node, command, f"--run-dir={replica.run_dir}", *arguments)
    return done.returncode, done.stdout + done.stderr


def took_over(heir: str) -> str:
    return rf"{re.escape(VIP)}: \S+ \({re.escape(heir)}\) took over in \d\.\d s\n"


@on_each_engine
def test_a_move_fails_no_connect_and_ends_no_connection(network: Network, start: Start) -> None:
    first = start(network.nodes[0], advskew=1).master()
    second = start(network.nodes[1], advskew=20).ready()
    with speaker(network) as speaks, Probe(network.client, VIP) as probe:
        silent = [speaks.connect(network.client) for _ in range(20)]
        for leaver, heir, address in ((first, second, "10.77.0.12"), (second, first, "10.77.0.11")):
            status, said = ask(leaver, "move")
            assert (status, bool(re.fullmatch(took_over(address), said))) == (0, True), said
            heir.master()
            assert heir.logged("connections.pulled")["connections"] >= 20
            assert ask(leaver, "resume") == (0, f"{VIP}: not in standby any more\n")
        assert probe.report().failed == 0
        speaks.speak()
        assert [hears(each) for each in silent] == [True] * 20


@on_each_engine
def test_a_host_in_standby_comes_last_and_a_restart_does_not_end_that(network: Network, start: Start) -> None:
    first = start(network.nodes[0], advskew=1).master()
    others = [start(node, advskew=10 * number).ready() for number, node in enumerate(network.nodes[1:], 1)]
    with Probe(network.client, VIP) as probe:
        assert ask(first, "standby", "--for=2h")[0] == 0
        first.stop()
        again = start(first.node, advskew=1, run_dir=first.run_dir).ready()
        assert again.state()["standby"].startswith("until 20")
        eventually(lambda: len(again.events("election.backup")) > 0, what="it is backup")
        heir = next(each for each in others if each.role() == "master")
        heir.stop()
        eventually(lambda: any(each.role() == "master" for each in others if each is not heir), what="the third one")
        assert again.role() == "backup"
        assert ask(again, "resume")[0] == 0
        eventually(lambda: again.state()["standby"] == "", what="it is as good as any")
        assert probe.report().failed == 0
    assert not list(again.run_dir.glob("*.standby"))


@on_each_engine
def test_alone_it_keeps_the_vip_unless_it_is_forced(network: Network, start: Start) -> None:
    host = network.nodes[0]
    replica = start(host).master()
    assert ask(replica, "move") == (1, NOBODY)
    eventually(lambda: replica.state()["standby"] == "", what="the move is forgotten")
    assert ask(replica, "standby") == (1, NOBODY)
    assert host.has(VIP)
    shown = ask(replica, "status")
    assert shown[0] == 0
    assert "standby      until it is resumed" in shown[1]
    assert "this host serves the VIP, though in standby" in shown[1]
    assert ask(replica, "standby", "--force") == (0, f"{VIP}: no peer took over: nobody holds the VIP now\n")
    assert not host.has(VIP)
    eventually(lambda: "out of the election" in ask(replica, "status")[1], what="it says so")
    assert ask(replica, "resume")[0] == 0
    replica.master()


@on_each_engine
def test_in_standby_alone_it_hands_over_as_soon_as_a_peer_is_there(network: Network, start: Start) -> None:
    first = start(network.nodes[0], advskew=1).master()
    assert ask(first, "standby") == (1, NOBODY)
    with Probe(network.client, VIP) as probe:
        late = start(network.nodes[1], advskew=20)
        late.master(within=30)  # it tries every minute besides
        assert probe.report().failed == 0
    first.ready()


@on_each_engine
def test_a_host_that_is_back_preempts_when_it_has_settled(network: Network, start: Start) -> None:
    settings = {"preempt": True, "preempt_delay": 8}
    first = start(network.nodes[0], advskew=1, **settings).master()
    second = start(network.nodes[1], advskew=20, **settings).ready()
    first.stop()
    second.master()
    with Probe(network.client, VIP) as probe:
        begin = time.monotonic()
        again = start(first.node, advskew=1, **settings).ready()
        again.master()
        assert time.monotonic() - begin > 8
        assert probe.report().failed == 0


def test_a_backup_in_standby_is_ready_and_has_nothing_to_move(network: Network, start: Start) -> None:
    start(network.nodes[0], advskew=1).master()
    backup = start(network.nodes[1], advskew=20, metrics=":9112").ready()
    assert ask(backup, "move") == (1, f"{VIP}: the VIP is not here\n")
    assert ask(backup, "standby") == (0, f"{VIP}: in standby\n")
    eventually(lambda: "10.77.0.11 serves the VIP, this host is in standby" in ask(backup, "status")[1], what="status")
    get = ["curl", "--silent", "--fail", "http://127.0.0.1:9112"]
    assert subprocess.run(backup.node.command(*get[:-1], f"{get[-1]}/readyz"), check=False).returncode == 0
    told = backup.node.run(*get[:-1], f"{get[-1]}/metrics")
    assert f'kevip_standby{{vip="{VIP}"}} 1.0' in told


def test_two_may_ask_at_once(network: Network, start: Start) -> None:
    first = start(network.nodes[0], advskew=1).master()
    start(network.nodes[1], advskew=20).ready()
    with ThreadPoolExecutor() as pool, Probe(network.client, VIP) as probe:
        answers = list(pool.map(lambda command: ask(first, command), ("move", "standby", "move")))
        assert probe.report().failed == 0
    assert {status for status, _ in answers} <= {0, 1}
    moved = [said for status, said in answers if status == 0 and re.fullmatch(took_over("10.77.0.12"), said)]
    assert moved
    assert all(said in {*moved, f"{VIP}: the VIP is not here\n", f"{VIP}: in standby\n"} for _, said in answers)


def test_a_move_does_not_end_what_another_one_asked_for(network: Network, start: Start) -> None:
    first = start(network.nodes[0], advskew=1).master()
    assert ask(first, "standby", "--for=2h") == (1, NOBODY)
    until = first.state()["standby"]
    assert ask(first, "move") == (1, NOBODY)
    assert first.state()["standby"] == until != ""
    second = start(network.nodes[1], advskew=20).master(within=30)
    assert ask(second, "move")[0] == 1, "the first one is in standby"
    assert ask(first, "move") == (1, f"{VIP}: the VIP is not here\n")
    assert ask(first, "standby", "--for=2h") == ask(first, "standby", "--for=2h") == (0, f"{VIP}: in standby\n")


@on_each_engine
@pytest.mark.parametrize("command", ["resume", "standby", "move"])
def test_what_is_asked_during_a_stop_does_not_keep_it(network: Network, start: Start, command: str) -> None:
    first = start(network.nodes[0], advskew=1).master()
    with ThreadPoolExecutor() as pool:
        stops = pool.submit(first.stop)
        first.logged("handover.started")
        nobody = (1, f"{VIP}: no peer took over: nobody holds the VIP now\n")
        assert ask(first, command) == ((0, f"{VIP}: not in standby any more\n") if command == "resume" else nobody)
        assert stops.result()[0] == 0
    assert "Traceback" not in first.log()


@on_each_engine
@pytest.mark.parametrize("command", ["resume", "standby", "move"])
def test_what_is_asked_during_a_handover_is_answered_and_nobody_loses_the_vip(
    network: Network, start: Start, command: str
) -> None:
    """Nobody takes over here, so that the handover lasts."""
    first = start(network.nodes[0], advskew=1).master()
    with ThreadPoolExecutor() as pool:
        begun = pool.submit(ask, first, "standby")
        first.logged("operator.asked")
        expected = (0, f"{VIP}: not in standby any more\n") if command == "resume" else (1, NOBODY)
        assert ask(first, command) == expected
        assert begun.result() == (1, NOBODY)
    eventually(lambda: bool(first.state()["standby"]) is (command != "resume"), what="what was asked last holds")
    assert (first.master().events("takeover.done")[1:], first.node.has(VIP)) == ([], True)
    assert "Traceback" not in first.log()


@on_each_engine
@pytest.mark.parametrize("command", ["resume", "standby", "move"])
def test_what_is_asked_during_a_takeover_is_answered_after_it(
    network: Network, start: Start, tmp_path: Path, command: str
) -> None:
    first = start(network.nodes[0], advskew=1).master()
    late = f'orders=$(cat); touch {tmp_path}/runs; sleep 0.5; echo "$orders" | "$real" "$@"; exit'
    slow = f'case "$*" in *-batch*) {late};; esac'
    second = start(network.nodes[1], advskew=10, env=wrapped(tmp_path, "ip", slow)).ready()
    third = start(network.nodes[2], advskew=20).ready()
    eventually(lambda: second.state()["peers"] and third.state()["peers"], what="all have heard the master")
    third.process.send_signal(signal.SIGSTOP)  # it is not to be the first one
    (tmp_path / "runs").unlink(missing_ok=True)
    first.kill()
    eventually((tmp_path / "runs").exists, what="the second one takes over")
    third.process.send_signal(signal.SIGCONT)
    status, said = ask(second, command)
    moved = re.fullmatch(took_over("10.77.0.13"), said)
    expected = said == f"{VIP}: not in standby any more\n" if command == "resume" else moved or said == NOBODY
    assert (status in {0, 1}, bool(expected)) == (True, True), said
    network.settled()
    assert "Traceback" not in second.log() + third.log()


def test_a_stop_ends_a_move(network: Network, start: Start) -> None:
    first = start(network.nodes[0], advskew=1).master()
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(ask, first, "move")
        first.logged("operator.asked")
        first.stop()
        assert asked.result()[0] == 1


def test_only_root_may_ask_and_nonsense_changes_nothing(host: Namespace, start: Start) -> None:
    replica = start(host, hold_only=True, target=None).master()
    path = replica.run_dir / f"{VIP}.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    script = f"""
import socket
for said in (b"", b"x", b"[]", b"{{}}", b'{{"command": "move", "seconds": "x"}}', b'{{"command": 1, "force": []}}'):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asker:
        asker.settimeout(10)
        asker.connect("{path}")
        asker.send(said)
        print(asker.recv(4096))
"""
    host.run("python3", "-c", script)
    assert host.has(VIP)
    replica.stop()
    assert not path.exists()
    status, said = ask(replica, "move", f"--vip={VIP}")
    assert (status, "No such file or directory: no kevip runs here" in said) == (1, True)
    assert "no kevip is seen here" in ask(replica, "move")[1]


@pytest.mark.parametrize("argument", ["--for=0", "--for=1w", "--for="])
def test_a_time_that_is_none_is_refused(host: Namespace, tmp_path: Path, argument: str) -> None:
    done = invoke(host, "standby", f"--run-dir={tmp_path}", argument)
    assert (done.returncode, "is no time, such as 90s, 30m, 2h or 1d" in done.stderr) == (2, True)
