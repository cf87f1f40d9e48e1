"""What a leaving master and its heir say to each other, over TCP: who they are, then the connections.

::

    heir                                               leaving master
     │ ◄──────────────── magic, version, its nonce ───── │
     │ ───── magic, version, own nonce, proof ─────────► │  says nothing more to who does not know the password
     │ ◄──────────────── frames: length, text, tag ───── │  an empty one is the last

The key is made of the password by scrypt, so that guessing it from what was overheard costs 50 ms a try. The proof, and
the key of the frames' tags, are HMAC-SHA256 of both nonces under labels of their own: they are worth nothing in another
connection, or in the other direction. A tag covers the number of its frame: none can be left out, repeated or swapped.
The text is not encrypted.
"""

import hashlib
import hmac
import os
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address

VERSION = 1
NONCE = 16  # bytes
TTL = 255  # of an heir's packets: those that come from beyond a router have less (RFC 5082)
PIECE = 1 << 17  # bytes of text that a frame has, about: 700 connections, which a kernel takes in some 15 ms

_MAGIC = b"kevip"
_TAG = hashlib.sha256().digest_size
_LENGTH = 4
_MOST = 2 * PIECE  # bytes of text that are taken, at most

HELLO = len(_MAGIC) + 1 + NONCE
ANSWER = HELLO + _TAG

# Ports below those that a kernel gives to clients (32768) and Kubernetes to Services (30000); nothing that runs on
# hosts of this kind is known to listen there, as rpc.mountd does on 20048.
_FIRST_PORT = 25000

Read = Callable[[int], bytes]  # returns exactly so many bytes; raises EOFError if there will not be so many


class WireError(Exception):
    """The other side is none that we talk to; the message says why in a few words."""


def port(vip_id: int) -> int:
    """Return the TCP port of a group, on the hosts' own addresses, by its id (VHID)."""
    return _FIRST_PORT + vip_id


def derive(password: str, vip: IPv4Address) -> bytes:
    """Return the key of the group of a VIP; takes some 50 ms and 16 MB for that long. Presence has one made of it."""
    salt = f"kevip connections {vip}".encode()
    return hashlib.scrypt(os.fsencode(password), salt=salt, n=1 << 14, r=8, p=1, dklen=_TAG)


def hello(nonce: bytes) -> bytes:
    """Return what each side says first."""
    return _MAGIC + bytes([VERSION]) + nonce


def nonce_in(said: bytes) -> bytes:
    """Return the nonce of a hello; raises WireError."""
    if len(said) < HELLO or not said.startswith(_MAGIC):
        raise WireError("no kevip")
    if said[len(_MAGIC)] != VERSION:
        raise WireError("another version")
    return said[len(_MAGIC) + 1 : HELLO]


class Session:
    """What both sides know of one connection: the nonces of the master and of its heir, and the group's key."""

    def __init__(self, key: bytes, master: bytes, heir: bytes) -> None:
        nonces = bytes([VERSION]) + master + heir
        self.proof = hmac.digest(key, b"heir" + nonces, "sha256")
        self._key = hmac.digest(key, b"connections" + nonces, "sha256")
        self._frames = 0

    def proves(self, proof: bytes) -> bool:
        """Whether the other side knows the key."""
        return hmac.compare_digest(proof, self.proof)

    def seal(self, text: bytes) -> bytes:
        """Return the next frame."""
        return len(text).to_bytes(_LENGTH) + text + self._tag(text)

    def receive(self, read: Read) -> Iterator[bytes]:
        """Yield the text of each frame that is authentic, to the last one; raises WireError, and what ``read`` does."""
        while True:
            length = int.from_bytes(read(_LENGTH))
            if length > _MOST:
                raise WireError("forged")
            text, tag = read(length), read(_TAG)
            if not hmac.compare_digest(tag, self._tag(text)):
                raise WireError("forged")
            if not text:
                return
            yield text

    def _tag(self, text: bytes) -> bytes:
        self._frames += 1
        return hmac.digest(self._key, self._frames.to_bytes(8) + text, "sha256")
