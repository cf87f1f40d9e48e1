"""Netlink: what is asked of the kernel itself, so that no program has to be started for it (netlink(7))."""

import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

REQUEST, ACKNOWLEDGE, DUMP, NESTED = 0x1, 0x4, 0x300, 0x8000

_INTERRUPTED = 0x10
_ERROR, _DONE = 2, 3
_MESSAGE = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_LARGEST = 1 << 16  # bytes of an answer
_PATIENCE = 5.0  # seconds to wait for one


def ask(protocol: int, kind: int, flags: int, body: bytes) -> Iterator[bytes]:
    """Yield what is in each answer of the kernel; raises OSError, InterruptedError if it is not whole.

    An order has no answer but that it was carried out, which ACKNOWLEDGE asks for.
    """
    head = _MESSAGE.pack(_MESSAGE.size + len(body), kind, flags, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as kernel:
        kernel.settimeout(_PATIENCE)
        kernel.send(head + body)
        more = True
        while more:
            for answer, flagged, _, _, content in _parts(_MESSAGE, kernel.recv(_LARGEST)):
                if flagged & _INTERRUPTED:
                    raise InterruptedError
                if answer == _DONE:
                    return
                if answer == _ERROR:
                    if error := -struct.unpack_from("=i", content)[0]:
                        raise OSError(error, os.strerror(error))
                    return
                yield content
            more = bool(flags & DUMP)


def elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and content of each attribute, in their order."""
    for kind, content in _parts(_ATTRIBUTE, data):
        yield kind & ~NESTED, content


def attributes(data: bytes) -> dict[int, bytes]:
    """Return the content of attributes by their type."""
    return dict(elements(data))


def attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_padded(length) - length)


def _parts(head: struct.Struct, data: bytes) -> Iterator[Any]:
    """Yield what is in the heads of messages, or of attributes, behind their length, which comes first, and content."""
    while len(data) >= head.size:
        length, *rest = head.unpack_from(data)
        yield *rest, data[head.size : length]
        data = data[_padded(length) :]


def _padded(length: int) -> int:
    return (length + 3) & ~3
