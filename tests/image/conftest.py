"""Two hosts with podman on the lab's network, and the image as containers on them."""

from collections.abc import Iterator
from typing import Any

import pytest
from lab.container import IMAGE, Container
from lab.network import Namespace, Network, require_own_namespace
from lab.traffic import server


@pytest.fixture(scope="session", autouse=True)
def _image() -> None:
    require_own_namespace()
    if not IMAGE:
        raise RuntimeError("this needs an image: run it with script/test-image")


@pytest.fixture
def network() -> Iterator[Network]:
    """Two nodes that forward, as hosts of containers do, a client, and the target, which tells source addresses."""
    with Network(nodes=2) as made, server(made.target):
        for node in made.nodes:
            node.sysctl("net.ipv4.ip_forward", "1")
        yield made


@pytest.fixture
def node(network: Network) -> Namespace:
    """Give the first of the nodes."""
    return network.nodes[0]


class Starter:
    """Starts containers, and removes what it has started."""

    def __init__(self) -> None:
        self.started: list[Container] = []

    def __call__(self, node: Namespace, **settings: Any) -> Container:
        """Start a container on a node."""
        container = Container.start(node, **settings)
        self.started.append(container)
        return container

    def end(self) -> None:
        """Remove all containers."""
        for container in self.started:
            container.remove()


@pytest.fixture
def start(network: Network) -> Iterator[Starter]:
    """Start containers; they are removed when the test ends, before their nodes."""
    del network
    starter = Starter()
    yield starter
    starter.end()
