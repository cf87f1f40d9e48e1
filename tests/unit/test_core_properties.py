"""The core: what holds whatever happens, in whatever order, senseless ones included."""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import inf
from random import Random

import pytest
from dialogue import OTHER, PEER, QUICK, SLOW
from hypothesis import given
from hypothesis import strategies as st

from kevip.core import instance as core
from kevip.core import states
from kevip.core.instance import AGREE
from kevip.core.messages import (
    Apply,
    Cleared,
    Demoted,
    Do,
    Effect,
    Elected,
    Ended,
    Enter,
    Event,
    Failed,
    Farewell,
    Heard,
    Level,
    Note,
    NotStarted,
    Proceed,
    Pulled,
    Reason,
    Rerank,
    Says,
    Served,
    Standby,
    StartEngine,
    Stop,
    Successor,
    Target,
    Tick,
    Unfit,
    What,
)
from kevip.core.states import LAST_PAUSE, TABLE, Engine, Instance, Traits, check, is_over, next_due

Act = Callable[[int, float], Event]
"""What happens, once it is known which run of the engine there is, and what time it is."""

Script = list[tuple[float, Act]]
"""What happens, and after how many seconds."""


def _heard(peer_says: Says, ago: float, *, preferred: bool, by_other: bool) -> Act:
    return lambda _, now: Heard(OTHER if by_other else PEER, peer_says, now - ago, preferred)


def _any(event: Event) -> Act:
    return lambda _, __: event


ENGINE: list[Act] = [
    lambda run, _: Elected(run, "up"),
    lambda run, _: Demoted(run, "down"),
    lambda run, _: Ended(run),
    lambda run, _: Ended(run, Reason.LATE),
    lambda run, _: NotStarted(run),
    lambda run, _: Elected(run - 1, "stale"),
    lambda run, _: Ended(run - 1),
]
UNREACHED = _any(Target(reached=False, detail="no route"))
HOST: list[Act] = [
    _any(Failed()),
    _any(Pulled()),
    _any(Served()),
    _any(Unfit("ip")),
    *(_any(Cleared(level, ok)) for level, ok in product((Level.NONE, Level.ARMED), (True, False))),
    _any(Unfit("no")),
    _any(Target(reached=True)),
    UNREACHED,
    _any(Target(reached=None)),
    _any(Successor(9)),
    _any(Successor(None)),
    _any(Tick()),
]
OPERATOR: list[Act] = [
    lambda _, now: Standby(now + 5),
    *(_any(Standby(until, out)) for until, out in ((inf, False), (inf, True), (-inf, False))),
]
WIRE: list[Act] = [
    _heard(says, ago, preferred=preferred, by_other=by_other)
    for says, ago, preferred, by_other in product(Says, (0.0, 0.1, 2.0), (False, True), (False, True))
]
STOP: list[Act] = [_any(Stop())]
SECONDS = [0.0, 0.01, 0.5, 2.0, 7.0, 70.0]

TRAITS = st.sampled_from([SLOW, QUICK, replace(SLOW, settling=5.0), replace(QUICK, settling=5.0)])
ACTS = st.sampled_from(ENGINE) | st.sampled_from(HOST) | st.sampled_from(WIRE)
BEGINS: list[list[Act]] = [
    [],
    [ENGINE[1]],
    [ENGINE[0]],
    [ENGINE[0], UNREACHED, UNREACHED],
    [ENGINE[0], UNREACHED, UNREACHED, ENGINE[2], ENGINE[1]],
]
"""As Joining, Backup, Master, and leaving for TARGET's sake, without and with an engine."""


def _scripts(acts: st.SearchStrategy[Act]) -> st.SearchStrategy[Script]:
    """Return scripts that begin in each state, for at random few are master for long."""
    begins = st.sampled_from([[(AGREE if act is UNREACHED else 0.1, act) for act in acts] for acts in BEGINS])
    return st.builds(operator.add, begins, st.lists(st.tuples(st.sampled_from(SECONDS), acts), max_size=40))


SCRIPTS = _scripts(ACTS | st.sampled_from(OPERATOR) | st.sampled_from(STOP))
WITHOUT_STOP = _scripts(ACTS | st.sampled_from(OPERATOR))
BY_ITSELF = _scripts(ACTS)


@dataclass(frozen=True)
class Step:
    """One step as it was: an event at a time, and what came of it."""

    at: float
    event: Event
    was: Instance
    now_is: Instance
    effects: list[Effect]


class Play:
    """A core that hears what a script says, and the ticks that it wants in between."""

    def __init__(self, traits: Traits) -> None:
        self.traits = traits
        self.instance = Instance()
        self.now = 1000.0

    def tell(self, event: Event) -> Step:
        """Tell an event."""
        was = self.instance
        self.instance, effects = core.step(self.traits, was, event, self.now)
        return Step(self.now, event, was, self.instance, effects)

    def wait(self, seconds: float) -> Iterator[Step]:
        """Let time pass."""
        end = self.now + seconds
        while (due := next_due(self.traits, self.instance)) <= end:
            self.now = max(self.now, due)
            yield self.tell(Tick())
        self.now = end

    def steps(self, script: Script) -> Iterator[Step]:
        """Play a script."""
        for seconds, act in script:
            yield from self.wait(seconds)
            yield self.tell(act(self.instance.run, self.now))


@given(TRAITS, SCRIPTS)
def test_what_must_hold_holds_after_each_step(traits: Traits, script: Script) -> None:
    for step in Play(traits).steps(script):
        assert check(step.now_is) == ""
        assert not any(isinstance(effect, Note) and effect.what is What.BROKEN for effect in step.effects)


@given(TRAITS, SCRIPTS)
def test_an_engine_is_started_only_where_none_runs(traits: Traits, script: Script) -> None:
    for step in Play(traits).steps(script):
        started = [effect.run for effect in step.effects if isinstance(effect, StartEngine)]
        if started:
            assert started == [step.was.run + 1]
            assert step.was.engine is Engine.OFF or isinstance(step.event, Ended | NotStarted)
        assert Do.END_ENGINE not in step.effects or step.was.engine is Engine.ON
        if any(isinstance(effect, Rerank) for effect in step.effects):
            assert step.was.engine is Engine.ON


@given(TRAITS, SCRIPTS)
def test_an_engine_goes_on_when_the_host_is_as_it_has_to_be(traits: Traits, script: Script) -> None:
    for step in Play(traits).steps(script):
        levels = [effect.level for effect in step.effects if isinstance(effect, Apply)]
        if Proceed("up") in step.effects:
            assert step.now_is.level is Level.HELD
            assert step.effects.index(Proceed("up")) >= len(levels)
        if traits.waits and Proceed("down") in step.effects and levels:
            assert levels == [Level.DRAINING]
            assert step.effects.index(Apply(Level.DRAINING)) < step.effects.index(Proceed("down"))
        assert Proceed("stale") not in step.effects


@given(TRAITS, SCRIPTS)
def test_a_role_is_told_if_and_only_if_it_changes(traits: Traits, script: Script) -> None:
    for step in Play(traits).steps(script):
        roles = [step.was.role, *(effect.role for effect in step.effects if isinstance(effect, Enter))]
        assert all(role is not after for role, after in pairwise(roles))
        assert roles[-1] is step.now_is.role


@given(TRAITS, SCRIPTS)
def test_a_host_that_was_told_to_stop_takes_no_vip_and_starts_no_engine(traits: Traits, script: Script) -> None:
    stopped = False
    for step in Play(traits).steps(script):
        if stopped:
            assert step.was.level is Level.HELD or step.now_is.level is not Level.HELD
            assert step.now_is.run == step.was.run
        stopped = stopped or isinstance(step.event, Stop)


@given(TRAITS, WITHOUT_STOP, st.booleans())
def test_a_stop_is_over_in_time_whatever_was_before(traits: Traits, script: Script, clears: bool) -> None:
    play = Play(traits)
    for _ in play.steps(script):
        pass
    begin = play.now
    steps = [play.tell(Stop())]
    while not is_over(play.instance):
        play.tell(Ended(play.instance.run))
        if play.instance.level is not Level.HELD and (Apply(Level.NONE) in steps[-1].effects or len(steps) == 1):
            play.tell(Cleared(Level.NONE, clears))
        if not is_over(play.instance):
            play.now = max(play.now, next_due(traits, play.instance))
            steps.append(play.tell(Tick()))
        assert play.now - begin < 10


@given(TRAITS, _scripts(ACTS | st.sampled_from(STOP)), st.lists(st.none() | st.integers(0, 255), min_size=1))
def test_what_is_said_of_a_successor_changes_nothing_but_where_a_goodbye_begins(
    traits: Traits, script: Script, ranks: list[int | None]
) -> None:
    def but_for_that(step: Step) -> tuple[Instance, list[Effect]]:
        effects = [replace(each, rank=None) if isinstance(each, Farewell) else each for each in step.effects]
        return replace(step.now_is, successor=None), effects

    with_it, without = Play(traits), Play(traits)
    for at, act in enumerate(script):
        assert with_it.tell(Successor(ranks[at % len(ranks)])).effects == []
        steps = zip(with_it.steps([act]), without.steps([act]), strict=True)
        assert all(but_for_that(step) == but_for_that(plain) for step, plain in steps)


@given(TRAITS, SCRIPTS)
def test_what_is_due_is_done_by_a_tick_or_two(traits: Traits, script: Script) -> None:
    play = Play(traits)
    for _ in play.steps(script):
        pass
    for _ in range(3):
        play.tell(Tick())
    assert next_due(traits, play.instance) > play.now


@given(TRAITS, SCRIPTS)
def test_the_same_event_at_the_same_time_comes_to_the_same(traits: Traits, script: Script) -> None:
    for step in Play(traits).steps(script):
        assert core.step(traits, step.was, step.event, step.at) == (step.now_is, step.effects)


@given(TRAITS, BY_ITSELF)
def test_target_moves_the_vip_at_most_six_times_an_hour(traits: Traits, script: Script) -> None:
    steps = Play(traits).steps(script * 5)
    at = [step.at for step in steps if step.now_is.resign_from != step.was.resign_from]
    assert all(later - at[i] >= LAST_PAUSE for i, later in enumerate(at[6:]))


def test_each_row_of_the_table_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()

    class Watched:
        def __contains__(self, edge: object) -> bool:
            seen.add(edge)
            return edge in TABLE

    monkeypatch.setattr(states, "TABLE", Watched())
    random = Random(1)  # noqa: S311 - no secret is made of it
    for number in range(500):
        acts = [*random.choice(BEGINS), *(random.choice(random.choice([ENGINE, HOST, WIRE])) for _ in range(30))]
        script = [(random.choice([0.0, 0.1, 1.0, 2.0]), act) for act in acts[: random.randrange(36)]]
        for _ in Play((SLOW, QUICK)[number % 2]).steps([*script, (0.0, STOP[0]), (7.0, HOST[-1])]):
            pass
    assert seen == set(TABLE)
