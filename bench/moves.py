"""What a move of the VIP costs: outage, failed connects and cut connections, for three ways of losing the master."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from lab.network import VIP, Namespace, Network
from lab.traffic import Conversations, Probe, hears, server, speaker, together

ROUNDS = 5
CONNECTIONS = 100
PATIENCE = 20.0
"""Seconds within which a connection must answer again when the move is over."""

Make = Callable[[Namespace], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What one move cost: seconds without an answer, connects tried, failed and slow, connections that lived on.

    ``survivors`` are of those on which the client speaks, ``silent`` of those on which only the server does, later.
    ``stall`` is for how many seconds one of the survivors was not answered.
    """

    gap: float
    tried: int
    failed: int
    slow: int
    survivors: int
    silent: int
    stall: float


@dataclass(frozen=True, slots=True)
class Moves:
    """Several moves of one kind."""

    rounds: list[Move]

    @property
    def gap(self) -> float:
        """The median outage, in seconds."""
        return median(each.gap for each in self.rounds)

    @property
    def worst_gap(self) -> float:
        """The longest outage, in seconds."""
        return max(each.gap for each in self.rounds)

    @property
    def failed(self) -> int:
        """Failed connects in all rounds."""
        return sum(each.failed for each in self.rounds)

    @property
    def slow(self) -> int:
        """Connects in all rounds that needed a retransmission."""
        return sum(each.slow for each in self.rounds)

    @property
    def tried(self) -> int:
        """Connects tried in all rounds."""
        return sum(each.tried for each in self.rounds)

    @property
    def survivors(self) -> list[int]:
        """Connections that lived on, in each round."""
        return [each.survivors for each in self.rounds]

    @property
    def silent(self) -> list[int]:
        """Connections that lived on though their client is silent, in each round."""
        return [each.silent for each in self.rounds]


def stop(network: Network, replica: Any) -> None:
    """Send SIGTERM, as for an upgrade."""
    del network
    replica.process.terminate()


def crash(network: Network, replica: Any) -> None:
    """Cut the link, and give everything on the host SIGKILL."""
    network.cut(replica.node)
    replica.kill()


def unplug(network: Network, replica: Any) -> None:
    """Take the carrier away."""
    network.set_carrier(replica.node, on=False)


def kill(network: Network, replica: Any) -> None:
    """Give the daemon SIGKILL, and nothing else."""
    del network
    replica.process.kill()


def measure(make: Make, fault: Callable[[Network, Any], None]) -> Moves:
    """Run a fault in as many rounds, each on a network of its own."""
    return Moves([run_round(make, fault) for _ in range(ROUNDS)])


def run_round(
    make: Make,
    fault: Callable[[Network, Any], None],
    *,
    look: Callable[[Move, list[Any]], None] | None = None,
    patience: float = PATIENCE,
) -> Move:
    """Run a fault once; ``look`` is shown what came of it, and the replicas, before these are removed."""
    with Network() as network, server(network.target):
        network.connect_apart()
        replicas = {node: make(node) for node in network.nodes}
        try:
            master = network.settled()
            with (
                speaker(network) as speaks,
                Conversations(network.client, VIP, CONNECTIONS, patience=PATIENCE) as talk,
            ):
                silent = [speaks.connect(network.client) for _ in range(CONNECTIONS)]
                with Probe(network.client, VIP) as probe:
                    fault(network, replicas[master])
                    network.settled([node for node in network.nodes if node != master])
                    report = probe.report()
                speaks.speak()
                survivors = talk.survivors()
                move = Move(
                    gap=report.longest_gap,
                    tried=report.tried,
                    failed=report.failed,
                    slow=report.slow,
                    survivors=survivors,
                    silent=sum(together(*(partial(hears, each, patience) for each in silent))),
                    stall=talk.waited,
                )
            if look:
                look(move, list(replicas.values()))
            return move
        finally:
            for replica in replicas.values():
                replica.kill()
                replica.remove()
