"""How TARGET is asked whether it is well, and asking it."""

import os
import re
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import Literal
from urllib.parse import urlsplit

from kevip.dataplane.rules import Proxy
from kevip.election.packet import checksum

_ECHO, _ECHO_REPLY = b"\x08\0", b"\0"  # ICMP: type and code of what is sent, the type of what comes back
_OK = range(200, 400)
_PORTS = {"http": 80, "https": 443}
_LONGEST_HEAD = 16384
_Place = tuple[str, int] | None  # address and port to ask from, if they matter


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """How TARGET is asked: a TCP connect to a port, an ICMP echo, or a GET of a URL, answered with 2xx or 3xx."""

    kind: Literal["tcp", "icmp", "http"]
    port: int = 0
    url: str = ""

    def __str__(self) -> str:
        return {"tcp": f"tcp:{self.port}", "icmp": "icmp", "http": self.url}[self.kind]


@dataclass(frozen=True, slots=True)
class Asked:
    """A check, and the VIP whose target it asks; without one, that is the group's first."""

    check: Check
    vip: IPv4Address | None = None

    def __str__(self) -> str:
        return f"{self.vip}={self.check}" if self.vip else str(self.check)

    def question(self, proxy: Proxy) -> tuple[Check, IPv4Address | None]:
        """Return what is asked of which target: a port of the VIP may be another one there."""
        way = proxy.route(self.vip or proxy.vip, self.check.port)
        check = replace(self.check, port=way.port) if way and way.port and self.check.port else self.check
        return check, way.target if way else None


def parse_checks(text: str) -> tuple[Asked, ...]:
    """Parse ``[VIP=]CHECK``, of which there may be several, separated by spaces; raises ValueError."""
    return tuple(dict.fromkeys(_parse(word) for word in filter(None, text.split(" ")))) or (_parse(text),)


def _parse(word: str) -> Asked:
    vip, equals, check = word.partition("=")
    if equals and re.fullmatch(r"[0-9.]+", vip):
        return Asked(parse_check(check), IPv4Address(vip))
    return Asked(parse_check(word))


def parse_check(text: str) -> Check:
    """Parse ``tcp:PORT``, ``icmp`` or ``http[s]://HOST[:PORT][/PATH]``; raises ValueError."""
    if text == "icmp":
        return Check(kind="icmp")
    if (found := re.fullmatch(r"tcp:([0-9]{1,5})", text)) and 0 < int(found[1]) <= 0xFFFF:  # noqa: PLR2004 - 16 bits
        return Check(kind="tcp", port=int(found[1]))
    if re.fullmatch(r"https?://[!-~]+", text):
        with suppress(ValueError):
            url = urlsplit(text)
            if url.hostname and url.hostname.encode("idna") and url.port != 0 and "@" not in url.netloc:
                return Check(kind="http", url=text)
    raise ValueError(f"{text!r} is none of tcp:PORT, icmp, http[s]://HOST[:PORT]/PATH")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of asking: the round trip in seconds, or the problem."""

    seconds: float = 0.0
    problem: str = ""


UNANSWERED = Answer(problem="no answer in time")


def ask(check: Check, target: IPv4Address | None, timeout: float, source: IPv4Address | None) -> Answer:
    """Ask once, and wait up to ``timeout`` seconds; ``source`` is the address to ask from, if it matters.

    Resolving a name is not limited by that; an Asker is what limits it.
    """
    begin, here = monotonic(), (str(source), 0) if source else None
    try:
        if check.kind == "http":
            _get(check.url, here, begin + timeout)
        elif check.kind == "tcp":
            socket.create_connection((str(target), check.port), timeout, here).close()
        else:
            _echo(str(target), here, begin + timeout)
    except TimeoutError:
        return UNANSWERED
    except OSError as error:
        told = getattr(error, "verify_message", "")  # of a certificate
        return Answer(problem=told or error.strerror or str(error) or type(error).__name__)
    return Answer(seconds=monotonic() - begin)


def _left(deadline: float) -> float:
    """Return the seconds until then; raises TimeoutError when there are none."""
    if (left := deadline - monotonic()) <= 0:
        raise TimeoutError
    return left


def _get(address: str, here: _Place, deadline: float) -> None:
    """Get a page as far as its head goes; raises OSError: http.client limits each read, and not all of them."""
    url = urlsplit(address)
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    head = b""
    plain = socket.create_connection((url.hostname or "", url.port or _PORTS[url.scheme]), _left(deadline), here)
    with plain, _secured(plain, url.hostname, deadline) if url.scheme == "https" else plain as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: close\r\n\r\n".encode())
        while not re.search(rb"\n\r?\n", head) and len(head) < _LONGEST_HEAD:
            connection.settimeout(_left(deadline))
            if not (more := connection.recv(4096)):
                break
            head += more
    status = re.match(rb"HTTP/1\.[0-9] ([0-9]{3})\b", head)
    if not status:
        raise OSError(None, "no HTTP answer")
    if int(status[1]) not in _OK:
        raise OSError(None, f"HTTP status {int(status[1])}")


def _secured(plain: socket.socket, name: str | None, deadline: float) -> socket.socket:
    """Return a connection by TLS to a host whose certificate the system's trust store vouches for; raises OSError."""
    import ssl  # noqa: PLC0415 - 5 MB, which most do without

    plain.settimeout(_left(deadline))
    return ssl.create_default_context().wrap_socket(plain, server_hostname=name)


def _echo(target: str, here: _Place, deadline: float) -> None:
    """Send an ICMP echo (RFC 792) and wait for its reply; raises OSError."""
    identifier = os.urandom(2)
    rest = identifier + b"\0\1"  # a sequence number
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        if here:
            raw.bind(here)
        raw.connect((target, 0))
        raw.send(_ECHO + checksum(_ECHO + b"\0\0" + rest).to_bytes(2) + rest)
        body = b""
        while body[:1] != _ECHO_REPLY or body[4:6] != identifier:
            raw.settimeout(_left(deadline))
            answer = raw.recv(2048)
            body = answer[(answer[0] & 0xF) * 4 :]


def ask_all(questions: Sequence[Callable[[], Answer]], seconds: float) -> list[Answer]:
    """Ask several at once, each in a thread, and return their answers, or that there was none in so many seconds."""
    answers = [UNANSWERED] * len(questions)
    done: SimpleQueue[tuple[int, Answer]] = SimpleQueue()
    for number, question in enumerate(questions):
        Thread(target=lambda at=number, question=question: done.put((at, question())), daemon=True).start()
    end = monotonic() + seconds
    with suppress(Empty):
        for _ in questions:
            number, answer = done.get(timeout=max(end - monotonic(), 0))
            answers[number] = answer
    return answers


def together(asked: Sequence[Asked], answers: Sequence[Answer], *, any_counts: bool) -> Answer:
    """Return what answers come to: the worst of them, or with ``any_counts`` the best."""
    bad = [f"{each}: {answer.problem}" for each, answer in zip(asked, answers, strict=True) if answer.problem]
    if bad and not (any_counts and len(bad) < len(answers)):
        return Answer(problem=bad[0].partition(": ")[2] if len(answers) == 1 else "; ".join(bad))
    return Answer(seconds=max(each.seconds for each in answers if not each.problem))


class Asker:
    """Asks one question at a time, in a thread, and waits so many seconds for it: resolving a name can only be left.

    While one hangs no other is begun, and each of them counts as unanswered; what it answers in the end is dropped.
    """

    def __init__(self, question: Callable[[IPv4Address | None], Answer], seconds: float) -> None:
        self._question = question
        self._seconds = seconds
        self._idle = threading.Lock()

    def ask(self, source: IPv4Address | None) -> Answer:
        """Return the answer to a question that is asked from an address, or that there was none in time."""
        deadline = monotonic() + self._seconds
        answers: SimpleQueue[Answer] = SimpleQueue()
        try:
            if self._idle.acquire(timeout=self._seconds):
                threading.Thread(target=self._run, args=(source, answers), daemon=True).start()
            return answers.get(timeout=max(deadline - monotonic(), 0))
        except Empty:
            return UNANSWERED
        except RuntimeError as error:  # no thread can be had
            self._idle.release()
            return Answer(problem=str(error))

    def _run(self, source: IPv4Address | None, answers: SimpleQueue[Answer]) -> None:
        try:
            answers.put(self._question(source))
        finally:
            self._idle.release()
