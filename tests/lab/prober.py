"""A client that keeps connecting, as a program: ``python -m lab.prober ADDRESS PORT INTERVAL``.

Every INTERVAL seconds opens a connection, asks which source address the server saw, and closes it. Prints "ready"
after the first success; when its stdin ends, prints as JSON what it saw.
"""

import asyncio
import itertools
import json
import sys
import time

TIMEOUT = 1.5
"""Seconds after which a connect has failed: TCP's first retransmission, after 1 s at most, may save it."""

SLOW = 0.5
"""Seconds after which a connect that did not fail is counted as slow: TCP had to send something again."""


async def _ask(writer: asyncio.StreamWriter) -> None:
    """Ask until there is an answer: a client that falls silent cannot be found again after a move."""
    while True:
        writer.write(b"?\n")
        await asyncio.sleep(0.2)


class _Prober:
    def __init__(self, address: str, port: int, interval: float) -> None:
        self._address, self._port, self._interval = address, port, interval
        self._failed = self._slow = 0
        self._successes: list[float] = []
        self._sources: set[str] = set()
        self._open: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        await self._connect()
        self._failed = 0
        print("ready", flush=True)  # noqa: T201 - the protocol with whoever started this
        ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        begin, tried = time.monotonic(), 0
        while not ended.done():
            task = asyncio.create_task(self._connect())
            self._open.add(task)
            task.add_done_callback(self._open.discard)
            tried += 1
            await asyncio.sleep(max(0.0, begin + tried * self._interval - time.monotonic()))
        await asyncio.gather(*self._open)
        times = [begin, *(each for each in sorted(self._successes) if each > begin)]
        gap = max((later - earlier for earlier, later in itertools.pairwise(times)), default=float("inf"))
        report = {
            "tried": tried,
            "failed": self._failed,
            "slow": self._slow,
            "longest_gap": gap,
            "sources": sorted(self._sources),
        }
        print(json.dumps(report))  # noqa: T201 - the answer

    async def _connect(self) -> None:
        begin = time.monotonic()
        try:
            async with asyncio.timeout(TIMEOUT):
                reader, writer = await asyncio.open_connection(self._address, self._port)
                asking = asyncio.create_task(_ask(writer))
                try:
                    line = await reader.readline()
                finally:
                    asking.cancel()
                    writer.close()
            self._sources.add(line.decode().split()[0])
            self._successes.append(time.monotonic())
            self._slow += time.monotonic() - begin > SLOW
        except (OSError, TimeoutError, IndexError):
            self._failed += 1


if __name__ == "__main__":
    asyncio.run(_Prober(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])).run())
