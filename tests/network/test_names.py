"""Targets that are given by name: real look-ups, of a name server that says now this and now that."""

import json
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from lab.network import TARGET, VIP, Network, eventually
from lab.replica import Replica, invoke
from lab.traffic import PORT, resolver, server, tcp_source

Start = Callable[..., Replica]

NAME, TARGET2, VIP2 = "db.partner.example", "203.0.113.11", "10.77.0.101"
AGAIN = 75.0  # seconds within which a name is looked up again, on a host that is busy


class Zone:
    """What the name server says, and nodes with one each."""

    def __init__(self, network: Network, directory: Path, wrappers: list[tuple[str, ...]]) -> None:
        self.network, self._file, self.wrappers = network, directory / "zone", wrappers

    def says(self, *words: str) -> None:
        """Have the name be that from now on."""
        draft = self._file.with_suffix(".new")
        draft.write_text(f"{NAME} {' '.join(words)}\n")
        draft.replace(self._file)

    def start(self, start: Start, number: int = 0, **settings: object) -> Replica:
        """Start a replica on a node."""
        return start(self.network.nodes[number], wrapper=self.wrappers[number], **{"target": NAME, **settings})


@pytest.fixture
def zone(network: Network, tmp_path: Path) -> Iterator[Zone]:
    """Have a second target, and a name server on each of two nodes."""
    (tmp_path / "zone").touch()
    network.target.run("ip", "address", "add", f"{TARGET2}/24", "dev", "eth0")
    with ExitStack() as programs:
        programs.enter_context(server(network.target, TARGET2))
        wrappers = [programs.enter_context(resolver(node, tmp_path / "zone")) for node in network.nodes[:2]]
        yield Zone(network, tmp_path, wrappers)


def status(replica: Replica) -> str:
    """Return what kevip status shows on a node, on one line."""
    return " ".join(invoke(replica.node, "status", f"--run-dir={replica.run_dir}").stdout.split())


class Talk:
    """A connection of the client's to a VIP."""

    def __init__(self, network: Network, vip: str = VIP) -> None:
        self._network = network
        with network.client.entered():
            self._connection = socket.create_connection((vip, PORT), 10)
        self._lines = self._connection.makefile("rw")
        source, port = self._lines.readline().split()
        assert source == vip
        found = network.target.run(
            "ss", "--tcp", "--numeric", "--no-header", "state", "established", "dst", f"{vip}:{port}"
        )
        self.target = found.split()[2].rpartition(":")[0]

    def goes_on(self) -> bool:
        """Whether the target answers."""
        self._lines.write("hello\n")
        self._lines.flush()
        return self._lines.readline() == "hello\n"

    def close(self) -> None:
        """End it."""
        self._lines.close()
        self._connection.close()


def test_a_name_is_followed_and_open_connections_stay_where_they_are(zone: Zone, start: Start) -> None:
    zone.says(TARGET)
    replica = zone.start(start, forward=f"{VIP2}={NAME}").master()
    assert f"{NAME} is {TARGET}, as of" in status(replica)
    with ExitStack() as talks:
        old = [talks.enter_context(closing(Talk(zone.network, vip))) for vip in (VIP, VIP2)]
        zone.says(TARGET2)
        said = eventually(lambda: replica.events("name.resolved")[1:], within=AGAIN, what="the new address is in use")[
            0
        ]
        assert (said["address"], said["before"]) == (TARGET2, TARGET)
        eventually(lambda: _targets(replica) == [TARGET2] * 2, what="the rules have it")
        new = [talks.enter_context(closing(Talk(zone.network, vip))) for vip in (VIP, VIP2)]
        assert [each.target for each in (*old, *new)] == [TARGET] * 2 + [TARGET2] * 2
        assert all(each.goes_on() for each in (*old, *new))
    assert not replica.events("drift.repaired")
    zone.says()
    replica.logged("name.unresolved", within=AGAIN)
    eventually(lambda: f"{NAME} has no address" in status(replica), what="status says so")
    assert tcp_source(zone.network.client, VIP) == VIP


def _targets(replica: Replica) -> list[str]:
    """Return where rules of ours send connections."""
    return [line.split()[-1] for line in replica.node.rules()["iptables-nft"] if "-j DNAT" in line]


def test_a_start_waits_for_a_name_and_says_so(zone: Zone, start: Start) -> None:
    replica = zone.start(start)
    assert "the start waits for it" in replica.logged("name.unresolved")["hint"]
    assert not zone.network.nodes[0].has(VIP)
    assert replica.state() == {}
    zone.says("slow", TARGET)
    replica.master(within=60)
    assert tcp_source(zone.network.client, VIP) == VIP


def test_a_start_that_waits_can_be_stopped(zone: Zone, start: Start) -> None:
    zone.says("silent")
    replica = zone.start(start)
    replica.logged("name.unresolved", within=60)
    replica.process.send_signal(signal.SIGTERM)
    assert replica.process.wait(20) == 0
    assert not replica.run_dir.exists()


def test_of_many_addresses_replicas_take_the_same_and_stay_with_it(zone: Zone, start: Start) -> None:
    zone.says(TARGET2, *(f"203.0.113.{each}" for each in range(100, 119)))
    replicas = [zone.start(start, number).ready() for number in range(2)]
    zone.says(TARGET, TARGET2, *(f"203.0.113.{each}" for each in range(100, 118)))
    first = [each.state()["names"][NAME]["resolved"] for each in replicas]
    eventually(
        lambda: all(each.state()["names"][NAME]["resolved"] != was for each, was in zip(replicas, first, strict=True)),
        within=AGAIN,
        what="it was looked up again",
    )
    assert [each.state()["names"][NAME]["address"] for each in replicas] == [TARGET2] * 2
    assert all(len(each.events("name.resolved")) == 1 for each in replicas)


def test_a_name_that_leads_to_the_vip_is_refused_and_the_old_address_stays(zone: Zone, start: Start) -> None:
    zone.says(TARGET)
    replica = zone.start(start).master()
    zone.says(VIP)
    said = replica.logged("name.unresolved", within=AGAIN)
    assert (VIP in said["error"], said["hint"]) == (True, f"{TARGET} stays in use")
    assert tcp_source(zone.network.client, VIP, PORT) == VIP


def test_check_says_what_a_name_is_and_that_it_is_none(zone: Zone) -> None:
    zone.says(TARGET)
    arguments = ("check", f"--vip={VIP}", f"--target={NAME}", "--password=x", "--json", "--seconds=1")
    found = json.loads(invoke(zone.network.nodes[0], *arguments, wrapper=zone.wrappers[0]).stdout)["findings"]
    assert [each["found"] for each in found if each["check"] == "names"] == [f"{NAME} is {TARGET}"]
    zone.says()
    [finding] = json.loads(invoke(zone.network.nodes[0], *arguments, wrapper=zone.wrappers[0]).stdout)["findings"]
    assert (finding["verdict"], "has no address" in finding["found"]) == ("failed", True)
