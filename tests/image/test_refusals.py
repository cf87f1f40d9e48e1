"""What a container gets wrong that was not given all it needs: one line for each, exit status 3, and no traceback."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from lab.container import CAPABILITIES, SETTINGS, Container, invoke, rights
from lab.network import LAN, Namespace, Network

Refused = Callable[..., tuple[int, str]]

OWN_NETWORK = (
    "kevip: this container has a network of its own: run it with --network host (Docker) or hostNetwork: true in the "
    "pod's spec (Kubernetes)\n"
)
KUBELET = "# Kubernetes-managed hosts file"


def no_capability(name: str) -> str:
    return (
        f"kevip: capability {name} is missing: run as root, in Docker with --cap-add {name}, "
        f"in Kubernetes with securityContext.capabilities.add [{name}]\n"
    )


def daemon(
    node: Namespace,
    *arguments: str,
    options: Sequence[str] = ("--network=host",),
    capabilities: Sequence[str] = CAPABILITIES,
) -> tuple[int, str]:
    """Run the daemon in a container to its end; return exit status and stderr."""
    variables = [f"--env={name}={value}" for name, value in SETTINGS.items()]
    done = invoke(node, *arguments, options=[*rights(capabilities), *options, *variables])
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.fixture
def refused(node: Namespace) -> Iterator[Refused]:
    """Run the daemon in a container, as ``daemon`` does; the node stays as it is."""
    before = node.addresses(), node.rules(), node.sysctl("net.ipv4.ip_forward")
    yield partial(daemon, node)
    assert (node.addresses(), node.rules(), node.sysctl("net.ipv4.ip_forward")) == before


@pytest.mark.parametrize("has", [["NET_ADMIN"], ["NET_RAW"], []])
def test_says_which_capability_is_missing(refused: Refused, has: list[str]) -> None:
    expected = "".join(no_capability(name) for name in CAPABILITIES if name not in has)
    assert refused(capabilities=has) == (3, expected)


@pytest.mark.parametrize("where", ["none", "private"])
@pytest.mark.parametrize("arguments", [[], ["--preempt"]])
def test_says_that_the_network_is_not_the_hosts(node: Namespace, where: str, arguments: list[str]) -> None:
    assert daemon(node, *arguments, options=[f"--network={where}"]) == (3, OWN_NETWORK)
    assert "kevip" not in str(node.rules())  # a private network brings podman's own rules


def test_believes_the_kubelet_about_the_network(refused: Refused, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    options = ["--network=host", f"--volume={hosts}:/etc/hosts:ro"]
    hosts.write_text(f"{KUBELET}.\n127.0.0.1\tlocalhost\n")
    assert refused(options=options) == (3, OWN_NETWORK)
    hosts.write_text(f"{KUBELET} (host network).\n127.0.0.1\tlocalhost\n")
    status, message = refused("--vip=10.9.0.1", options=options)
    assert (status, OWN_NETWORK in message) == (3, False)


def test_a_container_with_an_address_of_the_hosts_network_is_a_host(network: Network) -> None:
    host = Namespace(f"{network.client.name}-macvlan")
    try:
        node = network.nodes[0]
        node.run("ip", "link", "set", "eth0", "promisc", "on")
        node.run("ip", "link", "add", "eth1", "link", "eth0", "type", "macvlan", "mode", "bridge")
        node.run("ip", "link", "set", "eth1", "netns", host.name)
        host.run("ip", "address", "add", f"{LAN}.77/24", "dev", "eth1")
        host.run("ip", "link", "set", "eth1", "up")
        host.run("ip", "route", "add", "default", "via", f"{LAN}.1")
        host.sysctl("net.ipv4.ip_forward", "1")
        container = Container.start(host, options=[f"--network=ns:{host.path}"])
        try:
            container.master()
        finally:
            container.remove()
    finally:
        host.remove()
