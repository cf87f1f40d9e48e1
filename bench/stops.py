"""Stop masters of keepalived on a loaded machine, and say in how many runs connections were cut: stops.py [NUMBER]."""

import sys
from contextlib import ExitStack
from statistics import median
from subprocess import Popen
from typing import Any

from lab.network import require_own_namespace
from lab.replica import Replica
from moves import CONNECTIONS, Move, run_round, stop

_NUMBER = 40
_BUSY = ["sh", "-c", "while :; do :; done"]  # one for each processor


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - it takes minutes


def _look(move: Move, replicas: list[Any]) -> None:
    """Say what came of a run, and what all said where connections were cut."""
    _say(f"{move.survivors} alive, {move.failed} of {move.tried} failed, gap {move.gap * 1000:.0f} ms")
    for replica in replicas if move.survivors < CONNECTIONS else []:
        _say(replica.log())


def main() -> None:
    """Exit status 1 if a connection was cut."""
    require_own_namespace()
    number = int(sys.argv[1]) if len(sys.argv) > 1 else _NUMBER
    with ExitStack() as busy:
        for _ in range(2):
            busy.callback(busy.enter_context(Popen(_BUSY)).kill)
        moves = [
            run_round(lambda node: Replica(node, engine="keepalived", advert_interval=0.1), stop, look=_look)
            for _ in range(number)
        ]
    cut = sum(move.survivors < CONNECTIONS for move in moves)
    gaps = [move.gap * 1000 for move in moves]
    _say(
        f"{number} planned stops beside two busy loops, keepalived, an advert every 0.1 s: {cut} in which connections "
        f"were cut, of {CONNECTIONS}; outage, median (worst) {median(gaps):.0f} ms ({max(gaps):.0f} ms); failed "
        f"{sum(move.failed for move in moves)} of {sum(move.tried for move in moves)}"
    )
    sys.exit(1 if cut else 0)


if __name__ == "__main__":
    main()
