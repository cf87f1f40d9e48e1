"""Gives up capabilities: as a module for this process, as a program for another one: confine.py BIT,BIT… PROGRAM….

setpriv cannot: what takes a capability out of the bounding set needs SETPCAP, which kevip has given up. As a program,
it needs nothing but the standard library, and is started without site-packages.
"""

import ctypes
import os
import struct
import sys
from collections.abc import Iterable

_LIBC = ctypes.CDLL(None, use_errno=True)
_VERSION_3 = 0x20080522  # the interface of capset(2) that has 64 capabilities


def confine(bits: Iterable[int]) -> bool:
    """Keep these capabilities only, and say whether that was done: errno says why it was not.

    With no_new_privs, programs that are run get no others back.
    """
    kept = sum(1 << bit for bit in bits)
    inherited = kept if os.geteuid() else 0  # who is not root passes on the ambient ones, which need this
    header = struct.pack("Ii", _VERSION_3, 0)
    return not _LIBC.capset(header, struct.pack("6I", kept, kept, inherited, 0, 0, 0))


if __name__ == "__main__":
    if not confine(map(int, sys.argv[1].split(","))):
        sys.exit(f"cannot give up privileges: {os.strerror(ctypes.get_errno())}")
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - there is no shell to be had
