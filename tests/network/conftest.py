"""The lab for each test: built for it, removed after it, whatever happened in between."""

from collections.abc import Callable, Iterator

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


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Iterator[Callable[..., Replica]]:
    """Start replicas; their logs are shown if the test fails, and they are killed when it ends."""
    started: list[Replica] = []

    def make(*arguments: object, **settings: object) -> Replica:
        replica = Replica(*arguments, **settings)  # type: ignore[arg-type]
        started.append(replica)
        return replica

    yield make
    for replica in started:
        request.node.add_report_section("call", f"kevip on {replica.node.name}", replica.log())
        replica.kill()
        replica.remove()
