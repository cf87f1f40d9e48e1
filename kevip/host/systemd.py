"""Telling systemd how the daemon is: the few lines of sd_notify(3) that it takes."""

import os
import socket
from contextlib import suppress


def notify(*assignments: str) -> None:
    """Send assignments (``READY=1``) to the service manager, if there is one.

    It never waits and never fails: a manager that does not listen must not take the VIP along.
    """
    path = os.fsencode(os.environ.get("NOTIFY_SOCKET", ""))
    if not path:
        return
    address = b"\0" + path[1:] if path.startswith(b"@") else path
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as manager:
        manager.sendto("\n".join(assignments).encode(), address)
