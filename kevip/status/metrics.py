"""Metrics over HTTP, for Prometheus, and two probes: a thread of its own reads, and never makes the loop wait."""

import socket
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from io import BufferedReader, RawIOBase
from ipaddress import IPv4Address, IPv6Address
from itertools import accumulate
from pathlib import Path
from socketserver import ThreadingTCPServer
from threading import Lock, Thread, active_count
from time import monotonic, time
from typing import Any

from prometheus_client import CollectorRegistry, MetricsHandler, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from kevip.config import Endpoint
from kevip.core.messages import Role
from kevip.dataplane import conntrack
from kevip.dataplane.conntrack import SOURCE_PORTS
from kevip.dataplane.survey import Kind
from kevip.election.packet import FLAWS
from kevip.errors import HostError, KevipError
from kevip.host import interface
from kevip.log import logger
from kevip.loop import Moment
from kevip.status.observe import Facts, Look
from kevip.status.record import BUCKETS, HANGS, PROSE, VERSION, Durations, Record
from kevip.status.verdict import Verdict, verdict
from kevip.sync.replication import Copies

_SHARED = 1.0  # seconds for which a look at the host serves all that ask: it starts three programs
_MANY = 16  # threads, peers and ports that are shown: whoever can send on the network can make up any number of them
_PATIENCE = 5.0  # seconds that a client has to ask, and then to take what it is sent
_PARTS = ("dnat", "snat", "forward", "guard", "refuse", "shield")  # of the rules, shown as 0 where there are none


class Exporter(Collector):
    """Makes metrics of what a daemon has seen and done, and of what is on its host when it is asked."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._lock = Lock()
        self._facts: Facts | None = None
        self._looked = -_SHARED
        self._survey = conntrack.Survey()

    def alive(self) -> bool:
        """Whether the daemon's loop turns."""
        return monotonic() - self._record.turned < HANGS

    def ready(self) -> Verdict:
        """Whether this host takes part in the election, and all fits together."""
        facts = self._look()
        if not facts:
            return Verdict(ok=False, text="this host's addresses cannot be listed")
        if self._record.role not in {Role.MASTER, Role.BACKUP}:
            return Verdict(ok=False, text=f"not in the election: {PROSE[self._record.reason]}")
        # No other host need be better off, nor be there.
        return verdict(replace(facts, foreign=(), served=None), group=False)

    def _look(self) -> Facts | None:
        """Look at the host, unless that was done just now; None if it cannot be."""
        with self._lock:
            if monotonic() - self._looked >= _SHARED:
                self._looked, self._facts = monotonic(), None
                try:
                    look = Look(Path(), [self._record.dataplane], self._survey)
                    self._facts = look.of(self._record.vip, self._record.snapshot(), monotonic())
                except KevipError as error:
                    logger().debug("metrics.incomplete", error=str(error))
            return self._facts

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        for family in (*_of_daemon(self._record.snapshot()), *_of_host(self._look())):
            for sample in family.samples:
                sample.labels.setdefault("vip", str(self._record.vip))
            yield family


_Family = type[GaugeMetricFamily | CounterMetricFamily]
_Values = Mapping[Any, float] | float


def _metric(kind: _Family, name: str, text: str, values: _Values, *labels: str) -> Metric:
    """Return a metric with one value, or with one for each value of a label, or of several."""
    family = kind(f"kevip_{name}", text, labels=labels)
    for each, number in values.items() if isinstance(values, Mapping) else [((), values)]:
        family.add_metric([each] if isinstance(each, str) else each, number)
    return family


_gauge, _counter = partial(_metric, GaugeMetricFamily), partial(_metric, CounterMetricFamily)


def _histogram(name: str, text: str, durations: Durations) -> Metric:
    bounds = [*map(str, BUCKETS), "+Inf"]
    buckets = list(zip(bounds, accumulate(tuple(durations.counts)), strict=True))
    return HistogramMetricFamily(f"kevip_{name}_duration_seconds", text, buckets=buckets, sum_value=durations.seconds)


def _of_daemon(record: Record) -> Iterator[Metric]:
    roles = {each.value: each is record.role for each in Role}
    yield _gauge("role", "The part that this host has in the election: 1 for one of them.", roles, "role")
    entered = {(role, reason): times for role, each in record.entered.items() for reason, times in dict(each).items()}
    yield _counter("transitions", "Changes to a role, by reason.", entered, "role", "reason")
    yield _gauge("standby", "Whether an operator wants it to come after its peers.", bool(record.standby))
    yield _histogram("takeover", "From being elected to rules and address in place.", record.takeovers)
    yield _histogram("handover", "From the goodbye until another host was heard as master.", record.handovers)
    yield _gauge("build_info", "The version that runs.", {VERSION: 1}, "version")
    yield _gauge("start_time_seconds", "When it started (Unix time).", _date(record.started))
    yield _gauge("loop_turn_timestamp_seconds", "When its loop last turned (Unix time).", _date(record.turned))
    yield _counter("engine_starts", "How often it has started what elects, ucarp or keepalived.", record.engine_starts)
    yield _counter("notify_failures", "Runs of --notify that failed, or took too long.", record.notify_failures)
    repairs = dict.fromkeys(Kind, 0) | record.repairs
    yield _counter("drift_repairs", "What others changed and it repaired, by kind.", repairs, "kind")
    bad = dict.fromkeys(FLAWS, 0) | record.bad_adverts
    yield _counter("bad_adverts", "Adverts heard that are damaged, forged or of others.", bad, "reason")
    yield _gauge("peers", "Other hosts heard as master that have not said goodbye since.", len(record.peers))
    yield from _of_group(record)
    resolved = {name: _date(each.resolved) for name, each in record.names.items()}
    text = "When the name of a target was resolved last (Unix time)."
    yield _gauge("name_resolved_timestamp_seconds", text, resolved, "name")
    heard = {str(peer): _date(moment) for peer, moment in record.latest_peers(_MANY)}
    name = "peer_last_advert_timestamp_seconds"
    yield _gauge(name, f"When each of the last {_MANY} advertised (Unix time).", heard, "peer")
    if record.sync:
        yield from _of_sync(record.sync)


def _of_sync(sync: Copies) -> Iterator[Metric]:
    yield _gauge("sync_running", "Whether conntrackd runs, by this kevip or another one here.", sync.is_well)
    yield _counter("sync_starts", "How often this kevip has started it.", sync.starts)
    yield _gauge("sync_connections", "Connections of this host that it copies to others.", sync.sent_on)
    yield _counter("sync_written", "Connections of others that it has written here since it runs.", sync.written)
    yield _counter("sync_failed", "Those that the kernel did not take.", sync.failed)
    yield _counter("sync_packets", "Packets that it has heard since it runs.", sync.heard)
    text = "When what it copies was last compared with the kernel (Unix time)."
    yield _gauge("sync_resync_timestamp_seconds", text, _date(sync.resynced))


def _of_group(record: Record) -> Iterator[Metric]:
    here = [each for each in record.members.values() if each.is_here(monotonic())]
    roles = dict.fromkeys(map(str, Role), 0) | Counter(map(str, [record.role, *(each.role for each in here)]))
    yield _gauge("group_members", "Replicas that are heard, this one too, by role.", roles, "role")
    text = "Replicas that there should be: EXPECT, or 2 once another one was heard."
    yield _gauge("group_expected", text, record.expected)
    differ = {
        "must": sum(bool(each.unlike) for each in here),
        "should": sum(len(each.differs) > len(each.unlike) for each in here),
    }
    text = "Replicas with other settings than this one, of those that must be alike, or should be."
    yield _gauge("group_settings_differ", text, differ, "settings")


def _date(moment: Moment) -> float:
    """Return when that was, as Unix time."""
    return time() - monotonic() + moment


def _of_host(facts: Facts | None) -> Iterator[Metric]:
    if not facts:
        return
    here = {vip for vips in facts.leased.values() for vip in vips}
    present = {str(vip): vip in here for vip in facts.vips}
    yield _gauge("address_present", "Whether kevip has the VIP on this host.", present, "vip")
    if not facts.flaws:
        counters = dict.fromkeys(_PARTS, (0, 0)) | facts.counters()
        text = (
            "Packets that rules matched since these are there. dnat, snat: the first of each connection; "
            "forward: all that is forwarded, in both directions; guard: dropped; refuse: sent to other ports; "
            "shield: sent to conntrackd by strangers, and dropped; "
            "rewrite: all that is sent to a TARGET which somebody else translates; undone: refused, for nobody did."
        )
        yield _counter("rule_packets", text, {part: packets for part, (packets, _) in counters.items()}, "rule")
        octets = {part: octets for part, (_, octets) in counters.items()}
        yield _counter("rule_bytes", "Bytes of the packets that rules matched.", octets, "rule")
    if tracked := facts.tracked:
        yield _gauge("conntrack_entries", "Connections to the VIP that are tracked.", tracked.total)
        text = "Those of them whose source TARGET does not see as the VIP."
        yield _gauge("conntrack_wrong_source", text, tracked.wrong)
        text = (
            f"Source ports of the VIP that connections to a port of TARGET take, of {SOURCE_PORTS}; the {_MANY} most."
        )
        most = Counter(tracked.ports).most_common(_MANY)
        ports = {(protocol, str(port)): number for (protocol, port), number in most}
        yield _gauge("source_ports_in_use", text, ports, "protocol", "port")
    text = "NAT chains of others that may translate before the rules of the VIP."
    yield _gauge("foreign_nat_chains", text, len(facts.foreign))
    if facts.report and (health := facts.report.health):
        yield _gauge("target_up", "Whether TARGET passes its check.", health.up)
        if health.round_trip_ms is not None:
            text = "How long TARGET took to answer."
            yield _gauge("target_round_trip_seconds", text, health.round_trip_ms / 1000)


class _Question(RawIOBase):
    """What a client sends until its time is up: a limit for each read would be none for all of them."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._end = monotonic() + _PATIENCE

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if (left := self._end - monotonic()) <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Handler(MetricsHandler):
    """Answers /metrics, /healthz and /readyz."""

    exporter: Exporter

    def setup(self) -> None:
        """Read with a limit."""
        super().setup()
        self.rfile.close()
        self.rfile = BufferedReader(_Question(self.connection))

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
        """Answer."""
        self.connection.settimeout(_PATIENCE)
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

    def verify_request(self, *_: Any) -> bool:
        return active_count() < _MANY

    def handle_error(self, _: Any, client_address: Any) -> None:
        error = sys.exception()
        if not isinstance(error, OSError):  # a client that is gone is no news
            logger().warning("metrics.failed", client=str(client_address[0]), error=repr(error))


def serve(endpoint: Endpoint, exporter: Exporter) -> None:
    """Serve from now on, to the end of the process; raises HostError if nothing can listen there."""
    registry = CollectorRegistry()
    registry.register(exporter)
    ProcessCollector(registry=registry)
    handler = type("Handler", (_Handler,), {"registry": registry, "exporter": exporter})
    try:
        host = _address(endpoint.host)
        family = socket.AF_INET6 if isinstance(host, IPv6Address) else socket.AF_INET
        server = type("Server", (_Server,), {"address_family": family})
        listening = server((str(host), endpoint.port), handler)
    except OSError as error:
        problem = f"cannot listen on {endpoint}: {error.strerror}: take another port or address"
        raise HostError(f"--metrics (METRICS): {problem}") from None
    Thread(target=listening.serve_forever, kwargs={"poll_interval": 3600.0}, daemon=True, name="metrics").start()


def _address(host: IPv4Address | IPv6Address | str) -> IPv4Address | IPv6Address:
    """Return the address to listen at: that of an interface, or any; raises OSError."""
    if not isinstance(host, str):
        return host
    if host:
        if address := interface.first_address(host):
            return address
        raise OSError(None, "that interface has no IPv4 address")
    return IPv6Address("::") if socket.has_dualstack_ipv6() else IPv4Address("0.0.0.0")  # noqa: S104 - asked for
