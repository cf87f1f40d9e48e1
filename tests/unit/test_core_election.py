"""The core: how a host joins, is backup, takes over and is master."""

from math import inf

import pytest
from dialogue import HOLDS, LETS_GO, OTHER, PEER, QUICK, SLOW, Host, backup, joining, master, serves

from kevip.core.instance import LEASE, LOOK_AGAIN, PROMPT, TICK
from kevip.core.messages import (
    Apply,
    Demoted,
    Do,
    Elected,
    Ended,
    Enter,
    Failed,
    Farewell,
    Level,
    Note,
    NotStarted,
    Proceed,
    Pull,
    Reason,
    Role,
    Says,
    StartEngine,
    Stop,
    Tick,
    Unfit,
    What,
)
from kevip.core.states import (
    FIRST_RETRY,
    LAST_RETRY,
    Backup,
    Down,
    Engine,
    Joining,
    Leaving,
    Master,
    Stopped,
    Traits,
    is_over,
    next_due,
)


def rests(host: Host) -> int:
    """Return how many seconds a host stays out of the election while it hears a master."""
    seconds = 0
    while isinstance(host.state, Down):
        host.hears(Says.STAYS)
        host.wait(1)
        seconds += 1
    return seconds


def backing_off() -> Host:
    """Return a host that is out of the election for the longest pause."""
    host = backup()
    while Note(what=What.RETRY, seconds=LAST_RETRY) not in host.ended():
        rests(host)
        host.demoted()
    return host


def test_a_host_stands_for_election_at_once() -> None:
    host = Host()
    assert next_due(SLOW, host.instance) == -inf
    assert host.tell(Tick()) == [Do.LOOK, Apply(Level.ARMED), StartEngine(1)]
    assert host.state == Joining()
    assert host.instance.role is Role.INIT


def test_a_host_is_backup_when_its_engine_says_so() -> None:
    host = joining()
    assert host.demoted("down") == [Enter(Role.BACKUP, Reason.JOINED), Proceed("down")]
    assert host.state == Backup()
    assert host.demoted("again") == [Proceed("again")]


def test_a_host_may_be_elected_before_it_was_backup() -> None:
    host = joining()
    host.elected()
    assert host.state == Master()


def test_an_engine_that_could_not_be_started_is_tried_again_soon_and_without_backing_off() -> None:
    host = joining()
    for run in (2, 3, 4):
        assert host.not_started() == []
        assert host.state == Down(host.now + LOOK_AGAIN, host.now + LOOK_AGAIN)
        assert host.wait(LOOK_AGAIN - 0.01).count(StartEngine(run)) == 0
        assert host.wait(0.01).count(StartEngine(run)) == 1


def test_a_host_that_could_not_start_says_so_when_it_joins() -> None:
    host = backup()
    host.ended(Reason.UNLINKED)
    host.not_started()
    host.wait(LOOK_AGAIN)
    assert host.demoted() == [Enter(Role.BACKUP, Reason.UNLINKED), Proceed("down")]


def test_what_an_earlier_run_of_the_engine_says_is_stale() -> None:
    host = backup()
    host.ended()
    host.wait(FIRST_RETRY)
    assert host.instance.run == 2
    before = host.instance
    assert host.tell(Elected(1, "up"), Demoted(1, "down"), Ended(1), NotStarted(1)) == []
    assert host.instance == before


def test_what_an_engine_says_that_is_being_ended_is_stale_but_for_its_end() -> None:
    host = backup()
    assert host.tell(Stop()) == [Do.END_ENGINE, Enter(Role.INIT, Reason.STOPPED)]
    assert host.tell(Elected(1, "up"), Demoted(1, "down")) == []
    assert not is_over(host.instance)
    host.ended()
    assert host.instance.engine is Engine.OFF
    assert host.tell(Ended(1), NotStarted(1)) == []


def test_a_backup_whose_engine_ends_stands_again_later_each_time_while_a_master_is_heard() -> None:
    host = backup()
    for pause in (1, 2, 4, 8, 16, 32, 60, 60):
        assert Note(what=What.RETRY, seconds=pause) in host.ended()
        assert rests(host) == pause
        host.demoted()


def test_back_off_is_forgotten_after_a_long_run() -> None:
    host = backup()
    host.ended()
    host.wait(FIRST_RETRY)
    host.demoted()
    host.wait(LAST_RETRY)
    assert Note(what=What.RETRY, seconds=FIRST_RETRY) in host.ended()


def test_back_off_ends_when_nobody_is_heard_to_be_master_any_more() -> None:
    host = backing_off()
    host.hears(Says.STAYS)
    host.wait(SLOW.patience - 0.01)
    assert host.instance.engine is Engine.OFF
    host.wait(0.02)
    assert host.state == Joining()


@pytest.mark.parametrize("says", [Says.LEAVES, Says.YIELDS])
def test_back_off_ends_when_the_master_lets_go(says: Says) -> None:
    host = backing_off()
    host.hears(Says.STAYS)
    host.wait(FIRST_RETRY)
    assert host.instance.engine is Engine.OFF
    host.hears(says)
    assert host.state == Joining()


def test_an_engine_that_was_ended_to_be_started_anew_is_so_at_once() -> None:
    host = backup()
    host.hears(Says.STAYS)
    assert host.ended(Reason.LATE) == [Enter(Role.INIT, Reason.LATE), StartEngine(2)]
    assert host.demoted() == [Enter(Role.BACKUP, Reason.LATE), Proceed("down")]


def test_a_backup_that_is_elected_serves_before_it_advertises() -> None:
    host = backup()
    assert host.elected("up") == [
        *HOLDS, Proceed("up"), Do.ANNOUNCE, Enter(Role.MASTER, Reason.ALONE), Do.LOOK
    ]  # fmt: skip
    assert host.state == Master()


def test_a_master_whose_engine_says_so_again_lets_it_go_on() -> None:
    assert master().elected("again") == [Proceed("again")]


@pytest.mark.parametrize(
    ("heard", "after", "reason"),
    [
        ([], 3, Reason.ALONE),
        ([Says.STAYS, Says.LEAVES], 1, Reason.GOODBYE),
        ([Says.STAYS, Says.LEAVES], 6, Reason.SILENCE),
        ([Says.STAYS], 3, Reason.SILENCE),
        ([Says.STAYS], 1, Reason.PREFERRED),
        ([Says.STAYS, Says.YIELDS], 1, Reason.SILENCE),
    ],
)
def test_a_master_says_why_it_is(heard: list[Says], after: float, reason: Reason) -> None:
    host = backup()
    for says in heard:
        host.hears(says)
    assert Enter(Role.MASTER, reason) in host.elected(after=after)


@pytest.mark.parametrize(
    ("traits", "served", "reason"),
    [
        (SLOW, 1.5, Reason.GOODBYE),
        (SLOW, 3.5, Reason.SILENCE),
        (QUICK, 0.05, Reason.GOODBYE),
        (QUICK, 1.0, Reason.SILENCE),
    ],
)
def test_a_goodbye_is_over_when_another_one_has_served_since(traits: Traits, served: float, reason: Reason) -> None:
    """So much later; a host that is elected by the goodbye as well may be late."""
    host = backup(traits)
    host.hears(Says.LEAVES)
    host.hears(Says.STAYS, of=OTHER, after=0.1)
    effects = host.elected(after=served)
    assert Enter(Role.MASTER, reason) in effects
    assert (Pull(PEER) in effects) is (reason is Reason.GOODBYE)


def test_a_takeover_that_failed_is_undone_and_tried_again() -> None:
    host = backup()
    host.elected()
    assert host.tell(Failed(detail="iptables")) == [
        Note(what=What.RESIGNED, detail="iptables"), *LETS_GO,
        Do.END_ENGINE, Note(what=What.RETRY, seconds=FIRST_RETRY), Enter(Role.INIT, Reason.UNFIT),
    ]  # fmt: skip
    assert Apply(Level.ARMED) in host.wait(0)
    host.ended()
    assert StartEngine(2) in host.wait(FIRST_RETRY)
    assert host.demoted() == [Enter(Role.BACKUP, Reason.UNFIT), Proceed("down")]


def test_a_stopping_host_is_not_elected() -> None:
    host = backup()
    assert Apply(Level.HELD) not in host.tell(Stop(), Elected(1, "up"))
    assert host.state == Stopped()


def test_a_host_that_is_elected_and_told_to_stop_in_one_batch_says_goodbye() -> None:
    host = backup()
    assert Farewell() in host.tell(Elected(1, "up"), Stop())
    assert isinstance(host.state, Leaving)


def test_a_master_renews_its_lease_and_looks_at_the_host() -> None:
    host = master()
    host.tell(Tick())
    assert host.wait(3 * TICK) == [*HOLDS, Do.LOOK] * 3


def test_a_master_that_was_stalled_for_a_lease_first_hears_who_took_over() -> None:
    host = master()
    host.tell(Tick())
    assert host.tell(Tick(), after=LEASE) == [Do.LOOK]
    assert host.wait(PROMPT) == [*HOLDS, Do.LOOK]


def test_a_backup_looks_at_the_host() -> None:
    host = backup()
    assert host.wait(2 * TICK) == [Do.LOOK] * 2


def test_a_master_whose_engine_is_backup_lets_go_before_it_answers() -> None:
    host = master()
    host.hears(Says.STAYS)
    assert host.demoted("down") == [Do.OFFER, *LETS_GO, Enter(Role.BACKUP, Reason.YIELDED), Proceed("down")]


def test_a_master_whose_engine_is_backup_though_none_is_master_has_lost_its_link() -> None:
    assert Enter(Role.BACKUP, Reason.UNLINKED) in master().demoted()


def test_a_master_yields_at_once_to_one_that_is_preferred() -> None:
    host = master()
    assert host.hears(Says.STAYS, preferred=True) == [
        Note(what=What.YIELDED, who=PEER),
        Do.YIELD,
        Do.OFFER,
        *LETS_GO,
        Do.END_ENGINE,
        Enter(Role.INIT, Reason.YIELDED),
    ]
    assert host.ended() == [StartEngine(2)]
    assert host.demoted() == [Enter(Role.BACKUP, Reason.YIELDED), Proceed("down")]


@pytest.mark.parametrize("preferred", [False, True])
def test_a_master_fetches_what_began_at_a_rival_that_yields(*, preferred: bool) -> None:
    told = [Note(what=What.RIVAL, who=PEER), Do.ANNOUNCE, Pull(PEER, rest=True)]
    assert master().hears(Says.YIELDS, preferred=preferred) == told


def test_a_master_announces_itself_when_a_rival_is_heard_that_is_not_preferred() -> None:
    host = master()
    assert host.hears(Says.STAYS) == [Note(what=What.RIVAL, who=PEER), Do.ANNOUNCE]
    assert host.state == Master()


def test_a_master_does_not_mind_one_that_leaves() -> None:
    assert master().hears(Says.LEAVES, preferred=True) == []


def test_a_master_that_cannot_be_kept_hands_over() -> None:
    host = master()
    assert host.tell(Unfit("ip"))[:1] == [Note(what=What.RESIGNED, detail="ip")]
    assert host.instance.reason is Reason.UNFIT
    assert serves(host)


def test_a_host_that_cannot_serve_hands_over() -> None:
    host = master()
    assert host.tell(Unfit("no forwarding")) == [
        Note(what=What.RESIGNED, detail="no forwarding"),
        Do.END_ENGINE,
        Do.HUSH,
        Note(what=What.LEAVING, reason=Reason.UNFIT),
        Enter(Role.LEAVING, Reason.UNFIT),
        Do.OFFER,
        Farewell(),
        *HOLDS,
    ]


def test_a_backup_is_not_asked_what_only_a_master_must_be_able_to() -> None:
    host = backup()
    assert host.tell(Unfit("no"), Unfit("ip")) == []
    assert host.state == Backup()


def test_a_master_does_not_yield_to_a_host_that_has_yielded_since() -> None:
    host = master()
    host.hears(Says.YIELDS)
    assert host.hears(Says.STAYS, preferred=True, ago=0.1) == []
    assert host.state == Master()


def test_a_master_does_not_yield_to_a_host_that_has_fallen_silent() -> None:
    host = master()
    assert host.hears(Says.STAYS, preferred=True, ago=SLOW.patience) == []
    assert host.state == Master()


def test_a_master_whose_engine_was_not_started_after_all_hands_over() -> None:
    host = master()
    assert Enter(Role.LEAVING, Reason.ENGINE) in host.not_started()
