"""A name server, as a program: ``python -m lab.resolver FILE``, on 127.0.0.1:53; answers with the addresses in a file.

Each line is a name and its addresses, which are told in another order each time. A name without any has none
(NXDOMAIN), one with "slow" before them waits 3 s, and of one with "silent" nothing is said. It is read anew each time.
"""

import random
import socket
import struct
import sys
import time
from ipaddress import IPv4Address
from pathlib import Path

_NXDOMAIN, _ANSWER = 0x8183, 0x8180  # RFC 1035, 4.1.1


def _answer(query: bytes, known: dict[str, list[str]]) -> bytes | None:
    end, labels = 12, []
    while length := query[end]:
        labels.append(query[end + 1 : end + 1 + length].decode())
        end += 1 + length
    question = query[12 : end + 5]
    kind = struct.unpack("!H", question[-4:-2])[0]
    words = known.get(".".join(labels), [])
    if "silent" in words:
        return None
    if "slow" in words:
        time.sleep(3)
    addresses = [each for each in words if each[0].isdigit()]
    random.shuffle(addresses)
    flags, found = (_ANSWER, addresses if kind == 1 else []) if addresses else (_NXDOMAIN, [])
    records = b"".join(struct.pack("!HHHIH", 0xC00C, 1, 1, 0, 4) + IPv4Address(each).packed for each in found)
    return query[:2] + struct.pack("!HHHHH", flags, 1, len(found), 0, 0) + question + records


def main() -> None:
    """Serve until it is killed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 53))
        print("ready", flush=True)  # noqa: T201 - the protocol with whoever started this
        while True:
            query, client = server.recvfrom(512)
            lines = Path(sys.argv[1]).read_text().splitlines()
            known = {words[0]: words[1:] for line in lines if (words := line.split())}
            if answer := _answer(query, known):
                server.sendto(answer, client)


if __name__ == "__main__":
    main()
