"""The core: what it does for TARGET's sake."""

from dataclasses import replace

import pytest
from dialogue import HOLDS, PEER, QUICK, SLOW, Host, backup, joining, leaving, master

from kevip.core.instance import AGREE, LEASE, LOOK_AGAIN
from kevip.core.messages import (
    Apply,
    Do,
    Effect,
    Enter,
    Farewell,
    Level,
    Note,
    Proceed,
    Reason,
    Rerank,
    Role,
    Says,
    StartEngine,
    Stop,
    Target,
    Tick,
    Unfit,
    What,
)
from kevip.core.states import (
    FIRST_PAUSE,
    FIRST_RETRY,
    LAST_PAUSE,
    Backup,
    Down,
    Engine,
    Master,
    Stopped,
    Then,
    Traits,
    is_waited_for,
)


def unreached(host: Host, detail: str = "") -> list[Effect]:
    """Have TARGET not be reached for so long that peers know it too, if they suffer the same."""
    host.tell(Target(reached=False, detail=detail))
    return host.tell(Target(reached=False, detail=detail), after=AGREE)


def test_a_master_whose_peers_may_not_know_yet_what_they_suffer_too_waits() -> None:
    host = master()
    assert host.tell(Target(reached=False)) == []
    assert host.tell(Target(reached=False), after=AGREE - 0.1) == []
    assert isinstance(host.state, Master)


def test_a_master_waits_until_no_late_peer_can_follow_the_goodbye_before() -> None:
    host = backup()
    host.tell(Target(reached=False))
    host.wait(AGREE)
    host.hears(Says.LEAVES)
    host.elected()
    assert host.tell(Target(reached=False), after=SLOW.lateness - 0.1) == []
    assert Farewell(fit_only=True) in host.tell(Target(reached=False), after=0.1)


def test_a_master_waits_for_a_rival_to_yield_and_leaves_to_one_that_does_not() -> None:
    host = master()
    host.tell(Target(reached=False))
    host.hears(Says.STAYS, after=AGREE)
    assert host.tell(Target(reached=False)) == []
    host.hears(Says.STAYS, after=SLOW.interval)
    assert Note(what=What.FOLLOWED, who=PEER) in host.tell(Target(reached=False))


def test_a_master_that_does_not_reach_target_lets_fit_peers_take_over_and_stands_meanwhile() -> None:
    host = master()
    assert unreached(host, "no route") == [
        Note(what=What.RESIGNED, detail="no route"),
        Do.END_ENGINE,
        Do.HUSH,
        Note(what=What.LEAVING, reason=Reason.TARGET),
        Enter(Role.LEAVING, Reason.TARGET),
        Do.OFFER,
        Farewell(fit_only=True),
        *HOLDS,
    ]
    assert host.ended() == [StartEngine(2, fit=False)]
    assert host.demoted() == [Proceed("down")]
    assert Do.LOOK not in host.wait(0)


def test_a_master_stays_if_nobody_that_reaches_target_takes_over() -> None:
    host = leaving(Then.STAY)
    assert host.wait(SLOW.patience).count(Apply(Level.HELD)) == 2
    assert host.elected("up") == [
        *HOLDS,
        Do.END_FAREWELL, Do.END_OFFER, Proceed("up"), Note(what=What.KEPT), Do.ANNOUNCE, Enter(Role.MASTER, Reason.KEPT)
    ]  # fmt: skip
    assert host.state == Master()


def test_a_master_that_would_stay_is_backup_when_a_fit_peer_took_over() -> None:
    host = leaving(Then.STAY)
    assert host.hears(Says.STAYS)[-1] == Enter(Role.BACKUP, Reason.FOLLOWED)
    assert host.state == Backup()


@pytest.mark.parametrize(("preferred", "role"), [(True, Role.BACKUP), (False, Role.LEAVING)])
def test_of_two_that_would_stay_and_hear_each_other_one_serves_on(*, preferred: bool, role: Role) -> None:
    host = leaving(Then.STAY)
    host.hears(Says.LEAVES, preferred=preferred)
    assert host.instance.role is role


def test_a_master_that_stops_serves_on_although_another_leaves() -> None:
    host = leaving(Then.STOP)
    assert host.hears(Says.LEAVES, preferred=True) == []


def test_a_master_that_would_stay_and_has_no_engine_yet_starts_one_when_it_lets_go() -> None:
    host = master()
    unreached(host)
    host.hears(Says.STAYS, after=0.1)
    assert isinstance(host.state, Down)
    assert host.ended() == [StartEngine(2, fit=False)]


def test_a_master_that_would_stay_lets_go_if_its_engine_says_nothing() -> None:
    host = leaving(Then.STAY)
    limit = SLOW.farewell + SLOW.patience + 2 * SLOW.interval
    assert Enter(Role.BACKUP, Reason.NOBODY) in host.wait(limit)


def test_a_master_that_would_stay_lets_its_lease_end_if_it_was_asleep() -> None:
    host = leaving(Then.STAY)
    assert host.tell(Tick(), after=LEASE) == []


def test_an_engine_of_one_that_would_stay_is_started_at_most_once_a_second() -> None:
    host = leaving(Then.STAY)
    assert host.ended(after=0.2) == []
    assert StartEngine(3, fit=False) in host.wait(FIRST_RETRY - 0.2)
    host.not_started()
    assert host.wait(LOOK_AGAIN - 0.01).count(StartEngine(4, fit=False)) == 0
    assert StartEngine(4, fit=False) in host.wait(0.01)


def test_a_master_that_would_stay_and_is_told_to_stop_says_goodbye_to_all() -> None:
    host = leaving(Then.STAY)
    assert host.tell(Stop(), after=1) == [Do.END_ENGINE, Farewell()]
    host.ended()
    assert Enter(Role.INIT, Reason.NOBODY) in host.wait(SLOW.farewell)
    assert host.state == Stopped()


def test_a_master_that_would_stay_and_cannot_serve_says_goodbye_to_all() -> None:
    host = leaving(Then.STAY)
    assert host.tell(Unfit("no"), after=1) == [Do.END_ENGINE, Farewell()]
    host.ended()
    host.wait(SLOW.farewell)
    assert isinstance(host.state, Down)


def test_a_host_that_does_not_know_whether_target_is_reached_keeps_the_vip() -> None:
    host = master()
    assert host.tell(Target(reached=True), Target(reached=None)) == []


def test_a_target_that_no_host_reaches_does_not_move_the_vip_more_often_than_ever_more_seldom() -> None:
    host, at = master(), []
    begin = host.now
    while host.now < begin + LAST_PAUSE:
        if Note(what=What.LEAVING, reason=Reason.TARGET) in host.tell(Target(reached=False)):
            at.append(host.now - begin)
            host.ended()
            host.elected()
        host.wait(1)
    assert [round(seconds) for seconds in at] == [1, 61, 181, 421, 901, 1861]


def test_pauses_between_handovers_for_target_are_an_hour_at_most_and_forgotten_after_one() -> None:
    host = master()
    host.tell(Target(reached=False))
    host.instance = replace(host.instance, resign_pause=LAST_PAUSE)
    for after, pause in ((AGREE, FIRST_PAUSE), (2 * LAST_PAUSE, FIRST_PAUSE), (FIRST_PAUSE, 2 * FIRST_PAUSE)):
        host.instance = replace(host.instance, renewed=host.now + after)
        host.tell(Target(reached=False), after=after)
        assert host.instance.resign_from == host.now + pause
        host.ended()
        host.elected()
    host.instance = replace(host.instance, resign_pause=LAST_PAUSE, resign_from=host.now)
    host.tell(Target(reached=False))
    assert host.instance.resign_from == host.now + LAST_PAUSE


def test_a_backup_whose_view_of_target_is_lost_stands_as_before() -> None:
    host = backup()
    host.hears(Says.STAYS)
    assert host.tell(Target(reached=None)) == []


def test_a_host_stands_as_it_deserves_in_the_role_that_it_has() -> None:
    for host in (joining(), backup()):
        assert host.tell(Target(reached=False)) == [Rerank(fit=False)]
        assert host.tell(Target(reached=False)) == []
        host.elected()
        assert host.tell(Target(reached=True)) == [Rerank(fit=True)]
        assert host.state == Master()


def test_an_engine_that_could_not_be_started_is_not_started_again_by_a_host_that_stops() -> None:
    host = leaving(Then.STAY)
    host.tell(Stop())
    assert host.not_started() == []
    host.wait(LOOK_AGAIN)
    assert host.instance.engine is Engine.OFF
    host.wait(SLOW.farewell)
    assert host.state == Stopped()


def test_a_master_that_stays_has_the_address_again_before_it_advertises() -> None:
    host = leaving(Then.STAY)
    effects = host.elected("up", after=LEASE)
    assert effects.index(Apply(Level.HELD)) < effects.index(Proceed("up"))


def test_a_backup_that_reaches_target_again_waits_until_the_master_must_know_it_as_well() -> None:
    host = backup(QUICK)
    assert host.tell(Target(reached=False)) == [Rerank(fit=False)]
    assert host.tell(Target(True, within=6.0), after=60) == []
    assert host.tell(Target(True, within=6.0), after=5) == []
    assert host.wait(0.9) == [Do.LOOK]
    assert host.wait(0.1) == [Rerank(fit=True)]
    assert not is_waited_for(host.instance)


def test_a_backup_that_loses_target_while_it_waits_stays_unfit() -> None:
    host = backup(QUICK)
    host.tell(Target(reached=False))
    host.tell(Target(True, within=6.0), Target(reached=False))
    assert Rerank(fit=True) not in host.wait(60)
    host.tell(Target(True, within=6.0))
    assert Rerank(fit=True) not in host.wait(5.9)
    assert Rerank(fit=True) in host.wait(0.1)


@pytest.mark.parametrize("traits", [SLOW, QUICK])
def test_a_master_that_reaches_target_again_waits_for_nobody(traits: Traits) -> None:
    host = backup(traits)
    host.tell(Target(reached=False))
    host.elected(after=1)
    assert Rerank(fit=True) in host.tell(Target(True, within=6.0), after=60)


def test_who_is_elected_while_it_waits_waits_no_longer() -> None:
    host = backup(QUICK)
    host.tell(Target(reached=False))
    host.tell(Target(True, within=6.0), after=60)
    host.elected(after=1)
    assert Rerank(fit=True) in host.wait(2)
    assert Rerank(fit=True) not in host.wait(60)
