"""What the daemon tells: events of the log with names and levels that stay, and a record, in virtual time."""

from collections import Counter
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from kevip.core.messages import Note, Reason, Role, What
from kevip.status.record import PROSE, Health, Record
from kevip.status.reporter import MANY, QUIET, Reporter
from kevip.status.runfile import StateFile

VIP = IPv4Address("10.0.0.100")
PEER = IPv4Address("10.0.0.12")


class Clock:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reporter(tmp_path: Path, clock: Clock) -> Reporter:
    def refresh(record: Record) -> None:
        record.peers = {PEER: clock.now}

    record = Record(
        vip=VIP, target=None, vip_id=100, interface="eth0", dataplane="iptables", patience=3, started=1000, since=1000,
        turned=1000, health=Health(check="icmp", since=1000),
    )  # fmt: skip
    return Reporter(record, StateFile(tmp_path / "run", VIP), refresh, clock)


@pytest.mark.parametrize(("note", "event"), [
    (Note(what=What.YIELDED, who=PEER), {"event": "election.yielded", "log_level": "warning", "to": "10.0.0.12"}),
    (Note(what=What.RIVAL, who=PEER),
     {"event": "election.rival", "log_level": "warning", "source": "10.0.0.12", "hint": "we keep the VIP"}),
    (Note(what=What.RESIGNED, detail="no route"),
     {"event": "election.resigned", "log_level": "error", "reason": "no route"}),
    (Note(what=What.LEAVING, reason=Reason.STOPPED),
     {"event": "handover.started", "log_level": "info", "reason": "stopped by a signal", "peers": ["10.0.0.12"]}),
    (Note(what=What.FOLLOWED, who=PEER, seconds=0.12345),
     {"event": "handover.done", "log_level": "info", "to": "10.0.0.12", "seconds": 0.123}),
    (Note(what=What.NOBODY, seconds=2.50001), {"event": "handover.nobody", "log_level": "warning", "seconds": 2.5,
     "hint": "no peer took over: nobody holds the VIP now"}),
    (Note(what=What.KEPT), {"event": "handover.declined", "log_level": "warning",
     "hint": "nobody that should have it took over: the VIP stays here"}),
    (Note(what=What.RETRY, seconds=4.0), {"event": "engine.ended", "log_level": "error", "retry_seconds": 4.0}),
    (Note(what=What.BROKEN, detail="two engines"),
     {"event": "core.broken", "log_level": "error", "error": "two engines"}),
])  # fmt: skip
def test_what_the_core_notes_is_told(reporter: Reporter, note: Note, event: dict[str, Any]) -> None:
    with capture_logs() as logged:
        reporter.note(note)
    assert logged == [event | {"vip": str(VIP)}]


def test_all_that_there_is_to_tell_and_every_reason_has_words(reporter: Reporter) -> None:
    with capture_logs() as logged:
        for what in What:
            reporter.note(Note(what=what, who=PEER, reason=Reason.ENGINE))
    assert len({each["event"] for each in logged}) == len(What)
    assert set(PROSE) == set(Reason)


def test_a_rival_is_told_once_a_minute(reporter: Reporter, clock: Clock) -> None:
    with capture_logs() as logged:
        for _ in range(3):
            reporter.note(Note(what=What.RIVAL, who=PEER))
        clock.now += QUIET
        reporter.note(Note(what=What.RIVAL, who=PEER))
        for number in range(100):
            reporter.note(Note(what=What.RIVAL, who=PEER + number))
    assert len(logged) == 1 + MANY


def test_how_long_handovers_took_is_counted_if_somebody_followed(reporter: Reporter) -> None:
    reporter.note(Note(what=What.FOLLOWED, who=PEER, seconds=0.3))
    reporter.note(Note(what=What.NOBODY, seconds=2.5))
    assert (sum(reporter.record.handovers.counts), reporter.record.handovers.seconds) == (1, 0.3)


def test_a_role_is_entered_once_and_written(reporter: Reporter, clock: Clock, tmp_path: Path) -> None:
    clock.now = 1010.0
    reporter.enter(Role.BACKUP, Reason.JOINED)
    clock.now = 1020.0
    reporter.enter(Role.BACKUP, Reason.LATE)
    record = reporter.record
    assert (record.role, record.reason, record.since, record.turned) == (Role.BACKUP, Reason.JOINED, 1010, 1010)
    assert (record.transitions, record.entered) == (1, {Role.BACKUP: Counter({Reason.JOINED: 1})})
    read = StateFile(tmp_path / "run", VIP).read()
    assert read
    assert (read.role, read.reason, list(read.peers)) == (Role.BACKUP, Reason.JOINED, [PEER])
    reporter.close()
    assert list(tmp_path.iterdir()) == []


def test_a_verdict_on_target_is_told_when_it_changes(reporter: Reporter, clock: Clock) -> None:
    with capture_logs() as logged:
        reporter.answered(up=True, seconds=0.0012345, problem="")
        reporter.answered(up=True, seconds=0, problem="refused")
        clock.now = 1030.0
        reporter.answered(up=False, seconds=0, problem="refused")
        down = reporter.record.snapshot().health
        reporter.answered(up=True, seconds=0.001, problem="")
    assert [each["event"] for each in logged] == ["target.down", "target.up"]
    assert down == Health(check="icmp", up=False, since=1030, problem="refused")
    assert reporter.record.health == Health(check="icmp", up=True, since=1030, round_trip_ms=1.0)


def test_a_file_that_cannot_be_written_is_told(reporter: Reporter, tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with capture_logs() as logged:
        reporter.write()
        reporter.write()
    assert [(each["event"], each["path"]) for each in logged] == [
        ("state.not_written", str(tmp_path / "run" / f"{VIP}.json"))
    ]
