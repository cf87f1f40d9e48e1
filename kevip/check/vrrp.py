"""The election as it is heard on the wire where it is VRRP's: masters, and adverts that are not of our group."""

from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Address

from kevip.check.election import Heard, Listener, Stranger, all_masters, all_strangers, duplicates
from kevip.check.report import Finding, failed, ok, warning
from kevip.election.adverts import Adverts
from kevip.election.vrrp import Advert, Group, parse
from kevip.election.vrrpd import Candidacy, is_in_clear
from kevip.host.interface import Placement
from kevip.host.wire import payload


class VrrpListener(Listener[Advert, Advert]):
    """Hears a VRRP group. Of each master, what it said last counts."""

    def __init__(self, place: Placement, group: Group) -> None:
        adverts = Adverts(
            place.interface, group.vrid, lambda frame: parse(group, payload(frame)), unicast=bool(group.peers)
        )
        super().__init__(place, group.vip, adverts)

    def _take_in(self, advert: Advert) -> IPv4Address:
        self._heard.masters[advert.source] = advert
        return advert.source


def standing(candidacy: Candidacy) -> Iterator[Finding]:
    """Say how this host would stand for election."""
    found = f"keepalived, an advert every {candidacy.interval:g} s, VRRP version {candidacy.version}"
    if candidacy.realtime:
        yield ok("engine", f"{found}, as a real-time process")
    else:
        yield warning("engine", f"{found}: on a busy host it may be late, and be taken for dead", "give it SYS_NICE")
    if is_in_clear(candidacy):
        yield warning(
            "engine",
            "the password is in each advert as it is, for peers without kevip",
            "take one of more than 8 letters and digits, if all peers are kevip's",
        )


def judge(heard: Heard[Advert], group: Group) -> Iterator[Finding]:
    """Say what was heard of the election, and who has the VIP."""
    yield from all_masters(heard, _master, "see whether the switches pass multicast (IGMP snooping)")
    yield from all_strangers(heard, group.vrid, partial(_stranger, group))
    yield from duplicates(heard, group.vip)


def _master(source: IPv4Address, advert: Advert) -> Finding:
    return ok("election", f"{source} is master, with priority {advert.priority}, an advert every {advert.interval:g} s")


def _stranger(group: Group, stranger: Stranger, holds_vip: bool) -> Finding:
    source, number = stranger.source or "an unknown sender", group.vrid
    other_id = "give one of the two groups another --vip-id"
    kinds = {
        "password": ("advertises with another password", "set --password to the same on all hosts"),
        "interval": ("advertises at another interval", "set --advert-interval to the same on all hosts"),
        "version": (
            "speaks CARP, or another version of VRRP",
            "set --engine, --vrrp-version and --advert-interval to the same on all hosts",
        ),
    }
    if stranger.reason == "address":
        return warning("other groups", f"{source} uses id {number} for another VIP", other_id)
    if stranger.reason not in kinds:
        return warning(
            "other groups",
            f"{source} sends bad adverts with id {number} ({stranger.reason})",
            "they are ignored; if they are a peer's, see what is between the two hosts",
        )
    what, hint = kinds[stranger.reason]
    if holds_vip:
        return failed("other groups", f"{source} holds VIP {group.vip}, and {what}", hint)
    found = f"{source} {what}, with id {number}; it does not hold VIP {group.vip}"
    return warning("other groups", found, f"if it should be a peer, {hint}; if not, {other_id}")
