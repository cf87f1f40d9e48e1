"""Load over TCP, as a program: ``python -m lab.load sink ADDRESS PORT`` or ``stream|connects ADDRESS PORT SECONDS``.

The sink takes what it is sent and closes when its peer does; it prints "ready" when it listens. ``stream`` sends over
one connection and prints bits per second; ``connects`` opens one connection after the other and prints how many per
second.
"""

import socket
import sys
import threading
import time

CHUNK = 1 << 20


def _drain(connection: socket.socket) -> None:
    with connection:
        buffer = bytearray(CHUNK)
        while connection.recv_into(buffer):
            pass


def sink(address: str, port: int) -> None:
    """Take connections until killed."""
    with socket.create_server((address, port), backlog=1024) as server:
        print("ready", flush=True)  # noqa: T201 - the protocol with whoever started this
        while True:
            threading.Thread(target=_drain, args=[server.accept()[0]], daemon=True).start()


def stream(address: str, port: int, seconds: float) -> float:
    """Return bits per second over one connection."""
    data, sent = bytes(CHUNK), 0
    with socket.create_connection((address, port), timeout=5) as connection:
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            sent += connection.send(data)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # the other end has taken all
        return sent * 8 / (time.monotonic() - begin)


def connects(address: str, port: int, seconds: float) -> float:
    """Return connections opened and closed per second."""
    number = 0
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        with socket.create_connection((address, port), timeout=5) as connection:
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
        number += 1
    return number / (time.monotonic() - begin)


if __name__ == "__main__":
    if sys.argv[1] == "sink":
        sink(sys.argv[2], int(sys.argv[3]))
    else:
        print({"stream": stream, "connects": connects}[sys.argv[1]](sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))  # noqa: T201
