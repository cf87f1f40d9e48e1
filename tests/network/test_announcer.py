"""Who claims the VIP, as the announcer hears it: the clock is set forward, the packets are real."""

from collections.abc import Callable, Iterator
from contextlib import closing
from ipaddress import IPv4Address, IPv4Network

import pytest
from lab.network import Namespace

from kevip.dataplane.announcer import ANSWER, OTHERS, REFRESH, Announcer
from kevip.host.arp import build
from kevip.host.wire import BROADCAST, Wire, arp_from
from kevip.loop import Loop

VIP = IPv4Address("10.77.0.100")


class Wired:
    """An announcer on eth0 and a neighbour at the other end of its cable."""

    def __init__(self, neighbour: Wire) -> None:
        self.neighbour = neighbour
        self.time = 0.0
        self.is_led = False
        self.warned: list[object] = []
        self.loop = Loop(lambda: self.time)
        self.announcer = Announcer(self.loop, [VIP], lambda: self.is_led, self.warn)
        self.announcer.attach("eth0")

    def warn(self, event: str, subject: object, **context: object) -> None:
        """Note whom it is about."""
        assert (event, context["mac"]) == ("address.duplicate", subject)
        self.warned.append(subject)

    def claim(self, *numbers: int) -> None:
        """Claim the VIP, from MAC addresses that end in these numbers."""
        for number in numbers:
            mac = bytes([2, 0, 0, 0, 0, number])
            self.neighbour.send(to=BROADCAST, source=mac, kind=0x0806, payload=build(2, mac, VIP, mac, VIP))
        self.wait(0)

    def wait(self, seconds: float) -> None:
        """Let time pass, and take what has come."""
        self.time += seconds
        for _ in range(3):
            self.loop.after(0, self._pass)
            self.loop.turn()

    def _pass(self) -> None:
        """Wake the loop."""

    def heard(self) -> int:
        """Return how many packets the announcer has sent since the last call."""
        return sum(1 for _ in self.neighbour.hear())


@pytest.fixture
def wired(host: Namespace) -> Iterator[Wired]:
    """Give both ends of a cable."""
    with host.entered(), closing(Wire("peer0", arp_from(IPv4Network(VIP)))) as neighbour:
        made = Wired(neighbour)
        yield made
        made.announcer.detach()
        made.loop.close()


def duplicate(wired: Wired, *numbers: int) -> None:
    """Claim the VIP for longer than a lease."""
    wired.claim(*numbers)
    wired.wait(ANSWER)
    wired.claim(*numbers)


def test_who_claims_the_vip_for_longer_than_a_lease_is_warned_about(wired: Wired) -> None:
    wired.claim(1)
    assert (wired.warned, wired.announcer.claims) == ([], {})
    wired.wait(ANSWER)
    wired.claim(1)
    assert wired.warned == ["02:00:00:00:00:01"]
    assert list(wired.announcer.claims) == wired.warned


def test_a_claim_is_over_when_a_question_is_not_answered(wired: Wired) -> None:
    duplicate(wired, 1)
    wired.wait(ANSWER)
    wired.wait(ANSWER)
    assert wired.announcer.claims == {}


def test_a_claim_is_over_when_a_peer_is_heard_as_master(wired: Wired) -> None:
    duplicate(wired, 1)
    wired.is_led = True
    assert wired.announcer.claims == {}
    wired.claim(1)
    wired.is_led = False
    assert wired.announcer.claims == {}


def test_of_more_than_ten_the_rest_are_others(wired: Wired) -> None:
    duplicate(wired, *range(30))
    assert len(wired.announcer.claims) == 11
    assert OTHERS in wired.warned


@pytest.mark.parametrize("end", [Announcer.hush, Announcer.detach])
def test_the_vip_is_announced_several_times_soon_and_then_rarely(
    wired: Wired, end: Callable[[Announcer], None]
) -> None:
    wired.announcer.announce()
    counts = []
    for seconds in (0, 0.1, 0.4, 0.5, 1.0, 2.0, 10, REFRESH):
        wired.wait(seconds)
        counts.append(wired.heard() // 2)  # a request and a reply
    assert counts == [1, 1, 1, 1, 1, 1, 0, 1]
    end(wired.announcer)
    wired.wait(REFRESH)
    assert wired.heard() == 0
