"""``step``: what becomes of an election by an event, and what is to be done. All that decides who holds the VIP."""

from dataclasses import replace
from ipaddress import IPv4Address
from math import inf
from typing import assert_never

from kevip.core.messages import (
    Announce,
    Apply,
    Cleared,
    Demoted,
    Effect,
    Elected,
    Ended,
    EndEngine,
    EndFarewell,
    Enter,
    Event,
    Failed,
    Farewell,
    Heard,
    Hush,
    Level,
    Look,
    Note,
    NotStarted,
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
    Yield,
)
from kevip.core.states import (
    FIRST_PAUSE,
    FIRST_RETRY,
    GIVE_UP,
    LAST_PAUSE,
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
    Traits,
    check,
    start_due,
)

LEASE = 6.0
"""Seconds that the kernel keeps the VIP after the last renewal. If kevip dies, no second holder is left behind."""

TICK = LEASE / 3
"""Seconds between renewals of the lease, and looks at what else should be so: two may come to nothing."""

DRAIN = 1.0
"""Seconds for which connections are still translated after the address went: neighbours may not know yet."""

LOOK_AGAIN = 2.0
"""Seconds before what could not be done for the host's sake is tried again."""

AGREE = 1.0
"""Seconds after which hosts that suffer the same have all noticed, so that none takes over for nothing."""

PROMPT = 0.5
"""Seconds after which a master that should have advertised is none any more."""

RECENT = 5.0
"""Seconds in which a goodbye leads to an election."""


def step(traits: Traits, was: Instance, event: Event, now: float) -> tuple[Instance, list[Effect]]:
    """Return what becomes of an instance by an event, and what is to be done, in this order."""
    turn = _Turn(traits, was, now)
    if turn.take_in(event):
        _react(turn, event)
        turn.start_if_due()
    if flaw := check(turn.now_is):
        _recover(turn, flaw)
    return turn.now_is, turn.effects


class _Turn:
    """One step on its way: ``now_is`` what the instance has become so far, ``effects`` what is to be done."""

    def __init__(self, traits: Traits, was: Instance, now: float) -> None:
        self.traits = traits
        self.was = was
        self.now_is = was
        self.now = now
        self.effects: list[Effect] = []

    def set(self, **changes: object) -> None:
        """Change attributes of the instance."""
        self.now_is = replace(self.now_is, **changes)  # type: ignore[arg-type]  # checked at its definition

    def do(self, *effects: Effect) -> None:
        """Have something done."""
        self.effects += effects

    def become(self, state: State, reason: Reason | None = None) -> None:
        """Go over to another state, with its role if a reason to tell is given."""
        edge = type(self.now_is.state), type(state)
        if edge not in TABLE:
            raise ValueError(f"no transition from {edge[0].__name__} to {edge[1].__name__}")
        self.set(state=state)
        if isinstance(state, Stopped):
            begins = self.now_is.rules_until
            self.set(give_up=(begins if begins < inf else self.now) + GIVE_UP)
        if reason:
            self.enter(_ROLES[type(state)], reason)

    def enter(self, role: Role, reason: Reason) -> None:
        """Tell a role that is another one."""
        if role is not self.now_is.role:
            self.set(role=role, reason=reason)
            self.do(Enter(role, reason))

    # What is true in every state

    def take_in(self, event: Event) -> bool:
        """Learn what an event says in any state; say whether it is of any interest then."""
        match event:
            case Elected(run) | Demoted(run):
                return run == self.now_is.run and self.now_is.engine is Engine.ON
            case Ended(run) | NotStarted(run):
                if run != self.now_is.run or self.now_is.engine is Engine.OFF:
                    return False
                self.set(engine=Engine.OFF)
                if self.now - self.now_is.started >= LAST_RETRY:
                    self.set(pause=FIRST_RETRY)
            case Heard():
                peers = self.now_is.peers.hear(event)
                if peers is self.now_is.peers:
                    return False
                self.set(peers=peers)
            case Target(reached):
                if reached is not self.now_is.reached:
                    self.set(reached=reached, reached_since=self.now)
                self.set(fit=self.now_is.fit if reached is None else reached)
            case Cleared(ok):
                self._cleared(ok=ok)
            case Tick():
                self._tick()
            case Failed() | Unfit() | Stop():
                pass
            case _:
                assert_never(event)
        return True

    def _tick(self) -> None:
        """Do what is due from time to time, whatever the state."""
        now_is = self.now_is
        if self.now >= now_is.tick:
            self.set(tick=self.now + TICK)
            match now_is.state:
                case Leaving(then):
                    if then is Then.STAY and self.now - now_is.renewed < LEASE:
                        self.hold()
                case state:
                    if isinstance(state, Master):
                        self.hold()
                    self.do(Look())
        if now_is.level is Level.RULES and self.now >= now_is.rules_until:
            self.set(rules_until=inf)
            self.do(Apply(Level.NONE))
        if self.now >= now_is.give_up:
            self.set(give_up=inf, stuck=STUCK)

    def _cleared(self, *, ok: bool) -> None:
        if self.now_is.level is not Level.RULES or self.now_is.rules_until < inf:
            return  # taken over again meanwhile, and perhaps let go of since
        if ok:
            self.set(level=Level.NONE, stuck=0)
        else:
            stuck = self.now_is.stuck + 1
            pause = FIRST_RETRY if isinstance(self.now_is.state, Stopped) else LOOK_AGAIN * stuck
            self.set(rules_until=self.now + pause, stuck=stuck)

    # The engine

    def start_if_due(self) -> None:
        """Start the engine: the only place that does."""
        if start_due(self.traits, self.now_is) > self.now:
            return
        run, fit = self.now_is.run + 1, self.now_is.fit
        self.set(run=run, engine=Engine.ON, ranked_fit=fit, started=self.now)
        if isinstance(self.now_is.state, Leaving):
            self.set(state=replace(self.now_is.state, restart=inf))
        else:
            self.become(Joining())
        self.do(StartEngine(run, fit))

    def end_engine(self) -> None:
        """End the engine, if it runs."""
        if self.now_is.engine is Engine.ON:
            self.set(engine=Engine.ENDING)
            self.do(EndEngine())

    def rest(self, reason: Reason, *, retry: bool = True) -> None:
        """Be out of the election: until it is time to try again, or only until the engine has ended."""
        now, pause = self.now, self.now_is.pause
        self.end_engine()
        if retry:
            self.set(pause=min(2 * pause, LAST_RETRY))
            self.do(Note(what=What.RETRY, seconds=pause))
        self.become(Down(now + pause, now + FIRST_RETRY) if retry else Down(now, now), reason)

    def stop(self) -> None:
        """Take no further part."""
        self.end_engine()
        if self.now_is.rules_until < inf:
            self.set(rules_until=min(self.now_is.rules_until, self.now + FIRST_RETRY))
        self.set(stuck=0)
        self.become(Stopped(), Reason.STOPPED)

    # The VIP

    def hold(self) -> None:
        """Have the VIP here, or renew its lease."""
        self.set(level=Level.HELD, renewed=self.now, rules_until=inf, stuck=0)
        self.do(Apply(Level.HELD))

    def take_over(self, token: str) -> None:
        """Serve the VIP: rules and address first, then the engine may advertise it, then the neighbours are told."""
        self.hold()
        self.do(Proceed(token), Announce())
        self.become(Master(), _reason_to_be_master(self))
        self.do(Look())

    def master(self) -> IPv4Address | None:
        """Return another host that is master now, as far as can be told."""
        return self.now_is.peers.master(self.now - self.traits.interval - self.traits.lateness)

    def leave(self, then: Then, reason: Reason) -> None:
        """Make a peer take over, and serve on until it does; unless one serves already, or the lease has ended."""
        self.end_engine()
        peers = self.now_is.peers
        heir = peers.keeper(self.now - self.traits.interval - PROMPT)
        if heir or self.now - self.now_is.renewed >= LEASE:
            self.do(Note(what=What.FOLLOWED if heir else What.NOBODY, who=heir))
            self.go(then, heir)
            return
        known = bool(peers.advertised())
        due = self.now + (self.traits.farewell if known else self.traits.farewell_alone)
        if then is Then.STAY:
            due = self.now + self.traits.farewell + self.traits.patience + 2 * self.traits.interval
        self.do(Hush(), Note(what=What.LEAVING, reason=reason))
        self.become(Leaving(then, self.now, due, self.restart(then)), reason)
        self.do(Farewell(known=known, fit_only=then is Then.STAY))
        self.hold()

    def restart(self, then: Then) -> float:
        """Return when a master that means to stay one stands for election again."""
        return max(self.now, self.now_is.started + FIRST_RETRY) if then is Then.STAY else inf

    def go(self, then: Then, heir: IPv4Address | None) -> None:
        """Let go of the VIP, now that a peer serves it, or none will."""
        self.let_go(drain=heir is not None)
        reason = Reason.FOLLOWED if heir else Reason.NOBODY
        match then:
            case Then.STOP:
                self.become(Stopped(), reason)
            case Then.STAY if self.now_is.engine is Engine.ON:
                self.become(Backup(), reason)
            case Then.STAY | Then.RETRY:
                self.rest(reason, retry=then is Then.RETRY)
            case _:
                assert_never(then)

    def let_go(self, *, drain: bool) -> None:
        """Remove the address now, and the rules, if another host serves, when the neighbours know."""
        self.do(Hush(), Apply(Level.RULES))
        self.set(level=Level.RULES, rules_until=self.now + DRAIN if drain else self.now)


_ROLES: dict[type[State], Role] = {
    Down: Role.INIT,
    Joining: Role.INIT,
    Backup: Role.BACKUP,
    Master: Role.MASTER,
    Leaving: Role.LEAVING,
    Stopped: Role.INIT,
}


def _react(turn: _Turn, event: Event) -> None:
    """Do what an event asks for in the state that there is."""
    match turn.now_is.state:
        case Down():
            _down(turn, event)
        case Joining() | Backup():
            _candidate(turn, event)
        case Master():
            _master(turn, event)
        case Leaving() as state:
            _leaving(turn, state, event)
        case Stopped():
            pass
        case state:
            assert_never(state)


def _recover(turn: _Turn, flaw: str) -> None:
    """Be out of the election with nothing here, whatever went wrong; what was to be done in this step is not."""
    retry = turn.now + LAST_RETRY
    off = Engine.OFF in {turn.was.engine, turn.now_is.engine}
    match turn.now_is.state:
        case Stopped() | Leaving(then=Then.STOP):
            state: State = Stopped()
            turn.set(give_up=turn.now + GIVE_UP)
        case _:
            state = Down(retry, retry)
    turn.effects = [Note(what=What.BROKEN, detail=flaw), EndEngine(), EndFarewell(), Hush(), Apply(Level.NONE)]
    turn.set(state=state, engine=Engine.OFF if off else Engine.ENDING, level=Level.RULES, rules_until=inf)
    turn.set(role=turn.was.role, reason=turn.was.reason)
    turn.enter(Role.INIT, Reason.UNFIT)


def _reason_to_be_master(turn: _Turn) -> Reason:
    peers = turn.now_is.peers
    if turn.now - peers.goodbye < RECENT:
        return Reason.GOODBYE
    if not peers.words:
        return Reason.ALONE
    return Reason.PREFERRED if turn.master() else Reason.SILENCE


def _be_backup(turn: _Turn) -> None:
    """Be backup, because the engine is."""
    role, reason = turn.now_is.role, turn.now_is.reason
    if role is not Role.INIT:
        reason = Reason.YIELDED if turn.master() else Reason.UNLINKED
    elif reason in {Reason.STARTED, Reason.ENGINE}:
        reason = Reason.JOINED
    turn.become(Backup(), reason)


def _down(turn: _Turn, event: Event) -> None:
    if isinstance(event, Stop):
        turn.stop()


def _candidate(turn: _Turn, event: Event) -> None:
    """Join, wait as backup, and be elected."""
    match event:
        case Elected(token=token):
            turn.take_over(token)
        case Demoted(token=token):
            if isinstance(turn.now_is.state, Joining):
                _be_backup(turn)
            turn.do(Proceed(token))
        case Ended(reason=reason):
            turn.rest(reason, retry=reason is Reason.ENGINE)
        case NotStarted():
            turn.become(Down(turn.now + LOOK_AGAIN, turn.now + LOOK_AGAIN), Reason.ENGINE)
        case Stop():
            turn.stop()
        case _:
            _stand_as_deserved(turn)


def _stand_as_deserved(turn: _Turn) -> None:
    """Stand as a host does that reaches TARGET, or does not."""
    fit = turn.now_is.fit
    if fit is not turn.now_is.ranked_fit:
        turn.set(ranked_fit=fit)
        turn.do(Rerank(fit))


def _master(turn: _Turn, event: Event) -> None:
    match event:
        case Elected(token=token):
            turn.do(Proceed(token))
        case Demoted(token=token):
            turn.let_go(drain=True)
            _be_backup(turn)
            turn.do(Proceed(token))
        case Ended(reason=reason):
            turn.leave(Then.RETRY, reason)
        case NotStarted():
            turn.leave(Then.RETRY, Reason.ENGINE)
        case Heard():
            _rival(turn, event)
        case Failed(held, detail):
            _failed(turn, held=held, detail=detail)
        case Unfit(detail):
            turn.do(Note(what=What.RESIGNED, detail=detail))
            turn.leave(Then.RETRY, Reason.UNFIT)
        case Stop():
            turn.leave(Then.STOP, Reason.STOPPED)
        case Target(detail=detail):
            _weigh_target(turn, detail)
        case _:
            pass


def _rival(turn: _Turn, heard: Heard) -> None:
    """Settle at once who of two masters stays it; an engine that is late would take a second."""
    if heard.at < turn.now - turn.traits.interval - PROMPT:
        return  # the loop comes late to it: that host may be dead
    if heard.says is Says.STAYS and heard.preferred:
        turn.do(Note(what=What.YIELDED, who=heard.source), Yield())
        turn.let_go(drain=True)
        turn.rest(Reason.YIELDED, retry=False)
    elif heard.says is not Says.LEAVES:
        turn.do(Note(what=What.RIVAL, who=heard.source), Announce())


def _failed(turn: _Turn, *, held: bool, detail: str) -> None:
    """Hand over what cannot be kept; a takeover that failed has nothing to hand over."""
    turn.do(Note(what=What.RESIGNED, detail=detail))
    if held:
        turn.leave(Then.RETRY, Reason.UNFIT)
    else:
        turn.let_go(drain=False)
        turn.rest(Reason.UNFIT)


def _weigh_target(turn: _Turn, detail: str) -> None:
    """Let a peer take over that reaches TARGET, if there is one.

    Rarely, for it is unelected a while, and where no host reaches TARGET the VIP must not go round.
    """
    now_is, now = turn.now_is, turn.now
    if now_is.reached is not False:
        _stand_as_deserved(turn)
        return
    if now < max(now_is.resign_from, now_is.reached_since + AGREE):
        return
    fresh = now > now_is.resign_from + LAST_PAUSE
    pause = FIRST_PAUSE if fresh else min(2 * now_is.resign_pause, LAST_PAUSE)
    turn.set(resign_pause=pause, resign_from=now + pause)
    if detail:
        turn.do(Note(what=What.RESIGNED, detail=detail))
    turn.leave(Then.STAY, Reason.TARGET)


def _leaving(turn: _Turn, state: Leaving, event: Event) -> None:
    match event:
        case Heard(source, Says.STAYS, at) if at >= state.since:
            _end_leaving(turn, state, source)
        case Elected(token=token):
            turn.hold()
            turn.do(EndFarewell(), Proceed(token), Note(what=What.KEPT), Announce())
            turn.become(Master(), Reason.KEPT)
        case Demoted(token=token):
            turn.do(Proceed(token))
        case Ended():
            turn.set(state=replace(state, restart=turn.restart(state.then)))
        case NotStarted():
            turn.set(state=replace(state, restart=turn.now + LOOK_AGAIN if state.then is Then.STAY else inf))
        case Failed(held=False):
            _end_leaving(turn, state, None)
        case Stop():
            _leave_for(turn, state, Then.STOP)
        case Failed() | Unfit():
            _leave_for(turn, state, Then.RETRY if state.then is Then.STAY else state.then)
        case Tick() if turn.now >= state.due:
            _end_leaving(turn, state, None)
        case _:
            pass


def _leave_for(turn: _Turn, state: Leaving, then: Then) -> None:
    """Leave for another reason than so far: who meant to stay says goodbye to all now."""
    if state.then is not Then.STAY:
        turn.set(state=replace(state, then=then))
        return
    turn.end_engine()
    turn.set(state=Leaving(then, state.since, turn.now + turn.traits.farewell))
    turn.do(Farewell())


def _end_leaving(turn: _Turn, state: Leaving, heir: IPv4Address | None) -> None:
    seconds = turn.now - state.since
    what = What.FOLLOWED if heir else What.NOBODY
    turn.do(EndFarewell(), Note(what=what, who=heir, seconds=seconds))
    turn.go(state.then, heir)
