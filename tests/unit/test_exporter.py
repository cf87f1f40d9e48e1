"""Metrics as far as no running daemon is needed for them: what it costs those who want none, and TARGET's health."""

import subprocess
import sys
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from time import monotonic, time
from typing import Any
from unittest import mock

from kevip.core.messages import Role
from kevip.dataplane.conntrack import Tracked
from kevip.presence.group import Member
from kevip.status import metrics
from kevip.status.metrics import Exporter
from kevip.status.observe import Facts
from kevip.status.record import HANGS, Health, Record
from kevip.sync.replication import Copies

VIP = IPv4Address("10.0.0.100")


def record(**values: Any) -> Record:
    now = monotonic()
    return Record(
        vip=VIP, target=VIP + 1, vip_id=1, interface="eth0", dataplane="iptables", patience=3,
        started=now, since=now, turned=now, **values,
    )  # fmt: skip


def samples(health: Health | None = None, **facts: Any) -> dict[str, float]:
    """Return the samples without labels but vip that are exported for these facts."""
    made = record(health=health)
    exporter = Exporter(made)
    seen = Facts(vip=VIP, at=monotonic(), run_dir=Path("/run"), report=made, **facts)
    with mock.patch.object(metrics, "Look") as look:
        look.return_value.of.return_value = seen
        found = [sample for family in exporter.collect() for sample in family.samples]
        assert look.call_count == 1
    return {sample.name: sample.value for sample in found if set(sample.labels) == {"vip"}}


def test_the_health_of_target_is_there_if_it_is_checked() -> None:
    health = Health(check="tcp:443", up=True, since=monotonic(), round_trip_ms=1.5)
    assert (found := samples(health))["kevip_target_up"] == 1
    assert found["kevip_target_round_trip_seconds"] == 0.0015
    down = samples(replace(health, up=False, round_trip_ms=None, problem="timed out"))
    assert down["kevip_target_up"] == 0
    assert "kevip_target_round_trip_seconds" not in down
    assert "kevip_target_up" not in samples()


def test_the_copies_of_connections_are_there_if_they_are_made() -> None:
    now = monotonic()
    copies = Copies(interface="eth1", elsewhere=True, since=now, sent_on=5, heard=2, heard_last=now, resynced=now)
    families = Exporter(record(sync=copies)).collect()
    made = {family.name: sample.value for family in families for sample in family.samples[:1]}
    assert (made["kevip_sync_running"], made["kevip_sync_connections"], made["kevip_sync_packets"]) == (1, 5, 2)
    assert abs(made["kevip_sync_resync_timestamp_seconds"] - time()) < 10
    assert not any("sync" in family.name for family in Exporter(record()).collect())


def test_what_could_not_be_counted_is_not_shown_as_none() -> None:
    assert "kevip_conntrack_entries" not in samples(tracked=None)
    assert samples(tracked=Tracked(0))["kevip_conntrack_entries"] == 0
    exporter = Exporter(record())
    flawed = Facts(vip=VIP, at=monotonic(), run_dir=Path("/run"), flaws=("cannot read nat",))
    with mock.patch.object(metrics, "Look") as look:
        look.return_value.of.return_value = flawed
        names = {family.name for family in exporter.collect()}
    assert "kevip_role" in names
    assert "kevip_rule_packets" not in names


def test_a_few_peers_of_many_are_shown_those_heard_last() -> None:
    peers = {VIP + number: monotonic() - 100 + number for number in range(100)}
    families = {family.name: family for family in Exporter(record(peers=peers)).collect()}
    shown = families["kevip_peer_last_advert_timestamp_seconds"].samples
    assert [round(time() - sample.value) for sample in shown] == list(range(1, 17))
    assert families["kevip_peers"].samples[0].value == 100


def test_the_group_is_counted_with_this_host_and_without_those_that_are_gone() -> None:
    now = monotonic()
    members = {
        VIP + number: Member(
            name=f"node{number}", version="1", engine="ucarp", rank=1, role=role, since=now, heard=now - silent,
            stopped=stopped, differs=differs,
        )
        for number, (role, silent, stopped, differs) in enumerate([
            (Role.BACKUP, 1, False, ["TARGET", "CHECK"]), (Role.BACKUP, 1, False, ["CHECK"]),
            (Role.BACKUP, 16, False, ["TARGET"]), (Role.INIT, 1, True, []),
        ])
    }  # fmt: skip
    made = record(role=Role.MASTER, members=members)
    families = {family.name: family.samples for family in Exporter(made).collect()}
    roles = {sample.labels["role"]: sample.value for sample in families["kevip_group_members"]}
    assert roles == {"master": 1, "backup": 2, "init": 0, "leaving": 0}
    differ = {sample.labels["settings"]: sample.value for sample in families["kevip_group_settings_differ"]}
    assert differ == {"must": 1, "should": 2}
    assert samples()["kevip_group_expected"] == 1
    assert (made.expected, replace(made, expect=5).expected) == (2, 5)


def test_a_group_that_lacks_a_replica_is_no_reason_not_to_be_ready() -> None:
    """A roll-out waits for that: it would never go on."""
    made = record(role=Role.BACKUP, expect=3)
    made.started, made.peers = made.started - 100, {VIP + 1: monotonic()}
    with mock.patch.object(metrics, "Look") as look:
        look.return_value.of.return_value = Facts(vip=VIP, at=monotonic(), run_dir=Path("/run"), report=made)
        assert Exporter(made).ready().ok


def test_a_loop_that_does_not_turn_is_not_alive() -> None:
    made = record()
    exporter = Exporter(made)
    assert exporter.alive()
    made.turned -= HANGS
    assert not exporter.alive()


def test_who_takes_no_part_in_the_election_is_not_ready() -> None:
    exporter = Exporter(record(role=Role.INIT))
    assert exporter.ready().text == "not in the election: started"


def test_status_and_a_daemon_without_metrics_do_not_load_what_they_need() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, kevip.cli; print(*sys.modules)"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "kevip.status.text" in loaded
    assert [
        name for name in loaded if name.startswith(("prometheus_client", "kevip.status.metrics", "http.server"))
    ] == []
