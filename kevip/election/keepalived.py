"""The engine that is keepalived: it elects over VRRP, waits for nobody, and says goodbye by itself.

What it says is a level: of several words at once only the last one is told.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from kevip.core.instance import LOOK_AGAIN
from kevip.core.messages import Demoted, Elected, Ended, Reason
from kevip.core.states import Traits
from kevip.election.care import Care, is_linked
from kevip.election.child import hint_at_end
from kevip.election.engine import Tell, Teller
from kevip.election.rivals import Rivals
from kevip.election.vrrpd import FIT, MASTER, Candidacy, Home, Keepalived, State
from kevip.errors import KevipError
from kevip.host import interface
from kevip.host.interface import Placement
from kevip.loop import Loop

FOLLOWED = 2.5  # seconds that a master waits for its heir to serve, besides what that waits after a goodbye
SILENT = 0.5  # seconds that an advert may be late
ENDS = 3.0  # seconds after which a keepalived that was told to end is killed: as a rule it takes one
# keepalived hears what the host's firewall lets through, kevip all: meanwhile, this host waits until nobody is heard.
_DEAF = "a rule keeps it from keepalived: iptables -I INPUT -p 112 -j ACCEPT, or what does that in your firewall"


class KeepalivedEngine:
    """Runs keepalived on the interface where the VIP belongs; ``locate`` finds it. See ``Engine``."""

    def __init__(
        self, candidacy: Candidacy, loop: Loop, teller: Teller, tell: Tell, locate: Callable[[], Placement]
    ) -> None:
        self._candidacy, self._tell, self._log = candidacy, tell, teller.log
        self.loop, self.teller, self.locate = loop, teller, locate
        self._home = Home(candidacy.run_dir, candidacy.vip)
        self._group = candidacy.group()
        self.segment = Rivals(self._group, candidacy.patience, loop, teller, tell)
        self.segment.untold = self._on_untold
        wait = (1 if candidacy.version == 2 else candidacy.interval) + FOLLOWED  # noqa: PLR2004 - it counts in seconds
        self.traits = Traits(
            interval=candidacy.interval,
            patience=candidacy.patience,
            lateness=0.0,
            farewell=wait,
            farewell_alone=wait,
            waits=False,
            reranks=True,
            settling=candidacy.settling,
        )
        self._child: Keepalived | None = None
        self._run, self._fit, self._is_master = 0, True, False
        self._ends = Reason.ENGINE

    @property
    def silence(self) -> float:
        """See ``Cared``; each advert that it is sent, though it be of no use, puts its own off by an interval."""
        return 2 * self._candidacy.interval + SILENT

    # What the core asks for

    def start(self, run: int, *, fit: bool) -> Placement | None:
        """See ``Engine``."""
        self._run, self._fit, self._is_master = run, fit, False
        self.segment.serves, self._ends = False, Reason.ENGINE
        self.segment.reign(begins=False)
        try:
            place = self.locate()
            interface.require_carrier(place.interface)
            self.segment.open(place)
            self._spawn(place)
        except (KevipError, OSError) as error:
            self.teller.warn_once("keepalived.not_started", str(error), error=str(error), retry_seconds=LOOK_AGAIN)
            return None
        return place

    def _spawn(self, place: Placement) -> None:
        """Start keepalived; raises CommandError, HostError, OSError."""
        candidacy = replace(self._candidacy, interface=place.interface, source=place.source)
        child = self._child = Keepalived(candidacy, self._group, self._home, self._rank())
        self.teller.count("engine_starts")
        self.loop.watch(child.events, partial(self._on_states, child))
        self.loop.watch(child.stderr, partial(self._on_lines, child))
        self.loop.watch(child.pidfd, partial(self._on_exit, child))
        self._care = Care(child, self)

    def _rank(self) -> int:
        """Return what this host deserves more than its own priority."""
        rank = FIT * self._fit + MASTER * (self._is_master and not self._candidacy.preempt)
        self.segment.priority = self._candidacy.priority + rank
        return rank

    def proceed(self, token: str) -> None:
        """See ``Engine``: it waits for nobody."""

    def rerank(self, *, fit: bool) -> None:
        """See ``Engine``."""
        self._fit = fit
        self.rerank_if_settled()

    def rerank_if_settled(self) -> None:
        """Have keepalived stand as this host deserves."""
        if self._child:
            try:
                self._child.rerank(self._rank())
            except OSError as error:
                self._log.error("election.resigned", reason=f"its rank cannot be written: {error}")
                self.end()

    def end(self, reason: Reason = Reason.ENGINE) -> None:
        """See ``Engine``; a master says goodbye by that. The reason is told when it has ended."""
        self.segment.reign(begins=False)
        if self._child:
            self._ends = reason
            self._child.kill()
            self.loop.after(ENDS, self._child.end)

    def goodbye(self, *, known: bool, fit_only: bool, rank: int | None) -> None:
        """See ``Engine``: who was told to end says it; who was killed cannot. Of all that hear it, the first wins."""
        del known, fit_only, rank
        if not self._child:
            self.segment.goodbye()

    def end_goodbye(self) -> None:
        """See ``Engine``: it is said once."""

    def yields(self) -> None:
        """See ``Engine``: keepalived knows by itself who stays master."""

    def beat(self) -> None:
        """See ``Engine``."""
        if self._child:
            self._child.beat()

    def close(self) -> None:
        """See ``Engine``."""
        if self._child:
            self._care.end()
            self.loop.cancel(self._child.end)
            self._child.close()
        self._home.remove()
        self.segment.close()

    # What keepalived says and does

    def _on_states(self, child: Keepalived) -> None:
        for state in child.states()[-1:]:
            if child.killed or state is State.STOP:
                continue
            if state is State.FAULT:
                self.end(Reason.UNLINKED)  # else the core would take it for another master's doing
            elif state is not State.MASTER:
                self._be_backup()
            elif master := self.segment.unheard():
                self.teller.warn_once("election.deaf", None, master=str(master), hint=_DEAF)
                self.end()
            else:
                self._be_master()

    def _be_master(self) -> None:
        self._log.info("election.master")
        self._is_master = self.segment.serves = True
        self.segment.reign(begins=True)
        self._care.expect_adverts()
        self.rerank_if_settled()
        self._tell(Elected(self._run))

    def _be_backup(self) -> None:
        self._log.info("election.backup")
        self._is_master = False
        self.segment.reign(begins=False)
        self.rerank_if_settled()
        self._tell(Demoted(self._run))

    def _on_untold(self) -> None:
        if self._child and not self._child.killed:
            hint = "it advertises, and has not said that it is master: its FIFO was full, say; it is ended"
            self._log.error("keepalived.untold", hint=hint)
            self.end()

    def _on_lines(self, child: Keepalived) -> None:
        for line in child.lines():
            self._log.debug("keepalived.message", keepalived=line)

    def _on_exit(self, child: Keepalived) -> None:
        self._on_lines(child)
        self._care.end()
        self.loop.cancel(child.end)
        for source in (child.events, child.stderr, child.pidfd):
            self.loop.forget(source)
        status = child.close()
        self._child = None
        self.segment.reign(begins=False)
        if not child.killed:
            hint = hint_at_end(status) or f"its last words: {'; '.join(child.last) or 'none'}"
            self._log.error("keepalived.exited", status=status, hint=hint)
        unlinked = self._ends is Reason.ENGINE and not is_linked(self.segment)
        self._tell(Ended(self._run, Reason.UNLINKED if unlinked else self._ends))
