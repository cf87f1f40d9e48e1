"""The health of TARGET: asked by a thread of its own, for a TARGET that is slow must not hold up the loop."""

import http.client
import os
import re
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Literal
from urllib.parse import urlsplit

from kevip.election.carp import checksum

_ECHO, _ECHO_REPLY = 8, 0
_ICMP = struct.Struct("!BBHHH")
_OK = range(200, 400)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """How TARGET is asked: a TCP connect to a port, an ICMP echo, or a GET of a URL, answered with 2xx or 3xx."""

    kind: Literal["tcp", "icmp", "http"]
    port: int = 0
    url: str = ""

    def __str__(self) -> str:
        return {"tcp": f"tcp:{self.port}", "icmp": "icmp", "http": self.url}[self.kind]


def parse_check(text: str) -> Check:
    """Parse ``tcp:PORT``, ``icmp`` or ``http://HOST[:PORT][/PATH]``; raises ValueError."""
    if text == "icmp":
        return Check(kind="icmp")
    if (found := re.fullmatch(r"tcp:([0-9]{1,5})", text)) and 0 < int(found[1]) <= 0xFFFF:  # noqa: PLR2004 - 16 bits
        return Check(kind="tcp", port=int(found[1]))
    if re.fullmatch(r"http://[!-~]+", text):
        url = urlsplit(text)
        with suppress(ValueError):
            if url.hostname and (url.port is None or url.port > 0) and "@" not in url.netloc:
                return Check(kind="http", url=text)
    raise ValueError(f"{text!r} is none of tcp:PORT, icmp, http://HOST[:PORT]/PATH")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of asking: the round trip in seconds, or the problem."""

    seconds: float = 0.0
    problem: str = ""


def ask(check: Check, target: IPv4Address | None, timeout: float, source: IPv4Address | None) -> Answer:
    """Ask once, and wait up to ``timeout`` seconds; ``source`` is the address to ask from, if it matters."""
    begin = monotonic()
    try:
        if check.kind == "http":
            _get(check.url, source, timeout)
        elif check.kind == "tcp":
            socket.create_connection((str(target), check.port), timeout, _from(source)).close()
        else:
            _echo(str(target), source, begin + timeout)
    except (OSError, http.client.HTTPException, ValueError) as error:  # a ValueError is a name that cannot be
        return Answer(problem=_said(error))
    return Answer(seconds=monotonic() - begin)


def _said(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__


def _from(source: IPv4Address | None) -> tuple[str, int] | None:
    return (str(source), 0) if source else None


def _get(address: str, source: IPv4Address | None, timeout: float) -> None:
    url = urlsplit(address)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=timeout, source_address=_from(source))
    try:
        connection.request("GET", (url.path or "/") + (f"?{url.query}" if url.query else ""))
        status = connection.getresponse().status
    finally:
        connection.close()
    if status not in _OK:
        raise OSError(None, f"HTTP status {status}")


def _echo(target: str, source: IPv4Address | None, deadline: float) -> None:
    """Send an ICMP echo (RFC 792) and wait for its reply; raises OSError."""
    identifier = int.from_bytes(os.urandom(2))
    head = (_ECHO, 0, identifier, 1)
    packet = _ICMP.pack(*head[:2], checksum(_ICMP.pack(*head[:2], 0, *head[2:])), *head[2:])
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        if source:
            raw.bind((str(source), 0))
        raw.connect((target, 0))
        raw.send(packet)
        while (left := deadline - monotonic()) > 0:
            raw.settimeout(left)
            answer = raw.recv(2048)
            body = answer[(answer[0] & 0xF) * 4 :]
            if body[:1] == bytes([_ECHO_REPLY]) and body[4:6] == identifier.to_bytes(2):
                return
    raise TimeoutError


class Judge:
    """Whether TARGET is up: changes its mind after so many failures, or successes, in a row.

    ``known`` says whether there were that many since the beginning, or since there was ``doubt``.
    """

    def __init__(self, *, fall: int, rise: int) -> None:
        self._needed = {False: fall, True: rise}
        self._last, self._in_a_row = True, 0
        self.up = True
        self.known = False

    def doubt(self) -> None:
        """Know nothing: what was asked from another address says nothing of this one. The verdict stays till then."""
        self._in_a_row, self.known = 0, False

    def hear(self, *, success: bool) -> bool:
        """Take a result into account; say whether that changed the verdict."""
        self._in_a_row = self._in_a_row + 1 if success is self._last else 1
        self._last = success
        if self._in_a_row < self._needed[success]:
            return False
        self.known = True
        changed = self.up is not success
        self.up = success
        return changed


class Prober:
    """Asks every ``interval`` seconds, in a thread, until it is closed; readable when there are answers."""

    def __init__(self, question: Callable[[IPv4Address | None], Answer], *, interval: float) -> None:
        self._question = question
        self._interval = interval
        self.source: IPv4Address | None = None
        self._answers: SimpleQueue[tuple[IPv4Address | None, Answer]] = SimpleQueue()
        self._ready = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        due = monotonic()
        while not self._ended.wait(max(due - monotonic(), 0)):
            due = monotonic() + self._interval
            source = self.source
            self._answers.put((source, self._question(source)))
            os.eventfd_write(self._ready, 1)

    def fileno(self) -> int:
        """Return what to select on."""
        return self._ready

    def answers(self) -> list[Answer]:
        """Return the answers since the last call to what was asked from ``source``, as it is now."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._ready)
        answers = []
        with suppress(Empty):
            while True:
                answers.append(self._answers.get_nowait())
        return [answer for source, answer in answers if source == self.source]

    def close(self) -> None:
        """Ask no more; a question that is on its way is not waited for."""
        self._ended.set()
