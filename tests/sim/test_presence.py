"""Presence, tampered with in every way: it moves no VIP, breaks no daemon, and shows what is there as far as it can."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from kevip.core.messages import Role, Unfit
from kevip.daemon import Daemon
from kevip.presence.frame import Seal
from kevip.presence.presence import Presence
from kevip.status import reporter
from sim.attacker import KINDS
from sim.commands import do
from sim.course import Course, course
from sim.daemon import Simulated
from sim.host import Host
from sim.loop import Loop

_PASSWORDLESS = [kind for kind in KINDS if kind != "forge"]

Start = Callable[[Host, Loop], Any]


def attacked(kind: str, seed: int, kevip: Start = Simulated) -> tuple[Course, list[str]]:
    """Return a calm course in which somebody attacks, and what is not as expected."""
    with course(seed, kevip) as made:
        for line in ("hosts 3", "run 20s", "mark", f"attack {kind}", "run 100s"):
            do(made, line)
        return made, do(made, "expect moves = 0") + do(made, "expect one holder")


@pytest.mark.parametrize("kind", KINDS)
def test_an_attack_on_presence_changes_nothing(kind: str) -> None:
    for seed in range(5):
        made, unmet = attacked(kind, seed)
        assert (unmet, made.failures) == ([], [])
        if kind != "forge":
            assert [do(made, f"expect knows {host.name} 2") for host in made.hosts] == [[]] * 3


@pytest.mark.parametrize("way", ["loss=60%", "delay=20s", "duplication=90%", "loss=30% delay=4s duplication=50%"])
def test_frames_that_are_lost_late_or_doubled_change_nothing(way: str) -> None:
    with course(2) as made:
        for line in ("hosts 3", "run 20s", "mark", f"presence {way}", "run 100s", "presence well", "run 40s"):
            do(made, line)
        assert [answer for name in ("n1", "n2", "n3") for answer in do(made, f"expect knows {name} 2")] == []
        assert do(made, "expect moves = 0") == []
    assert made.failures == []


def test_frames_lost_one_way_make_one_silent_to_one() -> None:
    with course(3) as made:
        for line in ("hosts 3", "run 20s", "mark", "presence n2 > n1", "run 30s"):
            do(made, line)
        expected = {"n1": 1, "n2": 2, "n3": 2}
        assert [answer for name, most in expected.items() for answer in do(made, f"expect knows {name} {most}")] == []
        assert do(made, "expect moves = 0") == []
    assert made.failures == []


def test_a_dead_backup_stays_dead_while_its_frames_are_replayed() -> None:
    with course(4) as made:
        for line in ("hosts 3", "run 40s", "attack replay,readdress", "crash n3", "run 30s"):
            do(made, line)
        assert do(made, "expect knows n1 1") + do(made, "expect knows n2 1") == []


def test_64_replicas_know_each_other() -> None:
    with course(1) as made:
        for line in ("hosts 64", "run 12s"):
            do(made, line)
        assert [answer for host in made.hosts for answer in do(made, f"expect knows {host.name} 63")] == []
        assert do(made, "expect one holder") == []
    assert made.failures == []


# What is tested here is seen, if it is not so


class Gullible(Simulated):
    """A kevip that lets go of the VIP where presence says that another one has it."""

    def presence(self, told: reporter.Reporter, daemon: Daemon) -> Presence:
        """Return a presence that has a say in who is master."""
        made = super().presence(told, daemon)

        def believe() -> None:
            if any(each.role is Role.MASTER for each in made.members.values()) and self.role == "master":
                daemon.tell(Unfit("another one says that it is master"))
            self.loop.after(1, believe)

        self.loop.after(1, believe)
        return made


def test_a_daemon_that_goes_by_what_others_say_is_seen() -> None:
    found = [each.checker for seed in range(5) for each in attacked("forge", seed, Gullible)[0].failures]
    assert "calm" in found


def test_a_daemon_that_is_broken_by_what_others_say_is_seen() -> None:
    def parse(_seal: Seal, data: bytes) -> None:
        raise IndexError(data)

    with mock.patch.object(Seal, "parse", parse):
        made, _ = attacked("garbage", 1)
    assert "crash" in [each.checker for each in made.failures]
