"""The heir's side: fetches a group's connections from the master that leaves. It is never late, and never fails."""

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from time import monotonic

from kevip.errors import KevipError
from kevip.host.command import CommandError
from kevip.sync.entries import Entries, load
from kevip.sync.wire import HELLO, NONCE, TTL, Session, WireError, hello, nonce_in

_USED = 0.9  # of the time that there is, for what runs then has to be ended
_LARGEST = 1 << 16  # bytes that are read at once
# Connections that are loaded at once: few at first, for there may be little time, then more, for it is less work.
_FIRST, _MOST = 500, 8000


@dataclass(slots=True, kw_only=True)
class Pulled:
    """What came of a pull: connections that were loaded, or were here already; ``problem`` is why these are not all.

    ``refused`` were sent by a host of the group, but are none of the group's here: its settings may differ.
    """

    loaded: int = 0
    refused: int = 0
    seconds: float = 0.0
    problem: str = ""


def pull(leaving: tuple[IPv4Address, int], key: bytes, entries: Entries, seconds: float) -> Pulled:
    """Load the connections of the master at an address and port into this kernel, in so many seconds at most.

    They are loaded piece by piece, as they come: those that came in time are here. Raises nothing for what the other
    side does, nor for what this host cannot do.
    """
    begin, pulled = monotonic(), Pulled()
    end = begin + seconds * _USED
    try:
        for lines in _pieces(_texts(leaving, key, end), entries, pulled):
            _load(lines, entries, end)
            pulled.loaded += len(lines)
    except (OSError, EOFError, WireError, KevipError) as error:
        pulled.problem = _problem(error, begun=bool(pulled.loaded or pulled.refused))
    pulled.seconds = monotonic() - begin
    return pulled


def _load(lines: list[bytes], entries: Entries, end: float) -> None:
    """Load lines until then; where ``conntrack`` fails, without those that are here already, if it is for them."""
    while lines:
        try:
            load(lines, end - monotonic())
        except CommandError as error:
            wanted = entries.absent(lines, end - monotonic()) if error.exit_status == 1 else lines
            if len(wanted) == len(lines):
                raise
            lines = wanted
        else:
            return


def _pieces(texts: Iterator[bytes], entries: Entries, pulled: Pulled) -> Iterator[list[bytes]]:
    """Yield what is to be loaded, some at a time, also what had come when the other side was gone."""
    waiting, enough = list[bytes](), _FIRST
    try:
        for text in texts:
            lines = entries.loadable(text)
            waiting += lines
            pulled.refused += text.count(b"\n") - len(lines)
            if len(waiting) >= enough:
                yield waiting
                waiting, enough = [], min(2 * enough, _MOST)
    except EOFError:
        if waiting:
            yield waiting
        raise
    if waiting:
        yield waiting


def _texts(leaving: tuple[IPv4Address, int], key: bytes, end: float) -> Iterator[bytes]:
    address, port = leaving
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, TTL)
        connection.settimeout(max(end - monotonic(), 0.001))
        connection.connect((str(address), port))

        def read(length: int) -> bytes:
            data = bytearray()
            while len(data) < length:
                connection.settimeout(max(end - monotonic(), 0.001))
                more = connection.recv(min(length - len(data), _LARGEST))
                if not more:
                    raise EOFError
                data += more
            return bytes(data)

        theirs, own = nonce_in(read(HELLO)), os.urandom(NONCE)
        session = Session(key, theirs, own)
        connection.sendall(hello(own) + session.proof)
        yield from session.receive(read)


def _problem(error: Exception, *, begun: bool) -> str:
    match error:
        case CommandError(exit_status=None):
            return "not all in time"
        case TimeoutError():
            return "not all in time" if begun else "no answer in time"
        case ConnectionRefusedError():
            return "it offers none"
        case EOFError() | ConnectionError():
            return "cut off" if begun else "refused: it has another password, or too much to do"
        case OSError():
            return error.strerror or str(error)
        case _:
            return str(error)
