"""What becomes of connections in each move, without copies and with them, and what copies cost: sync.py [ROUNDS].

Prints two tables; writes no file.
"""

import sys
from collections.abc import Callable
from typing import Any

from costs import HandedOn, copying, handed_on
from lab.network import Namespace, Network, require_own_namespace
from lab.replica import Replica
from moves import CONNECTIONS, Make, Move, crash, kill, run_round, stop, unplug

_PATIENCE = 5.0
"""Seconds within which a silent client must hear something: it hears at once, or never."""

_MOVES: dict[str, tuple[Callable[[Network, Any], None], bool]] = {
    "planned stop": (stop, True),
    "crash": (crash, False),
    "carrier loss": (unplug, False),
    "SIGKILL of the daemon": (kill, False),
}
"""With whether silent connections live on without copies."""


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - it takes minutes


def _replica(engine: str, *, sync: bool) -> Make:
    copies: dict[str, Any] = {"sync": True, "sync_interface": "eth1"} if sync else {}

    def make(node: Namespace) -> Replica:
        replica = Replica(node, engine=engine, **copies)
        if sync:
            replica.logged("conntrackd.started")
        return replica

    return make


def _told(rounds: list[Move]) -> str:
    """Return the worst of some rounds, as two cells."""
    return f"{min(each.silent for each in rounds)} | {max(each.stall for each in rounds):.2f} s"


def moves(rounds: int) -> bool:
    """Print what became of connections in each move; return whether all is as it must be."""
    _say(f"| of {CONNECTIONS} silent connections, alive; longest stall of {CONNECTIONS} others; worst of {rounds} |")
    _say("| engine | move | without: silent | stall | with --sync: silent | stall | held |")
    _say("|---|---|---|---|---|---|---|")
    well = True
    for engine in ("ucarp", "keepalived"):
        for name, (fault, always) in _MOVES.items():
            without, copied = (
                [run_round(_replica(engine, sync=sync), fault, patience=_PATIENCE) for _ in range(rounds)]
                for sync in (False, True)
            )
            of_all = copied + (without if always else [])
            held = all(each.silent == CONNECTIONS for each in of_all)
            held = held and all(each.survivors == CONNECTIONS for each in without + copied)
            well = well and held
            _say(f"| {engine} | {name} | {_told(without)} | {_told(copied)} | {'yes' if held else '**no**'} |")
    return well


def costs() -> None:
    """Print how long a planned stop takes that has many connections, and what a connection costs conntrackd."""
    _say("\n| entries | --sync | goodbye to served | pulled | failed | outage |\n|---|---|---|---|---|---|")
    for number in (10_000, 100_000):
        for sync in (False, True):
            made = handed_on(number, _replica("ucarp", sync=sync))
            _say(f"| {number:,} | {'yes' if sync else 'no'} | {_row(made)} |")
    master, backup = copying()
    _say(f"\nCPU of conntrackd for a new connection: {master:.0f} us on the master, {backup:.0f} us on a backup")


def _row(made: HandedOn) -> str:
    pulled = f"{made.connections:,} in {made.pull:.2f} s"
    return f"{made.served:.2f} s | {pulled} | {made.failed} of {made.tried} | {made.gap * 1000:.0f} ms"


def main() -> None:
    """Exit status 1 if connections were cut that must not be."""
    require_own_namespace()
    well = moves(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    costs()
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
