"""What a replica says of itself, as a signed frame: built and parsed, without a socket.

::

    "kevip" | version, 1 byte | run, 8 bytes | number, 8 bytes | what is said, as JSON | tag, 32 bytes

The tag is HMAC-SHA256 over all before it, and nothing is looked at before that is right. Its key is made of the one of
the group, which comes of the password and the VIP by scrypt, under a label with the id. The run is random and the same
from start to end of a daemon, and its frames are numbered: one that was heard before is known.
"""

import hmac
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from ipaddress import IPv4Address
from typing import Any

from kevip.core.messages import Role

VERSION = 1
MOST = 1200  # bytes of a frame: it is in one packet, also in a tunnel
RUN = 8  # bytes

_HEAD = struct.Struct("!5sB8sQ")
_MAGIC = b"kevip"
_TAG = 32
_DIGEST = 4  # bytes of a setting's digest: enough to see that two differ
_NAME, _WORD, _MANY = 64, 24, 32  # the longest name of a host, the longest other word, and the most settings
_EVER = 1e9  # seconds; more than anybody has had a role for


class FrameError(Exception):
    """A packet that is no frame of this group. The message says why, in a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a replica says of itself."""

    source: IPv4Address
    name: str  # of the host
    version: str
    engine: str
    rank: int  # the skew or priority, as the engine understands it
    role: Role = Role.INIT
    since: float = 0.0  # for how many seconds it has had that
    holds: bool = False  # the VIP
    target: bool | None = None  # whether it reaches TARGET, None if it does not know
    copies: bool | None = None  # whether connections are copied there, None if they are not to be
    standby: bool = False
    stopped: bool = False  # it says no more
    settings: Mapping[str, str] = field(default_factory=dict)  # digests of what replicas should have alike, by name


@dataclass(frozen=True, slots=True)
class Frame:
    """What was said in a run of a daemon, and as the how-manieth."""

    run: bytes
    number: int
    said: Said


class Seal:
    """Signs the frames of a group, whose key this is made of, and knows those that others of the group have signed."""

    def __init__(self, key: bytes, vip_id: int) -> None:
        self._key = hmac.digest(key, b"presence" + bytes([VERSION, vip_id]), "sha256")

    def digests(self, settings: Mapping[str, str]) -> dict[str, str]:
        """Return what can be told of settings without telling their values."""
        return {
            name: hmac.digest(self._key, f"{name}={value}".encode(), "sha256")[:_DIGEST].hex()
            for name, value in settings.items()
        }

    def build(self, frame: Frame) -> bytes:
        """Return a frame as it is sent."""
        text = json.dumps(asdict(frame.said), default=str, separators=(",", ":")).encode()
        signed = _HEAD.pack(_MAGIC, VERSION, frame.run, frame.number) + text
        return signed + self._tag(signed)

    def parse(self, data: bytes) -> Frame:
        """Return the frame; raises FrameError and nothing else."""
        if not data.startswith(_MAGIC) or not _HEAD.size + _TAG <= len(data) <= MOST:
            raise FrameError("malformed")
        _, version, run, number = _HEAD.unpack_from(data)
        if version != VERSION:
            raise FrameError("version")
        if not hmac.compare_digest(data[-_TAG:], self._tag(data[:-_TAG])):
            raise FrameError("signature")
        try:
            found = json.loads(data[_HEAD.size : -_TAG])
            known = {each.name: _READ[each.name](found[each.name]) for each in fields(Said)}
        except (AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError):
            raise FrameError("malformed") from None
        return Frame(run, number, Said(**known))

    def _tag(self, signed: bytes) -> bytes:
        return hmac.digest(self._key, signed, "sha256")


def _word(most: int) -> Callable[[Any], str]:
    """Return the reader of a text that a terminal shows as it is."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or len(value) > most or not value.isprintable():
            raise ValueError(value)
        return value

    return read


def _number(kind: type[int | float], most: float) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, (int, kind)) or not 0 <= value <= most:
            raise ValueError(value)
        return kind(value)

    return read


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _maybe(value: Any) -> bool | None:
    return None if value is None else _switch(value)


def _settings(value: Any) -> Mapping[str, str]:
    if len(value) > _MANY:
        raise ValueError(value)
    return {_word(_WORD)(name): _word(_WORD)(digest) for name, digest in value.items()}


# What reads each field, and raises what ``parse`` knows if it is not what it should be.
_READ: dict[str, Callable[[Any], Any]] = {
    "source": lambda value: IPv4Address(_word(_WORD)(value)),
    "name": _word(_NAME),
    "version": _word(_WORD),
    "engine": _word(_WORD),
    "rank": _number(int, 0xFF),
    "role": Role,
    "since": _number(float, _EVER),
    "holds": _switch,
    "target": _maybe,
    "copies": _maybe,
    "standby": _switch,
    "stopped": _switch,
    "settings": _settings,
}
