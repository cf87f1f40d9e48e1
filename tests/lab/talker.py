"""Connections that stay open, as a program: ``python -m lab.talker ADDRESS PORT NUMBER PATIENCE [chatty]``.

Opens NUMBER connections and says something on each every 0.2 s, which the target answers; on a chatty one the target
speaks of its own, too. Prints "ready" when all are open; when its stdin ends, prints on how many of them something that
was said after that is answered within PATIENCE seconds, and for how many seconds one of these had to wait, at most.
"""

import asyncio
import sys
import time


class _Talk:
    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._answered = 0
        self._said: list[float] = []
        self.waited = 0.0
        self.error = ""
        self.ending = asyncio.Event()

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, chatty: bool) -> None:
        """Speak until the end, then until something said after it is answered; note if it never is."""
        listener = asyncio.create_task(self._listen(reader))
        number, last = 0, sys.maxsize
        try:
            if chatty:
                writer.write(b"chat\n")
            async with asyncio.timeout(None) as limit:
                while self._answered < last:
                    if self.ending.is_set() and last == sys.maxsize:
                        last = number + 1
                        limit.reschedule(asyncio.get_running_loop().time() + self._patience)
                    number += 1
                    self._said.append(time.monotonic())
                    writer.write(f"{number}\n".encode())
                    await asyncio.sleep(0.2)
                    if listener.done():
                        raise listener.exception() or ConnectionError("closed")
        except (OSError, TimeoutError) as error:
            self.error = repr(error)
        finally:
            listener.cancel()
            writer.close()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            if line.strip().isdigit():
                self._answered = int(line)
                self.waited = max(self.waited, time.monotonic() - self._said[self._answered - 1])


async def _main(address: str, port: int, number: int, patience: float, *, chatty: bool) -> None:
    talks, tasks = [_Talk(patience) for _ in range(number)], []
    for talk in talks:
        reader, writer = await asyncio.open_connection(address, port)
        await reader.readline()
        tasks.append(asyncio.create_task(talk.run(reader, writer, chatty=chatty)))
    print("ready", flush=True)  # noqa: T201 - the protocol with whoever started this
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for talk in talks:
        talk.ending.set()
    await asyncio.gather(*tasks)
    lost = [talk.error for talk in talks if talk.error]
    if lost:
        print(f"{len(lost)} connections lost, the first by {lost[0]}", file=sys.stderr)  # noqa: T201 - for a person
    waited = max((talk.waited for talk in talks if not talk.error), default=0.0)
    print(len(talks) - len(lost), waited)  # noqa: T201 - the answer


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), chatty="chatty" in sys.argv))
