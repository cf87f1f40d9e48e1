"""``step``: what becomes of an election by an event, and what is to be done. All that decides who holds the VIP."""

from dataclasses import replace
from ipaddress import IPv4Address
from math import inf

from kevip.core import messages as msg
from kevip.core import states
from kevip.core.messages import Do, Level, Note, Reason, Role, Says, What
from kevip.core.states import Backup, Down, Engine, Instance, Joining, Leaving, Master, State, Stopped, Then, Traits

# All in seconds.
LEASE = 6.0  # that the kernel keeps the VIP after the last renewal: if kevip dies, no second holder is left behind
TICK = LEASE / 3  # between renewals of the lease, and looks at what else should be so: two may come to nothing
DRAIN = 1.0  # for which connections are still translated after the address went: neighbours may not know yet
FETCH = 3.0  # after which they are forgotten although an heir is still fetching them: a stop is over in 5
LOOK_AGAIN = 2.0  # before what could not be done for the host's sake is tried again
AGREE = 1.0  # after which hosts that suffer the same have all noticed, so that none takes over for nothing
PROMPT = 0.5  # after which a master that should have advertised is none any more
RECENT = 5.0  # in which a goodbye leads to an election

_ROLES = {Backup: Role.BACKUP, Master: Role.MASTER, Leaving: Role.LEAVING}  # all others are INIT


def step(traits: Traits, was: Instance, event: msg.Event, now: float) -> tuple[Instance, list[msg.Effect]]:
    """Return what becomes of an instance by an event, and what is to be done, in this order."""
    turn = _Turn(traits, was, now)
    if turn.take_in(event):
        match turn.now_is.state:
            case Down() if isinstance(event, msg.Stop):
                turn.stop()
            case Joining() | Backup():
                _candidate(turn, event)
            case Master():
                _master(turn, event)
            case Leaving() as state:
                _leaving(turn, state, event)
        turn.start_if_due()
    if flaw := states.check(turn.now_is):
        _recover(turn, flaw)
    return turn.now_is, turn.effects


class _Turn:
    """One step on its way: ``now_is`` what the instance has become so far, ``effects`` what is to be done."""

    def __init__(self, traits: Traits, was: Instance, now: float) -> None:
        self.traits = traits
        self.was = self.now_is = was
        self.now = now
        self.effects: list[msg.Effect] = []

    def set(self, **changes: object) -> None:
        """Change attributes of the instance."""
        self.now_is = replace(self.now_is, **changes)  # type: ignore[arg-type]  # checked at its definition

    def do(self, *effects: msg.Effect) -> None:
        """Have something done."""
        self.effects += effects

    def become(self, state: State, reason: Reason | None = None) -> None:
        """Go over to another state, with its role if a reason to tell is given."""
        edge = type(self.now_is.state), type(state)
        if edge not in states.TABLE:
            raise ValueError(f"no transition from {edge[0].__name__} to {edge[1].__name__}")
        self.set(state=state)
        if isinstance(state, Stopped):
            begins = self.now_is.lower_at
            self.set(give_up=(begins if begins < inf else self.now) + states.GIVE_UP)
        if reason:
            self.enter(_ROLES.get(type(state), Role.INIT), reason)

    def enter(self, role: Role, reason: Reason) -> None:
        """Tell a role that is another one."""
        if role is not self.now_is.role:
            self.set(role=role, reason=reason)
            self.do(msg.Enter(role, reason))

    # What is true in every state

    def take_in(self, event: msg.Event) -> bool:
        """Learn what an event says in any state; say whether it is of any interest then."""
        now_is = self.now_is
        match event:
            case msg.Elected(run) | msg.Demoted(run):
                return run == now_is.run and now_is.engine is Engine.ON
            case msg.Ended(run) | msg.NotStarted(run):
                if run != now_is.run or now_is.engine is Engine.OFF:
                    return False
                pause = states.FIRST_RETRY if self.now - now_is.started >= states.LAST_RETRY else now_is.pause
                self.set(engine=Engine.OFF, pause=pause)
            case msg.Heard():
                self.set(peers=now_is.peers.hear(event))
                return self.now_is.peers is not now_is.peers
            case msg.Target():
                _learn_of_target(self, event)
            case msg.Standby(until, out):
                self.set(standby=until, out=out, resign_from=-inf)
            case msg.Successor(rank):
                return _see(self, rank)
            case msg.Pulled() | msg.Served():
                _fetch(self, begins=isinstance(event, msg.Pulled))
            case msg.Cleared(level, ok) if self._awaits(level):
                self._lower(level, ok=ok)
            case msg.Tick():
                _tick(self)
        return True

    def _awaits(self, level: Level) -> bool:
        """Whether the host is being brought down to this level, and was not told otherwise since."""
        now_is = self.now_is
        return level is states.lowest(now_is) and level < now_is.level < Level.HELD and now_is.lower_at == inf

    def _lower(self, level: Level, *, ok: bool) -> None:
        """Be at a level, or try again later."""
        stuck = self.now_is.stuck + 1
        pause = states.FIRST_RETRY if isinstance(self.now_is.state, Stopped) else LOOK_AGAIN * stuck
        if ok:
            self.set(level=level, stuck=0)
        else:
            self.set(lower_at=self.now + pause, stuck=stuck)

    def drained(self) -> float:
        """Return when connections need not be translated any more: not before they were fetched, if they are."""
        latest = self.now_is.drained_by
        return latest if self.now_is.pulled else min(self.now + DRAIN, latest)

    # The engine

    def start_if_due(self) -> None:
        """Start the engine: the only place that does."""
        if states.start_due(self.traits, self.now_is) > self.now:
            return
        if self.traits.settling and not isinstance(self.now_is.state, Leaving):
            self.set(settled=self.now + self.traits.settling)
        run, fit = self.now_is.run + 1, states.deserves(self.now_is, self.now)
        self.set(run=run, engine=Engine.ON, ranked_fit=fit, started=self.now)
        if isinstance(self.now_is.state, Leaving):
            self.set(state=replace(self.now_is.state, restart=inf))
        else:
            self.become(Joining())
        if self.now_is.level is Level.NONE:
            self.set(level=Level.ARMED)
            self.do(msg.Apply(Level.ARMED))
        self.do(msg.StartEngine(run, fit))

    def end_engine(self) -> None:
        """End the engine, if it runs."""
        if self.now_is.engine is Engine.ON:
            self.set(engine=Engine.ENDING)
            self.do(Do.END_ENGINE)

    def stand_as_deserved(self) -> None:
        """Stand as a host does that is fit, or is not."""
        fit = states.deserves(self.now_is, self.now)
        if fit is not self.now_is.ranked_fit:
            self.set(ranked_fit=fit)
            self.do(msg.Rerank(fit))

    def rest(self, reason: Reason, *, retry: bool = True) -> None:
        """Be out of the election: until it is time to try again, or only until the engine has ended."""
        now, pause = self.now, self.now_is.pause
        self.end_engine()
        if retry:
            self.set(pause=min(2 * pause, states.LAST_RETRY))
            self.do(Note(what=What.RETRY, seconds=pause))
        self.become(Down(now + pause, now + states.FIRST_RETRY) if retry else Down(now, now), reason)

    def stop(self) -> None:
        """Take no further part."""
        self.end_engine()
        if self.now_is.level is not Level.NONE:
            is_due = self.now_is.lower_at < inf
            soon = self.drained() if self.now_is.pulled else self.now + states.FIRST_RETRY
            self.set(lower_at=min(self.now_is.lower_at, soon if is_due else self.now))
        self.set(stuck=0)
        self.become(Stopped(), Reason.STOPPED)

    def proceed(self, token: str) -> None:
        """Let the engine go on, if it waits."""
        if token:
            self.do(msg.Proceed(token))

    # The VIP

    def hold(self) -> None:
        """Have the VIP here, or renew its lease."""
        self.set(level=Level.HELD, renewed=self.now, lower_at=inf, stuck=0)
        self.do(msg.Apply(Level.HELD))

    def let_go(self, *, drain: bool) -> None:
        """Remove the address now; if another host serves, translate what comes here until the neighbours know."""
        self.do(Do.HUSH, msg.Apply(Level.DRAINING))
        self.set(level=Level.DRAINING, drained_by=self.now + (FETCH if drain else 0.0))
        self.set(lower_at=self.drained())

    def offer(self) -> None:
        """Let another host fetch the connections that are tracked here."""
        self.set(pulled=False)
        self.do(Do.OFFER)

    def master(self) -> IPv4Address | None:
        """Return another host that is master now, as far as can be told."""
        return self.now_is.peers.master(self.now - self.traits.interval - self.traits.lateness)

    def heir(self) -> IPv4Address | None:
        """Return another host that serves already, and does not yield to this one."""
        return self.now_is.peers.keeper(self.now - self.traits.interval - PROMPT)

    def leave(self, then: Then, reason: Reason) -> None:
        """Make a peer take over, and serve on until it does; unless one serves already, or the lease has ended."""
        self.end_engine()
        now, traits, heir = self.now, self.traits, self.heir()
        if heir or now - self.now_is.renewed >= LEASE:
            self.do(Note(what=What.FOLLOWED if heir else What.NOBODY, who=heir))
            self.go(then, heir)
            return
        known = bool(self.now_is.peers.advertised())
        due = now + (traits.farewell if known else traits.farewell_alone)
        if then is Then.STAY:
            due = now + traits.farewell + traits.patience + 2 * traits.interval
        self.do(Do.HUSH, Note(what=What.LEAVING, reason=reason))
        self.become(Leaving(then, now, due), reason)
        self.offer()
        self.do(msg.Farewell(known=known, fit_only=then is Then.STAY, rank=self.now_is.successor))
        self.hold()

    def go(self, then: Then, heir: IPv4Address | None) -> None:
        """Let go of the VIP, now that a peer serves it, or none will."""
        self.let_go(drain=heir is not None)
        reason = Reason.FOLLOWED if heir else Reason.NOBODY
        if then is Then.STOP:
            self.become(Stopped(), reason)
        elif then is Then.STAY and self.now_is.engine is Engine.ON:
            self.become(Backup(), reason)
        else:
            self.rest(reason, retry=then is Then.RETRY)


def _tick(turn: _Turn) -> None:
    """Do what is due from time to time, whatever the state."""
    now_is, now = turn.now_is, turn.now
    if now >= now_is.tick:
        turn.set(tick=now + TICK)
        match now_is.state:
            case Master() if now - now_is.tick >= LEASE - TICK:  # it ended meanwhile: first hear who took over
                turn.set(tick=now + PROMPT)
            case Master():
                turn.hold()
            case Leaving(then=Then.STAY) if now - now_is.renewed < LEASE:
                turn.hold()
        if not isinstance(now_is.state, Leaving):
            turn.do(Do.LOOK)
    if now >= now_is.lower_at:
        turn.set(lower_at=inf, pulled=False)
        turn.do(Do.END_OFFER, msg.Apply(states.lowest(now_is)))
    if now >= now_is.give_up:
        turn.set(give_up=inf, stuck=states.STUCK)
    turn.set(**states.ended(now_is, now))


def _learn_of_target(turn: _Turn, target: msg.Target) -> None:
    now_is, reached = turn.now_is, target.reached
    if reached is not now_is.reached:
        turn.set(reached=reached, reached_since=turn.now)
    if reached and not now_is.fit:  # a master that sees the same a moment later would lose the VIP for nothing
        turn.set(agreed=turn.now + target.within)
    turn.set(fit=now_is.fit if reached is None else reached)


def _see(turn: _Turn, rank: int | None) -> bool:
    """Learn of the rank of a successor; say whether it may be the one for whom a host in standby waits."""
    now_is = turn.now_is
    appears = now_is.successor is None and rank is not None and turn.now < now_is.standby
    soonest = max(turn.now, now_is.heeds_from)
    if appears and soonest < now_is.resign_from:
        turn.set(resign_from=soonest, heeds_from=soonest + states.FIRST_PAUSE)
    turn.set(successor=rank)
    return appears


def _fetch(turn: _Turn, *, begins: bool) -> None:
    """Forget no connections while an heir fetches them."""
    turn.set(pulled=begins)
    if turn.now_is.level is Level.DRAINING and turn.now_is.lower_at < inf:
        turn.set(lower_at=turn.drained())


def _recover(turn: _Turn, flaw: str) -> None:
    """Be out of the election without the VIP, whatever went wrong; what was to be done in this step is not."""
    retry = turn.now + states.LAST_RETRY
    off = Engine.OFF in {turn.was.engine, turn.now_is.engine}
    match turn.now_is.state:
        case Stopped() | Leaving(then=Then.STOP):
            state: State = Stopped()
            turn.set(give_up=turn.now + states.GIVE_UP)
        case _:
            state = Down(retry, retry)
    turn.set(state=state, engine=Engine.OFF if off else Engine.ENDING, level=Level.DRAINING, lower_at=inf)
    lowest = msg.Apply(states.lowest(turn.now_is))
    ends = [Do.END_ENGINE, Do.END_FAREWELL, Do.END_OFFER, Do.HUSH]
    turn.effects = [Note(what=What.BROKEN, detail=flaw), *ends, lowest]
    turn.set(role=turn.was.role, reason=turn.was.reason)
    turn.enter(Role.INIT, Reason.UNFIT)


def _candidate(turn: _Turn, event: msg.Event) -> None:
    """Join, wait as backup, and be elected."""
    match event:
        case msg.Elected(token=token):
            _take_over(turn, token)
        case msg.Demoted(token=token):
            if isinstance(turn.now_is.state, Joining):
                _be_backup(turn)
            turn.proceed(token)
        case msg.Ended(reason=reason):
            turn.rest(reason, retry=reason is Reason.ENGINE)
        case msg.NotStarted():
            turn.become(Down(turn.now + LOOK_AGAIN, turn.now + LOOK_AGAIN), Reason.ENGINE)
        case msg.Stop():
            turn.stop()
        case msg.Standby(out=True):
            turn.rest(Reason.STANDBY, retry=False)
        case _:
            turn.stand_as_deserved()


def _take_over(turn: _Turn, token: str) -> None:
    """Have connections, rules and address; then the engine may advertise it, and the neighbours know."""
    if turn.now_is.level is Level.DRAINING:
        turn.do(Do.END_OFFER)
    reason = _reason_to_be_master(turn)
    leaver = turn.now_is.peers.leaver(turn.now - RECENT) if reason is Reason.GOODBYE else None
    if leaver:
        turn.do(msg.Pull(leaver))
    turn.hold()
    turn.proceed(token)
    turn.do(Do.ANNOUNCE)
    if source := leaver or turn.master():
        turn.do(msg.Pull(source, rest=True))
    turn.become(Master(), reason)
    turn.do(Do.LOOK)


def _reason_to_be_master(turn: _Turn) -> Reason:
    peers, late = turn.now_is.peers, turn.now - turn.traits.interval - turn.traits.lateness
    if turn.now - peers.goodbye < RECENT and not peers.succeeded(late):
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


def _master(turn: _Turn, event: msg.Event) -> None:
    match event:
        case msg.Elected(token=token):
            turn.proceed(token)
        case msg.Demoted(token=token):
            _be_demoted(turn)
            turn.proceed(token)
        case msg.Ended(reason=Reason.UNLINKED):  # nobody would hear a goodbye, or be heard
            turn.let_go(drain=False)
            turn.rest(Reason.UNLINKED, retry=False)
        case msg.Ended(reason=reason):
            turn.leave(Then.RETRY, reason)
        case msg.NotStarted():
            turn.leave(Then.RETRY, Reason.ENGINE)
        case msg.Heard():
            _rival(turn, event)
        case msg.Unfit(detail):
            turn.do(Note(what=What.RESIGNED, detail=detail))
            turn.leave(Then.RETRY, Reason.UNFIT)
        case msg.Failed(detail):  # there is nothing to hand over
            turn.do(Note(what=What.RESIGNED, detail=detail))
            turn.let_go(drain=False)
            turn.rest(Reason.UNFIT)
        case msg.Stop():
            turn.leave(Then.STOP, Reason.STOPPED)
        case msg.Target(detail=detail):
            _weigh(turn, detail)
        case msg.Standby(out=True):
            turn.leave(Then.OUT, Reason.STANDBY)
        case msg.Standby() | msg.Successor() | msg.Tick() if _is_to_be_weighed(turn):
            _weigh(turn)


def _be_demoted(turn: _Turn) -> None:
    """Let go of the VIP, for the engine is backup now; but not before another host serves it."""
    turn.offer()
    if turn.traits.waits or turn.master():
        turn.let_go(drain=True)
        _be_backup(turn)
        return
    turn.do(Do.HUSH, Note(what=What.LEAVING, reason=Reason.YIELDED))
    turn.become(Leaving(Then.STAY, turn.now, turn.now + turn.traits.farewell), Reason.YIELDED)
    turn.hold()


def _rival(turn: _Turn, heard: msg.Heard) -> None:
    """Settle at once who of two masters stays it; an engine that is late would take a second."""
    if heard.at < turn.now - turn.traits.interval - PROMPT:
        return  # the loop comes late to it: that host may be dead
    if heard.says is Says.STAYS and heard.preferred and turn.traits.lateness:
        turn.do(Note(what=What.YIELDED, who=heard.source), Do.YIELD)
        turn.offer()
        turn.let_go(drain=True)
        turn.rest(Reason.YIELDED, retry=False)
    elif heard.says is not Says.LEAVES:
        turn.do(Note(what=What.RIVAL, who=heard.source), Do.ANNOUNCE)
        if heard.says is Says.YIELDS:  # what began there goes on here
            turn.do(msg.Pull(heard.source, rest=True))


def _is_to_be_weighed(turn: _Turn) -> bool:
    """Whether time may change what this host deserves, or has done so just now."""
    return states.is_waited_for(turn.was) or states.is_waited_for(turn.now_is)


def _weigh(turn: _Turn, detail: str = "") -> None:
    """Let a fit peer take over, if there is one and this host does not reach TARGET, or is in standby.

    Rarely, for it may be unelected a while, and where no host reaches TARGET the VIP must not go round. Nor while a
    late engine may still act on the last goodbye that was heard: it would win unfit, and this host would follow it;
    nor while another master is heard that may yield yet: two that leave would both serve on.
    """
    now_is, now = turn.now_is, turn.now
    standby = now < now_is.standby
    if now_is.reached is not False and not standby:
        turn.stand_as_deserved()
        return
    agreed = now if standby else now_is.reached_since + AGREE
    soonest = max(now_is.resign_from, agreed, now_is.peers.goodbye + turn.traits.lateness)
    if now < soonest or (turn.master() and not turn.heir()):
        return
    fresh = now > now_is.resign_from + states.LAST_PAUSE
    pause = states.FIRST_PAUSE if fresh else min(2 * now_is.resign_pause, states.LAST_PAUSE)
    turn.set(resign_pause=pause, resign_from=now + pause)
    if detail:
        turn.do(Note(what=What.RESIGNED, detail=detail))
    if turn.traits.reranks:
        turn.stand_as_deserved()
    else:
        turn.leave(Then.STAY, Reason.STANDBY if standby else Reason.TARGET)


def _leaving(turn: _Turn, state: Leaving, event: msg.Event) -> None:
    match event:
        case msg.Heard(source, Says.STAYS, at) if at >= state.since:
            _end_leaving(turn, state, source)
        case msg.Heard(source, Says.LEAVES, at, preferred=True) if at >= state.since and state.then is Then.STAY:
            _end_leaving(turn, state, source)  # it serves on as well: they did not hear each other before
        case msg.Elected(token=token):
            turn.hold()
            turn.do(Do.END_FAREWELL, Do.END_OFFER)
            turn.proceed(token)
            turn.do(Note(what=What.KEPT), Do.ANNOUNCE)
            turn.become(Master(), Reason.KEPT)
        case msg.Demoted(token=token):
            turn.proceed(token)
        case msg.Ended() if state.then is Then.STAY:
            turn.set(state=replace(state, restart=max(turn.now, turn.now_is.started + states.FIRST_RETRY)))
        case msg.NotStarted() if state.then is Then.STAY:
            turn.set(state=replace(state, restart=turn.now + LOOK_AGAIN))
        case msg.Pulled():  # another stage of the goodbye would raise a second master
            turn.do(Do.END_FAREWELL)
        case msg.Failed():
            _end_leaving(turn, state, None)
        case msg.Stop():
            _leave_for(turn, state, Then.STOP)
        case msg.Standby(out=True) if state.then is not Then.STOP:
            _leave_for(turn, state, Then.OUT)
        case msg.Unfit():
            _leave_for(turn, state, Then.RETRY if state.then is Then.STAY else state.then)
        case msg.Tick() if turn.now >= state.due:
            _end_leaving(turn, state, None)


def _leave_for(turn: _Turn, state: Leaving, then: Then) -> None:
    """Leave for another reason than so far: who meant to stay says goodbye to all now."""
    if state.then is not Then.STAY:
        turn.set(state=replace(state, then=then))
        return
    turn.end_engine()
    turn.set(state=Leaving(then, state.since, turn.now + turn.traits.farewell))
    turn.do(msg.Farewell())


def _end_leaving(turn: _Turn, state: Leaving, heir: IPv4Address | None) -> None:
    what = What.FOLLOWED if heir else What.NOBODY
    turn.do(Do.END_FAREWELL, Note(what=what, who=heir, seconds=turn.now - state.since))
    turn.go(state.then, heir)
