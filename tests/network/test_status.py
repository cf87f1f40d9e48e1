"""``kevip status`` and ``kevip cleanup``: each thing that they say, by causing it."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from lab.network import CLIENT, DATAPLANES, ROUTER, TARGET, VIP, VIP2, Namespace, Network, eventually
from lab.replica import PASSWORD, Replica, invoke
from lab.traffic import PORT, send_frame, tcp_source

from kevip.dataplane.iptables import Iptables
from kevip.dataplane.rules import Proxy
from kevip.election.carp import Advert, Group, Interval, build
from kevip.election.ucarp import key

Start = Callable[..., Replica]


@pytest.fixture
def host(host: Namespace) -> Namespace:
    """Give a single host that has a route to TARGET."""
    host.run("ip", "route", "add", "default", "via", ROUTER)
    return host


def status(replica: Replica, *arguments: str) -> tuple[int, str]:
    """Run ``kevip status`` where a replica is, or was; return exit status and stdout on one line."""
    done = invoke(replica.node, "status", f"--run-dir={replica.run_dir}", *arguments)
    assert done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 80
    return done.returncode, " ".join(done.stdout.split())


def facts(replica: Replica) -> dict[str, Any]:
    """Return what ``kevip status --json`` says of the replica's VIP."""
    done = invoke(replica.node, "status", f"--run-dir={replica.run_dir}", f"--vip={replica.vip}", "--json")
    [found] = json.loads(done.stdout)["vips"]
    assert done.returncode == (0 if found["ok"] else 1)
    fact: dict[str, Any] = found
    return fact


def says(replica: Replica, problem: str, within: float = 20) -> str:
    """Wait until the status is a problem that says so, and return all of it."""

    def said() -> str | None:
        code, text = status(replica)
        return text if code == 1 and f"PROBLEM {problem}" in text else None

    text: str = eventually(said, within=within, what=f"status says: {problem}")
    return text


@contextmanager
def stopped(replica: Replica) -> Iterator[None]:
    """Stop a daemon for a while, so that it repairs nothing."""
    replica.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        replica.process.send_signal(signal.SIGCONT)


def test_master_and_backup_are_ok_and_say_what_they_do(network: Network, start: Start) -> None:
    master = start(network.nodes[0], advskew=1).master()
    backup = start(network.nodes[1], advskew=20).ready()
    eventually(lambda: backup.state()["peers"], what="the backup has heard the master")
    for _ in range(3):
        assert tcp_source(network.client, VIP) == VIP
    eventually(lambda: master.state()["rules"], what="the master has looked at its rules")
    code, text = status(master)
    assert code == 0
    for part in (
        f"{VIP} OK this host serves the VIP",
        "role master for ",
        ": no master was heard; 2 transitions",
        f"target {TARGET}",
        "address on eth0, expires in ",
        "rules 8 in iptables-nft, complete",
        "connections 3 new since the rules are there, 3 tracked now",
        "both directions",
        "dropped 0 packets",
        "repairs none",
    ):
        assert part in text
    code, text = status(backup)
    assert code == 0
    for part in (
        "OK 10.77.0.11 serves the VIP",
        "role backup for ",
        "address not here",
        "rules 8 in iptables-nft, complete",
        "peers name role rank TARGET version last heard",
        " backup 20 - ",
        " master 1 - ",
    ):
        assert part in text


def test_names_that_others_take_do_not_disturb(host: Namespace, start: Start) -> None:
    """Anybody may bind an abstract Unix socket by any name."""
    replica = start(host).master()
    with host.entered(), socket.socket(socket.AF_UNIX) as odd, socket.socket(socket.AF_UNIX) as wrong:
        odd.bind(b"\0\xff\xfe")
        wrong.bind("\0kevip/1.2.3")
        eventually(lambda: status(replica)[0] == 0, what="all is well")


def test_a_cleanup_leaves_connections_alone_that_kevip_did_not_translate(host: Namespace, start: Start) -> None:
    """A VIP that was only held is translated by kube-proxy."""
    replica = start(host, target=None, hold_only=True).master()
    host.run("conntrack", "--create", "--src", "10.77.0.50", "--dst", VIP, "--protonum", "tcp", "--sport", "40000",
             "--dport", "80", "--timeout", "100", "--state", "ESTABLISHED",
             "--reply-src", "10.244.0.5", "--reply-dst", "10.77.0.50",
             "--reply-port-src", "8080", "--reply-port-dst", "40000")  # fmt: skip
    assert facts(replica)["conntrack_entries"] == 1
    replica.kill()
    assert cleanup(replica)[1] == ["removed address on eth0", f"removed {replica.run_dir / VIP}.json"]
    assert f"dst={VIP}" in host.run("conntrack", "--dump")


def test_what_a_killed_daemon_left_is_told_and_removed(network: Network, start: Start) -> None:
    replica = start(network.nodes[0], dataplane="iptables-nft").master()
    before = add_canaries(replica.node)
    assert tcp_source(network.client, VIP) == VIP
    replica.node.run("iptables-legacy-restore", "--noflush", stdin=rules(VIP))
    replica.kill()
    code, text = status(replica)
    assert code == 1
    assert f"and one left the VIP on eth0 and rules in iptables-nft and rules in iptables-legacy: start it, or: kevip cleanup --vip {VIP}" in text  # fmt: skip  # noqa: E501
    assert "role was master when last heard of" in text
    assert facts(replica)["conntrack_entries"] == 1
    code, said = cleanup(replica)
    assert (code, said) == (0, [
        "removed address on eth0", "removed rules in iptables-nft", "removed rules in iptables-legacy",
        "removed 1 tracked connection", f"removed {replica.run_dir / VIP}.json",
    ])  # fmt: skip
    assert not replica.node.has(VIP)
    assert replica.node.rules() == before
    assert not replica.run_dir.exists()
    assert facts(replica)["conntrack_entries"] == 0
    assert "no kevip serves this VIP here, and none left anything behind" in facts(replica)["verdict"]
    assert cleanup(replica) == (0, ["nothing to remove"])


def rules(vip: str) -> str:
    """Return the rules of a VIP, as iptables-restore takes them."""
    proxy = Proxy(vip=IPv4Address(vip), target=IPv4Address(TARGET))
    return Iptables("iptables", "nft").setup(proxy, proxy.parts)


def add_canaries(node: Namespace) -> dict[str, list[str]]:
    """Add what is not of this VIP; return the rules without it."""
    before = {"nftables": list[str]()}
    for backend in ("nft", "legacy"):
        node.iptables("-t", "nat", "-A", "POSTROUTING", "-s", "192.0.2.1", "-j", "MASQUERADE", backend=backend)
        node.iptables("-A", "FORWARD", "-m", "comment", "--comment", f"kevip:{VIP}0", "-j", "ACCEPT", backend=backend)
        node.run(f"iptables-{backend}-restore", "--noflush", stdin=rules(VIP2))
        saved = node.rules()[f"iptables-{backend}"]
        before[f"iptables-{backend}"] = [rule for rule in saved if VIP not in rule or f"{VIP}0" in rule]
    return before


def cleanup(replica: Replica, vip: str = VIP) -> tuple[int, list[str]]:
    """Run ``kevip cleanup``; return exit status and what it said."""
    done = invoke(replica.node, "cleanup", f"--vip={vip}", f"--run-dir={replica.run_dir}")
    return done.returncode, (done.stdout + done.stderr).splitlines()


def test_cleanup_refuses_while_a_kevip_runs_and_changes_nothing(host: Namespace, start: Start) -> None:
    replica = start(host).master()
    eventually(lambda: replica.state()["rules"], what="the rules are complete")
    before = host.rules()
    for _ in range(2):
        code, said = cleanup(replica)
        assert (code, said) == (4, [
            f"kevip: another kevip (process {replica.process.pid}) serves VIP {VIP} on this host already: stop it first"
        ])  # fmt: skip
        replica.process.send_signal(signal.SIGSTOP)  # nor while it hangs
    replica.process.send_signal(signal.SIGCONT)
    assert host.rules() == before
    assert replica.state()["vip"] == VIP


def test_cleanup_leaves_an_address_that_is_none_of_kevips(host: Namespace, start: Start) -> None:
    replica = start(host).ready()
    replica.stop()
    host.run("ip", "address", "add", f"{VIP}/32", "dev", "eth0")
    assert cleanup(replica) == (0, ["nothing to remove"])
    assert host.has(VIP)


def test_a_daemon_that_hangs_is_told(host: Namespace, start: Start) -> None:
    replica = start(host).master()
    with stopped(replica):
        text = says(replica, "it is master without the VIP on eth0", within=15)
        text = says(replica, f"its kevip (process {replica.process.pid}) hangs: silent for ", within=30)
        assert "and the host still has rules in iptables-nft" in text


def test_an_address_that_somebody_removed_is_told(host: Namespace, start: Start) -> None:
    replica = start(host).master()
    with stopped(replica):
        host.run("ip", "address", "delete", f"{VIP}/32", "dev", "eth0")
        says(replica, "it is master without the VIP on eth0")
    eventually(lambda: replica.state()["repairs"], what="repaired")
    eventually(lambda: status(replica)[0] == 0, what="all is well again")
    assert "repairs address 1" in status(replica)[1]


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_rules_that_somebody_flushed_are_told(host: Namespace, start: Start, dataplane: str) -> None:
    replica = start(host, dataplane=dataplane).master()
    eventually(lambda: replica.state()["rules"], what="the rules are complete")
    with stopped(replica):
        assert facts(replica)["missing_rules"] == []
        if dataplane == "nftables":
            host.run("nft", "flush", "chain", "ip", f"kevip-{VIP}", "output")
            text, missing = says(replica, "it is master without 1 of 6 rules"), "output ip daddr"
            host.run("nft", "flush", "ruleset")
        else:
            backend = dataplane.removeprefix("iptables-")
            host.iptables("-t", "nat", "-F", f"KEVIP-DNAT-{VIP}", backend=backend)
            text, missing = says(replica, "it is master without 1 of 8 rules"), "nat -A KEVIP-DNAT"
            for table in ("nat", "mangle"):
                host.iptables("-t", table, "-F", backend=backend)
        assert f"1 missing; {missing}" in text
        says(replica, "it is master without its rules")


def test_a_vip_or_rules_on_a_backup_are_told(network: Network, start: Start) -> None:
    start(network.nodes[0], advskew=1).master()
    backup = start(network.nodes[1], advskew=20).ready()
    eventually(lambda: backup.state()["rules"], what="it knows which rules it should have")
    with stopped(backup):
        lease = ("valid_lft", "60", "preferred_lft", "0")
        backup.node.run("ip", "address", "add", f"{VIP}/32", "dev", "eth0", *lease)
        says(backup, "the VIP is on eth0, but this host is not master")
        backup.node.run("ip", "address", "delete", f"{VIP}/32", "dev", "eth0")
        backup.node.run("iptables-legacy-restore", "--noflush", stdin=rules(VIP))
        says(backup, "rules in iptables-legacy, where they do not belong")
        backup.node.iptables("-t", "nat", "-F")
        says(backup, "it is backup without 5 of 8 rules")


def test_an_address_of_somebody_elses_is_told_with_what_removes_it(network: Network, start: Start) -> None:
    start(network.nodes[0], advskew=1).master()
    backup = start(network.nodes[1], advskew=20).ready()
    eventually(lambda: status(backup)[0] == 0, what="all is well")
    backup.node.run("ip", "address", "add", f"{VIP}/24", "dev", "eth0")
    assert facts(backup)["verdict"] == f"the VIP is on eth0, but not by kevip: ip address delete {VIP}/24 dev eth0"
    backup.node.run("ip", "address", "delete", f"{VIP}/24", "dev", "eth0")
    assert status(backup)[0] == 0


def test_two_masters_are_told(network: Network, start: Start) -> None:
    replica = start(network.nodes[0], advskew=1).master()
    group = Group(vhid=100, vip=IPv4Address(VIP), key=key(PASSWORD))
    advert = Advert(source=IPv4Address(CLIENT), interval=Interval(1, 200), counter=1)
    ended = Event()

    def advertise() -> None:
        while not ended.wait(0.5):
            send_frame(network.client, bytes.fromhex("01005e000012"), build(group, advert))

    rival = Thread(target=advertise)
    rival.start()
    try:
        says(replica, f"two masters: {CLIENT} advertises too")
    finally:
        ended.set()
        rival.join()
    eventually(lambda: status(replica)[0] == 0, what="the rival is forgotten")


def test_the_health_of_target_is_told(network: Network, start: Start) -> None:
    replica = start(network.nodes[0], check=f"tcp:{PORT}", check_interval=1).master()
    eventually(lambda: f"target {TARGET}, answers tcp:{PORT} in " in status(replica)[1], what="TARGET has answered")
    assert status(replica)[0] == 0
    network.router.run("ip", "link", "set", "target", "down")
    text = says(replica, f"{TARGET} does not answer tcp:{PORT} (", within=40)
    assert f"target {TARGET}, does not answer tcp:{PORT} for " in text


def test_a_vip_that_is_only_held_is_ok_without_rules(host: Namespace, start: Start) -> None:
    replica = start(host, target=None, hold_only=True).master()
    eventually(lambda: status(replica)[0] == 0, what="all is well")
    assert "target none, the VIP is only held address on eth0" in status(replica)[1]
    assert "rules none connections" in status(replica)[1]


def test_what_is_refused_and_dropped_is_counted(network: Network, start: Start) -> None:
    replica = start(network.nodes[0], ports=str(PORT), allow_from=CLIENT).master()
    eventually(lambda: status(replica)[0] == 0, what="all is well")
    assert "dropped 0 packets" in (text := status(replica)[1])
    assert "refused 0 packets, 0 B, to other ports" in text
    with pytest.raises(ConnectionRefusedError):
        tcp_source(network.client, VIP, port=22)
    with pytest.raises(TimeoutError):
        tcp_source(network.far_client, VIP, timeout=0.5)
    assert "refused 1 packet, 60 B" in (text := status(replica)[1])
    assert "dropped 0 packets" not in text
    assert "complete" in text


def test_a_daemon_that_cannot_take_part_is_told(host: Namespace, start: Start) -> None:
    replica = start(host).master()
    host.run("ip", "link", "set", "eth0", "down")
    says(replica, "interface eth0 is down: ip link set dev eth0 up", within=40)


def test_a_daemon_with_another_run_directory_is_told(host: Namespace, start: Start) -> None:
    start(host).master()
    done = invoke(host, "status", "--run-dir=/run/elsewhere")
    assert (done.returncode, done.stderr) == (1, "")
    assert "PROBLEM its kevip does not write to /run/elsewhere:" in " ".join(done.stdout.split())


def test_where_there_is_no_kevip_that_is_a_problem(host: Namespace, tmp_path: Path) -> None:
    done = invoke(host, "status", f"--run-dir={tmp_path}")
    assert (done.returncode, done.stdout) == (
        1, "  PROBLEM no kevip runs on this host, and none left anything behind\n"
    )  # fmt: skip
    assert invoke(host, "status", f"--run-dir={tmp_path}", "--json").stdout == '{"ok": false, "vips": []}\n'


def test_every_vip_is_listed_also_one_of_which_only_rules_are_left(host: Namespace, start: Start) -> None:
    replica = start(host).master()
    host.run("iptables-legacy-restore", "--noflush", stdin=rules(VIP2))
    found = json.loads(invoke(host, "status", f"--run-dir={replica.run_dir}", "--json").stdout)
    assert [(each["vip"], each["ok"]) for each in found["vips"]] == [(VIP, True), (VIP2, False)]
    assert found["ok"] is False
    code, text = status(replica, f"--vip={VIP}")
    assert (code, VIP2 in text) == (0, False)


def test_without_root_it_says_what_cannot_be_seen(host: Namespace, start: Start) -> None:
    replica = start(host).master()
    done = subprocess.run(
        host.command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
                     sys.executable, "-m", "kevip", "status", f"--run-dir={replica.run_dir}"),
        capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]}, cwd="/",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    said = " ".join(done.stdout.split())
    assert "PROBLEM cannot tell: rules and reports need root (NET_ADMIN): sudo kevip status" in said
    assert f"{VIP} PROBLEM" in said
    assert "address on eth0, expires in " in said


def test_watch_ends_with_the_last_status(host: Namespace, start: Start, tmp_path: Path) -> None:
    replica = start(host).master()
    eventually(lambda: status(replica)[0] == 0, what="all is well")
    shown = tmp_path / "shown"
    with shown.open("w") as stdout:
        # A shell's background job, as this may be, ignores SIGINT, and so would its children.
        undo = ("env", "--default-signal=INT")
        watcher = host.popen(
            *undo, sys.executable, "-m", "kevip", "status", f"--run-dir={replica.run_dir}", "--watch", stdout=stdout
        )
    eventually(lambda: shown.read_text().count("OK") >= 2, what="it was shown twice")
    watcher.send_signal(signal.SIGINT)
    assert watcher.wait(10) == 0


@pytest.mark.parametrize("arguments", [
    ["status", "--vip=x"], ["status", "--frobnicate"], ["cleanup"], ["cleanup", "--vip=x"],
    [f"--vip={VIP}", "status"], [f"--vip={VIP}", "cleanup", f"--vip={VIP}"], ["frobnicate"],
])  # fmt: skip
def test_arguments_that_are_wrong_are_refused(host: Namespace, arguments: list[str]) -> None:
    done = invoke(host, *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("kevip: ")


def test_the_settings_of_its_container_do_not_disturb_it(host: Namespace, start: Start) -> None:
    """There, VIP, PASSWORD and the like are in the environment, and RUN_DIR may be."""
    replica = start(host).master()
    env = {"VIP": VIP2, "TARGET": "x", "PASSWORD": PASSWORD, "RUN_DIR": str(replica.run_dir)}
    assert f"{VIP}\n  OK " in invoke(host, "status", env=env).stdout


def test_no_secret_is_in_the_status_or_the_run_directory(host: Namespace, start: Start) -> None:
    replica = start(host).master()
    shown = [status(replica)[1], json.dumps(facts(replica)), *replica.runtime_files().values()]
    assert not [text for text in shown if PASSWORD in text]


def test_a_wrong_use_of_a_command_names_the_help_of_that_command(host: Namespace) -> None:
    done = invoke(host, "cleanup")
    told = "kevip: Missing option '--vip'. (kevip cleanup --help lists what there is)\n"
    assert (done.returncode, done.stderr) == (2, told)
