"""The core: how a master hands over."""

import pytest
from dialogue import HOLDS, LETS_GO, OTHER, PEER, SLOW, backup, leave, leaving, master, serves

from kevip.core.instance import DRAIN, FETCH, LEASE
from kevip.core.messages import (
    Apply,
    Do,
    Enter,
    Failed,
    Farewell,
    Level,
    Note,
    Proceed,
    Pull,
    Pulled,
    Reason,
    Role,
    Says,
    Served,
    StartEngine,
    Stop,
    Successor,
    Unfit,
    What,
)
from kevip.core.states import (
    FIRST_RETRY,
    Down,
    Leaving,
    Stopped,
    Then,
)

TOLD_TO_STOP = [
    Do.END_ENGINE,
    Do.HUSH,
    Note(what=What.LEAVING, reason=Reason.STOPPED),
    Enter(Role.LEAVING, Reason.STOPPED),
]
"""What a master does first that is told to stop."""


def test_a_master_that_stops_serves_on_until_another_one_is_heard() -> None:
    host = master()
    host.hears(Says.YIELDS)
    assert host.tell(Stop()) == [*TOLD_TO_STOP, Do.OFFER, Farewell(known=True), *HOLDS]
    host.ended()
    assert host.wait(1) == []
    assert host.hears(Says.STAYS) == [
        Do.END_FAREWELL,
        Note(what=What.FOLLOWED, who=PEER, seconds=1),
        *LETS_GO,
        Enter(Role.INIT, Reason.FOLLOWED),
    ]
    assert host.state == Stopped()


def test_a_goodbye_begins_with_the_one_that_is_said_to_come_first() -> None:
    host = master()
    host.hears(Says.YIELDS)
    host.tell(Successor(20))
    assert Farewell(known=True, rank=20) in host.tell(Stop())
    forgotten = master()
    forgotten.tell(Successor(20), Successor(None))
    assert Farewell() in forgotten.tell(Stop())


def test_an_heir_fetches_the_connections_of_the_master_that_left() -> None:
    host = backup()
    host.hears(Says.STAYS)
    host.hears(Says.LEAVES)
    assert host.elected("up", after=1) == [
        Pull(PEER), *HOLDS, Proceed("up"), Do.ANNOUNCE, Pull(PEER, rest=True), Enter(Role.MASTER, Reason.GOODBYE),
        Do.LOOK,
    ]  # fmt: skip


@pytest.mark.parametrize(("seconds", "found"), [(1, [Pull(PEER, rest=True)]), (3, [])], ids=["preferred", "silence"])
def test_who_takes_over_without_a_goodbye_loses_no_time_by_it(seconds: float, found: list[Pull]) -> None:
    host = backup()
    host.hears(Says.STAYS)
    effects = host.elected("up", after=seconds)
    assert [effect for effect in effects if isinstance(effect, Pull)] == found
    assert effects[:1] == HOLDS


def test_no_further_goodbye_is_said_when_a_host_fetches_the_connections() -> None:
    host = leaving(Then.STOP, known=True)
    assert host.tell(Pulled()) == [Do.END_FAREWELL]
    assert serves(host)


@pytest.mark.parametrize("early", [True, False], ids=["before the heir serves", "since"])
def test_connections_that_are_being_fetched_are_not_forgotten_yet(early: bool) -> None:
    host = leaving(Then.STOP)
    if early:
        host.tell(Pulled())
    host.hears(Says.STAYS)
    if not early:
        host.tell(Pulled(), after=DRAIN / 2)
    assert Do.END_OFFER not in host.wait(DRAIN)
    host.tell(Served())
    assert Do.END_OFFER not in host.wait(DRAIN - 0.01)
    assert host.wait(0.01)[-2:] == [Do.END_OFFER, Apply(Level.NONE)]
    assert host.tell(Pulled(), Served()) == []


@pytest.mark.parametrize("stopped", [True, False])
def test_an_heir_that_fetches_for_long_holds_nothing_up_without_end(stopped: bool) -> None:
    host = master()
    host.demoted()
    host.tell(Pulled())
    host.wait(FETCH / 2)
    if stopped:
        host.tell(Stop())
        host.ended()
    assert Do.END_OFFER not in host.wait(FETCH / 2 - 0.01)
    assert host.wait(0.01)[:2] == [Do.END_OFFER, Apply(Level.NONE if stopped else Level.ARMED)]


def test_an_heir_of_an_earlier_handover_holds_nothing_up() -> None:
    host = master()
    host.demoted()
    host.tell(Pulled())
    assert host.elected(after=DRAIN)[0] is Do.END_OFFER
    host.demoted()
    assert Do.END_OFFER in host.wait(DRAIN)


def test_a_master_that_stops_waits_longer_where_a_peer_is_known() -> None:
    assert leaving(Then.STOP, known=True).state == Leaving(Then.STOP, 103.05, 103.05 + SLOW.farewell)
    assert leaving(Then.STOP).state == Leaving(Then.STOP, 103.05, 103.05 + SLOW.farewell_alone)


def test_a_master_that_stops_lets_go_when_nobody_takes_over_in_time() -> None:
    host = leaving(Then.STOP)
    host.wait(SLOW.farewell_alone - 0.01)
    assert serves(host)
    assert Enter(Role.INIT, Reason.NOBODY) in host.wait(0.01)
    assert host.state == Stopped()


def test_rules_outlive_the_address_where_another_host_serves() -> None:
    host = leaving(Then.STOP)
    host.hears(Says.STAYS)
    assert Apply(Level.NONE) not in host.wait(DRAIN - 0.01)
    assert Apply(Level.NONE) in host.wait(0.01)


def test_rules_go_with_the_address_where_no_host_serves() -> None:
    host = leaving(Then.STOP)
    assert host.wait(SLOW.farewell_alone)[-1] == Apply(Level.NONE)


def test_an_advert_of_before_the_goodbye_does_not_end_it() -> None:
    host = master()
    host.hears(Says.STAYS)
    host.tell(Stop())
    host.hears(Says.STAYS, of=OTHER, ago=0.01)
    assert serves(host)


@pytest.mark.parametrize("says", [Says.LEAVES, Says.YIELDS])
def test_one_that_does_not_stay_is_no_heir(says: Says) -> None:
    host = leaving(Then.STOP)
    host.hears(says, after=0.5)
    assert serves(host)


def test_a_handover_is_not_given_to_a_host_whose_advert_came_before_it_yielded() -> None:
    host = master()
    host.hears(Says.STAYS)
    host.hears(Says.YIELDS, after=0.01)
    host.tell(Stop())
    assert serves(host)


def test_a_handover_is_not_given_to_a_rival_that_had_no_time_to_yield() -> None:
    host = master()
    host.hears(Says.STAYS)
    host.tell(Stop())
    assert serves(host)


@pytest.mark.parametrize("then", [Then.STOP, Then.RETRY, Then.STAY])
def test_a_master_lets_go_at_once_where_another_one_serves_already(then: Then) -> None:
    host = master()
    host.hears(Says.STAYS)
    host.hears(Says.STAYS, after=1)
    effects = leave(host, then)
    begin = effects.index(Note(what=What.FOLLOWED, who=PEER))
    assert effects[begin + 1 : begin + 3] == LETS_GO
    assert not any(isinstance(effect, Farewell) for effect in effects)
    assert type(host.state) is (Stopped if then is Then.STOP else Down)


def test_a_host_that_has_fallen_silent_serves_no_more() -> None:
    host = master()
    host.hears(Says.STAYS)
    host.hears(Says.STAYS, after=1)
    host.tell(Stop(), after=SLOW.interval + 0.6)
    assert serves(host)


def test_a_host_whose_lease_has_ended_has_nothing_to_hand_over() -> None:
    host = master()
    assert host.tell(Stop(), after=LEASE) == [
        Do.END_ENGINE, Note(what=What.NOBODY), *LETS_GO, Enter(Role.INIT, Reason.NOBODY)
    ]  # fmt: skip
    assert host.state == Stopped()


def test_a_master_whose_engine_ended_hands_over_and_stands_again() -> None:
    host = master()
    assert Enter(Role.LEAVING, Reason.ENGINE) in host.ended()
    assert host.wait(1).count(StartEngine(2)) == 0
    assert host.hears(Says.STAYS)[-2:] == [
        Note(what=What.RETRY, seconds=FIRST_RETRY), Enter(Role.INIT, Reason.FOLLOWED)
    ]  # fmt: skip
    assert StartEngine(2) in host.wait(SLOW.patience)
    assert host.demoted() == [Enter(Role.BACKUP, Reason.FOLLOWED), Proceed("down")]


def test_a_leaving_master_that_is_told_to_stop_does() -> None:
    host = leaving(Then.RETRY)
    host.tell(Stop())
    host.hears(Says.STAYS)
    assert host.state == Stopped()


def test_a_stopping_master_that_cannot_serve_stops_nevertheless() -> None:
    host = leaving(Then.STOP)
    host.tell(Unfit("no"), Unfit("ip"))
    host.hears(Says.STAYS)
    assert host.state == Stopped()


def test_a_leaving_master_that_has_lost_the_address_lets_go() -> None:
    host = leaving(Then.STOP)
    assert host.tell(Failed()) == [
        Do.END_FAREWELL, Note(what=What.NOBODY), *LETS_GO, Enter(Role.INIT, Reason.NOBODY)
    ]  # fmt: skip


def test_a_leaving_master_does_not_renew_its_lease() -> None:
    host = leaving(Then.STOP, known=True)
    assert Apply(Level.HELD) not in host.wait(SLOW.farewell - 0.01)


def test_a_handover_is_not_given_to_a_host_that_has_yielded_since_its_advert() -> None:
    host = leaving(Then.STOP)
    host.hears(Says.YIELDS, after=1)
    host.hears(Says.STAYS, ago=0.5)
    assert serves(host)


def test_a_master_says_why_its_engine_ended() -> None:
    assert Enter(Role.LEAVING, Reason.MOVED) in master().ended(Reason.MOVED)


def test_a_master_without_a_link_says_no_goodbye_and_lets_go() -> None:
    host = master()
    assert host.ended(Reason.UNLINKED) == [*LETS_GO, Enter(Role.INIT, Reason.UNLINKED), StartEngine(2)]
    assert Apply(Level.ARMED) in host.wait(0)
