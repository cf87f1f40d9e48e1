"""Each checker on a planted fault: puppets in kevip's place, that do what a daemon must not."""

import signal
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address

import pytest

from kevip.election.ucarp import Candidacy
from kevip.election.vrrpd import Home
from kevip.presence.group import Member
from sim.checkers import CHECKERS, Checker
from sim.commands import do
from sim.conntrackd import Conntrackd
from sim.course import Course, course
from sim.daemon import candidacy_of_vrrp
from sim.host import VIP, Host
from sim.keepalived import Keepalived
from sim.loop import Loop
from sim.ucarp import Ucarp


class Puppet:
    """A kevip that does nothing of its own, and ends when it is told to, with ``status``; as it is, that is clean."""

    role = "backup"
    status = 0
    known: Mapping[IPv4Address, Member] = {}

    def __init__(self, host: Host, loop: Loop) -> None:
        self.host, self._loop = host, loop
        self.stops = False

    def run(self) -> int:
        """Wait for a signal."""
        with self._loop.signals({signal.SIGTERM: self._stop}):
            while not self.stops:
                self._loop.turn()
        return self.status

    def _stop(self, _number: signal.Signals) -> None:
        self.stops = True
        self.host.drop()

    def elect(self) -> None:
        """Start a ucarp, and let it do as it likes."""
        host = self.host
        candidacy = Candidacy(
            vip=VIP, vip_id=100, interface="eth0", source=host.address, password="", advbase=1, advskew=1, dead_ratio=3,
            preempt=False, broadcast=False,
        )  # fmt: skip
        ucarp = Ucarp(host, candidacy)

        def answer() -> None:
            for request in ucarp.requests():
                ucarp.answer(request)

        self._loop.watch(ucarp.channel, answer)


def puppets(made: Course) -> list[Puppet]:
    return [host.node.kevip for host in made.hosts if isinstance(host.node.kevip, Puppet)]


def take(host: Host, *, seconds: float = 1000, rules: bool = True) -> None:
    for table in ("mangle", "filter", "nat") if rules else ():
        host.tools.tables[table] = ["-A PREROUTING"]
    host.note("vip.held", rules=host.tools.has_rules)
    host.hold(seconds)


def nobody_takes_it(made: Course) -> None:
    made.world.run(20)


def no_rules(made: Course) -> None:
    take(made.hosts[0], rules=False)


def any_hook_is_answered(made: Course) -> None:
    puppets(made)[0].elect()
    made.world.run(10)


def two_ucarps(made: Course) -> None:
    puppets(made)[0].elect()
    puppets(made)[0].elect()


def no_ucarp(made: Course) -> None:
    take(made.hosts[0])
    made.world.run(30)


def a_whim(made: Course) -> None:
    take(made.hosts[0])
    made.world.run(20)
    made.hosts[0].drop()
    take(made.hosts[1])


def round_and_round(made: Course) -> None:
    take(made.hosts[0])
    do(made, "target all gone")
    for host in (*made.hosts, made.hosts[0]):
        made.world.run(5)
        take(host)
        made.world.run(1)
        host.drop()


def a_stop_in_the_dark(made: Course) -> None:
    take(made.hosts[0])
    made.world.run(20)
    puppets(made)[1].elect()
    do(made, "stop n1")
    made.world.run(1)


def nothing_handed_on(made: Course) -> None:
    take(made.hosts[0])
    made.world.run(20)
    puppets(made)[1].elect()
    do(made, "stop n1")
    take(made.hosts[1])
    made.world.run(5)


def an_heir_that_forgets(made: Course) -> None:
    for host in made.hosts:
        Conntrackd(host)
    take(made.hosts[0])
    made.world.run(50)
    made.hosts[1].tracked.clear()
    do(made, "crash n1")
    take(made.hosts[1])
    made.world.run(5)


def both(made: Course) -> None:
    take(made.hosts[0])
    take(made.hosts[1])
    made.world.run(5)


def no_lease(made: Course) -> None:
    take(made.hosts[0])
    do(made, "kill n1")
    made.world.run(10)


def rules_stay(made: Course) -> None:
    take(made.hosts[0])
    do(made, "stop n1")
    made.world.run(1)


def a_bug(made: Course) -> None:
    def turn() -> None:
        raise LookupError("a bug")

    if process := made.hosts[0].node.process:
        loop = made.hosts[0].node.loop
        assert loop
        loop.after(0, turn)
        process.wake()
        made.world.run(1)


PLANTED: dict[str, Callable[[Course], None]] = {
    "one holder": nobody_takes_it,
    "rules first": no_rules,
    "held if advertised": any_hook_is_answered,
    "one engine": two_ucarps,
    "standing": no_ucarp,
    "calm": a_whim,
    "common fault": round_and_round,
    "stop": a_stop_in_the_dark,
    "connections": nothing_handed_on,
    "copies": an_heir_that_forgets,
    "two holders": both,
    "dead holder": no_lease,
    "nothing left": rules_stay,
    "crash": a_bug,
}


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_planted_fault_is_seen(checker: type[Checker]) -> None:
    with course(1, Puppet) as made:
        do(made, "hosts 2")
        made.world.run(1)
        PLANTED[checker.name](made)
    assert checker.name in [each.checker for each in made.failures]


def test_a_stop_with_another_status_than_0_is_seen() -> None:
    with course(1, Puppet) as made:
        do(made, "hosts 2")
        made.world.run(1)
        puppets(made)[0].status = 1
        do(made, "stop n1")
        made.world.run(1)
    assert [each.text for each in made.failures] == ["n1 stops with 1"]


def test_who_cannot_remove_the_vip_may_keep_it_until_its_lease_ends() -> None:
    with course(1, Puppet) as made:
        for line in ("hosts 2", "run 1s", "tools n1 ip=fail"):
            do(made, line)
        take(made.hosts[0], seconds=6)
        take(made.hosts[1])
        made.world.run(5.5)
        assert "two holders" not in [each.checker for each in made.failures]
        do(made, "tools n1 well")
        take(made.hosts[0], seconds=6)
        made.world.run(1)
        assert "two holders" in [each.checker for each in made.failures]


def test_a_keepalived_that_goes_on_to_advertise_what_is_not_held_is_seen() -> None:
    """It waits for nobody, so that it may do so for a moment."""
    with course(1, Puppet) as made:
        do(made, "hosts 2")
        made.world.run(1)
        host, loop, process = made.hosts[0], made.hosts[0].node.loop, made.hosts[0].node.process
        assert loop
        assert process
        candidacy = candidacy_of_vrrp(host, host.settings)
        keepalived = Keepalived(host, candidacy, candidacy.group(), Home(candidacy.run_dir, VIP), 0)

        def beat() -> None:
            keepalived.beat()
            loop.after(1, beat)

        loop.after(0, beat)
        process.wake()
        made.world.run(5)
        assert "held if advertised" not in [each.checker for each in made.failures]
        made.world.run(5)
    assert "held if advertised" in [each.checker for each in made.failures]


@pytest.mark.parametrize("engine", ["ucarp", "keepalived"])
def test_the_calm_of_today_is_seen_as_one(engine: str) -> None:
    with course(1) as made:
        for line in (f"hosts 3 engine={engine}", "run 60s"):
            do(made, line)
    assert made.failures == []


def test_the_same_seed_gives_the_same_course() -> None:
    def notes(seed: int) -> list[str]:
        with course(seed) as made:
            for line in ("hosts 3 check", "loss 20%", "run 20s", "kill n1", "run 20s"):
                do(made, line)
        return [str(note) for note in made.notes]

    assert notes(7) == notes(7)
    assert notes(7) != notes(8)
