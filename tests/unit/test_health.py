"""How TARGET is asked, and what is made of its answers."""

import http.server
import os
import select
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import NoReturn

import pytest

from kevip.health.ask import Answer, Asker, ask, parse_check
from kevip.health.prober import Judge, Prober

HERE = IPv4Address("127.0.0.1")
TIMEOUT = 5.0


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(int(self.path[1:4]))
        self.send_header("X-Client", self.client_address[0])
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def page() -> Iterator[int]:
    """Serve HTTP on a port; a path of three digits is the status."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "problem"), [(200, ""), (302, ""), (404, "HTTP status 404"), (503, "HTTP status 503")]
)
def test_a_page_is_well_by_its_status(page: int, status: int, problem: str) -> None:
    answer = ask(parse_check(f"http://127.0.0.1:{page}/{status}"), None, TIMEOUT, None)
    assert (answer.problem, answer.seconds > 0) == (problem, not problem)


def test_a_port_that_listens_is_well_and_one_that_does_not_is_not(page: int) -> None:
    assert ask(parse_check(f"tcp:{page}"), HERE, TIMEOUT, IPv4Address("127.0.0.2")).problem == ""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    assert ask(parse_check(f"tcp:{port}"), HERE, TIMEOUT, None).problem == "Connection refused"


def test_a_page_that_does_not_come_is_waited_for_until_the_time_is_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        answer = ask(parse_check(f"http://127.0.0.1:{mute.getsockname()[1]}/"), None, 0.1, None)
    assert answer.problem == "no answer in time"


@pytest.fixture(params=[b"", b"HTTP/1.1 200 OK\r\nX: "], ids=["status", "header"])
def dripping(request: pytest.FixtureRequest) -> Iterator[int]:
    """Serve, on a port, an answer of which one byte comes every 50 ms, from its beginning or from a header on."""

    def drip(server: socket.socket) -> None:
        with server.accept()[0] as connection, suppress(OSError):
            connection.sendall(request.param)
            for byte in b"HTTP/1.1 200 OK\r\n" * 2:
                time.sleep(0.05)
                connection.sendall(bytes([byte]))

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def test_a_page_that_drips_is_waited_for_no_longer(dripping: int) -> None:
    answer = ask(parse_check(f"http://127.0.0.1:{dripping}/"), None, 0.3, None)
    assert answer == Answer(problem="no answer in time")


@pytest.mark.parametrize(("sent", "problem"), [
    (b"HTTP/1.0 200 OK\n\n", ""),
    (b"HTTP/1.1 204\r\n", ""),
    (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000, ""),
    (b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", ""),
    (b"HTTP/1.1 099 ?\r\n\r\n", "HTTP status 99"),
    (b"HTTP/2 200\r\n\r\n", "no HTTP answer"),
    (b"SSH-2.0-OpenSSH\r\n\r\n", "no HTTP answer"),
    (b"", "no HTTP answer"),
])  # fmt: skip
def test_an_answer_is_read_as_far_as_its_head_goes(sent: bytes, problem: str) -> None:
    requests = []

    def answer(server: socket.socket) -> None:
        with server.accept()[0] as connection:
            requests.append(connection.recv(4096).decode())
            with suppress(OSError):
                connection.sendall(sent)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        port = server.getsockname()[1]
        assert ask(parse_check(f"http://127.0.0.1:{port}?a=b#c"), None, TIMEOUT, None).problem == problem
        thread.join()
    assert requests == [f"GET /?a=b HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a certificate for localhost, with its key."""
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    subject = ["-addext", "subjectAltName=DNS:localhost", "-keyout", f"{path}.key", "-out", str(path)]
    subprocess.run([*made.split(), *subject], check=True, capture_output=True)
    return path


@pytest.mark.parametrize(("name", "trusted", "problem"), [
    ("localhost", True, ""), ("localhost", False, "self-signed certificate"),
    ("127.0.0.1", True, "IP address mismatch, certificate is not valid for '127.0.0.1'."),
])  # fmt: skip
def test_a_page_by_tls_is_well_if_the_system_trusts_its_certificate(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, name: str, trusted: bool, problem: str
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate) if trusted else os.devnull)
    monkeypatch.setenv("SSL_CERT_DIR", os.devnull)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, f"{certificate}.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        answer = ask(parse_check(f"https://{name}:{server.server_port}/204"), None, TIMEOUT, None)
        server.shutdown()
        thread.join()
    assert (answer.problem, answer.seconds > 0) == (problem, not problem)


def test_a_page_by_tls_that_does_not_shake_hands_is_waited_for_until_the_time_is_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        answer = ask(parse_check(f"https://127.0.0.1:{mute.getsockname()[1]}/"), None, 0.1, None)
    assert answer.problem == "no answer in time"


def test_a_page_by_tls_that_speaks_plainly_is_not_well(page: int) -> None:
    assert "wrong version number" in ask(parse_check(f"https://127.0.0.1:{page}/200"), None, TIMEOUT, None).problem


def test_an_echo_is_answered() -> None:
    assert ask(parse_check("icmp"), HERE, TIMEOUT, HERE).problem == ""


def test_a_name_that_does_not_resolve_is_a_problem() -> None:
    assert ask(parse_check("http://nowhere.invalid/"), None, TIMEOUT, None).problem


def test_a_name_that_is_not_resolved_in_time_leaves_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = threading.Event()

    def resolve(*_: object) -> NoReturn:
        resolved.wait()
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    before = threading.active_count()
    asker = Asker(partial(ask, parse_check("http://name/"), None, 0.05), 0.05)
    assert [asker.ask(None).problem for _ in range(5)] == ["no answer in time"] * 5
    assert threading.active_count() == before + 1
    resolved.set()


def test_a_verdict_is_known_once_there_are_as_many_results_as_it_takes() -> None:
    judge = Judge(fall=2, rise=1)
    judge.hear(success=False)
    assert (judge.up, judge.known) == (True, False)
    judge.hear(success=False)
    assert (judge.up, judge.known) == (False, True)
    judge.doubt()
    judge.hear(success=False)
    assert (judge.up, judge.known) == (False, False)
    assert judge.hear(success=True)
    assert (judge.up, judge.known) == (True, True)


@pytest.mark.parametrize(("results", "verdicts"), [
    ("++-+--+--+", "++++++++++"),
    ("---", "++-"),
    ("---+-++", "++----+"),
    ("---++---", "++--+++-"),
])  # fmt: skip
def test_a_verdict_changes_after_so_many_results_in_a_row(results: str, verdicts: str) -> None:
    judge = Judge(fall=3, rise=2)
    seen = ""
    for result in results:
        judge.hear(success=result == "+")
        seen += "+" if judge.up else "-"
    assert seen == verdicts


def test_a_prober_asks_again_and_again_from_where_it_is_told() -> None:
    sources = []

    def question(source: IPv4Address | None) -> Answer:
        sources.append(source)
        return Answer(seconds=1.0)

    with closing(Prober(question, interval=0.01)) as prober:
        heard: list[Answer] = []
        while len(heard) < 5:
            assert select.select([prober], [], [], TIMEOUT)[0]
            heard += prober.answers()
            prober.source = HERE
    assert heard[0] == Answer(seconds=1.0)
    assert (sources[0], sources[-1]) == (None, HERE)


def test_a_question_that_hangs_is_told_and_its_late_answer_dropped() -> None:
    asked, released, heard = [], threading.Event(), list[Answer]()

    def question(source: IPv4Address | None) -> Answer:
        asked.append(source)
        if len(asked) == 1:
            released.wait()
            return Answer(problem="late")
        return Answer(seconds=1.0)

    def hear(prober: Prober, wanted: Callable[[Answer], object]) -> None:
        while not any(map(wanted, heard)):
            assert select.select([prober], [], [], TIMEOUT)[0]
            heard.extend(prober.answers())

    with closing(Prober(question, interval=0.01, patience=0.1)) as prober:
        hear(prober, lambda _: len(heard) >= 3)
        assert len(asked) == 1
        released.set()
        hear(prober, lambda answer: answer.seconds)
    assert {answer.problem for answer in heard} == {"no answer in time", ""}
