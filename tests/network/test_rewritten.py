"""TARGET is a Service's cluster-IP, which kube-proxy translates: connections go with the VIP there, too."""

from collections.abc import Callable
from contextlib import ExitStack, closing

import pytest
from lab.cluster import CLUSTER_IP, MODES, POD_PORT, WAYS, Cluster, Service
from lab.network import VIP, eventually
from lab.replica import Replica, on_each_engine
from lab.traffic import PORT, Conversations, Flow, Probe, Speaker, hears, server

Start = Callable[..., Replica]

in_each_mode = pytest.mark.parametrize("mode", MODES)


def pair(pods: Cluster, start: Start, **settings: object) -> tuple[Replica, Replica]:
    """Start two replicas, and return the master and the other one."""
    one, other = pods.network.nodes[:2]
    master = start(one, target=CLUSTER_IP, advskew=1, **settings).master()
    return master, start(other, target=CLUSTER_IP, advskew=20, **settings).ready()


def move(master: Replica, heir: Replica) -> int:
    """Stop a master; return how many connections the other one has fetched."""
    assert master.stop()[0] == 0
    heir.master()
    return int(heir.logged("connections.pulled")["connections"])


@on_each_engine
@in_each_mode
def test_a_planned_move_cuts_no_connection_on_which_the_client_is_silent(
    pods: Cluster, start: Start, mode: str
) -> None:
    """Also not one of two clients with the same source port, nor a flow of datagrams."""
    network, pod, address = pods.network, pods.pods[2], "10.244.3.3"
    pod.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
    pods.sync(mode, Service(CLUSTER_IP, (address,)))
    master, heir = pair(pods, start, **WAYS[0])
    with (
        closing(Speaker(network, at=(pod, address, POD_PORT), port=PORT)) as speaks,
        Flow(network.client, pod, (address, POD_PORT), port=PORT) as flow,
    ):
        hosts = network.client, network.far_client
        silent = [speaks.connect(each, sport=port) for each in hosts for port in range(30000, 30025)]
        assert move(master, heir) == 51
        speaks.speak()
        assert [hears(each) for each in silent] == [True] * 50
        assert flow.is_answered()


@in_each_mode
def test_a_planned_move_cuts_no_connection_to_any_of_several_pods(pods: Cluster, start: Start, mode: str) -> None:
    """A new choice among them would be another pod for two of three. They are on neither master's own node."""
    addresses = [f"10.244.3.{number}" for number in (2, 3, 4)]
    pods.sync(mode, Service(CLUSTER_IP, tuple(addresses)))
    master, heir = pair(pods, start, **WAYS[0])
    with ExitStack() as servers:
        for address in addresses[1:]:
            pods.pods[2].run("ip", "address", "add", f"{address}/24", "dev", "eth0")
            servers.enter_context(server(pods.pods[2], address, POD_PORT))
        talk = servers.enter_context(Conversations(pods.network.client, VIP, 30))
        probe = servers.enter_context(Probe(pods.network.client, VIP))
        assert move(master, heir) >= 30
        report = probe.report()
        assert (report.failed, report.sources) == (0, [VIP])
        assert talk.survivors() == 30


def test_without_ports_nothing_is_handed_on(pods: Cluster, start: Start) -> None:
    """The pod knows the connection as one of the host that was master."""
    pods.sync("nftables", pods.service(2))
    master, heir = pair(pods, start)
    with Conversations(pods.network.client, VIP, 5):
        assert move(master, heir) == 0


@in_each_mode
def test_after_a_crash_connections_to_a_single_pod_go_on_when_the_client_speaks(
    pods: Cluster, start: Start, mode: str
) -> None:
    pods.sync(mode, pods.service(2))
    master, heir = pair(pods, start, **WAYS[0])
    with Conversations(pods.network.client, VIP, 20) as talk:
        pods.network.cut(master.node)
        master.kill()
        eventually(lambda: heir.node.has(VIP), what="the other one has the VIP")
        assert talk.survivors() == 20
