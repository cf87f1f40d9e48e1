"""Which clients reach a Service through the VIP, in each mode of kube-proxy, and how: docs/how-it-works.md has it.

A cell is ok if it is so with a pod on the master and with one on another node, with ``--port`` and without.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest
from lab.cluster import CLUSTER_IP, MODES, WAYS, Cluster
from lab.network import VIP, Namespace
from lab.replica import Replica
from lab.traffic import PORT, pings, tcp_source, together, udp_source

Start = Callable[..., Replica]
Asked = Callable[[Namespace], str]

DOCS = Path(__file__).parents[2] / "docs" / "how-it-works.md"

SMALL = "1400"
OK = "ok"


def narrow(pods: Cluster) -> None:
    """Have paths with a smaller MTU to the far client, and from each node to each pod, of which no end knows."""
    network = pods.network
    network.router.run("ip", "link", "set", "far", "mtu", SMALL)
    network.far_client.run("ip", "link", "set", "eth0", "mtu", SMALL)
    for host, which in [(network.far_client, "default"), *((node, each) for node in network.nodes for each in subnets)]:
        for route in host.run("ip", "route", "show", which).splitlines():
            size = ("advmss", "1460") if which == "default" else ("mtu", SMALL)
            host.run("ip", "route", "replace", *route.split(), *size)


subnets = [f"10.244.{number}.0/24" for number in (1, 2, 3)]


def tcp(host: Namespace) -> str:
    """Ask by TCP."""
    return tcp_source(host, VIP)


def udp(host: Namespace) -> str:
    """Ask by UDP."""
    return udp_source(host, VIP)


def fragments(host: Namespace) -> str:
    """Send a datagram that does not fit into a packet; the first one may only find out how large a packet may be."""
    with host.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(1)
        sender.connect((VIP, PORT))
        for _ in range(5):
            sender.send(bytes(4000))
            with suppress(TimeoutError):
                return sender.recv(100).decode().split()[0]
    return "no answer"


def much(host: Namespace) -> str:
    """Send 300 kB and have them back.

    To an open connection of the master's own, whose route to the VIP is a local one, the kernel does not apply the MTU
    of a path; to the next one it does.
    """
    try:
        return _much(host)
    except TimeoutError:
        return _much(host)


def _much(host: Namespace) -> str:
    with host.entered():
        client = socket.create_connection((VIP, PORT), 5)
    with client, client.makefile("rwb") as lines:
        source = lines.readline().split()[0].decode()
        for _ in range(30):
            lines.write(b"x" * 9_999 + b"\n")
            lines.flush()
            assert len(lines.readline()) == 10_000
    return source


def ping(host: Namespace) -> str:
    """Ping the VIP."""
    return OK if pings(host, VIP) else "no answer"


def refused(ask: Asked) -> Asked:
    """Return what is ok if it is refused; the kernel tells a host only so often, and its own processes otherwise."""

    def asked(host: Namespace) -> str:
        for _ in range(4):
            try:
                return f"answered to {ask(host)}"
            except (ConnectionRefusedError, PermissionError):
                return OK
            except TimeoutError:
                continue
        return "not refused"

    return asked


SERVED: dict[str, Asked] = {"TCP": tcp, "UDP": udp, "UDP, 4 kB": fragments, "300 kB, MTU 1400": much, "ping": ping}
REFUSED: dict[str, Asked] = {"no endpoints: TCP": refused(tcp), "no endpoints: UDP": refused(udp)}


def asked(pods: Cluster, questions: dict[str, Asked], good: set[str]) -> Iterator[tuple[str, str, str]]:
    """Yield client, question, and what came of it, if that is not good."""

    def answers(host: Namespace) -> list[str]:
        found = []
        for ask in questions.values():
            try:
                found.append(ask(host))
            except OSError as error:
                found.append(type(error).__name__)
        return found

    clients = pods.clients()
    told = together(*(lambda host=host: answers(host) for host in clients.values()))
    for client, answered in zip(clients, told, strict=True):
        for question, answer in zip(questions, answered, strict=True):
            yield client, question, OK if answer in {OK, *good} else answer


def table(mode: str, cells: dict[tuple[str, str], list[str]], clients: list[str]) -> str:
    """Return it as docs have it."""
    columns = [*SERVED, *REFUSED]
    lines = [[f"kube-proxy in {mode} mode", *columns], ["---"] * (1 + len(columns))]
    lines += [[client, *("; ".join(dict.fromkeys(cells[client, each])) for each in columns)] for client in clients]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", MODES)
def test_the_table_of_clients_and_protocols_is_that_of_the_docs(pods: Cluster, start: Start, mode: str) -> None:
    narrow(pods)
    node, clients = pods.network.nodes[0], list(pods.clients())
    cells: dict[tuple[str, str], list[str]] = {(each, what): [] for each in clients for what in (*SERVED, *REFUSED)}
    for settings, pod in product(WAYS, (0, 1)):
        pods.sync(mode, pods.service(pod))
        replica = start(node, target=CLUSTER_IP, **settings).master()
        seen = {VIP} if settings else {"10.77.0.11", "10.244.1.1"}
        for client, question, answer in asked(pods, SERVED, seen):
            cells[client, question].append(answer)
        pods.sync(mode, pods.service())
        for client, question, answer in asked(pods, REFUSED, set()):
            cells[client, question].append(answer)
        assert replica.stop()[0] == 0
    printed = table(mode, cells, clients)
    print(printed)  # noqa: T201 - for docs
    assert printed in DOCS.read_text()
