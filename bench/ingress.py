"""What it costs the clients of a cluster-IP to come by the VIP."""

import time

from costs import Pair
from lab.cluster import CLUSTER_IP, MODES, POD_PORT, Cluster
from lab.network import LAN, VIP, Network, require_own_namespace
from lab.replica import Replica
from lab.traffic import PORT, load, sink

Row = tuple[str, str, str, str, bool]
"""As ``run`` has them."""


def ingress(mode: str, kind: str, rounds: int = 15, seconds: float = 0.5) -> Pair:
    """Return bits or connects per second through the VIP, and to the cluster-IP by the same node; medians."""
    with Network(nodes=2) as network:
        pods, node, client = Cluster(network), network.nodes[0], network.client
        pods.sync(mode, pods.service(1))
        client.run("ip", "route", "add", f"{CLUSTER_IP}/32", "via", f"{LAN}.11")
        client.sysctl("net.ipv4.conf.all.accept_redirects", "0")  # all that it sends goes by the node
        client.sysctl("net.ipv4.tcp_tw_reuse", "1")  # it opens more connections than it has ports
        with (
            Replica(node, target=CLUSTER_IP, port=str(PORT)) as replica,
            sink(pods.pods[1], pods.addresses[1], POD_PORT),
        ):
            replica.master()
            measured = []
            for number in range(rounds):  # in turn, for the second of two has warm caches
                order = (VIP, CLUSTER_IP) if number % 2 else (CLUSTER_IP, VIP)
                found = {address: load(client, kind, address, PORT, seconds) for address in order}
                measured.append((found[VIP], found[CLUSTER_IP]))
            return Pair(measured)


def rows() -> list[Row]:
    """Measure both, in each mode of kube-proxy; return rows."""
    found = list[Row]()
    for mode in MODES:
        for kind, name, unit, scale, least in (
            ("stream", "throughput", " Gbit/s", 1e9, 0.9),
            ("connects", "connects a second", "/s", 1, 0.8),
        ):
            pair = ingress(mode, kind)
            ours, theirs = (f"{value / scale:.3g}{unit}" if scale > 1 else f"{value:.0f}{unit}"
                            for value in (pair.kevip, pair.plain))  # fmt: skip
            what = f"ingress, kube-proxy in {mode} mode: {name} by the VIP; plain: by the cluster-IP itself"
            found.append((what, ours, theirs, f"ratio {pair.ratio:.2f} ≥ {least}", pair.ratio >= least))
    return found


def main() -> None:
    """Print the rows."""
    require_own_namespace()
    begin = time.monotonic()
    for what, ours, theirs, bound, held in rows():
        print(f"{what}: {ours}, {theirs}; {bound}: {'yes' if held else 'no'}")  # noqa: T201 - the result
    print(f"in {time.monotonic() - begin:.0f} s")  # noqa: T201


if __name__ == "__main__":
    main()
