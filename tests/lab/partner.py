"""A partner's services behind one address, as a program: HTTPS, Postgres and SMTP with STARTTLS, as far as clients go.

``python -m lab.partner ADDRESS CERTIFICATE``, with the key in the same file. Each of them tells the client, in its own
protocol, the source address that it saw and the server name that TLS asked for: "ADDRESS NAME". Prints "ready" when all
listen.
"""

import socketserver
import ssl
import struct
import sys
import threading
from typing import Any, ClassVar

HTTPS, POSTGRES, SUBMISSION = 443, 5432, 587


class _Service(socketserver.BaseRequestHandler):
    """A connection; what comes by TLS is read from ``self.lines``."""

    context: ClassVar[ssl.SSLContext]

    def secure(self) -> None:
        """Go on by TLS."""
        names: list[str] = []
        self.context.sni_callback = lambda _socket, name, _context: names.append(name or "-")
        self.request = self.context.wrap_socket(self.request, server_side=True)
        self.lines = self.request.makefile("rb")
        self.seen = f"{self.client_address[0]} {''.join(names) or '-'}"

    def say(self, text: str) -> None:
        self.request.sendall(text.encode())


class _Https(_Service):
    def handle(self) -> None:
        self.secure()
        headers = [line.decode().strip() for line in iter(self.lines.readline, b"\r\n")]
        host = next(line.partition(": ")[2] for line in headers if line.lower().startswith("host:"))
        body = f"{self.seen} {host}\n"
        self.say(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}")


def _message(kind: bytes, *parts: bytes) -> bytes:
    """Return a message of the Postgres protocol, version 3."""
    body = b"".join(parts)
    return kind + struct.pack("!I", len(body) + 4) + body


class _Postgres(_Service):
    def handle(self) -> None:
        self.request.recv(8)  # the request for TLS
        self.request.sendall(b"S")
        self.secure()
        self.lines.read(struct.unpack("!I", self.lines.read(4))[0] - 4)  # who wants what
        idle = _message(b"Z", b"I")
        self.request.sendall(_message(b"R", struct.pack("!I", 0)) + idle)
        while kind := self.lines.read(1):
            self.lines.read(struct.unpack("!I", self.lines.read(4))[0] - 4)
            if kind == b"Q":
                column = b"seen\0" + struct.pack("!IHIhih", 0, 0, 25, -1, -1, 0)
                row = struct.pack("!HI", 1, len(self.seen)) + self.seen.encode()
                answer = [
                    _message(b"T", struct.pack("!H", 1), column), _message(b"D", row), _message(b"C", b"SELECT 1\0"),
                ]  # fmt: skip
                self.request.sendall(b"".join(answer) + idle)


class _Submission(_Service):
    def handle(self) -> None:
        self.lines = self.request.makefile("rb")
        self.seen = ""
        self.say("220 ready\r\n")
        while command := self.lines.readline().decode().strip().upper():
            if command == "STARTTLS":
                self.say("220 go on\r\n")
                self.secure()
            elif command.startswith("EHLO"):
                self.say(f"250 {self.seen}\r\n" if self.seen else "250-hello\r\n250 STARTTLS\r\n")
            else:
                self.say("221 bye\r\n" if command == "QUIT" else "250 ok\r\n")


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that goes: that is what some are to do."""


def main(address: str, certificate: str) -> None:
    """Serve all three until the end."""
    for port, kind in ((HTTPS, _Https), (POSTGRES, _Postgres), (SUBMISSION, _Submission)):
        kind.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        kind.context.load_cert_chain(certificate)
        threading.Thread(target=_Server((address, port), kind).serve_forever).start()
    print("ready", flush=True)  # noqa: T201 - the protocol with whoever started this


if __name__ == "__main__":
    main(*sys.argv[1:])
