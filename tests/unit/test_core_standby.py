"""The core: what it does for an operator who wants the VIP elsewhere, and before a host may preempt."""

from dataclasses import replace
from math import inf

import pytest
from dialogue import HOLDS, QUICK, SLOW, Host, backup, joining, leaving, master

from kevip.core.instance import LEASE
from kevip.core.messages import (
    Apply,
    Do,
    Effect,
    Enter,
    Farewell,
    Level,
    Note,
    Reason,
    Rerank,
    Role,
    Says,
    Standby,
    StartEngine,
    Stop,
    Successor,
    Target,
    Unfit,
    What,
)
from kevip.core.states import FIRST_PAUSE, Down, Engine, Leaving, Master, Stopped, Then

STANDBY, RESUME, OUT = Standby(inf), Standby(-inf), Standby(inf, out=True)
HANDS_OVER: list[Effect] = [
    Do.END_ENGINE, Do.HUSH, Note(what=What.LEAVING, reason=Reason.STANDBY), Enter(Role.LEAVING, Reason.STANDBY),
    Do.OFFER,
]  # fmt: skip


def test_a_master_in_standby_hands_over_to_fit_peers_and_stands_after_them() -> None:
    host = master()
    assert host.tell(STANDBY) == [*HANDS_OVER, Farewell(fit_only=True), *HOLDS]
    assert host.ended() == [StartEngine(2, fit=False)]
    assert host.hears(Says.STAYS)[-1] == Enter(Role.BACKUP, Reason.FOLLOWED)


def test_a_master_whose_engine_can_is_ranked_after_fit_peers() -> None:
    host = master(QUICK)
    assert host.tell(STANDBY) == [Rerank(fit=False)]
    assert host.tell(RESUME) == [Rerank(fit=True)]


def test_without_a_fit_peer_it_stays_master_and_tries_again_later() -> None:
    host = master()
    host.tell(STANDBY)
    host.ended()
    assert Note(what=What.KEPT) in host.elected(after=SLOW.farewell)
    assert not any(isinstance(each, Farewell) for each in host.wait(FIRST_PAUSE - SLOW.farewell - 0.1))
    assert Farewell(fit_only=True) in host.wait(3)


def test_asked_again_it_tries_again_at_once() -> None:
    host = master()
    host.tell(STANDBY)
    host.ended()
    host.elected(after=SLOW.farewell)
    assert Farewell(fit_only=True) in host.tell(STANDBY)


def in_standby_alone() -> Host:
    """Return a master in standby for whom nobody has taken over."""
    host = master()
    host.tell(STANDBY)
    host.ended()
    host.elected(after=SLOW.farewell)
    return host


def test_a_peer_that_appears_later_takes_over_as_soon_as_it_is_known() -> None:
    host = in_standby_alone()
    host.wait(20)
    assert Farewell(fit_only=True, rank=9) in host.tell(Successor(9))
    host.ended()
    assert host.hears(Says.STAYS)[-1] == Enter(Role.BACKUP, Reason.FOLLOWED)


def test_another_rank_of_a_successor_is_nobody_new() -> None:
    host = in_standby_alone()
    host.tell(Successor(9))
    host.ended()
    host.elected(after=SLOW.farewell)
    assert host.tell(Successor(8)) == []


def test_whoever_appears_again_and_again_and_does_not_take_over_is_no_reason_for_more_than_one_try_a_minute() -> None:
    host = in_standby_alone()
    tries = 0
    for _ in range(100):
        effects = host.tell(Successor(9)) + host.wait(3) + host.tell(Successor(None)) + host.wait(3)
        tries += len([each for each in effects if isinstance(each, Farewell)])
        if isinstance(host.state, Leaving):
            host.ended()
            host.elected()
    assert 9 <= tries <= 11


def test_a_successor_is_no_reason_to_go_for_a_host_that_is_not_in_standby() -> None:
    host = master()
    assert host.tell(Target(reached=False), Successor(9)) == []
    assert master().tell(Successor(9)) == []


def test_a_master_waits_until_no_late_peer_can_follow_the_goodbye_before() -> None:
    host = backup()
    host.hears(Says.LEAVES)
    host.elected()
    assert host.tell(STANDBY) == []
    assert Farewell(fit_only=True) in host.wait(3)


def test_a_backup_in_standby_stands_after_fit_peers_until_it_is_over() -> None:
    host = backup()
    host.hears(Says.STAYS)
    assert host.tell(Standby(host.now + 60)) == [Rerank(fit=False)]
    assert Rerank(fit=True) not in host.wait(59)
    assert host.wait(1).count(Rerank(fit=True)) == 1


def test_who_does_not_reach_target_is_not_fit_when_standby_is_over() -> None:
    host = backup()
    host.tell(Target(reached=False))
    assert host.tell(STANDBY, RESUME) == []
    assert host.tell(Target(reached=True)) == [Rerank(fit=True)]


def test_it_is_elected_in_standby_if_there_is_nobody_else() -> None:
    host = backup()
    host.tell(STANDBY)
    assert HOLDS[0] in host.elected()
    assert host.state == Master()


def test_a_host_that_starts_in_standby_stands_after_fit_peers() -> None:
    host = Host()
    assert StartEngine(1, fit=False) in host.tell(STANDBY)


def test_out_of_the_election_nobody_need_take_over_until_it_is_over() -> None:
    host = master()
    assert host.tell(Standby(host.now + 60, out=True)) == [*HANDS_OVER, Farewell(), *HOLDS]
    host.ended()
    effects = host.wait(SLOW.farewell_alone)
    assert effects.index(Apply(Level.DRAINING)) < effects.index(Enter(Role.INIT, Reason.NOBODY))
    assert isinstance(host.state, Down)
    assert not any(isinstance(each, StartEngine) for each in host.wait(55))
    assert StartEngine(2) in host.wait(5)


@pytest.mark.parametrize("host", [joining(), backup()])
def test_who_has_no_vip_to_hand_over_is_out_at_once_and_back_when_it_is_told(host: Host) -> None:
    assert Do.END_ENGINE in host.tell(OUT)
    host.ended()
    assert host.state == Down(host.now, host.now)
    assert StartEngine(2) in host.tell(RESUME)
    assert host.instance.engine is Engine.ON


@pytest.mark.parametrize(("then", "after"), [
    (Then.STAY, Then.OUT), (Then.RETRY, Then.OUT), (Then.STOP, Then.STOP),
])  # fmt: skip
def test_one_that_leaves_is_out_then_unless_it_stops(then: Then, after: Then) -> None:
    host = leaving(then)
    effects = host.tell(OUT)
    assert isinstance(host.state, Leaving)
    assert host.state.then is after
    assert (Farewell() in effects) is (then is Then.STAY)


def test_who_is_out_can_stop() -> None:
    host = backup()
    host.tell(OUT)
    host.ended()
    host.tell(Stop())
    assert host.state == Stopped()


def test_a_master_that_goes_into_standby_while_it_cannot_serve_leaves_for_that() -> None:
    host = master()
    host.tell(STANDBY)
    host.ended()
    assert Farewell() in host.tell(Unfit("no"))


def test_a_stop_in_standby_is_a_stop() -> None:
    host = master()
    host.tell(STANDBY)
    host.ended()
    host.tell(Stop())
    host.wait(LEASE)
    assert host.state == Stopped()


def test_who_may_preempt_stands_as_one_that_is_not_fit_until_it_has_settled() -> None:
    host = Host(replace(SLOW, settling=60.0))
    assert StartEngine(1, fit=False) in host.wait(0)
    host.demoted()
    host.hears(Says.STAYS)
    assert Rerank(fit=True) not in host.wait(59)
    assert Rerank(fit=True) in host.wait(1)
    host.ended()
    assert StartEngine(2, fit=False) in host.wait(60)


def test_a_master_need_not_settle() -> None:
    host = joining(replace(QUICK, settling=60.0))
    host.demoted()
    host.elected(after=QUICK.patience)
    assert host.wait(3).count(Rerank(fit=True)) == 1
    assert Rerank(fit=False) not in host.wait(70)
    assert host.state == Master()
