"""Kevip as a service: what systemd is told, and the installed unit on machines whose process 1 is systemd."""

import json
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from lab.machine import REPOSITORY, Machine
from lab.network import DATAPLANES, VIP, VIP2, Network, eventually
from lab.replica import PASSWORD, Replica
from lab.traffic import Probe, tcp_source

Start = Callable[..., Replica]

Boot = Callable[[int], Machine]

UNIT = "kevip@web"
SHARE = REPOSITORY / "deploy/share"
UV = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "UV_OFFLINE": "1"}
"""What script/install runs with: the uv of the tests, and packages from its cache, for the lab reaches no registry."""

CACHE = os.environ.get("UV_CACHE_DIR", f"{os.environ.get('HOME', '/root')}/.cache/uv").lstrip("/")


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], list[str]]]:
    """Listen as systemd does; yield a function that waits for an assignment and returns all that came until then."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        def until(assignment: str) -> list[str]:
            heard: list[str] = []
            while assignment not in heard:
                heard += listener.recv(4096).decode().splitlines()
            return heard

        yield until


def notifying() -> dict[str, str]:
    return {"NOTIFY_SOCKET": os.environ["NOTIFY_SOCKET"]}


def test_systemd_is_told_of_role_life_and_stop(
    network: Network, start: Start, manager: Callable[[str], list[str]]
) -> None:
    replica = start(network.nodes[0], env=notifying())
    before = manager("READY=1")
    assert f"STATUS=init: {VIP} on eth0" in before
    assert before[-2] == f"STATUS=backup: {VIP} on eth0"
    manager(f"STATUS=master: {VIP} on eth0")
    manager("WATCHDOG=1")
    manager("WATCHDOG=1")
    replica.process.terminate()
    manager("STOPPING=1")
    manager(f"STATUS=leaving: {VIP} on eth0")
    assert replica.process.wait(10) == 0


def test_the_start_is_done_with_the_cable_unplugged(
    network: Network, start: Start, manager: Callable[[str], list[str]]
) -> None:
    node = network.nodes[0]
    network.set_carrier(node, on=False)
    eventually(lambda: "NO-CARRIER" in node.run("ip", "link", "show", "eth0"), what="the node knows")
    replica = start(node, env=notifying())
    manager("READY=1")
    assert replica.role() == "init"
    assert "interface eth0 has no carrier" in replica.logged("ucarp.not_started")["error"]
    network.set_carrier(node, on=True)
    replica.master()


def role(machine: Machine, vip: str = VIP) -> str | None:
    """Return the role that an instance's state file says."""
    try:
        return str(json.loads(machine.file(f"run/kevip/{vip}.json").read_text())["role"])
    except FileNotFoundError:
        return None


@pytest.fixture
def boot(network: Network) -> Iterator[Boot]:
    """Boot nodes by number; they end with the test."""
    with ExitStack() as stack:
        yield lambda number: stack.enter_context(Machine(network.nodes[number]))


@pytest.fixture
def install(boot: Boot) -> Boot:
    """Boot nodes by number, and install kevip there."""

    def installed(number: int) -> Machine:
        machine = boot(number)
        machine.run("script/install", **UV)
        return machine

    return installed


def configure(machine: Machine, name: str = "web", **settings: object) -> None:
    """Write an instance's settings, as an administrator does."""
    text = machine.file("etc/kevip/example.env.sample").read_text()
    for key, value in ({"VIP": VIP, "PASSWORD": f"'{PASSWORD}'", "ALLOW_FROM": ""} | settings).items():
        text += f"{key}={value}\n"
    machine.file(f"etc/kevip/{name}.env").write_text(text)


def mastered(machine: Machine) -> None:
    """Wait until a machine is master."""
    eventually(lambda: role(machine) == "master", what=f"{machine.node.name} is master")


def journal(machine: Machine) -> str:
    return machine.run("journalctl", "--no-pager", "--output=cat", f"--unit={UNIT}")


def warnings(machine: Machine) -> set[str]:
    """Return which events kevip has logged as warnings or errors."""
    said = machine.run("journalctl", "--no-pager", "--output=cat", f"--unit={UNIT}", "--priority=warning")
    return set(re.findall(r"^\[(?:warning|error) *\] (\S+)", said, re.MULTILINE))


def test_a_restart_of_the_master_fails_no_connect(network: Network, install: Boot) -> None:
    first, second = install(0), install(1)
    configure(first, ADVSKEW=1)
    configure(second, ADVSKEW=20)
    first.run("systemctl", "enable", "--now", UNIT)
    mastered(first)
    second.run("systemctl", "enable", "--now", UNIT)
    assert tcp_source(network.client, VIP) == VIP
    with Probe(network.client, VIP) as probe:
        first.run("systemctl", "restart", UNIT)
        eventually(lambda: (role(first), role(second)) == ("backup", "master"), what="the second took over")
        report = probe.report()
    assert (report.failed, report.sources) == (0, [VIP])
    assert first.property(UNIT, "StatusText") == f"backup: {VIP} on eth0"


@pytest.mark.parametrize("drop_in", [False, True])
def test_keepalived_elects_in_the_sandbox(network: Network, install: Boot, drop_in: bool) -> None:
    machine = install(0)
    configure(machine, ENGINE="keepalived")
    if drop_in:
        place = f"/etc/systemd/system/{UNIT}.service.d/keepalived.conf"
        machine.run("install", "-D", "-m", "644", "deploy/systemd/keepalived.conf", place)
        machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "enable", "--now", UNIT)
    mastered(machine)
    assert tcp_source(network.client, VIP) == VIP
    scheduling = machine.run("ps", "-o", "cls=", "-C", "keepalived").split()
    assert scheduling == (["TS", "RR"] if drop_in else ["TS", "TS"])
    assert warnings(machine) == (set() if drop_in else {"election.not_realtime"})
    machine.run("systemctl", "stop", UNIT)
    assert machine.call("pgrep", "keepalived").returncode == 1


@pytest.mark.parametrize("dataplane", DATAPLANES)
def test_a_stop_of_the_service_leaves_the_host_as_it_was(network: Network, install: Boot, dataplane: str) -> None:
    """And its sandbox keeps no back end, and no switching on of IP forwarding, from working."""
    machine, node = install(0), network.nodes[0]
    configure(machine, DATAPLANE=dataplane)
    before = node.rules(), node.addresses(), node.pids()
    machine.run("systemctl", "start", UNIT)
    mastered(machine)
    assert tcp_source(network.client, VIP) == VIP
    assert tcp_source(network.far_client, VIP) == VIP
    assert node.has_rules(dataplane)
    node.sysctl("net.ipv4.ip_forward", "0")
    eventually(lambda: node.sysctl("net.ipv4.ip_forward") == "1", what="forwarding is repaired")
    machine.run("systemctl", "stop", UNIT)
    assert (node.rules(), node.addresses(), node.pids()) == before
    assert warnings(machine) == {"drift.repaired", "handover.nobody"}


def test_a_daemon_that_hangs_is_started_again(network: Network, install: Boot) -> None:
    """After less than the unit's 20 s, here."""
    machine, other = install(0), install(1)
    quick = machine.file("etc/systemd/system/kevip@.service.d/quick.conf")
    quick.parent.mkdir()
    quick.write_text("[Service]\nWatchdogSec=5\n")
    machine.run("systemctl", "daemon-reload")
    configure(machine, ADVSKEW=1)
    configure(other, ADVSKEW=20)
    machine.run("systemctl", "start", UNIT)
    mastered(machine)
    other.run("systemctl", "start", UNIT)
    machine.run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", UNIT)
    mastered(other)
    eventually(lambda: machine.property(UNIT, "NRestarts") == "1", within=40, what="systemd starts it again")
    eventually(lambda: role(machine) == "backup", what="it is back in the election")
    assert network.holders() == [other.node]
    assert "Watchdog timeout" in journal(machine)


def test_a_daemon_that_was_killed_is_started_again(install: Boot) -> None:
    machine = install(0)
    configure(machine)
    machine.run("systemctl", "start", UNIT)
    machine.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", UNIT)
    eventually(lambda: machine.property(UNIT, "NRestarts") == "1", what="systemd starts it again")
    mastered(machine)


def test_wrong_settings_end_the_service_for_good(install: Boot) -> None:
    machine = install(0)
    configure(machine, VIP="nonsense")
    assert machine.call("systemctl", "start", UNIT).returncode == 1
    refused = machine.run("journalctl", "--no-pager", "--output=cat", f"--unit={UNIT}", "--priority=err")
    assert "kevip: --vip (VIP): 'nonsense' is a name, not an IPv4 address" in refused
    assert machine.property(UNIT, "ActiveState") == "failed"
    assert "Assertion failed" in machine.call("systemctl", "start", "kevip@none").stderr


def test_an_interface_that_comes_up_later_is_waited_for(network: Network, install: Boot) -> None:
    machine, node = install(0), network.nodes[0]
    configure(machine)
    node.run("ip", "link", "set", "eth0", "down")
    assert machine.call("systemctl", "start", UNIT).returncode == 1
    assert "interface eth0 is down" in journal(machine)
    node.run("ip", "link", "set", "eth0", "up")
    mastered(machine)


def test_another_kevip_with_the_same_vip_is_waited_for(network: Network, install: Boot, start: Start) -> None:
    machine = install(0)
    configure(machine)
    other = start(network.nodes[0]).master()
    assert machine.call("systemctl", "start", UNIT).returncode == 1
    assert f"serves VIP {VIP} on this host already" in journal(machine)
    other.stop()
    mastered(machine)


def test_instances_share_the_runtime_directory(install: Boot) -> None:
    machine = install(0)
    configure(machine)
    configure(machine, "mail", VIP=VIP2)
    machine.run("systemctl", "start", UNIT, "kevip@mail")
    machine.run("systemctl", "stop", UNIT)
    assert (role(machine), role(machine, VIP2) is None) == (None, False)


def test_the_unit_is_sound_and_exposes_no_more_than_is_said(install: Boot) -> None:
    machine = install(0)
    done = machine.call("systemd-analyze", "verify", "/etc/systemd/system/kevip@.service")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    machine.run("systemd-analyze", "security", "--offline=true", "--threshold=22", f"{UNIT}.service")


def test_what_the_daemon_may_is_what_the_unit_says(install: Boot) -> None:
    """That is enough to read a password file of root's."""
    machine = install(0)
    configure(machine, PASSWORD="", PASSWORD_FILE="/etc/kevip/password")  # noqa: S106 - the name of a file
    password = machine.file("etc/kevip/password")
    password.write_text(PASSWORD)
    password.chmod(0o600)
    machine.run("systemctl", "start", UNIT)
    status = machine.file(f"proc/{machine.property(UNIT, 'MainPID')}/status").read_text()
    assert "CapBnd:\t0000000000003000\n" in status
    assert "NoNewPrivs:\t1\n" in status
    assert "Seccomp:\t2\n" in status


def test_an_installation_that_is_removed_leaves_the_files_as_they_were(boot: Boot) -> None:
    machine = boot(0)
    before = machine.changes(CACHE)
    assert "cp /etc/kevip/example.env.sample /etc/kevip/example.env\n" in machine.run("script/install", **UV)
    assert machine.run("/opt/kevip/bin/kevip", "--version") == "kevip, version 0.1.0\n"
    shared = [str(path.relative_to(SHARE)) for path in SHARE.rglob("*") if path.is_file()]
    assert len(shared) == 4
    for each in shared:
        assert machine.file(f"opt/kevip/share/{each}").read_text() == (SHARE / each).read_text()
    installed = machine.changes(CACHE).keys() - before.keys()
    assert {path for path in installed if not path.startswith("opt/kevip/")} == {
        "etc/kevip/example.env.sample",
        "etc/systemd/system/kevip@.service",
        "usr/local/bin/kevip",
        *(f"usr/local/share/{each}" for each in shared),
    }
    machine.run("script/install", "--remove")
    assert machine.changes(CACHE) == before
    assert not [path for path in ("etc/kevip", "opt/kevip") if machine.file(path).exists()]


def test_removal_stops_instances_and_keeps_the_settings(network: Network, install: Boot) -> None:
    machine, node = install(0), network.nodes[0]
    configure(machine)
    before = node.rules(), node.addresses(), node.pids()
    machine.run("systemctl", "enable", "--now", UNIT)
    mastered(machine)
    assert "the settings, with their passwords, are still in /etc/kevip" in machine.run("script/install", "--remove")
    assert (node.rules(), node.addresses(), node.pids()) == before
    assert machine.call("systemctl", "list-unit-files", "--no-legend", "kevip@*").stdout == ""
    assert [path.name for path in machine.file("etc/kevip").iterdir()] == ["web.env"]
    assert not list(machine.file("etc/systemd/system").glob("**/kevip@*"))
    machine.run("script/install", "--purge")
    assert not machine.file("etc/kevip").exists()


def test_an_upgrade_takes_effect_with_a_restart(install: Boot) -> None:
    machine = install(0)
    configure(machine)
    machine.run("systemctl", "start", UNIT)
    old = machine.property(UNIT, "MainPID")
    parts = ("LICENSE", "README.md", "deploy", "kevip", "pyproject.toml", "script", "uv.lock")
    machine.run(
        "sh", "-c", f"mkdir /srv/new && cp -r {' '.join(parts)} /srv/new && echo '# new' >>/srv/new/kevip/cli.py"
    )
    told = machine.run("/srv/new/script/install", **UV)
    assert f"systemctl restart {UNIT}.service\n" in told
    assert machine.property(UNIT, "MainPID") == old
    [installed] = machine.file("opt/kevip").glob("lib/*/site-packages/kevip/cli.py")
    assert installed.read_text() == (REPOSITORY / "kevip/cli.py").read_text() + "# new\n"
    machine.run("systemctl", "restart", UNIT)
    mastered(machine)


def test_without_systemd_it_says_what_it_left_out(boot: Boot) -> None:
    machine = boot(0)
    bare = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh")
    assert "systemd does not run here" in machine.run(*bare, "script/install", **UV)
    assert "no instance was stopped" in machine.run(*bare, "script/install", "--remove")
