"""Metrics over HTTP, for Prometheus, and two probes: a thread of its own reads, and never makes the loop wait."""

import socket
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from itertools import accumulate
from pathlib import Path
from socketserver import ThreadingTCPServer
from threading import Lock, Thread, active_count
from time import monotonic
from typing import Any

from prometheus_client import CollectorRegistry, MetricsHandler
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from kevip.config import Endpoint
from kevip.election.carp import FLAWS
from kevip.errors import HostError, KevipError
from kevip.facts import Facts, Look
from kevip.host.firewall import Iptables
from kevip.log import logger
from kevip.record import BUCKETS, VERSION, Durations, Record, Role
from kevip.runtime import HANGS, Report
from kevip.service import KINDS
from kevip.verdict import Verdict, verdict

_SHARED = 1.0
"""Seconds for which a look at the host serves all that ask: it starts three programs."""

_MANY = 16
"""Threads, and peers that are shown: whoever can send on the network can make up any number of either."""

_PATIENCE = 5.0
"""Seconds that a client may be silent."""

_PARTS = ("dnat", "snat", "forward", "guard", "refuse")
"""The parts of the rules that are shown as 0 where there are none, as on a backup."""


class Exporter(Collector):
    """Makes metrics of what a daemon has seen and done, and of what is on its host when it is asked."""

    def __init__(self, record: Record, iptables: Iptables) -> None:
        self._record = record
        self._iptables = iptables
        self._lock = Lock()
        self._facts: Facts | None = None
        self._looked = -_SHARED

    def alive(self) -> bool:
        """Whether the daemon's loop turns."""
        return monotonic() - self._record.turned < HANGS

    def ready(self) -> Verdict:
        """Whether this host takes part in the election, and all fits together."""
        facts = self._look()
        if not facts:
            return Verdict(ok=False, text="this host's addresses cannot be listed")
        if self._record.role not in {Role.MASTER, Role.BACKUP}:
            return Verdict(ok=False, text=f"not in the election: {self._record.reason}")
        return verdict(facts)

    def _look(self) -> Facts | None:
        """Look at the host, unless that was done just now; None if it cannot be."""
        with self._lock:
            if monotonic() - self._looked >= _SHARED:
                self._looked = monotonic()
                try:
                    look = Look(Path(), [self._iptables])
                    self._facts = look.at(self._record.vip, self._report())
                except KevipError as error:
                    logger().debug("metrics.incomplete", error=str(error))
                    self._facts = None
            return self._facts

    def _report(self) -> Report:
        silent = timedelta(seconds=monotonic() - self._record.turned)
        return Report.parse(self._record.as_json(), datetime.now(UTC) - silent)

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics. What this reads while the loop writes it is copied in one step, or a single value."""
        for family in (*self._of_election(), *self._of_daemon(), *self._of_peers(), *self._of_host()):
            for sample in family.samples:
                sample.labels["vip"] = str(self._record.vip)
            yield family

    def _of_election(self) -> Iterator[Metric]:
        record = self._record
        role = record.role
        yield _gauge("role", "The part that this host has in the election: 1 for one of them.", "role",
                     {each: each is role for each in Role})  # fmt: skip
        transitions = CounterMetricFamily(
            "kevip_transitions", "Changes to a role, by reason.", labels=["role", "reason"]
        )
        for (entered, reason), number in dict(record.transitions).items():
            transitions.add_metric([entered, reason.name.lower()], number)
        yield transitions
        yield _histogram(
            "takeover_duration_seconds", "From the hook of ucarp to rules and address in place.", record.takeovers
        )
        yield _histogram(
            "handover_duration_seconds", "From the goodbye until another host was heard as master.", record.handovers
        )

    def _of_daemon(self) -> Iterator[Metric]:
        record = self._record
        yield _gauge("build_info", "The version that runs.", "version", {VERSION: 1})
        yield _gauge("start_time_seconds", "When it started (Unix time).", value=record.started.timestamp())
        turned = datetime.now(UTC).timestamp() - (monotonic() - record.turned)
        yield _gauge("loop_turn_timestamp_seconds", "When its loop last turned (Unix time).", value=turned)
        yield _counter("ucarp_starts", "How often it has started ucarp.", value=record.ucarp_starts)
        yield _counter("drift_repairs", "What others changed and it repaired, by kind.", "kind",
                       dict.fromkeys(KINDS, 0) | dict(record.repairs))  # fmt: skip
        yield _counter("bad_adverts", "Adverts heard that are damaged, forged or of others.", "reason",
                       dict.fromkeys(FLAWS, 0) | dict(record.bad_adverts))  # fmt: skip

    def _of_peers(self) -> Iterator[Metric]:
        latest = sorted(self._record.peers.items(), key=lambda each: each[1], reverse=True)
        yield _gauge("peers", "Other hosts heard as master that have not said goodbye since.", value=len(latest))
        yield _gauge("peer_last_advert_timestamp_seconds", f"When each of the last {_MANY} advertised (Unix time).",
                     "peer", {str(peer): heard.timestamp() for peer, heard in latest[:_MANY]})  # fmt: skip

    def _of_host(self) -> Iterator[Metric]:
        facts = self._look()
        if not facts:
            return
        yield _gauge("address_present", "Whether kevip has the VIP on this host.", value=bool(facts.leased))
        if not facts.flaws:
            yield from _of_rules(facts)
        if facts.connections is not None:
            yield _gauge("conntrack_entries", "Connections to the VIP that are tracked.", value=facts.connections)
        if facts.report and (health := facts.report.health):
            yield _gauge("target_up", "Whether TARGET passes its check.", value=health.up)
            if health.round_trip_ms is not None:
                trip = health.round_trip_ms / 1000
                yield _gauge("target_round_trip_seconds", "How long TARGET took to answer.", value=trip)


def _of_rules(facts: Facts) -> Iterator[Metric]:
    counters = dict.fromkeys(_PARTS, (0, 0)) | facts.counters()
    yield _counter(
        "rule_packets",
        "Packets that rules matched since these are there. dnat, snat: the first of each connection; "
        "forward: all that is forwarded, in both directions; guard: dropped; refuse: sent to other ports.",
        "rule",
        {part: packets for part, (packets, _) in counters.items()},
    )
    yield _counter("rule_bytes", "Bytes of the packets that rules matched.", "rule",
                   {part: octets for part, (_, octets) in counters.items()})  # fmt: skip


def _gauge(
    name: str, text: str, label: str | None = None, values: Mapping[str, float] | None = None, *, value: float = 0
) -> Metric:
    return _fill(GaugeMetricFamily(f"kevip_{name}", text, labels=[label] if label else []), values, value)


def _counter(
    name: str, text: str, label: str | None = None, values: Mapping[str, float] | None = None, *, value: float = 0
) -> Metric:
    return _fill(CounterMetricFamily(f"kevip_{name}", text, labels=[label] if label else []), values, value)


def _fill(family: Any, values: Mapping[str, float] | None, value: float) -> Metric:
    if values is None:
        family.add_metric([], value)
    else:
        for each, number in values.items():
            family.add_metric([each], number)
    metric: Metric = family
    return metric


def _histogram(name: str, text: str, durations: Durations) -> Metric:
    bounds = [*map(str, BUCKETS), "+Inf"]
    buckets = list(zip(bounds, accumulate(tuple(durations.counts)), strict=True))
    return HistogramMetricFamily(f"kevip_{name}", text, buckets=buckets, sum_value=durations.seconds)


class _Handler(MetricsHandler):
    """Answers /metrics, /healthz and /readyz."""

    timeout = _PATIENCE
    exporter: Exporter

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
        """Answer."""
        match self.path.partition("?")[0]:
            case "/metrics":
                super().do_GET()
            case "/healthz":
                alive = self.exporter.alive()
                self._say(Verdict(alive, "the loop turns" if alive else f"the loop has not turned for {HANGS:g} s"))
            case "/readyz":
                self._say(self.exporter.ready())
            case _:
                self.send_error(HTTPStatus.NOT_FOUND, "there are /metrics, /healthz and /readyz")

    def _say(self, said: Verdict) -> None:
        self.send_response(HTTPStatus.OK if said.ok else HTTPStatus.SERVICE_UNAVAILABLE)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.end_headers()
        self.wfile.write(f"{said}\n".encode())


class _Server(ThreadingTCPServer):
    """One thread for each request, up to a limit; all of them end with the process."""

    allow_reuse_address = True
    daemon_threads = True

    def verify_request(self, request: Any, client_address: Any) -> bool:
        del request, client_address
        return active_count() < _MANY

    def handle_error(self, request: Any, client_address: Any) -> None:
        del request
        error = sys.exception()
        if not isinstance(error, OSError):  # a client that is gone is no news
            logger().warning("metrics.failed", client=str(client_address[0]), error=repr(error))


def serve(endpoint: Endpoint, exporter: Exporter) -> None:
    """Serve from now on, to the end of the process; raises HostError if nothing can listen there."""
    registry = CollectorRegistry()
    registry.register(exporter)
    handler = type("Handler", (_Handler,), {"registry": registry, "exporter": exporter})
    family = socket.AF_INET6 if endpoint.host.version == 6 else socket.AF_INET  # noqa: PLR2004
    server = type("Server", (_Server,), {"address_family": family})
    try:
        listening = server((str(endpoint.host), endpoint.port), handler)
    except OSError as error:
        raise HostError(
            f"--metrics (METRICS): cannot listen on {endpoint}: {error.strerror}: take another port or address"
        ) from None
    Thread(target=listening.serve_forever, kwargs={"poll_interval": 3600.0}, daemon=True, name="metrics").start()
