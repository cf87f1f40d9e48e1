"""The core: what is known of other hosts."""

from ipaddress import IPv4Address
from math import inf

from dialogue import OTHER, PEER

from kevip.core.messages import Heard, Says
from kevip.core.peers import MANY, NOBODY, Peers


def hear(*heard: tuple[IPv4Address, Says, float], preferred: bool = False) -> Peers:
    """Return what is known after some adverts."""
    peers = NOBODY
    for who, says, at in heard:
        peers = peers.hear(Heard(who, says, at, preferred))
    return peers


def test_a_master_is_a_host_whose_last_word_is_that_it_stays() -> None:
    peers = hear((PEER, Says.STAYS, 1), (OTHER, Says.STAYS, 2), (PEER, Says.YIELDS, 3))
    assert peers.master(2) == OTHER
    assert peers.master(2.1) is None
    assert NOBODY.master(-inf) is None


def test_who_yielded_was_master_until_then() -> None:
    assert hear((PEER, Says.STAYS, 1), (PEER, Says.YIELDS, 2)).is_led(2)
    assert not hear((PEER, Says.STAYS, 1), (PEER, Says.YIELDS, 2)).is_led(2.1)
    assert not hear((PEER, Says.STAYS, 1), (PEER, Says.LEAVES, 2)).is_led(0)


def test_a_leaver_is_the_last_host_whose_last_word_is_that_it_leaves() -> None:
    peers = hear((PEER, Says.LEAVES, 1), (OTHER, Says.LEAVES, 2))
    assert (peers.leaver(1), peers.leaver(2.1)) == (OTHER, None)
    assert peers.hear(Heard(OTHER, Says.STAYS, 3)).leaver(1) == PEER


def test_an_advert_of_before_a_hosts_last_word_changes_nothing() -> None:
    peers = hear((PEER, Says.YIELDS, 2))
    assert peers.hear(Heard(PEER, Says.STAYS, 1)) is peers
    assert peers.hear(Heard(PEER, Says.LEAVES, 1)).goodbye == -inf


def test_a_keeper_is_preferred_or_has_not_yielded_when_it_could_have() -> None:
    assert hear((PEER, Says.STAYS, 1)).keeper(1) is None
    assert hear((PEER, Says.STAYS, 1), preferred=True).keeper(1) == PEER
    assert hear((PEER, Says.STAYS, 1), (PEER, Says.STAYS, 2)).keeper(2) == PEER
    assert hear((PEER, Says.STAYS, 1), (PEER, Says.YIELDS, 2), (PEER, Says.STAYS, 3)).keeper(1) is None
    assert hear((PEER, Says.STAYS, 1), (PEER, Says.STAYS, 2)).keeper(3) is None


def test_silence_begins_when_the_last_master_is_taken_for_dead() -> None:
    assert NOBODY.silence(3) == -inf
    assert hear((PEER, Says.STAYS, 1), (OTHER, Says.STAYS, 2)).silence(3) == 5
    assert hear((PEER, Says.STAYS, 1), (OTHER, Says.STAYS, 2), (OTHER, Says.LEAVES, 3)).silence(3) == 4


def test_who_said_goodbye_is_no_peer_to_leave_to_until_it_is_heard_again() -> None:
    left = hear((PEER, Says.STAYS, 1), (OTHER, Says.YIELDS, 2), (PEER, Says.LEAVES, 3))
    assert left.advertised() == {OTHER: 2}
    assert left.goodbye == 3
    back = left.hear(Heard(PEER, Says.STAYS, 4))
    assert back.advertised() == {OTHER: 2, PEER: 4}
    assert back.goodbye == 3


def test_those_heard_last_are_remembered() -> None:
    many = [IPv4Address("198.51.100.0") + number for number in range(MANY)]
    peers = hear((PEER, Says.STAYS, 0), *((who, Says.STAYS, 1) for who in many), (many[0], Says.STAYS, 2))
    assert {word.source for word, _ in peers.words} == set(many)
    assert next(reversed(peers.words))[0].source == many[0]
