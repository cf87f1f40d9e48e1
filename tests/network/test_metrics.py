"""The metrics of a running kevip, scraped over HTTP: against the kernel, and against what alerts and panels ask for."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

import pytest
import yaml
from lab.network import ROUTER, VIP, Namespace, Network, eventually
from lab.replica import PASSWORD, Replica, invoke
from lab.traffic import tcp_source, track, udp_source
from prometheus_client.parser import text_string_to_metric_families

Start = Callable[..., Replica]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

ROOT = Path(__file__).parents[2]
PORT = 9112
EVERYWHERE = f"0.0.0.0:{PORT}"


@pytest.fixture
def host(host: Namespace) -> Namespace:
    """Give a single host that has a route to TARGET."""
    host.run("ip", "route", "add", "default", "via", ROUTER)
    return host


def get(host: Namespace, path: str, address: str = "127.0.0.1") -> tuple[int, str]:
    """Ask a kevip on a host; return status and body."""
    with host.entered():
        connection = HTTPConnection(address, PORT, timeout=10)
        connection.connect()
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def scrape(host: Namespace) -> Samples:
    """Return the value of each sample of kevip's own, by its name and its labels but vip, which all must have."""
    status, text = get(host, "/metrics")
    assert status == 200
    families = text_string_to_metric_families(text)
    samples = [sample for each in families if each.name.startswith("kevip_") for sample in each.samples]
    assert {sample.labels.pop("vip") for sample in samples} == {VIP}
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def value(host: Namespace, name: str, **labels: str) -> float | None:
    """Return a sample's value, None if it is not there."""
    return scrape(host).get((f"kevip_{name}", frozenset(labels.items())))


def in_iptables(host: Namespace) -> dict[str, tuple[int, int]]:
    """Return packets and bytes of the first rule of each part, from the kernel."""
    found = {}
    for part, table, chain in [
        ("dnat", "nat", f"KEVIP-DNAT-{VIP}"),
        ("snat", "nat", f"KEVIP-SNAT-{VIP}"),
        ("forward", "mangle", "FORWARD"),
        ("guard", "mangle", f"KEVIP-GUARD-{VIP}"),
    ]:
        packets, octets = host.iptables("-t", table, "-nvxL", chain).splitlines()[2].split()[:2]
        found[part] = int(packets), int(octets)
    return found


def in_nftables(host: Namespace) -> dict[str, tuple[int, int]]:
    """Return the same; of DNAT, there is a rule for what comes in, and one for what this host sends."""
    text = host.run("nft", "list", "table", "ip", f"kevip-{VIP}")
    found = re.findall(r"chain (\w+) {.*?counter packets (\d+) bytes (\d+)", text, re.DOTALL)
    each = {chain: (int(packets), int(octets)) for chain, packets, octets in found}
    came, sent = each["prerouting"], each["output"]
    dnat = came[0] + sent[0], came[1] + sent[1]
    return {"dnat": dnat, "snat": each["postrouting"], "forward": each["forward"], "guard": each["guard"]}


@pytest.mark.parametrize(("dataplane", "counters"), [("iptables-nft", in_iptables), ("nftables", in_nftables)])
def test_the_counters_are_those_of_the_kernel(
    network: Network, start: Start, dataplane: str, counters: Callable[[Namespace], dict[str, tuple[int, int]]]
) -> None:
    node = network.nodes[0]
    start(node, metrics=EVERYWHERE, dataplane=dataplane).master()
    for _ in range(5):
        assert tcp_source(network.client, VIP) == VIP
    assert udp_source(network.client, VIP) == VIP
    assert tcp_source(node, VIP) == VIP

    def agree() -> bool:
        samples = scrape(node)
        kernel = counters(node)
        shown = {
            part: tuple(
                samples[f"kevip_rule_{what}_total", frozenset({("rule", part)})] for what in ("packets", "bytes")
            )
            for part in kernel
        }
        entries = node.run("conntrack", "-L", "--orig-dst", VIP).count("\n")
        return shown == kernel and samples["kevip_conntrack_entries", frozenset()] == entries == 7

    eventually(agree, what="the metrics are what the kernel counts")
    assert counters(node)["dnat"][0] == 7, "nat sees the first packet of each connection"
    packets = counters(node)["forward"][0]
    tcp_source(network.client, VIP)
    assert counters(node)["forward"][0] - packets >= 5, "the filter sees the packets of both directions"


def test_the_source_ports_of_each_port_of_target_are_counted(network: Network, start: Start) -> None:
    node = network.nodes[0]
    replica = start(node, metrics=EVERYWHERE).master()
    track(node, 60_000)
    assert udp_source(network.client, VIP) == VIP
    taken = [(("tcp", "8000"), 50_000), (("tcp", "8001"), 10_000), (("udp", "7000"), 1)]
    for (protocol, port), number in taken:
        assert value(node, "source_ports_in_use", protocol=protocol, port=port) == number
    assert value(node, "conntrack_entries") == 60_001
    told = invoke(node, "status", f"--run-dir={replica.run_dir}").stdout
    assert "source ports 50000 of 64512 in use, to tcp 8000" in told


def test_they_tell_what_happens(network: Network, start: Start) -> None:
    node = network.nodes[0]
    replica = start(node, metrics=EVERYWHERE, advskew=1).master()
    other = start(network.nodes[1], metrics=EVERYWHERE, advskew=20).ready()
    assert value(node, "role", role="master") == value(other.node, "role", role="backup") == 1
    assert value(node, "role", role="backup") == value(other.node, "role", role="master") == 0
    assert value(node, "address_present") == 1
    assert value(other.node, "address_present") == 0
    assert value(node, "transitions_total", role="master", reason="alone") == 1
    assert value(node, "takeover_duration_seconds_count") == 1
    eventually(lambda: value(other.node, "peers") == 1, what="the backup has heard the master")
    heard = value(other.node, "peer_last_advert_timestamp_seconds", peer="10.77.0.11")
    turned = value(other.node, "loop_turn_timestamp_seconds")
    assert heard
    assert turned
    assert abs(turned - heard) < 10

    node.iptables("-t", "nat", "-F", f"KEVIP-DNAT-{VIP}")
    eventually(lambda: (value(node, "drift_repairs_total", kind="rules") or 0) >= 1, what="the repair is counted")
    start(network.nodes[2], password="another")  # noqa: S106 - for the lab alone
    eventually(lambda: (value(node, "bad_adverts_total", reason="digest") or 0) >= 1, what="bad adverts are counted")

    os.kill(replica.engine_pid(), signal.SIGKILL)
    other.master()
    eventually(lambda: value(node, "handover_duration_seconds_count") == 1, what="the handover is counted")
    seconds = value(node, "handover_duration_seconds_sum")
    assert seconds == pytest.approx(replica.logged("handover.done")["seconds"], abs=0.001)
    assert value(other.node, "transitions_total", role="master", reason="goodbye") == 1
    eventually(lambda: value(node, "engine_starts_total") == 2, what="ucarp was started again")


def test_promtool_finds_nothing_wrong_with_them(host: Namespace, start: Start) -> None:
    start(host, metrics=EVERYWHERE).master()
    _, text = get(host, "/metrics")
    checked = subprocess.run(
        [ROOT / "script/promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families.pop("process_resident_memory_bytes").samples[0].value > 1_000_000
    for name, family in families.items():
        assert name.startswith(("kevip_", "process_"))
        assert family.documentation.endswith(".")


def expressions() -> Iterator[str]:
    """Yield every PromQL expression in the alerts and the dashboard."""
    alerts = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())
    yield from (rule["expr"] for group in alerts["groups"] for rule in group["rules"])
    dashboard = json.loads((ROOT / "deploy/grafana/kevip.json").read_text())
    yield from (target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    yield from (each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query")


def test_alerts_and_dashboard_ask_for_what_there_is(network: Network, start: Start) -> None:
    node = network.nodes[0]
    start(node, metrics=EVERYWHERE, check="icmp", sync=True, sync_interface="eth0").master()
    eventually(lambda: value(node, "target_round_trip_seconds"), what="TARGET has answered")
    assert tcp_source(network.client, VIP) == VIP  # which takes a source port
    eventually(lambda: value(node, "source_ports_in_use", protocol="tcp", port="7000"), what="that is seen")
    labels: dict[str, set[str]] = {}
    values: dict[str, set[str]] = {}
    for name, pairs in scrape(node):
        labels.setdefault(name, set()).update({label for label, _ in pairs})
        for label, each in pairs:
            values.setdefault(label, set()).add(each)
    asked = list(expressions())
    assert len(asked) > 20
    for expression in asked:
        selectors = re.findall(r"(kevip_\w+)(?:\{([^}]*)\})?", expression)
        assert selectors, expression
        known = {"vip", "instance"}.union(*(labels[name] for name, _ in selectors))
        for name, matchers in selectors:
            for label, wanted in re.findall(r'(\w+)=~?"([^"]*)"', matchers):
                assert label in {"vip", *labels[name]}, expression
                assert label == "vip" or set(wanted.split("|")) <= values[label], expression
        grouped = re.findall(r"\bby \(([^)]*)\)", expression)
        assert {label for group in grouped for label in re.split(r", *", group)} <= known, expression


def is_ready(node: Namespace) -> bool:
    return get(node, "/readyz")[0] == 200


def test_the_probes_answer(network: Network, start: Start) -> None:
    master = start(network.nodes[0], metrics=EVERYWHERE, advskew=1).master()
    backup = start(network.nodes[1], metrics=EVERYWHERE, advskew=20).ready()
    for replica in (master, backup):
        assert get(replica.node, "/healthz") == (200, "OK the loop turns\n")
        eventually(partial(is_ready, replica.node), what="it is ready")
    assert get(master.node, "/readyz")[1] == "OK this host serves the VIP\n"
    assert get(master.node, "/nothing")[0] == 404
    master.node.run("ip", "link", "set", "eth0", "down")
    status, said = eventually(lambda: found if (found := get(master.node, "/readyz"))[0] == 503 else None)
    assert (status, said.startswith("PROBLEM ")) == (503, True)
    assert get(master.node, "/healthz")[0] == 200


def test_programs_that_hang_do_not_keep_the_loop_from_turning(host: Namespace, start: Start, tmp_path: Path) -> None:
    """The program is ``ip``, which never ends once it is told so: the VIP is let go, and taken again when it works."""
    wrapper, block = tmp_path / "ip", tmp_path / "block"
    wrapper.write_text(f'#!/bin/sh\n[ -e {block} ] && exec sleep 60\nexec /usr/sbin/ip "$@"\n')
    wrapper.chmod(0o755)
    replica = start(host, metrics=EVERYWHERE, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}).master()
    block.touch()
    replica.logged("election.resigned")
    end = time.monotonic() + 20  # longer than a loop may be silent
    while time.monotonic() < end:
        assert get(host, "/healthz")[0] == 200
        time.sleep(0.5)
    assert not host.has(VIP)
    block.unlink()
    eventually(lambda: replica.role() == "master" and host.has(VIP), within=60, what="it serves again")


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("localhost", "127.0.0.1"),
        ("[::1]", "::1"),
        ("[::]", "10.77.0.11"),
        ("", "10.77.0.11"),
        ("", "::1"),
        ("eth0", "10.77.0.11"),
    ],
)
def test_it_listens_where_it_is_told(host: Namespace, start: Start, listen: str, address: str) -> None:
    start(host, metrics=f"{listen}:{PORT}").master()
    assert get(host, "/healthz", address)[0] == 200


def test_it_listens_at_the_address_of_an_interface_only(host: Namespace, start: Start) -> None:
    start(host, metrics=f"eth0:{PORT}").master()
    assert host.run("ss", "-Hltn").split()[3] == f"10.77.0.11:{PORT}"


def test_an_interface_without_an_address_is_refused(host: Namespace, tmp_path: Path) -> None:
    done = invoke(host, *arguments(tmp_path)[:-1], f"--metrics=eth7:{PORT}")
    why = f"cannot listen on eth7:{PORT}: that interface has no IPv4 address: take another port or address"
    assert (done.returncode, done.stderr) == (3, f"kevip: --metrics (METRICS): {why}\n")


def test_without_ipv6_it_listens_at_all_addresses_too(host: Namespace, start: Start) -> None:
    host.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    start(host, metrics=f":{PORT}").master()
    assert get(host, "/healthz", "10.77.0.11")[0] == 200


@pytest.mark.parametrize("drip", [b"", b"x"])
def test_clients_that_say_nothing_or_a_byte_at_a_time_do_not_keep_others_away_for_long(
    host: Namespace, start: Start, drip: bytes
) -> None:
    replica = start(host, metrics=EVERYWHERE).master()
    with host.entered():
        slow = [socket.create_connection(("127.0.0.1", PORT)) for _ in range(50)]
    for each in slow:
        each.sendall(drip and b"GET /healthz HTTP/1.0\r\nx: ")

    def answers() -> bool:
        for each in slow:
            with suppress(OSError):
                each.sendall(drip)
        try:
            return get(host, "/healthz")[0] == 200
        except OSError:
            return False

    eventually(answers, within=15, what="the slow ones were dropped")
    for each in slow:
        each.close()
    assert replica.events("metrics.failed") == []
    assert replica.role() == "master"


def test_off_by_default(host: Namespace, start: Start) -> None:
    start(host).master()
    assert host.run("ss", "-Hltn") == ""


def test_no_secret_is_in_them(host: Namespace, start: Start) -> None:
    start(host, metrics=EVERYWHERE).master()
    assert PASSWORD not in get(host, "/metrics")[1]


def arguments(tmp_path: Path) -> list[str]:
    return [f"--vip={VIP}", "--target=203.0.113.10", "--password=x", f"--run-dir={tmp_path / 'run'}",
            f"--metrics=127.0.0.1:{PORT}"]  # fmt: skip


def test_a_port_that_is_in_use_is_refused_before_anything_is_changed(host: Namespace, tmp_path: Path) -> None:
    busy = f"127.0.0.1:{PORT}"
    before = host.rules(), host.addresses(), host.sysctl("net.ipv4.ip_forward")
    with host.entered():
        taken = socket.create_server(("127.0.0.1", PORT))
    with taken:
        done = invoke(host, *arguments(tmp_path))
    assert (done.returncode, done.stderr) == (
        3,
        f"kevip: --metrics (METRICS): cannot listen on {busy}: Address already in use: take another port or address\n",
    )
    assert (host.rules(), host.addresses(), host.sysctl("net.ipv4.ip_forward")) == before
    assert not (tmp_path / "run").exists()


def test_without_the_package_it_says_what_to_install(host: Namespace, tmp_path: Path) -> None:
    absent = tmp_path / "prometheus_client.py"
    absent.write_text("raise ModuleNotFoundError('No module named prometheus_client', name='prometheus_client')\n")
    done = invoke(host, *arguments(tmp_path), env={"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stderr) == (
        3, "kevip: --metrics (METRICS) needs prometheus-client: pip install 'kevip[metrics]'\n"
    )  # fmt: skip
    assert not (tmp_path / "run").exists()
