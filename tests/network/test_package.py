"""The Debian package on machines whose process 1 is systemd: script/test-package has bare ones, without."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from lab.machine import REPOSITORY, Machine
from lab.network import VIP, Network, eventually
from lab.replica import PASSWORD

UNIT = "kevip@web.service"
APART = ("var/lib/dpkg", "var/log", "var/cache", "etc/systemd/system/multi-user.target.wants")
"""Where dpkg keeps account of what it does; and a folder that systemctl makes, and leaves."""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Build the package, and its next release; the lab reaches no registry, but uv has a cache."""
    there = tmp_path_factory.mktemp("packages")
    for release in ("1", "2"):
        command = ["script/package", release, str(there)]
        subprocess.run(command, cwd=REPOSITORY, env={**os.environ, "UV_OFFLINE": "1"}, check=True)
    return sorted(there.glob("*.deb"))


@pytest.fixture
def machine(network: Network, packages: list[Path]) -> Iterator[Machine]:
    """Boot a node that has both in /srv; it ends with the test."""
    with ExitStack() as stack:
        booted = stack.enter_context(Machine(network.nodes[0]))
        for number, each in enumerate(packages):
            booted.file(f"srv/{number}.deb").write_bytes(each.read_bytes())
        yield booted


def serve(machine: Machine) -> str:
    """Start an instance, wait until it is master, and return its process id."""
    text = machine.file("etc/kevip/example.env.sample").read_text()
    machine.file("etc/kevip/web.env").write_text(f"{text}VIP={VIP}\nPASSWORD='{PASSWORD}'\n")
    machine.run("systemctl", "enable", "--now", UNIT)
    eventually(lambda: VIP in machine.run("ip", "address"), what="it is master")
    return machine.property(UNIT, "MainPID")


def test_an_upgrade_changes_nothing_that_runs(machine: Machine) -> None:
    assert "copy /etc/kevip/example.env.sample to /etc/kevip/web.env" in machine.run("dpkg", "--install", "/srv/0.deb")
    assert machine.run("systemctl", "list-units", "--no-legend", "kevip@*") == ""
    old = serve(machine)
    assert f"systemctl restart {UNIT}\n" in machine.run("dpkg", "--install", "/srv/1.deb")
    assert (machine.property(UNIT, "MainPID"), machine.property(UNIT, "ActiveState")) == (old, "active")
    assert VIP in machine.run("ip", "address")
    machine.run("systemctl", "restart", UNIT)
    eventually(lambda: VIP in machine.run("ip", "address"), what="it is master again")
    assert machine.property(UNIT, "MainPID") != old


def test_a_removal_stops_it_and_a_purge_leaves_the_host_as_it_was(network: Network, machine: Machine) -> None:
    node = network.nodes[0]
    before = node.rules(), node.addresses(), node.pids()
    files = machine.changes(*APART)
    machine.run("dpkg", "--install", "/srv/0.deb")
    serve(machine)
    machine.run("dpkg", "--remove", "kevip")
    assert (node.rules(), node.addresses(), node.pids()) == before
    assert machine.call("systemctl", "list-unit-files", "--no-legend", "kevip@*").stdout == ""
    assert sorted(path.name for path in machine.file("etc/kevip").iterdir()) == ["example.env.sample", "web.env"]
    machine.run("dpkg", "--purge", "kevip")
    assert machine.changes(*APART) == files
    assert not list(machine.file("etc/systemd/system").glob("**/kevip@*"))
    assert not [path for path in ("etc/kevip", "usr/lib/kevip") if machine.file(path).exists()]


def test_what_script_install_has_put_there_is_told_and_left_alone(machine: Machine) -> None:
    unit, settings = machine.file("etc/systemd/system/kevip@.service"), machine.file("etc/kevip/web.env")
    unit.write_text("[Service]\nExecStart=/bin/sleep infinity\n# ExecStart=/opt/kevip/bin/kevip\n")
    told = machine.run("dpkg", "--install", "/srv/0.deb")
    assert "/etc/systemd/system/kevip@.service comes before this package's unit" in told
    settings.write_text("VIP=192.0.2.100\n")
    machine.run("systemctl", "start", UNIT)
    machine.run("dpkg", "--purge", "kevip")
    assert unit.exists()
    assert settings.exists()
    assert machine.property(UNIT, "ActiveState") == "active"
