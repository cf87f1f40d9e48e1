"""What ucarp is called with, and what its lines mean."""

import signal
from collections.abc import Sequence
from ipaddress import IPv4Address
from subprocess import Popen
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kevip.election.child import HOOKS
from kevip.election.ucarp import Candidacy, Message, Ucarp, argv, key, understand
from kevip.host import command

CANDIDACY = Candidacy(
    vip=IPv4Address("10.0.0.100"),
    vip_id=100,
    interface="eth0",
    source=IPv4Address("10.0.0.11"),
    password="secret",  # noqa: S106
    advbase=1,
    advskew=7,
    dead_ratio=3,
    preempt=False,
    broadcast=False,
)

COMMON = [
    "ucarp",
    "--interface=eth0",
    "--srcip=10.0.0.11",
    "--vhid=100",
    "--addr=10.0.0.100",
    "--passfile=/proc/self/fd/7",
    "--advbase=1",
    "--advskew=7",
    "--deadratio=3",
    f"--upscript={HOOKS}/vip-up",
    f"--downscript={HOOKS}/vip-down",
    "--facility=none",
    "--shutdown",
]


def candidacy(**changes: bool) -> Candidacy:
    return Candidacy(**{name: changes.get(name, getattr(CANDIDACY, name)) for name in Candidacy.__slots__})


@pytest.mark.parametrize(("changes", "extra"), [
    ({}, []), ({"preempt": True}, ["--preempt"]), ({"broadcast": True}, ["--nomcast"]),
    ({"preempt": True, "broadcast": True}, ["--preempt", "--nomcast"]),
])  # fmt: skip
def test_argv(changes: dict[str, bool], extra: list[str]) -> None:
    assert argv(candidacy(**changes), password_fd=7) == COMMON + extra


@pytest.mark.parametrize(("password", "expected"), [
    ("secret", b"secret"),
    ("a" * 19, b"a" * 19),
    ("a" * 20, b"QkktoGI0rQrHb11d69t"),
    ("ä" * 9 + "a", "ä".encode() * 9 + b"a"),
    ("ä" * 10, b"6B5KJ6ytmC2oZbs0Ivx"),
    ("a\nb", b"fhj3NzEbLcOy8mndeDl"),
    ("\udcff", b"\xff"),
])  # fmt: skip
def test_the_key_of_a_password(password: str, expected: bytes) -> None:
    assert key(password) == expected


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_key_is_something_that_ucarp_can_read(password: str) -> None:
    made = key(password)
    assert 1 <= len(made) <= 19
    assert not set(made) & {0, 10}


TIME = "2026-01-01T00:00:00.000001:"


@pytest.mark.parametrize(("line", "meaning"), [
    (f"{TIME} [WARNING] Switching to state: MASTER", (Message.MASTER, "Switching to state: MASTER")),
    (f"{TIME} [WARNING] Switching to state: BACKUP", (Message.BACKUP, "Switching to state: BACKUP")),
    (f"{TIME} [WARNING] Bad digest - md2=[00...] md=[01...] - Check vhid, password and virtual IP",
     (Message.KNOWN, "Bad digest - md2=[00...] md=[01...] - Check vhid, password and virtual IP")),
    (f"{TIME} [ERROR] Unable to spawn the script: Resource temporarily unavailable",
     (Message.HOOK_LOST, "Unable to spawn the script: Resource temporarily unavailable")),
    (f"{TIME} [ERROR] Password too long", (Message.OTHER, "Password too long")),
    ("setpriv: failed to execute ucarp: No such file", (Message.OTHER, "failed to execute ucarp: No such file")),
    ("", (Message.OTHER, "")),
])  # fmt: skip
def test_understands(line: str, meaning: tuple[Message, str]) -> None:
    assert understand(line) == meaning


def test_a_ucarp_without_a_watchdog_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would stand for election, and nobody would know of it."""
    started: list[Popen[bytes]] = []
    spawn = command.spawn

    def spawn_one(arguments: Sequence[str], **options: Any) -> Popen[bytes]:
        if started:
            raise command.CommandError(arguments, None, "Resource temporarily unavailable")
        started.append(spawn(["sleep", "60"], **options))
        return started[0]

    monkeypatch.setattr(command, "spawn", spawn_one)
    with pytest.raises(command.CommandError):
        Ucarp(CANDIDACY)
    assert started[0].returncode == -signal.SIGKILL
