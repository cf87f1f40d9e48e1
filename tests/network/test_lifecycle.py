"""Start, stop, crash and failure of one daemon, and what it leaves on the host: nothing."""

import fcntl
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from lab.network import DATAPLANES, LAN, TARGET, VIP, VIP2, Namespace, Network, eventually
from lab.replica import PASSWORD, READ_ONLY_SYSCTL, Replica, flags, invoke, on_each_engine, wrapped
from lab.traffic import answers, server, tcp_source

Start = Callable[..., Replica]


def whole_state(node: Namespace) -> tuple[object, ...]:
    """Return rules, addresses and processes of a host."""
    return node.rules(), node.addresses(), node.pids()


def add_foreign(node: Namespace) -> None:
    """Add rules and an address of somebody else's."""
    for backend in ("nft", "legacy"):
        node.iptables("-t", "nat", "-A", "POSTROUTING", "-s", "10.9.0.0/16", "-j", "MASQUERADE", backend=backend)
        node.iptables("-A", "FORWARD", "-d", VIP, "-j", "ACCEPT", backend=backend)
    node.run("ip", "address", "add", f"{LAN}.10/32", "dev", "eth0")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_a_stop_leaves_the_host_as_it_was(
    network: Network, start: Start, number: signal.Signals, dataplane: str
) -> None:
    node = network.nodes[0]
    add_foreign(node)
    before = whole_state(node)
    replica = start(node, dataplane=dataplane).master()
    assert whole_state(node) != before
    assert replica.stop(number)[0] == 0
    assert whole_state(node) == before
    assert not replica.run_dir.exists()


@on_each_engine
@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_a_backup_stops_as_cleanly(network: Network, start: Start, dataplane: str) -> None:
    start(network.nodes[1], dataplane=dataplane, advskew=1).master()
    before = whole_state(network.nodes[0])
    assert start(network.nodes[0], dataplane=dataplane, advskew=9).ready().stop()[0] == 0
    assert whole_state(network.nodes[0]) == before


def test_a_hangup_does_not_end_the_daemon(network: Network, start: Start) -> None:
    replica = start(network.nodes[0]).master()
    replica.process.send_signal(signal.SIGHUP)
    replica.logged("signal.ignored")
    assert tcp_source(network.client, VIP) == VIP


@on_each_engine
@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_ten_starts_and_stops_leave_no_trace(network: Network, start: Start, dataplane: str) -> None:
    node = network.nodes[0]
    add_foreign(node)
    before = whole_state(node)
    for number in range(10):
        replica = start(node, dataplane=dataplane)
        if number % 2:
            replica.ready()
        else:
            replica.logged("daemon.started")
        assert replica.stop()[0] == 0
        assert whole_state(node) == before


@on_each_engine
@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_a_stop_during_the_takeover_leaves_no_trace(network: Network, start: Start, dataplane: str) -> None:
    node = network.nodes[0]
    before = whole_state(node)
    replica = start(node, dataplane=dataplane)
    replica.logged("election.master")
    assert replica.stop()[0] == 0
    assert whole_state(node) == before


@on_each_engine
def test_a_stop_at_any_moment_of_the_start_leaves_no_trace(network: Network, start: Start) -> None:
    """Only before it has done or said anything may the signal itself end it."""
    before = {node: whole_state(node) for node in network.nodes}
    for tenths in (*range(11), 13, 15):
        replicas = [start(node) for node in network.nodes]
        time.sleep(tenths / 10)
        for replica in replicas:
            replica.process.terminate()
            time.sleep(0.1 / 3)
        for replica in replicas:
            ended = replica.process.wait(10)
            assert ended == 0 or (ended, replica.log()) == (-signal.SIGTERM, "")
            assert not replica.run_dir.exists()
    assert {node: whole_state(node) for node in network.nodes} == before


@on_each_engine
@pytest.mark.parametrize("pause", [0.001, 0.005])
def test_signals_without_end_do_not_spoil_the_stop(network: Network, start: Start, pause: float) -> None:
    node = network.nodes[0]
    before = whole_state(node)
    replica = start(node).ready()
    while replica.process.poll() is None:
        replica.process.terminate()
        time.sleep(pause)
    assert replica.process.returncode == 0
    assert whole_state(node) == before


@pytest.mark.parametrize("program", ["iptables-nft-save", "iptables-nft-restore"])
def test_a_program_that_hangs_leaves_no_child_behind(
    network: Network, start: Start, tmp_path: Path, program: str
) -> None:
    """Neither when its time is up, nor when kevip stops meanwhile."""
    node, hangs = network.nodes[0], tmp_path / "hangs"
    before = node.pids()
    replica = start(
        node, env=wrapped(tmp_path, program, f"[ ! -e {hangs} ] || {{ sleep 600; exit 1; }}"), iptables="nft"
    ).master()
    eventually(lambda: replica.state()["rules"], what="the rules were looked at")
    hangs.touch()
    if program == "iptables-nft-save":
        [child] = eventually(lambda: replica.children("sleep\x00600"), what="a look hangs")
        replica.logged("look.slow")
        assert child not in node.pids()
    replica.process.terminate()
    eventually(lambda: replica.children("sleep\x00600"), what="the removal of the rules hangs")
    assert replica.process.wait(15) == 1
    assert "the next start removes them" in replica.log()
    eventually(lambda: node.pids() == before, what="nothing is left")


def test_connections_that_expire_while_they_are_deleted_are_no_failure(
    network: Network, start: Start, tmp_path: Path
) -> None:
    """The program says so once; the rest is deleted the next time."""
    once = tmp_path / "once"
    said = "conntrack: Operation failed: such conntrack doesn't exist"
    script = f'case "$*" in *delete*) [ -e {once} ] || {{ touch {once}; echo "{said}" >&2; exit 1; }};; esac'
    replica = start(network.nodes[0], env=wrapped(tmp_path, "conntrack", script)).master()
    eventually(once.exists, what="the first look is over")
    once.unlink()
    assert tcp_source(network.client, VIP) == VIP
    assert replica.stop()[0] == 0
    assert once.exists()
    assert not replica.events("release.failed")
    assert not replica.events("takeover.incomplete")
    assert f"dst={VIP}" not in network.nodes[0].run("conntrack", "-L", "-d", VIP)


@on_each_engine
def test_without_a_carrier_it_still_stops(network: Network, start: Start) -> None:
    node = network.nodes[0]
    before = whole_state(node)
    replica = start(node).master()
    network.set_carrier(node, on=False)
    replica.logged("release.done")
    assert replica.stop()[0] == 0
    assert whole_state(node) == before


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_after_sigkill_the_kernel_removes_the_vip_and_the_next_start_the_rest(
    network: Network, start: Start, dataplane: str
) -> None:
    node = network.nodes[0]
    add_foreign(node)
    before = whole_state(node)
    start(node, dataplane=dataplane).master().kill()
    assert node.has(VIP)
    eventually(lambda: not node.has(VIP), within=12, what="the kernel removes the VIP")
    assert node.rules() != before[0]
    again = start(node, dataplane=dataplane)
    assert again.logged("leftovers.removed")["what"] == [f"rules in {dataplane}"]
    assert node.rules() == before[0]
    again.master()
    assert tcp_source(network.client, VIP) == VIP
    again.stop()
    assert whole_state(node) == before


@on_each_engine
def test_a_start_right_after_sigkill_removes_address_and_rules(network: Network, start: Start) -> None:
    """Also rules that are in the other back end."""
    start(network.nodes[0], iptables="legacy").master().kill()
    again = start(network.nodes[0], iptables="nft")
    assert again.logged("leftovers.removed")["what"] == ["address on eth0", "rules in iptables-legacy"]
    again.master()
    assert not any("KEVIP" in line for line in network.nodes[0].rules()["iptables-legacy"])


@on_each_engine
def test_what_elects_ends_with_a_killed_daemon(network: Network, start: Start) -> None:
    before = network.nodes[0].pids()
    replica = start(network.nodes[0]).master()
    replica.process.kill()
    eventually(lambda: network.nodes[0].pids() == before, what="all of it ends")


@on_each_engine
def test_the_death_of_what_elects_releases_the_vip_and_starts_it_again(network: Network, start: Start) -> None:
    replica = start(network.nodes[0]).master()
    os.kill(replica.engine_pid(), signal.SIGKILL)
    assert replica.logged(f"{replica.engine}.exited")["status"] == -signal.SIGKILL
    eventually(lambda: not network.holders(), what="the VIP is released")
    replica.master()
    assert tcp_source(network.client, VIP) == VIP


@on_each_engine
def test_the_lease_outlives_its_length_while_master(network: Network, start: Start) -> None:
    replica = start(network.nodes[0]).master()
    end = time.monotonic() + 9  # one and a half leases
    while time.monotonic() < end:
        assert replica.node.has(VIP)
        time.sleep(0.05)


def test_a_stopped_ucarp_does_not_keep_the_vip(network: Network, start: Start) -> None:
    """It advertises nothing, so a peer takes over; the lease must end here."""
    old, new = start(network.nodes[0], advskew=1).master(), start(network.nodes[1], advskew=9).ready()
    os.kill(old.engine_pid(), signal.SIGSTOP)
    new.master()
    eventually(lambda: network.holders() == [new.node], what="the frozen master lets go")
    assert old.logged("election.silent")
    assert tcp_source(network.client, VIP) == VIP


@on_each_engine
def test_a_daemon_that_hangs_is_not_elected(network: Network, start: Start) -> None:
    """What elects is ended, by ucarp's hook or the watchdog, so that nothing is advertised that does not work."""
    hung, other = start(network.nodes[0], advskew=1).ready(), start(network.nodes[1], advskew=25)
    engine = hung.engine_pid()
    hung.process.send_signal(signal.SIGSTOP)
    other.master()
    eventually(lambda: not Path(f"/proc/{engine}").exists() or _zombie(engine), what="it is ended")
    assert network.holders() == [other.node]
    hung.process.send_signal(signal.SIGCONT)
    hung.logged("election.backup", times=2)
    eventually(lambda: hung.role() == "backup", what="it is back in the election")
    assert network.holders() == [other.node]


def _zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_hooks_that_run_twice_change_nothing(network: Network, start: Start) -> None:
    replica = start(network.nodes[0]).master()
    serving = network.nodes[0].rules(), network.nodes[0].addresses()
    with replica.hooks() as call:
        for _ in range(2):
            call("vip-up")
            assert (network.nodes[0].rules(), network.nodes[0].addresses()) == serving
        for _ in range(2):
            call("vip-down")
            assert not network.holders()
            assert network.nodes[0].rules() == serving[0]
        call("vip-up")
        assert (network.nodes[0].rules(), network.nodes[0].addresses()) == serving
        assert tcp_source(network.client, VIP) == VIP


@on_each_engine
def test_a_takeover_that_fails_is_undone_told_and_tried_again(network: Network, start: Start, tmp_path: Path) -> None:
    """While it fails, nothing is advertised: a peer with a worse skew is master."""
    flaw = tmp_path / "flaw"
    wrapper = tmp_path / "iptables-nft-restore"
    wrapper.write_text(
        f'#!/bin/sh\n[ ! -e {flaw} ] || {{ echo "no nat table" >&2; exit 4; }}\nexec /usr/sbin/${{0##*/}} "$@"\n'
    )
    wrapper.chmod(0o755)
    node = network.nodes[0]
    before = node.rules()["iptables-nft"], node.addresses()
    flaw.touch()
    broken = start(node, advskew=1, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert "exit status 4: no nat table" in broken.logged("takeover.failed")["error"]
    broken.logged("election.resigned")
    assert broken.logged("engine.ended")["retry_seconds"] == 1
    assert broken.logged("engine.ended", times=2)["retry_seconds"] == 2
    assert (node.rules()["iptables-nft"], node.addresses()) == before
    other = start(network.nodes[1], advskew=200).master()
    assert network.holders() == [other.node]
    other.stop()
    flaw.unlink()
    broken.master(within=30)
    assert tcp_source(network.client, VIP) == VIP


def test_only_one_kevip_per_vip_and_host(network: Network, start: Start) -> None:
    first = start(network.nodes[0]).master()
    second = start(network.nodes[0])
    assert second.process.wait(10) == 4
    assert second.log() == (
        f"kevip: another kevip (process {first.process.pid}) serves VIP {VIP} on this host already: stop it first\n"
    )
    assert tcp_source(network.client, VIP) == VIP


def test_forwarding_is_switched_on_and_said(network: Network, start: Start) -> None:
    assert network.nodes[0].sysctl("net.ipv4.ip_forward") == "0"
    replica = start(network.nodes[0])
    assert replica.logged("forwarding.enabled")["sysctl"] == "net.ipv4.ip_forward"
    assert network.nodes[0].sysctl("net.ipv4.ip_forward") == "1"


def test_forwarding_is_switched_on_where_sysctls_are_read_only(network: Network, start: Start) -> None:
    """And again when it was switched off: on the VIP's interface and on TARGET's, and nowhere else."""
    node, (eth0, behind, other, whole) = network.nodes[0], FORWARDING
    network.plug(node, "192.0.2.1/24", port="other", device="other")
    pod = network.pod(node, "10.244.1")
    with server(pod, "10.244.1.2"):
        replica = start(node, target="10.244.1.2", wrapper=READ_ONLY_SYSCTL).master()
        assert replica.logged("forwarding.enabled")["sysctl"] == f"{eth0} {behind}"
        assert tcp_source(network.client, VIP) == VIP
        node.sysctl(behind, "0")
        assert replica.logged("drift.repaired")["what"] == ["forwarding off"]
        assert [node.sysctl(name) for name in (eth0, behind, other, whole)] == ["1", "1", "0", "0"]
        assert tcp_source(network.client, VIP) == VIP
        assert replica.stop()[0] == 0


FORWARDING = (*(f"net.ipv4.conf.{each}.forwarding" for each in ("eth0", "pod", "other")), "net.ipv4.ip_forward")


def test_forwarding_that_is_on_is_left_as_it_is(network: Network, start: Start) -> None:
    network.nodes[0].sysctl("net.ipv4.ip_forward", "1")
    replica = start(network.nodes[0], wrapper=READ_ONLY_SYSCTL).ready()
    assert replica.stop()[0] == 0
    assert not replica.events("forwarding.enabled")


def test_the_password_is_seen_nowhere(network: Network, start: Start) -> None:
    """Not in a command line, also not the daemon's own; not in a child's environment, a log or a runtime file."""
    replicas = [
        start(network.nodes[0], log_level="debug"),
        start(network.nodes[1], log_level="debug", password=None, env={"PASSWORD": PASSWORD}),
    ]
    for replica in replicas:
        replica.ready()
        assert len(replica.node.pids()) >= 2
        for pid in replica.node.pids():
            assert PASSWORD not in Path(f"/proc/{pid}/cmdline").read_text()
        for pid in replica.node.pids() - {replica.process.pid}:
            assert PASSWORD not in Path(f"/proc/{pid}/environ").read_text()
    eventually(network.holders, what="there is a master")
    for replica in replicas:
        assert PASSWORD not in replica.log()
        assert not [name for name, text in replica.runtime_files().items() if PASSWORD in text]


def privileges(pid: int) -> dict[str, str]:
    """Return capabilities and no_new_privs of a process, from /proc."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize("wrapper", [
    (),
    ("setpriv", "--inh-caps=-all,+net_admin,+net_raw", "--bounding-set=-all,+net_admin,+net_raw"),
    ("setpriv", "--reuid=nobody", "--clear-groups", "--inh-caps=-all,+net_admin,+net_raw",
     "--ambient-caps=-all,+net_admin,+net_raw"),
])  # fmt: skip
def test_daemon_and_ucarp_keep_two_capabilities_and_can_gain_none(
    network: Network, start: Start, tmp_path: Path, wrapper: tuple[str, ...]
) -> None:
    """In root's hands, in a container's, and in those of a user with ambient ones."""
    two = f"{1 << 12 | 1 << 13:016x}"
    network.nodes[0].sysctl("net.ipv4.ip_forward", "1")
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents:
        if parent.stat().st_mode & 0o001 == 0:
            parent.chmod(0o755)
    replica = start(network.nodes[0], wrapper=wrapper, run_dir=tmp_path / "run").master()
    seen = set()
    for pid in replica.node.pids():
        with suppress(FileNotFoundError, ProcessLookupError):  # a program that has ended
            found = privileges(pid)
            assert (found["CapPrm"], found["CapEff"], found["NoNewPrivs"]) == (two, two, "1")
            assert found["CapBnd"] == two or wrapper[1:2] == ("--reuid=nobody",)
            seen.add(pid)
    assert seen >= {replica.process.pid, replica.engine_pid()}
    assert tcp_source(network.client, VIP) == VIP
    assert replica.stop()[0] == 0


def test_the_state_file_says_the_role_and_is_private(network: Network, start: Start) -> None:
    replica = start(network.nodes[0]).master()
    state = json.loads((replica.run_dir / f"{VIP}.json").read_text())
    assert (state["vip"], state["pid"], state["role"]) == (VIP, replica.process.pid, "master")
    assert replica.run_dir.stat().st_mode & 0o777 == 0o700


@on_each_engine
def test_a_run_directory_that_was_there_stays(network: Network, start: Start, tmp_path: Path) -> None:
    replicas = [start(network.nodes[0], run_dir=tmp_path, vip=vip).ready() for vip in (VIP, VIP2)]
    for replica in replicas:
        assert replica.stop()[0] == 0
    assert list(tmp_path.iterdir()) == []


@on_each_engine
def test_the_last_of_several_removes_their_run_directory(network: Network, start: Start, tmp_path: Path) -> None:
    first, second = (start(network.nodes[0], run_dir=tmp_path / "run", vip=vip).ready() for vip in (VIP, VIP2))
    assert first.stop()[0] == 0
    assert (tmp_path / "run" / f"{VIP2}.json").exists()
    assert second.stop()[0] == 0
    assert not (tmp_path / "run").exists()


def test_a_log_that_nobody_reads_any_more_does_not_take_the_vip(network: Network, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "kevip", f"--vip={VIP}", f"--target={TARGET}", f"--run-dir={tmp_path / 'run'}"]
    reader, writer = os.pipe()
    daemon = network.nodes[0].popen(*argv, env={"PASSWORD": PASSWORD}, stderr=writer)
    os.close(reader)
    os.close(writer)
    eventually(lambda: answers(network.client, VIP), what="the VIP serves")
    daemon.terminate()
    assert daemon.wait(10) == 0


def test_a_log_reader_that_stalls_does_not_take_the_vip(network: Network, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "kevip", f"--vip={VIP}", f"--target={TARGET}", f"--run-dir={tmp_path / 'run'}"]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while os.write(writer, bytes(4096)):
            pass
    os.set_blocking(writer, True)
    daemon = network.nodes[0].popen(*argv, env={"PASSWORD": PASSWORD}, stderr=writer)
    os.close(writer)
    eventually(lambda: answers(network.client, VIP), what="the VIP serves")
    said = b""
    while select.select([reader], [], [], 0)[0] and not said:
        said = os.read(reader, 4096).strip(b"\0")
    daemon.terminate()
    assert daemon.wait(10) == 0
    assert b"log.dropped" in said + os.read(reader, 65536)
    os.close(reader)


def test_pipes_in_the_run_directory_are_not_waited_for(network: Network, start: Start, tmp_path: Path) -> None:
    for name in (f"{VIP}.json", f"{VIP}.new"):
        os.mkfifo(tmp_path / name)
    asked = invoke(network.nodes[0], "status", f"--run-dir={tmp_path}")
    assert "is not what this version writes" in asked.stdout
    replica = start(network.nodes[0], run_dir=tmp_path)
    replica.logged("takeover.done")
    assert replica.master().stop()[0] == 0


@on_each_engine
def test_serves_where_there_is_no_dev_fd(network: Network, start: Start) -> None:
    """As in a guest without udev."""
    bare = (
        'd=$(mktemp -d) && mount -t tmpfs tmpfs "$d" && for each in null zero urandom; do '
        'touch "$d/$each" && mount --bind "/dev/$each" "$d/$each" || exit 1; done && mount --rbind "$d" /dev && '
        'test ! -e /dev/fd && exec "$@"'
    )
    start(network.nodes[0], wrapper=("unshare", "--mount", "sh", "-c", bare, "sh")).master()
    assert tcp_source(network.client, VIP) == VIP


@pytest.mark.parametrize("engine", ["ucarp", "keepalived"])
def test_starts_with_all_standard_files_closed(network: Network, tmp_path: Path, engine: str) -> None:
    settings = {"vip": VIP, "target": TARGET, "run-dir": tmp_path / "run", "engine": engine}
    argv = [sys.executable, "-m", "kevip", *flags(settings)]
    daemon = network.nodes[0].popen(
        "sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *argv, env={"PASSWORD": PASSWORD, "PATH": os.environ["PATH"]}
    )
    eventually(lambda: answers(network.client, VIP), what="the VIP serves")
    daemon.terminate()
    assert daemon.wait(10) == 0


def test_a_hook_killed_while_it_waits_does_not_mislead_the_next(network: Network, start: Start, tmp_path: Path) -> None:
    """Nor does the end of ucarp in the middle of a takeover end the daemon."""
    wrapper = tmp_path / "iptables-nft-restore"
    wrapper.write_text('#!/bin/sh\nsleep 2\nexec /usr/sbin/${0##*/} "$@"\n')
    wrapper.chmod(0o755)
    replica = start(network.nodes[0], env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}).ready()
    [hook] = eventually(lambda: replica.children("vip-up"), what="the hook runs")
    os.kill(replica.engine_pid(), signal.SIGKILL)
    os.kill(hook, signal.SIGKILL)
    replica.logged("ucarp.exited")
    replica.master()
    assert tcp_source(network.client, VIP) == VIP
    assert replica.stop()[0] == 0


@on_each_engine
def test_impatient_signals_do_not_delay_the_stop(network: Network, start: Start) -> None:
    replica = start(network.nodes[0]).master()
    network.set_carrier(replica.node, on=False)
    replica.logged("release.done")
    begin = time.monotonic()
    while replica.process.poll() is None:
        replica.process.terminate()
        time.sleep(0.3)
        assert time.monotonic() - begin < 8


@pytest.mark.parametrize("dataplane", DATAPLANES[1:])
def test_a_rule_of_others_that_jumps_to_our_chain_is_no_obstacle(
    network: Network, start: Start, dataplane: str
) -> None:
    """The kernel keeps a chain that is jumped to: it stays, empty, and is told."""
    node = network.nodes[0]
    replica = start(node, dataplane=dataplane).master()
    node.iptables(
        "-t",
        "nat",
        "-A",
        "PREROUTING",
        "-s",
        "10.9.9.9",
        "-j",
        f"KEVIP-DNAT-{VIP}",
        backend=dataplane.removeprefix("iptables-"),
    )
    assert replica.stop()[0] == 1
    assert "a rule of others jumps there" in replica.logged("release.failed")["error"]
    left = [line for line in node.rules()[dataplane] if "KEVIP" in line]
    assert f":KEVIP-DNAT-{VIP} -" in left
    assert [line for line in left if line.startswith("-A")] == [f"-A PREROUTING -s 10.9.9.9/32 -j KEVIP-DNAT-{VIP}"]
    again = start(node, dataplane=dataplane).master()
    assert again.events("leftovers.stay")
    assert tcp_source(network.client, VIP) == VIP


@on_each_engine
def test_an_address_that_somebody_added_by_hand_is_theirs(network: Network, start: Start) -> None:
    replica = start(network.nodes[0]).ready()
    replica.node.run("ip", "address", "add", f"{VIP}/32", "dev", "eth0")
    assert f"somebody added VIP {VIP} to eth0 by hand" in replica.logged("takeover.failed")["error"]
    assert ("eth0", f"{VIP}/32", "forever") in replica.node.addresses()
    replica.stop()
    assert ("eth0", f"{VIP}/32", "forever") in replica.node.addresses()


def test_a_lock_that_others_hold_is_waited_for_and_told(network: Network, start: Start, tmp_path: Path) -> None:
    """The lock of legacy iptables, here one of this replica's own; while it is held, no rule can be removed."""
    node = network.nodes[0]
    before = node.rules()
    lock = tmp_path / "lock"
    lock.touch()
    mount = f'touch /run/xtables.lock && mount --bind {lock} /run/xtables.lock && exec "$@"'
    replica = start(node, iptables="legacy", wrapper=("unshare", "--mount", "sh", "-c", mount, "sh")).master()
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        replica.process.terminate()
        assert "xtables lock" in replica.logged("release.failed")["error"]
    assert replica.process.wait(15) == 0
    assert node.rules() == before
