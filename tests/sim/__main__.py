"""The command behind script/simulate: random schedules by their seeds, one of them, or scenarios."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from sim.checkers import Failure
from sim.faults import failures, schedule, shortest
from sim.scenario import FOLDER, play

Found = tuple[int, list[Failure]]


def examine(hosts: int | None, engine: str, seed: int) -> Found:
    """Run the schedule of a seed; return it with what was wrong."""
    return seed, failures(schedule(seed, hosts, engine))


def examine_all(seeds: range, hosts: int | None, engine: str) -> Iterator[Found]:
    """Run many, on all processors."""
    with ProcessPoolExecutor(os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count()) as pool:
        yield from pool.map(partial(examine, hosts, engine), seeds, chunksize=20)


def explain(seed: int, hosts: int | None, engine: str) -> int:
    """Run one schedule, and print the shortest that shows what is wrong, as a scenario with its transcript."""
    whole = schedule(seed, hosts, engine)
    found = failures(whole)
    if not found:
        print(f"seed {seed}: all is well")
        return 0
    for failure in found:
        print(f"# {failure.checker}: {failure.text}, at {failure.time:.2f} s")
        print(play(str(shortest(whole, failure.checker))).text)
    return 1


def examine_many(first: int, number: int, hosts: int | None, engine: str) -> int:
    """Run many schedules; print how many failed in which way, and the first of each."""
    kinds, firsts = Counter[str](), dict[str, int]()
    more = (f" --hosts {hosts}" if hosts else "") + (f" --engine {engine}" if engine != "ucarp" else "")
    for seed, found in examine_all(range(first, first + number), hosts, engine):
        for failure in found:
            kinds[failure.checker] += 1
            firsts.setdefault(failure.checker, seed)
    for kind, times in kinds.most_common():
        print(f"{times:5} {kind}: script/simulate --seed {firsts[kind]}{more}")
    print(f"{number} seeds, {sum(kinds.values())} failures")
    return 1 if kinds else 0


def replay(paths: list[Path], *, rewrite: bool) -> int:
    """Replay scenarios; print them, or write their transcripts anew."""
    for path in paths or sorted(FOLDER.glob("*.txt")):
        outcome = play(path.read_text())
        if rewrite:
            path.write_text(outcome.text)
        else:
            print(outcome.text)
    return 0


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="script/simulate", description=__doc__)
    parser.add_argument("scenarios", nargs="*", type=Path, help="scenarios to replay and to print")
    parser.add_argument("--seed", type=int, help="run the schedule of this seed, and explain what is wrong")
    parser.add_argument("--seeds", type=int, default=1000, help="how many schedules to run (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first of their seeds (%(default)s)")
    parser.add_argument("--hosts", type=int, help="how many hosts; 3 or 5 by chance")
    parser.add_argument("--engine", choices=["ucarp", "keepalived"], default="ucarp", help="what elects (%(default)s)")
    parser.add_argument(
        "--rewrite", action="store_true", help="write the scenarios' transcripts anew; all, or those named"
    )
    given = parser.parse_args()
    if given.scenarios or given.rewrite:
        return replay(given.scenarios, rewrite=given.rewrite)
    if given.seed is not None:
        return explain(given.seed, given.hosts, given.engine)
    return examine_many(given.first, given.seeds, given.hosts, given.engine)


if __name__ == "__main__":
    sys.exit(main())
