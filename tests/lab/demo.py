"""The demo: three kevips on a network of namespaces, a client that keeps connecting, a stop, and a crash per engine."""

import shutil
import sys
import time
from contextlib import ExitStack
from typing import Any

from lab.network import TARGET, VIP, Namespace, Network, eventually
from lab.replica import Replica
from lab.traffic import Probe, server, tcp_source, udp_source

PICTURE = f"""\
  far client ─── router ─── target {TARGET} (a third party)
                    │
     client ─── switch ─── node1, node2, node3      one of them holds the VIP {VIP}
"""

_BEGIN = time.monotonic()


def _say(text: str) -> None:
    print(f"[{time.monotonic() - _BEGIN:5.1f} s] {text}", flush=True)  # noqa: T201 - it narrates


def _name(node: Namespace) -> str:
    return node.name.rpartition("-")[2]


def main() -> None:
    """Run the demo; leaves nothing behind, also when interrupted."""
    print(PICTURE)  # noqa: T201 - it narrates
    with Network() as network, ExitStack() as stack:
        stack.enter_context(server(network.target))
        _say("the network is built, of network namespaces")
        before = [(node.rules(), node.addresses()) for node in network.nodes]
        replicas, first = _start(network, stack)
        _show_sources(network, first)

        second = _crash(network, replicas, first)
        eventually(lambda: not first.has(VIP), what="the kernel ends the lease")
        _say(f"  the kernel has removed the VIP from {_name(first)}")
        third = _stop(network, replicas, second)
        status, seconds = replicas[third].stop()
        _say(f"{_name(third)} is stopped too: exit status {status} after {seconds:.1f} s")
        index = network.nodes.index(third)
        clean = (third.rules(), third.addresses()) == before[index]
        _say(f"its addresses and its rules, of nft and legacy, are {'as' if clean else 'NOT as'} before the start")
        if not clean:
            sys.exit(1)

        network.mend(first)
        replicas, first = _start(network, stack, engine="keepalived")
        _crash(network, replicas, first)


def _start(network: Network, stack: ExitStack, **settings: Any) -> tuple[dict[Namespace, Replica], Namespace]:
    """Run a kevip on each node, until all is removed; return them, and the node that is master."""
    replicas = {node: Replica(node, **settings) for node in network.nodes}
    for replica in replicas.values():
        stack.callback(shutil.rmtree, replica.directory)
        stack.callback(replica.kill)
    more = "".join(f" --{name} {value}" for name, value in settings.items())
    _say(f"on each node: kevip --vip {VIP} --target {TARGET} --password ...{more}")
    eventually(network.holders, what="a master is elected")
    for replica in replicas.values():
        replica.ready()
    master = network.settled()
    _say(f"{_name(master)} is master and holds the VIP")
    return replicas, master


def _show_sources(network: Network, master: Namespace) -> None:
    """Ask the target who it sees."""
    for name, host in [
        ("the client", network.client),
        ("the client behind the router", network.far_client),
        (f"{_name(master)} itself", master),
    ]:
        _say(f"  {name} uses the VIP: the target sees {tcp_source(host, VIP)} (TCP), {udp_source(host, VIP)} (UDP)")
    _say(f"  the client goes past the VIP: the target sees {tcp_source(network.client, TARGET)}")


def _crash(network: Network, replicas: dict[Namespace, Replica], master: Namespace) -> Namespace:
    """Cut the master off and kill all of kevip on it, while the client connects."""
    with Probe(network.client, VIP) as probe:
        _say("the client now connects every 5 ms")
        network.cut(master)
        replicas[master].kill()
        _say(f"{_name(master)} crashes: its link is cut, SIGKILL to all of its kevip")
        heir = network.settled([node for node in network.nodes if node is not master])
        _say(f"  {_name(heir)} took over")
        _tell(probe)
    return heir


def _stop(network: Network, replicas: dict[Namespace, Replica], master: Namespace) -> Namespace:
    """Stop the master with SIGTERM, while the client connects."""
    with Probe(network.client, VIP) as probe:
        _say("the client connects every 5 ms again")
        _say(f"{_name(master)} is stopped with SIGTERM")
        status, seconds = replicas[master].stop()
        heir = network.settled()
        _say(f"  it ended with exit status {status} after {seconds:.1f} s; {_name(heir)} took over")
        _tell(probe)
    return heir


def _tell(probe: Probe) -> None:
    report = probe.report()
    _say(
        f"  the VIP was away for {report.longest_gap:.2f} s: {report.failed} of {report.tried} connects failed; "
        f"the target saw {', '.join(report.sources)} only"
    )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        _say("interrupted: all is removed")
        sys.exit(130)
