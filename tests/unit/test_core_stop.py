"""The core: what is left to do, and what must not be."""

from dataclasses import replace
from math import inf

import pytest
from dialogue import SLOW, Host, backup, joining, leaving, master, serves

from kevip.core.instance import DRAIN, step
from kevip.core.messages import (
    Apply,
    Cleared,
    Do,
    Ended,
    Enter,
    Failed,
    Level,
    Note,
    Reason,
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
    FIRST_RETRY,
    GIVE_UP,
    LAST_RETRY,
    STUCK,
    TABLE,
    Backup,
    Down,
    Engine,
    Instance,
    Joining,
    Leaving,
    Master,
    State,
    Stopped,
    Then,
    is_over,
)


@pytest.mark.parametrize("host", [Host(), joining(), backup()], ids=["down", "joining", "backup"])
def test_a_host_that_does_not_hold_the_vip_stops_at_once(host: Host) -> None:
    was_on, was_armed = host.instance.engine is Engine.ON, host.instance.level is Level.ARMED
    effects = host.tell(Stop(), Tick())
    assert host.state == Stopped()
    assert effects.count(Do.END_ENGINE) == was_on
    assert effects.count(Apply(Level.NONE)) == was_armed
    host.ended()
    host.clear()
    assert is_over(host.instance)


def test_a_stopped_host_takes_no_part() -> None:
    host = backup()
    host.tell(Stop())
    host.ended()
    assert host.tell(Stop(), Target(reached=False), Unfit("no"), Failed()) == []
    assert StartEngine(2) not in host.wait(2 * LAST_RETRY)


def test_a_stop_is_over_when_the_engine_has_ended_and_the_rules_are_gone() -> None:
    host = leaving(Then.STOP)
    host.hears(Says.STAYS)
    host.wait(DRAIN)
    assert not is_over(host.instance)
    host.clear()
    assert is_over(host.instance)
    assert host.instance.level is Level.NONE


def test_a_stop_gives_up_on_rules_that_cannot_be_removed() -> None:
    host = leaving(Then.STOP)
    host.hears(Says.STAYS)
    for _ in range(STUCK):
        assert not is_over(host.instance)
        assert Apply(Level.NONE) in host.wait(FIRST_RETRY)
        host.clear(ok=False)
    assert is_over(host.instance)
    assert host.instance.level is Level.DRAINING


@pytest.mark.parametrize("says", [Says.STAYS, None], ids=["followed", "nobody"])
def test_a_stop_gives_up_on_a_removal_that_does_not_end(says: Says | None) -> None:
    host = leaving(Then.STOP)
    if says:
        host.hears(says)
    assert Apply(Level.NONE) in host.wait(DRAIN if says else host.traits.farewell_alone)
    host.wait(GIVE_UP - 0.01)
    assert not is_over(host.instance)
    host.wait(0.01)
    assert is_over(host.instance)
    assert host.instance.level is Level.DRAINING


def test_connections_that_cannot_be_forgotten_are_tried_again_later_each_time() -> None:
    host = master()
    host.demoted()
    assert Apply(Level.ARMED) in host.wait(DRAIN)
    for seconds in (2, 4, 6):
        host.clear(ok=False)
        assert Apply(Level.ARMED) not in host.wait(seconds - 0.01)
        assert Apply(Level.ARMED) in host.wait(0.01)
    host.clear()
    assert host.instance.stuck == 0
    assert Apply(Level.ARMED) not in host.wait(60)


def test_rules_that_drain_are_not_removed_from_under_a_host_that_is_elected_again() -> None:
    host = master()
    host.demoted()
    host.elected(after=DRAIN / 2)
    assert Apply(Level.ARMED) not in host.wait(60)


def test_rules_that_were_cleared_before_they_were_installed_again_are_there() -> None:
    host = master()
    host.demoted()
    host.wait(DRAIN)
    host.elected()
    host.clear()
    assert serves(host)


def test_a_transition_that_is_not_in_the_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kevip.core.states.TABLE", TABLE.keys() - {(Backup, Stopped)})
    with pytest.raises(ValueError, match="no transition from Backup to Stopped"):
        backup().tell(Stop())


@pytest.mark.parametrize(
    "flawed",
    [
        Instance(state=Master(), engine=Engine.ON, role=Role.MASTER),
        Instance(state=Master(), level=Level.HELD, role=Role.MASTER),
        Instance(state=Leaving(Then.RETRY, 0, inf), engine=Engine.ON, level=Level.HELD, role=Role.LEAVING),
        Instance(state=Leaving(Then.STAY, 0, inf), engine=Engine.ON, role=Role.LEAVING),
        Instance(state=Backup(), engine=Engine.ON, level=Level.HELD, role=Role.BACKUP),
        Instance(state=Joining(), engine=Engine.ENDING),
        Instance(state=Down(inf, inf), engine=Engine.ON),
    ],
)
def test_a_host_that_is_not_as_it_must_be_leaves_the_election_without_the_vip(flawed: Instance) -> None:
    now_is, effects = step(SLOW, replace(flawed, tick=inf), Tick(), 100)
    assert effects[1:6] == [Do.END_ENGINE, Do.END_FAREWELL, Do.END_OFFER, Do.HUSH, Apply(Level.ARMED)]
    assert isinstance(effects[0], Note)
    assert effects[0].what is What.BROKEN
    assert effects[0].detail
    assert now_is.state == Down(100 + LAST_RETRY, 100 + LAST_RETRY)
    assert now_is.role is Role.INIT
    assert (Enter(Role.INIT, Reason.UNFIT) in effects) is (flawed.role is not Role.INIT)


def test_rules_that_were_cleared_before_a_takeover_and_are_back_since_are_removed_again() -> None:
    host = master()
    host.demoted()
    host.wait(DRAIN)
    host.elected()
    host.demoted()
    host.clear()
    assert Apply(Level.ARMED) in host.wait(DRAIN)
    host.clear()
    assert Apply(Level.ARMED) not in host.wait(60)


@pytest.mark.parametrize("state", [Stopped(), Leaving(Then.STOP, 0, inf)])
def test_a_host_that_stops_does_so_also_if_something_is_wrong_with_it(state: State) -> None:
    now_is, _ = step(SLOW, Instance(state=state, engine=Engine.ON, level=Level.HELD, run=1), Tick(), 100)
    assert now_is.state == Stopped()
    assert now_is.give_up == 100 + GIVE_UP
    now_is, _ = step(SLOW, now_is, Ended(1), 101)
    now_is, _ = step(SLOW, now_is, Cleared(Level.NONE), 102)
    assert is_over(now_is)


def test_what_was_not_done_because_something_was_wrong_is_not_waited_for() -> None:
    flawed = Instance(state=Leaving(Then.RETRY, 0, inf, restart=0), level=Level.HELD, role=Role.LEAVING)
    now_is, effects = step(SLOW, flawed, Tick(), 100)
    assert StartEngine(1) not in effects
    assert now_is.engine is Engine.OFF
    flawed = Instance(state=Joining(), engine=Engine.ON, level=Level.HELD, role=Role.BACKUP, tick=inf)
    assert Enter(Role.INIT, Reason.UNFIT) in step(SLOW, flawed, Stop(), 100)[1]


def test_a_stop_tries_to_remove_rules_that_could_not_be_removed_before() -> None:
    host = master()
    host.demoted()
    for _ in range(2 * STUCK):
        host.wait(60)
        host.clear(ok=False)
    host.tell(Stop())
    host.ended()
    assert not is_over(host.instance)
    assert Apply(Level.NONE) in host.wait(FIRST_RETRY)
    host.clear()
    assert is_over(host.instance)
    assert host.instance.level is Level.NONE


def test_a_stop_waits_for_a_removal_of_rules_that_has_begun() -> None:
    host = master()
    host.demoted()
    assert Apply(Level.ARMED) in host.wait(DRAIN)
    host.tell(Stop())
    host.ended()
    assert Apply(Level.NONE) in host.wait(0)
    host.tell(Cleared(Level.ARMED))
    assert Apply(Level.NONE) not in host.wait(GIVE_UP - 0.1)
    assert not is_over(host.instance)
    host.clear()
    assert is_over(host.instance)


def test_rules_are_there_before_an_engine_runs_and_after_it_until_a_stop() -> None:
    host = Host()
    effects = host.tell(Tick())
    assert effects.index(Apply(Level.ARMED)) < effects.index(StartEngine(1))
    host.ended()
    assert not [effect for effect in host.wait(60) if isinstance(effect, Apply)]
    assert host.instance.level is Level.ARMED
    host.tell(Stop())
    assert Apply(Level.NONE) in host.wait(0)
