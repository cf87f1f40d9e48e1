"""Connections that stay open, as a program: ``python -m lab.talker ADDRESS PORT NUMBER PATIENCE [chatty]``.

Opens NUMBER connections and has a request answered on each about every 0.2 s; on a chatty one the target keeps speaking
of its own. Prints "ready" when all are open; when its stdin ends, prints how many still answer, within PATIENCE s.
"""

import asyncio
import sys


class _Talk:
    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.error = ""
        self.ending = asyncio.Event()

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, chatty: bool) -> None:
        """Ask and be answered until the end; note if that fails."""
        try:
            if chatty:
                writer.write(b"chat\n")
            number = 0
            while True:
                last = self.ending.is_set()
                number += 1
                writer.write(f"{number}\n".encode())
                async with asyncio.timeout(self._patience):
                    while (line := await reader.readline()) != f"{number}\n".encode():
                        if not line:
                            raise ConnectionError
                if last:
                    break
                await asyncio.sleep(0.2)
        except (OSError, TimeoutError) as error:
            self.error = repr(error)
        finally:
            writer.close()


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
    print(len(talks) - len(lost))  # noqa: T201 - the answer


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), chatty="chatty" in sys.argv))
