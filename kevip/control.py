"""What an operator asks of a running daemon, over a socket in the run directory that only root may use.

A question is one message of JSON, the answer another one, when it is known what came of it: a move takes a second.
"""

import json
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from ipaddress import IPv4Address
from math import inf
from pathlib import Path
from time import time
from typing import Any, Literal

from kevip.core.messages import Level, Standby
from kevip.core.states import Instance, Leaving, Traits
from kevip.errors import KevipError
from kevip.loop import Loop

MOVED = 60.0  # seconds for which a host that was told to move comes after its peers
_GRACE = 2.0  # seconds after which nobody takes over any more, besides what an engine may take
_LONGEST = 4096  # bytes of a message
_MANY = 16  # questions at once

Command = Literal["standby", "resume", "move"]


@dataclass(frozen=True, slots=True)
class Question:
    """``seconds`` of standby, None without an end; ``force``: out of the election, even if nobody takes over."""

    command: Command
    seconds: float | None = None
    force: bool = False

    def meant(self, now: float) -> Standby:
        """Return what it means to the core; raises TypeError."""
        if self.command == "resume":
            return Standby(-inf)
        return Standby(inf if self.seconds is None else now + self.seconds, bool(self.force))


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it, for people."""

    ok: bool
    text: str


def place(run_dir: Path, vip: IPv4Address) -> Path:
    """Return where the socket of a VIP's daemon is."""
    return run_dir / f"{vip}.sock"


def ask(path: Path, question: Question, seconds: float) -> Answer:
    """Ask a daemon, and wait for its answer; raises KevipError."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as daemon:
            daemon.settimeout(seconds)
            daemon.connect(str(path))
            daemon.send(json.dumps(asdict(question)).encode())
            if said := daemon.recv(_LONGEST):
                return Answer(**json.loads(said))
    except TimeoutError:
        raise KevipError(f"no answer in {seconds:g} s: kevip status says how it is") from None
    except OSError as error:
        raise KevipError(f"{path}: {error.strerror}: no kevip runs here, or not for you: run this as root") from None
    raise KevipError("kevip ended before it could tell what came of it")


class Memory:
    """The standby of a VIP in the run directory: it outlives a daemon."""

    def __init__(self, run_dir: Path, vip: IPv4Address) -> None:
        self._path = run_dir / f"{vip}.standby"

    def keep(self, standby: Standby, now: float) -> None:
        """Keep a standby, or that there is none; ``now`` is the time on its clock. Raises OSError."""
        if standby.until == -inf:
            self._path.unlink(missing_ok=True)
            return
        draft = self._path.with_suffix(".draft")
        draft.write_text(json.dumps({"until": standby.until - now + time(), "out": standby.out}))
        draft.replace(self._path)

    def recall(self, now: float) -> Standby | None:
        """Return a standby that is not over yet."""
        with suppress(OSError, ValueError, LookupError, TypeError):
            kept = json.loads(self._path.read_text())
            if (left := float(kept["until"]) - time()) > 0:
                return Standby(now + left, bool(kept["out"]))
        return None


@dataclass(slots=True)
class _Asked:
    """A question, when it came, and whether this host served then, and was seen to leave since."""

    question: Question
    at: float
    served: bool
    left: bool = False


class Control:
    """Takes questions, tells the core, and answers when it is known what came of them; that ends with the process."""

    def __init__(self, loop: Loop, path: Path, memory: Memory, log: Any, tell: Callable[[Standby], None]) -> None:
        self._loop, self._path, self._memory, self._log, self._tell = loop, path, memory, log, tell
        self._asked: dict[socket.socket, _Asked | None] = {}
        self._instance = Instance()
        self._names: Mapping[IPv4Address, str] = {}
        self._lasting = Standby(-inf)  # what was asked for last, but for moves: these neither end nor shorten it
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)

    def open(self) -> None:
        """Listen, and go on with the standby that an earlier daemon was told; that it cannot listen is told only."""
        if standby := self._memory.recall(self._loop.now()):
            self._lasting = standby
            self._tell(standby)
        try:
            self._path.unlink(missing_ok=True)
            self._listening.bind(str(self._path))
            self._path.chmod(0o600)
            self._listening.listen(_MANY)
        except OSError as error:
            self._log.warning("control.deaf", path=str(self._path), error=str(error))
        else:
            self._loop.watch(self._listening, self._on_client)

    def _on_client(self) -> None:
        with suppress(OSError):
            client = self._listening.accept()[0]
            if len(self._asked) >= _MANY:
                client.close()
                return
            client.setblocking(False)
            self._asked[client] = None
            self._loop.watch(client, partial(self._on_message, client))

    def _on_message(self, client: socket.socket) -> None:
        now = self._loop.now()
        try:
            question = Question(**json.loads(client.recv(_LONGEST)))
            standby = question.meant(now)
        except (OSError, ValueError, TypeError):  # it is gone, or no kevip
            self._forget(client)
            return
        self._log.warning("operator.asked", **asdict(question))
        self._asked[client] = asked = _Asked(question, now, self._instance.level is Level.HELD)
        if question.command != "move":
            self._lasting = standby
            self._do(standby)
        elif asked.served:
            self._do(max(standby, self._lasting, key=lambda each: each.until))

    def _do(self, standby: Standby) -> None:
        try:
            self._memory.keep(standby, self._loop.now())
        except OSError as error:
            self._log.warning("standby.not_kept", error=str(error))
        self._tell(standby)

    def _forget(self, client: socket.socket) -> None:
        del self._asked[client]
        self._loop.forget(client)
        client.close()

    def follow(self, traits: Traits, instance: Instance, names: Mapping[IPv4Address, str]) -> None:
        """See what became of what was asked, and answer what is known; ``names`` are of other hosts."""
        self._instance, self._names = instance, names
        for client, asked in list(self._asked.items()):
            if not asked or not (answer := self._outcome(asked, traits)):
                continue
            self._log.info("operator.answered", ok=answer.ok, text=answer.text)
            with suppress(OSError):
                client.send(json.dumps(asdict(answer)).encode())
            self._forget(client)
            if asked.question.command == "move" and asked.served and not answer.ok:
                self._do(self._lasting if self._lasting.until > self._loop.now() else Standby(-inf))

    def _outcome(self, asked: _Asked, traits: Traits) -> Answer | None:
        """Say what came of a question; None if that is not known yet."""
        command, instance, seconds = asked.question.command, self._instance, self._loop.now() - asked.at
        if command == "resume":
            return Answer(ok=True, text="not in standby any more")
        if not asked.served:
            text = "in standby" if command == "standby" else "the VIP is not here"
            return Answer(command == "standby", text)
        if instance.level is not Level.HELD:
            heir = instance.peers.master(asked.at)
            who = f"{self._names[heir]} ({heir})" if heir and heir in self._names else heir
            text = f"{who} took over in {seconds:.1f} s" if heir else "no peer took over: nobody holds the VIP now"
            return Answer(bool(heir) or asked.question.force, text)
        if isinstance(instance.state, Leaving):
            asked.left = True
        elif asked.left or seconds > traits.patience + traits.farewell + _GRACE:
            return Answer(ok=False, text="no peer took over: the VIP stays here; --force gives it up")
        return None
