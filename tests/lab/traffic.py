"""Traffic through the VIP: single questions, and a prober that connects all the time and measures what it missed."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from lab.network import TARGET, VIP, Namespace, Network

T = TypeVar("T")

PORT = 7000
SPEAKS = PORT + 1


@contextmanager
def server(host: Namespace, address: str = TARGET, port: int = PORT) -> Iterator[None]:
    """Run the server that tells the source address on a host."""
    with _program(host, "lab.server", address, str(port)) as program:
        assert program.stdout.readline() == "ready\n"
        yield


@contextmanager
def _program(host: Namespace, module: str, *arguments: str) -> Iterator[Any]:
    program: Any = host.popen(
        sys.executable,
        "-m",
        module,
        *arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,  # a terminal's Ctrl-C is not for it
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    try:
        yield program
    finally:
        program.kill()
        program.wait()
        program.stdin.close()
        program.stdout.close()


@contextmanager
def resolver(host: Namespace, file: Path) -> Iterator[tuple[str, ...]]:
    """Run a name server on a host; yield what has a program started there ask it. See ``lab.resolver``."""
    settings = file.with_suffix(".conf")
    settings.write_text("nameserver 127.0.0.1\noptions timeout:5 attempts:1\n")
    with _program(host, "lab.resolver", str(file)) as program:
        assert program.stdout.readline() == "ready\n"
        bind = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        yield "unshare", "--mount", "sh", "-c", bind, str(settings)


@contextmanager
def partner(host: Namespace, certificate: Path, address: str = TARGET) -> Iterator[None]:
    """Run HTTPS, Postgres and SMTP on a host, which tell the source address and the name that TLS asked for."""
    with _program(host, "lab.partner", address, str(certificate)) as program:
        assert program.stdout.readline() == "ready\n"
        yield


@contextmanager
def sink(host: Namespace, address: str, port: int) -> Iterator[None]:
    """Run a server that takes all that it is sent."""
    with _program(host, "lab.load", "sink", address, str(port)) as program:
        assert program.stdout.readline() == "ready\n"
        yield


def load(host: Namespace, kind: str, address: str, port: int, seconds: float) -> float:
    """Return bits or connects per second, for "stream" or "connects", from a host."""
    with _program(host, "lab.load", kind, address, str(port), str(seconds)) as program:
        return float(program.stdout.readline())


def tcp_source(host: Namespace, vip: str, port: int = PORT, timeout: float = 2.0) -> str:
    """Connect from a host and return the source address that the server saw; raises OSError."""
    with host.entered():
        connection = socket.create_connection((vip, port), timeout=timeout)
    with connection, connection.makefile() as lines:
        return lines.readline().split()[0]


def udp_source(host: Namespace, vip: str, port: int = PORT, timeout: float = 2.0) -> str:
    """Send a datagram from a host and return the source address that the server saw; raises OSError."""
    with host.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        sender.settimeout(timeout)
        sender.connect((vip, port))
        sender.send(b"?")
        return sender.recv(100).decode().split()[0]


def together(*questions: Callable[[], T]) -> list[T]:
    """Ask all at once and return the answers, in this order: what is dropped takes until its time is over."""
    with ThreadPoolExecutor(len(questions)) as pool:
        return list(pool.map(lambda question: question(), questions))


def answers(host: Namespace, vip: str) -> bool:
    """Whether a TCP connection from a host through the VIP works now."""
    try:
        return bool(tcp_source(host, vip, timeout=0.5))
    except OSError:
        return False


def pings(host: Namespace, vip: str) -> bool:
    """Whether an ICMP echo from a host to the VIP is answered."""
    return (
        subprocess.run(
            host.command("ping", "-n", "-c", "1", "-W", "1", vip), stdout=subprocess.DEVNULL, check=False
        ).returncode
        == 0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the prober saw: connects tried, failed and slow, longest seconds without a success, and sources seen."""

    tried: int
    failed: int
    slow: int
    longest_gap: float
    sources: list[str]


class Probe:
    """A running prober; a context manager. ``report`` ends it."""

    def __init__(self, host: Namespace, vip: str, *, interval: float = 0.005) -> None:
        self._context = _program(host, "lab.prober", vip, str(PORT), str(interval))

    def __enter__(self) -> Self:
        self._program = self._context.__enter__()
        assert self._program.stdout.readline() == "ready\n"
        return self

    def report(self) -> Report:
        """End the prober and return what it saw."""
        output, _ = self._program.communicate(timeout=30)
        return Report(**json.loads(output))

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(None, None, None)


class Conversations:
    """Open connections on which the client speaks; a context manager. ``survivors`` ends them.

    ``waited`` is for how many seconds one of these had no answer then, at most.
    """

    waited = 0.0

    def __init__(self, host: Namespace, vip: str, number: int, *, chatty: bool = False, patience: float = 20) -> None:
        arguments = [vip, str(PORT), str(number), str(patience), *(["chatty"] if chatty else [])]
        self._context = _program(host, "lab.talker", *arguments)

    def __enter__(self) -> Self:
        self._program = self._context.__enter__()
        assert self._program.stdout.readline() == "ready\n"
        return self

    def survivors(self) -> int:
        """End the conversations and return how many of them lived until then."""
        output, _ = self._program.communicate(timeout=90)
        number, waited = output.split()
        self.waited = float(waited)
        return int(number)

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(None, None, None)


class Speaker:
    """A server that says something when it is told to, and nothing before: what its clients never do.

    It is on TARGET; ``at`` may be another host, with an address and a port of it, which clients reach at ``port``.
    """

    def __init__(self, network: Network, *, at: tuple[Namespace, str, int] | None = None, port: int = SPEAKS) -> None:
        host, *address = at or (network.target, TARGET, SPEAKS)
        self._port = port
        with host.entered():
            self._server = socket.create_server(tuple(address))
        self._accepted: list[socket.socket] = []
        self._clients: list[socket.socket] = []

    def connect(self, host: Namespace, address: str = VIP, sport: int = 0) -> socket.socket:
        """Connect from a host."""
        with host.entered():
            client = socket.create_connection((address, self._port), 20, ("0.0.0.0", sport))  # noqa: S104 - any of its own
        self._clients.append(client)
        self._accepted.append(self._server.accept()[0])
        return client

    def speak(self) -> None:
        """Say something to all."""
        for each in self._accepted:
            each.sendall(b"!")

    def close(self) -> None:
        """Close all ends."""
        for each in (self._server, *self._clients, *self._accepted):
            each.close()


class Flow:
    """Datagrams between a client and a server, after the first of which only the server speaks; a context manager."""

    def __init__(
        self, client: Namespace, server: Namespace, at: tuple[str, int] = (TARGET, SPEAKS), port: int = SPEAKS,
        sport: int = 0,
    ) -> None:  # fmt: skip
        with client.entered():
            self._client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with server.entered():
            self._server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._server.bind(at)
        self._client.bind(("", sport))
        self._client.connect((VIP, port))

    def __enter__(self) -> Self:
        self._server.settimeout(20)
        self._client.send(b"?")
        _, self._back = self._server.recvfrom(10)
        assert self.is_answered()
        return self

    def is_answered(self, within: float = 20.0) -> bool:
        """Whether what the server says now reaches the client, as what it said first."""
        self._client.settimeout(within)
        self._server.sendto(b"!", self._back)
        with suppress(OSError):
            return self._client.recv(10) == b"!"
        return False

    def __exit__(self, *error: object) -> None:
        self._client.close()
        self._server.close()


@contextmanager
def speaker(network: Network) -> Iterator[Speaker]:
    """Have a server that speaks when it is told to."""
    with closing(Speaker(network)) as made:
        yield made


def track(host: Namespace, number: int) -> None:
    """Have a host know so many connections through the VIP, which nobody has."""
    lines = list[str]()
    for each in range(number):
        source = f"10.{each >> 14 & 255}.{each >> 6 & 255}.{1 + (each & 63)}"
        port, sport = PORT + 1000 + each // 50000, 1024 + each % 50000  # of each only one to a port of TARGET
        lines.append(
            f"-A -t 43000 -u SEEN_REPLY,ASSURED -s {source} -d {VIP} -g {TARGET}:{port} -n {VIP}:{sport} -p tcp "
            f"--sport {sport} --dport {port} --reply-port-src {port} --reply-port-dst {sport} --state ESTABLISHED\n"
        )
    host.run("conntrack", "--load-file", "-", stdin="".join(lines))


def hears(client: socket.socket, within: float = 30.0) -> bool:
    """Whether a client hears something, after which it is closed."""
    client.settimeout(within)
    with client, suppress(TimeoutError):
        return client.recv(100) == b"!"
    return False


def send_frame(host: Namespace, to: bytes, packet: bytes) -> None:
    """Send an IPv4 packet, such as it is, from a host's eth0."""
    with host.entered():
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with sender:
        sender.bind(("eth0", 0))
        sender.send(to + sender.getsockname()[4] + b"\x08\x00" + packet)


@contextmanager
def flood(host: Namespace, kind: str, mac: str, number: int, seconds: float) -> Iterator[Any]:
    """Send so many packets from the client (see ``lab.flood``); its stdout is a line when it is over."""
    with _program(host, "lab.flood", kind, mac, str(number), str(seconds)) as program:
        yield program
