"""The lab for each test: built for it, removed after it, whatever happened in between."""

from collections.abc import Iterator
from typing import Any

import pytest
from lab.cluster import Cluster, cluster
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
def pods(network: Network) -> Iterator[Cluster]:
    """Give a cluster without any Service."""
    with cluster(network) as made:
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


_MOST = 62
"""A skew and a priority make that, together."""


class Starter:
    """Starts replicas with an engine, and ends what it has started."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.started: list[Replica] = []

    def __call__(self, node: Namespace, **settings: Any) -> Replica:
        """Start a replica on a node; a skew stands for a rank, whatever the engine calls it."""
        settings.setdefault("engine", self.engine)
        if settings["engine"] == "keepalived" and "advskew" in settings:
            settings["priority"] = min(max(1, _MOST - settings.pop("advskew")), _MOST - 1)
        replica = Replica(node, **settings)
        self.started.append(replica)
        return replica

    def end(self) -> None:
        """Kill all that still run."""
        for replica in self.started:
            replica.kill()
            replica.remove()


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Iterator[Starter]:
    """Start replicas, with ucarp unless the test says otherwise; they are killed when the test ends."""
    starter = Starter(getattr(request, "param", "ucarp"))
    yield starter
    starter.end()
