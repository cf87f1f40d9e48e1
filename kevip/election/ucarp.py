"""The ucarp child: how it is called, what it says, and the socket over which its hooks ask for a takeover.

ucarp (facts of version 1.5.2) runs ``vip-up`` or ``vip-down`` and waits for it before it advertises, but discards
its exit status. The hook inherits ucarp's stdin, which is a socket to the daemon: it writes ``up`` or ``down`` with a
token, and waits for the answer with that token. The socket ends with either side, needs no path and no permissions, and
belongs to this one child: a hook left over from an earlier child cannot speak for this one.
"""

import hashlib
import os
import re
import socket
from base64 import urlsafe_b64encode
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address
from typing import BinaryIO

from kevip.election.child import HOOKS, Child

_KEY_LENGTH = 19  # bytes that ucarp takes as a password; with one more it says "Password too long"


class Hook(StrEnum):
    """What a hook asks for."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Request:
    """A hook's request, and the token that tells it from those of earlier hooks."""

    hook: Hook
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidacy:
    """What this host stands for election with. Times as in ucarp(8): seconds, 1/256 s, adverts."""

    vip: IPv4Address
    vip_id: int
    interface: str
    source: IPv4Address
    password: str = field(repr=False)
    advbase: int
    advskew: int
    dead_ratio: int
    preempt: bool
    broadcast: bool
    settling: float = 0.0  # seconds after its start before it preempts

    @property
    def patience(self) -> float:
        """The seconds after which it takes a silent master for dead."""
        return self.advbase * self.dead_ratio + self.advskew / 256


def argv(candidacy: Candidacy, *, password_fd: int) -> list[str]:
    """Return ucarp's command line. It holds no secret: the password is read from a file descriptor."""
    switches = {"--preempt": candidacy.preempt, "--nomcast": candidacy.broadcast}
    return [
        "ucarp", f"--interface={candidacy.interface}", f"--srcip={candidacy.source}",
        f"--vhid={candidacy.vip_id}", f"--addr={candidacy.vip}", f"--passfile=/proc/self/fd/{password_fd}",
        f"--advbase={candidacy.advbase}", f"--advskew={candidacy.advskew}", f"--deadratio={candidacy.dead_ratio}",
        f"--upscript={HOOKS / 'vip-up'}", f"--downscript={HOOKS / 'vip-down'}",
        "--facility=none", "--shutdown", *(switch for switch, wanted in switches.items() if wanted),
    ]  # fmt: skip


def key(password: str) -> bytes:
    """Return what ucarp is given for a password.

    Up to 19 bytes, the password itself, so that plain ucarp peers understand us. What ucarp cannot read (it is
    longer, or has a line break or NUL inside) becomes 19 characters of its SHA-256 in URL-safe base64: 114 bits.
    """
    raw = os.fsencode(password)
    if len(raw) <= _KEY_LENGTH and not set(raw) & set(b"\n\0"):
        return raw
    return urlsafe_b64encode(hashlib.sha256(raw).digest())[:_KEY_LENGTH]


class Message(StrEnum):
    """What a line of ucarp's means."""

    MASTER = "election.master"
    BACKUP = "election.backup"
    HOOK_LOST = "election.hook_lost"
    KNOWN = "ucarp.known"  # what the daemon has heard on the wire itself, or done
    OTHER = "ucarp.message"


_FLOOD = "Bad digest"  # it says so of each such advert
_BEGINNINGS = {
    Message.MASTER: ("Switching to state: MASTER",),
    Message.BACKUP: ("Switching to state: BACKUP",),
    Message.HOOK_LOST: ("Unable to spawn the script", "Unable to exec"),
    Message.KNOWN: (
        _FLOOD, "Non-preferred master advertising", "Preferred master advertised", "Putting MASTER DOWN",
        "Putting MASTER down", "Spawning [", "exiting: pfds",
    ),
}  # fmt: skip


def understand(line: str) -> tuple[Message, str]:
    """Return what a line of ucarp's stderr means, and its text without time and urgency."""
    text = re.sub(r"^\S+: (\[[A-Z]+\] )?", "", line.strip(), count=1)
    return next((each for each, begins in _BEGINNINGS.items() if text.startswith(begins)), Message.OTHER), text


class Ucarp(Child):
    """A running ucarp; ``channel`` carries the hooks' requests."""

    program = "ucarp"
    flood = _FLOOD.encode()

    def __init__(self, candidacy: Candidacy) -> None:
        with ExitStack() as parts, _readable(key(candidacy.password) + b"\n") as password:
            self.channel, hooks_end = socket.socketpair()
            parts.enter_context(self.channel)
            fd = password.fileno()
            with hooks_end:
                super().__init__(argv(candidacy, password_fd=fd), parts, stdin=hooks_end, pass_fds=[fd])

    def requests(self) -> list[Request]:
        """Return what hooks have asked for; each of them waits for an answer."""
        with suppress(OSError):  # a hook was killed while it waited
            lines = self.channel.recv(4096).decode().splitlines()
            return [Request(Hook(hook), token) for hook, token in map(str.split, lines)]
        return []

    def answer(self, request: Request) -> None:
        """Let the hook that waits, and with it ucarp, go on."""
        with suppress(OSError):  # both are gone: that is an event of its own
            self.channel.sendall(f"ok {request.token}\n".encode())


def _readable(content: bytes) -> BinaryIO:
    """Return a pipe to read the content from; nothing of it touches a disk."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(content)
    return os.fdopen(reader, "rb")
