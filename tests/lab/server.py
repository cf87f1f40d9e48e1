r"""The target, as a program: tells each TCP and UDP client the source address that it sees, and echoes what it gets.

``python -m lab.server ADDRESS PORT``: TCP gets "ADDRESS PORT\n" at once and then its own lines back; UDP gets
"ADDRESS PORT\n" for each datagram. After a line "chat" it also speaks of its own. Prints "ready" when it listens.
"""

import asyncio
import sys


async def _chat(writer: asyncio.StreamWriter) -> None:
    """Speak without being asked, until the connection ends."""
    while True:
        writer.write(b"chat\n")
        await asyncio.sleep(0.01)


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    address, port = writer.get_extra_info("peername")
    chat = None
    try:
        writer.write(f"{address} {port}\n".encode())
        while line := await reader.readline():
            if line == b"chat\n":
                chat = asyncio.create_task(_chat(writer))
            writer.write(line)
            await writer.drain()
    except OSError:
        pass
    finally:
        if chat:
            chat.cancel()
        writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        del data
        self._transport.sendto(f"{addr[0]} {addr[1]}\n".encode(), addr)


async def _main(address: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(_Datagrams, local_addr=(address, port))
    server = await asyncio.start_server(_serve, address, port, backlog=1024)
    print("ready", flush=True)  # noqa: T201 - the protocol with whoever started this
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2])))
