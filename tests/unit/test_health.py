"""How TARGET is asked, and what is made of its answers."""

import http.server
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv4Address

import pytest

from kevip.health import Answer, Judge, Prober, ask, parse_check

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


def test_an_echo_is_answered() -> None:
    assert ask(parse_check("icmp"), HERE, TIMEOUT, HERE).problem == ""


@pytest.mark.parametrize("name", ["nowhere.invalid", "a..b", "x" * 64])
def test_a_name_that_does_not_resolve_or_cannot_be_is_a_problem(name: str) -> None:
    assert ask(parse_check(f"http://{name}/"), None, TIMEOUT, None).problem


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
