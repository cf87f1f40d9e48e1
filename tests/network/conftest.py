"""The lab for each test: built for it, removed after it, whatever happened in between."""

from collections.abc import Iterator
from typing import Any

import pytest
from lab.network import Namespace, Network, require_own_namespace
from lab.replica import Replica
from lab.traffic import server


@pytest.fixture(scope="session", autouse=True)
def _own_namespace() -> None:
    require_own_namespace()


@pytest.fixture
def network() -> Iterator[Network]:
    """Three nodes, two clients, a router and the target, on which the server runs that tells source addresses."""
    with Network() as made, server(made.target):
        yield made


@pytest.fixture
def host() -> Iterator[Namespace]:
    """Give a single host on no network but its own: one interface with 10.77.0.11/24."""
    space = Namespace("lab-host-" + str(id(object())))
    try:
        space.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
        space.run("ip", "address", "add", "10.77.0.11/24", "dev", "eth0")
        space.run("ip", "link", "set", "eth0", "up")
        space.run("ip", "link", "set", "peer0", "up")
        yield space
    finally:
        space.remove()


class Starter:
    """Starts replicas, and ends what it has started."""

    def __init__(self) -> None:
        self.started: list[Replica] = []

    def __call__(self, node: Namespace, **settings: Any) -> Replica:
        """Start a replica on a node."""
        replica = Replica(node, **settings)
        self.started.append(replica)
        return replica

    def end(self) -> None:
        """Kill all that still run."""
        for replica in self.started:
            replica.kill()
            replica.remove()


@pytest.fixture
def start() -> Iterator[Starter]:
    """Start replicas; they are killed when the test ends."""
    starter = Starter()
    yield starter
    starter.end()
