"""The operator's command at each change of role: what it is told, in which order, and what comes of one that hangs."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from unittest import mock

import pytest

from kevip.core.messages import Reason, Role
from kevip.status import notifier
from kevip.status.notifier import Notifier
from kevip.status.record import Record

CHANGES = [(Role.BACKUP, Reason.JOINED), (Role.MASTER, Reason.SILENCE), (Role.LEAVING, Reason.STOPPED)]


def record(role: Role, reason: Reason) -> Record:
    return Record(
        vip=IPv4Address("10.0.0.100"), target=None, vip_id=7, interface="eth0", dataplane="nftables", patience=3,
        started=0, since=0, turned=0, role=role, reason=reason,
    )  # fmt: skip


@contextmanager
def told(tmp_path: Path, script: str, log: Any = None) -> Iterator[Notifier]:
    """Tell all changes to a shell script, with one argument of its own; wait for its end."""
    path = tmp_path / "notify"
    path.write_text(f"#!/bin/sh\ncd {tmp_path}\n{script}\n")
    path.chmod(0o755)
    made = Notifier([str(path), "mine"], log or mock.Mock())
    for role, reason in CHANGES:
        made.tell(record(role, reason))
    yield made
    made.close()


def eventually(condition: Callable[[], object]) -> None:
    end = monotonic() + 20
    while not condition():
        assert monotonic() < end
        sleep(0.02)


def test_a_command_may_take_longer_than_programs_of_ours(tmp_path: Path) -> None:
    with mock.patch("kevip.host.command.TIMEOUT", 0.05), told(tmp_path, "sleep 0.3; echo >>told") as made:
        eventually(lambda: (tmp_path / "told").exists() and (tmp_path / "told").read_text().count("\n") == 3)
    assert made.failures == 0


def test_each_change_is_told_in_order_with_what_there_is_to_know(tmp_path: Path) -> None:
    with (
        mock.patch.dict(os.environ, {"PASSWORD": "secret"}),
        told(tmp_path, 'sleep 0.1; echo "$@" $KEVIP_PREVIOUS_ROLE >>told; env >environment'),
    ):
        eventually(lambda: (tmp_path / "told").exists() and (tmp_path / "told").read_text().count("\n") == 3)
    assert (tmp_path / "told").read_text().splitlines() == [
        "mine backup 10.0.0.100 joined init",
        "mine master 10.0.0.100 silence backup",
        "mine leaving 10.0.0.100 stopped master",
    ]
    variables = dict(line.split("=", 1) for line in (tmp_path / "environment").read_text().splitlines())
    assert float(variables.pop("KEVIP_TIME")) > 0
    assert {name: value for name, value in variables.items() if name.startswith("KEVIP_")} == {
        "KEVIP_ROLE": "leaving", "KEVIP_PREVIOUS_ROLE": "master", "KEVIP_REASON": "stopped", "KEVIP_VIP_ID": "7",
        "KEVIP_VIP": "10.0.0.100", "KEVIP_TARGET": "", "KEVIP_INTERFACE": "eth0",
    }  # fmt: skip
    assert "secret" not in (tmp_path / "environment").read_text()


def test_a_failure_is_logged_and_counted_and_the_next_one_is_told(tmp_path: Path) -> None:
    log = mock.Mock()
    with told(tmp_path, 'echo "no $2" >&2; exit 3', log) as made:
        eventually(lambda: made.failures == 3)
    assert [call.kwargs["role"] for call in log.warning.call_args_list] == ["backup", "master", "leaving"]
    assert log.warning.call_args.kwargs["error"] == "exit status 3: no leaving"


def test_one_that_hangs_is_ended_with_all_that_it_has_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier, "PATIENCE", 0.5)
    with told(tmp_path, "echo $$ >>pids; sleep 600 & echo $! >>pids; wait") as made:
        eventually(lambda: made.failures == 3)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 6
    eventually(lambda: not any(is_alive(pid) for pid in pids))


def test_a_stop_waits_for_it_for_some_seconds_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier, "LAST", 0.2)
    with told(tmp_path, "echo $$ >>pids; sleep 600"):
        eventually((tmp_path / "pids").exists)
        begin = monotonic()
    assert monotonic() - begin < 5
    eventually(lambda: not any(is_alive(int(pid)) for pid in (tmp_path / "pids").read_text().split()))


def is_alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
