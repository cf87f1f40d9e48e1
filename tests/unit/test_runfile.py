"""The runtime file: what is written comes back, whatever clocks and others do; what is not of this version is told."""

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import kevip
from kevip.core.messages import Reason, Role
from kevip.errors import KevipError
from kevip.host import kernel
from kevip.presence.group import Member
from kevip.status import record as records
from kevip.status.record import HANGS, Durations, Health, Record, from_json, to_json
from kevip.status.runfile import StateFile

VIP = IPv4Address("10.0.0.100")
PROBE = Path(kevip.__file__).with_name("kevip-probe")


def record(now: float = 1000.0) -> Record:
    """Return a record with something in each field; ``now`` is the time on its clock."""
    return Record(
        vip=VIP, target=None, vip_id=100, interface="eth0", dataplane="iptables-nft", patience=3.1,
        started=now - 90, turned=now, role=Role.MASTER, since=now - 60, reason=Reason.KEPT, transitions=1,
        entered={Role.MASTER: Counter({Reason.KEPT: 1})}, peers={VIP + 1: now - 0.5}, repairs=Counter(rules=2),
        bad_adverts=Counter(digest=1), engine_starts=1, health=Health(check="icmp", since=now - 60, problem="x"),
        rules={"iptables-nft": ["nat -A x"]}, claims={"02:00:00:00:00:01": now - 7}, takeovers=Durations(seconds=0.5),
        members={VIP + 1: Member(
            name="node2", version="1", engine="ucarp", rank=7, role=Role.BACKUP, since=now - 30, heard=now - 2,
            target=False, differs=["TARGET"],
        )},
    )  # fmt: skip


@pytest.fixture
def state(tmp_path: Path) -> StateFile:
    return StateFile(tmp_path / "run", VIP)


def moments(of: Record) -> list[float]:
    """Return how long before its last turn each of its moments was."""
    assert of.health
    times = [of.started, of.since, of.health.since, *of.peers.values(), *of.claims.values()]
    times += [each for member in of.members.values() for each in (member.since, member.heard)]
    return [round(of.turned - each, 3) for each in times]


def plain(of: Record) -> dict[str, Any]:
    """Return what is no moment."""
    said = to_json(of, 0.0)
    del said["health"]["since"]
    for member in said["members"].values():
        del member["since"], member["heard"]
    times = ("started", "turned", "since", "peers", "claims", "uptime")
    return {name: each for name, each in said.items() if name not in times}


def test_what_is_written_comes_back(state: StateFile) -> None:
    written = record()
    state.write(written, 1000)
    read = state.read()
    assert read
    assert plain(read) == plain(written)
    assert (moments(read), list(read.peers), list(read.claims)) == (
        moments(written), list(written.peers), list(written.claims)
    )  # fmt: skip
    assert (read.reason, type(read.entered[Role.MASTER])) == (Reason.KEPT, Counter)
    assert kernel.uptime() - read.turned == pytest.approx(0, abs=5)


def test_names_and_dates_are_in_the_file(state: StateFile) -> None:
    with mock.patch.object(records, "time", return_value=0.0):
        state.write(record(), 1000)
    said = json.loads(state.path.read_text())
    assert (said["role"], said["reason"], said["since"]) == ("master", "kept", "1969-12-31T23:59:00+00:00")
    assert said["peers"] == {"10.0.0.101": "1969-12-31T23:59:59.500000+00:00"}


@pytest.mark.parametrize("step", [-1e6, 1e6])
def test_a_wall_clock_that_is_set_makes_nothing_older_or_younger(step: float) -> None:
    with mock.patch.object(records, "time", return_value=1e9), mock.patch.object(kernel, "uptime", return_value=500.0):
        said = to_json(record(), 1000)
    with mock.patch.object(records, "time", return_value=1e9 + step):
        read = from_json(said, 507)
    assert read.turned == pytest.approx(500)
    assert moments(read) == moments(record())


def test_what_was_written_before_this_boot_is_as_old_as_the_boot() -> None:
    with mock.patch.object(kernel, "uptime", return_value=1e6):
        said = to_json(record(), 1000)
    assert from_json(said, 100).turned == pytest.approx(0)


def test_without_a_file_there_is_no_report(state: StateFile) -> None:
    assert state.read() is None


@pytest.mark.parametrize("text", [
    "", "{", "[]", "{}", "5", "null", '"x"', "[" * 100_000, "\xff", '{"uptime": "x", "turned": 1}',
])  # fmt: skip
def test_what_no_kevip_wrote_is_told_in_one_way(state: StateFile, text: str) -> None:
    state.prepare()
    state.path.write_text(text, encoding="latin-1")
    with pytest.raises(KevipError, match="is not what this version writes: restart its kevip"):
        state.read()


@pytest.mark.parametrize("change", [
    {"role": "king"}, {"reason": "another one took over"}, {"since": 5}, {"peers": []}, {"peers": {"x": "y"}},
    {"pid": "1"}, {"health": 1}, {"rules": "abc"}, {"rules": [1]}, {"repairs": {"rules": "many"}}, {"uptime": None},
    {"turned": None}, {"vip": 5}, {"members": {"10.0.0.1": {"name": "x"}}}, {"members": {"x": {}}},
    {"takeovers": {"counts": 1}},
])  # fmt: skip
def test_what_another_version_wrote_is_told_too(state: StateFile, change: dict[str, Any]) -> None:
    state.write(record(), 1000)
    state.path.write_text(json.dumps(json.loads(state.path.read_text()) | change))
    with pytest.raises(KevipError, match="is not what this version writes: restart its kevip"):
        state.read()


@pytest.fixture(params=["fifo", "link", "file of two names"])
def trap(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Yield something to put in the way of a file, which is to stay as it is."""
    treasure, trap = tmp_path / "treasure", tmp_path / "trap"
    treasure.write_text("{}")
    match request.param:
        case "fifo":
            os.mkfifo(trap)
        case "link":
            trap.symlink_to(treasure)
        case _:
            trap.hardlink_to(treasure)
    yield trap
    assert treasure.read_text() == "{}"


@pytest.mark.timeout(10)
def test_what_somebody_put_into_the_run_directory_is_neither_waited_for_nor_written_to(
    state: StateFile, trap: Path
) -> None:
    state.prepare()
    trap.rename(state.path.with_suffix(".new"))
    state.write(record(), 1000)
    assert state.read()


@pytest.mark.timeout(10)
def test_what_somebody_put_in_the_place_of_the_file_is_told(state: StateFile, trap: Path) -> None:
    state.prepare()
    trap.rename(state.path)
    with pytest.raises(KevipError, match="is not what this version writes"):
        state.read()


def test_all_directories_that_were_made_are_removed(tmp_path: Path) -> None:
    states = [StateFile(tmp_path / "a/b", vip) for vip in (VIP, VIP + 1)]
    for state in states:
        state.prepare()
        state.write(record(), 1000)
    assert states[0].remove()
    assert states[1].read()
    assert states[1].remove()
    assert list(tmp_path.iterdir()) == []


def test_directories_that_others_made_or_use_stay(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    state = StateFile(tmp_path / "theirs/a/b", VIP)
    state.prepare()
    (tmp_path / "theirs/a/other").touch()
    state.remove()
    assert [path.name for path in tmp_path.rglob("*") if not path.name.startswith(".")] == ["theirs", "a", "other"]


def probe(state: StateFile, name: str = "live") -> tuple[int, str]:
    done = subprocess.run(
        [PROBE, name], env={"RUN_DIR": str(state.run_dir)}, capture_output=True, text=True, check=False, timeout=10
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("mtime", [0, 4e9])
def test_the_probe_judges_by_the_time_since_boot_whatever_the_date_of_the_file(state: StateFile, mtime: float) -> None:
    state.write(record(), 1000)
    os.utime(state.path, (mtime, mtime))
    assert probe(state) == (0, "")
    assert probe(state, "ready") == (0, "")
    for silent in (HANGS + 2, -60):
        state.write(record(), 1000 + silent)
        os.utime(state.path, (mtime, mtime))
        status, said = probe(state)
        assert (status, "hangs or was killed" in said) == (1, True)


def test_the_probe_waits_for_no_pipe(state: StateFile) -> None:
    state.prepare()
    os.mkfifo(state.path)
    assert probe(state, "ready") == (1, f"no kevip runs here: there is no {state.path}\n")


def test_the_probe_goes_by_its_own_role_and_not_by_that_of_others(state: StateFile) -> None:
    apart = record()
    apart.role = Role.INIT
    assert [each.role for each in apart.members.values()] == [Role.BACKUP]
    state.write(apart, 1000)
    assert probe(state, "ready")[0] == 1
