"""What an operator is told of a running kevip: by a command at each change of role."""

from collections.abc import Callable
from pathlib import Path

from lab.network import VIP, Namespace, Network, eventually
from lab.replica import PASSWORD, Replica, invoke, on_each_engine
from lab.traffic import Probe

Start = Callable[..., Replica]


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@on_each_engine
def test_the_changes_of_a_master_are_told_in_order(network: Network, start: Start, tmp_path: Path) -> None:
    told = tmp_path / "told"
    notify = script(tmp_path / "notify", f'echo "$@" >>{told}; env >>{tmp_path}/environment')
    replica = start(network.nodes[0], notify=f"{notify} mine", advskew=1).master()
    start(network.nodes[1], advskew=20).ready()
    replica.stop()
    assert told.read_text().splitlines() == [
        f"mine backup {VIP} joined", f"mine master {VIP} alone", f"mine leaving {VIP} stopped",
        f"mine init {VIP} followed",
    ]  # fmt: skip
    assert PASSWORD not in (tmp_path / "environment").read_text()


def test_one_that_hangs_or_fails_is_in_nobodys_way(network: Network, start: Start, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    first = start(network.nodes[0], advskew=1, notify=script(tmp_path / "a", f"echo $$ >>{pids}; sleep 600")).master()
    second = start(network.nodes[1], advskew=20, notify=script(tmp_path / "b", "echo no >&2; exit 1")).ready()
    with Probe(network.client, VIP) as probe:
        first.stop()
        second.master()
        assert probe.report().failed == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids.read_text().split())
    assert second.logged("notify.failed", times=2)["error"] == "exit status 1: no"
    eventually(lambda: second.state()["notify_failures"] == 2, what="they are counted")
    shown = invoke(second.node, "status", f"--run-dir={second.run_dir}")
    assert "notify       2 failures: its log says why, at notify.failed" in shown.stdout
    assert shown.returncode == 0


def test_one_that_cannot_be_run_is_refused_at_the_start(host: Namespace, tmp_path: Path) -> None:
    (tmp_path / "notify").touch()
    done = invoke(host, f"--vip={VIP}", "--target=10.77.0.5", "--password=x", f"--notify={tmp_path / 'notify'}")
    assert (done.returncode, done.stderr) == (
        3, f"kevip: --notify (NOTIFY): {tmp_path / 'notify'} is no program that can be run\n"
    )  # fmt: skip
