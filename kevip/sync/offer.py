"""The leaving master's side: hands the group's connections to who knows the password, while it is open."""

import os
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address
from threading import Thread

from kevip.core.messages import Pulled, Served
from kevip.election.engine import Tell
from kevip.errors import HostError, KevipError
from kevip.host.command import Scope
from kevip.log import logger
from kevip.loop import Loop
from kevip.sync.entries import Entries
from kevip.sync.wire import ANSWER, HELLO, NONCE, PIECE, TTL, Session, WireError, hello, nonce_in

# Connections that have proved nothing yet, at most: the oldest goes for a new one, for an heir answers at once. So one
# who says nothing, or little by little, takes nothing from others.
_STRANGERS = 256
_IP_MINTTL = 21  # linux/in.h; holds for those that are accepted, too
_HEIRS = 2  # that are served at a time
_PATIENCE = 10.0  # seconds that one is served


@dataclass(slots=True)
class _Stranger:
    """What one was told, and has said."""

    nonce: bytes = field(default_factory=lambda: os.urandom(NONCE))
    said: bytes = b""


class Offer:
    """Listens until it is closed; tells for each heir that it is pulled from, then that all heirs are served.

    The first is when an heir has proved that it knows the password, before it is sent anything. The loop hears
    strangers, which is little work for each of them; an heir is served in a thread. Raises HostError if it cannot
    listen.
    """

    def __init__(self, loop: Loop, at: tuple[IPv4Address, int], key: bytes, entries: Entries, tell: Tell) -> None:
        self._loop, self._key, self._entries, self._tell = loop, key, entries, tell
        self._strangers: dict[socket.socket, _Stranger] = {}
        self._heirs: dict[socket.socket, Thread] = {}
        self.refused = 0
        """How many said something else than an heir does."""
        self._listener = _listen(*at)
        loop.watch(self._listener, self._let_in)

    @property
    def is_busy(self) -> bool:
        """Whether an heir is served, which goes on when this is closed."""
        return any(each.is_alive() for each in self._heirs.values())

    def close(self) -> None:
        """Listen no more, and tell nothing more. An heir that is served already is sent the rest."""
        self._loop.forget(self._listener)
        self._listener.close()
        for ended in self._heirs:
            self._loop.forget(ended)
            ended.close()
        for each in list(self._strangers):
            self._part(each).close()

    def _let_in(self) -> None:
        with suppress(OSError):  # it has gone already
            each, _ = self._listener.accept()
            each.setblocking(False)
            self._strangers[each] = stranger = _Stranger()
            self._loop.watch(each, partial(self._hear, each))
            each.send(hello(stranger.nonce))
        if len(self._strangers) > _STRANGERS:
            self._part(next(iter(self._strangers))).close()

    def _part(self, each: socket.socket) -> socket.socket:
        del self._strangers[each]
        self._loop.forget(each)
        return each

    def _hear(self, each: socket.socket) -> None:
        stranger = self._strangers[each]
        more = b""
        with suppress(OSError):
            more = each.recv(ANSWER - len(stranger.said))
        stranger.said += more
        if more and len(stranger.said) < ANSWER:
            return
        self._part(each)
        session = self._session(stranger)
        if not session or len(self._heirs) == _HEIRS:
            each.close()
            return
        self._tell(Pulled())
        ended, end = socket.socketpair()
        self._heirs[ended] = thread = Thread(target=self._serve, args=(each, session, end), name="offer", daemon=True)
        self._loop.watch(ended, partial(self._served, ended))
        thread.start()

    def _served(self, ended: socket.socket) -> None:
        del self._heirs[ended]
        self._loop.forget(ended)
        ended.close()
        if not self._heirs:
            self._tell(Served())

    def _session(self, stranger: _Stranger) -> Session | None:
        """Return the session with an heir, None for others."""
        with suppress(WireError):
            session = Session(self._key, stranger.nonce, nonce_in(stranger.said))
            if session.proves(stranger.said[HELLO:]):
                return session
        self.refused += bool(stranger.said)
        return None

    def _serve(self, heir: socket.socket, session: Session, end: socket.socket) -> None:
        heir.settimeout(_PATIENCE)
        try:
            with end, heir, Scope(_PATIENCE):
                for text in self._entries.dump(PIECE):
                    if text:
                        heir.sendall(session.seal(text))
                heir.sendall(session.seal(b""))
        except (OSError, KevipError) as error:  # it has all that it had time for, say; it knows that this is not all
            logger().debug("sync.cut_off", error=str(error))


def _listen(address: IPv4Address, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, TTL)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(address), port))
        listener.listen(_STRANGERS)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise HostError(f"cannot listen on {address}:{port}: {error.strerror or error}") from None
    return listener
