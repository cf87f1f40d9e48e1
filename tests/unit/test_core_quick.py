"""The core with an engine that waits for nobody, knows at once who is master, and changes its rank while it runs."""

from dialogue import HOLDS, LETS_GO, OTHER, PEER, QUICK, SLOW, master, serves

from kevip.core.instance import AGREE
from kevip.core.messages import Do, Enter, Note, Proceed, Reason, Rerank, Role, Says, Target, What
from kevip.core.states import FIRST_PAUSE, Backup, Leaving, Master, Then

SERVES_ON = [
    Do.OFFER, Do.HUSH, Note(what=What.LEAVING, reason=Reason.YIELDED), Enter(Role.LEAVING, Reason.YIELDED), *HOLDS
]  # fmt: skip


def test_a_master_that_is_demoted_serves_on_until_another_host_serves() -> None:
    host = master(QUICK)
    begin = host.now
    assert host.demoted("") == SERVES_ON
    assert Leaving(Then.STAY, begin, begin + QUICK.farewell) == host.state
    effects = host.hears(Says.STAYS, preferred=True, after=0.02)
    assert effects[2:] == [*LETS_GO, Enter(Role.BACKUP, Reason.FOLLOWED)]


def test_a_master_that_is_demoted_lets_go_at_once_where_another_host_serves_already() -> None:
    host = master(QUICK)
    host.hears(Says.STAYS, preferred=True)
    assert host.demoted("") == [Do.OFFER, *LETS_GO, Enter(Role.BACKUP, Reason.YIELDED)]


def test_a_master_that_is_demoted_for_nobody_lets_go_in_the_end() -> None:
    host = master(QUICK)
    host.demoted("")
    host.wait(QUICK.farewell)
    assert host.state == Backup()
    assert not serves(host)
    assert host.instance.reason is Reason.NOBODY


def test_a_host_that_is_elected_again_before_another_serves_has_never_let_go() -> None:
    host = master(QUICK)
    host.demoted("")
    assert host.elected("") == [
        *HOLDS, Do.END_FAREWELL, Do.END_OFFER, Note(what=What.KEPT), Do.ANNOUNCE, Enter(Role.MASTER, Reason.KEPT)
    ]  # fmt: skip
    assert host.demoted("") == SERVES_ON
    assert host.demoted("") == []
    assert serves(host)


def test_a_preferred_rival_is_left_to_an_engine_that_is_not_late() -> None:
    host = master(QUICK)
    told = [Note(what=What.RIVAL, who=PEER), Do.ANNOUNCE]
    assert host.hears(Says.STAYS, preferred=True) == told
    assert host.state == Master()
    assert Do.YIELD in master(SLOW).hears(Says.STAYS, preferred=True)


def test_a_master_that_does_not_reach_target_is_master_until_a_fit_host_takes_over() -> None:
    host = master(QUICK)
    assert host.tell(Target(reached=False)) == []
    assert host.tell(Target(reached=False), after=AGREE) == [Rerank(fit=False)]
    assert host.state == Master()
    assert host.demoted("") == SERVES_ON
    host.hears(Says.STAYS, of=OTHER, preferred=True, after=0.02)
    assert host.tell(Target(reached=True)) == [Rerank(fit=True)]


def test_a_target_that_flaps_changes_the_rank_of_a_master_once() -> None:
    host = master(QUICK)
    host.tell(Target(reached=False))
    assert Rerank(fit=False) in host.tell(Target(reached=False), after=AGREE)
    assert host.tell(Target(reached=True)) == [Rerank(fit=True)]
    host.tell(Target(reached=False))
    assert host.tell(Target(reached=False), after=AGREE) == []
    assert host.tell(Target(reached=False), after=FIRST_PAUSE) == [Rerank(fit=False)]


def test_an_engine_that_does_not_wait_gets_no_answer() -> None:
    host = master(QUICK)
    assert not any(isinstance(effect, Proceed) for effect in host.elected(""))
