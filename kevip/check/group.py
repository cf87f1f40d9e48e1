"""The other replicas as they say that they are, and whether they have the settings that this one would have."""

from collections.abc import Iterator
from ipaddress import IPv4Address
from time import monotonic

from kevip.check.report import Finding, failed, ok, warning
from kevip.config import Config
from kevip.presence.channel import Channel
from kevip.presence.frame import FrameError, Seal
from kevip.presence.group import Group, Member
from kevip.sync import wire

_SAME = "set them to the same on all hosts"
_FEW = "see whether kevip runs there, and whether switches pass what it sends"


def judge(config: Config, channel: Channel, here: IPv4Address) -> Iterator[Finding]:
    """Say who is there, of what a channel has heard by now, and what differs."""
    seal = Seal(wire.derive(config.password, config.vip), config.vip_id)
    group, strangers = Group(seal.digests(config.alike())), set[IPv4Address]()
    for _, source, data in channel.hear():
        try:
            frame = seal.parse(data)
        except FrameError:
            strangers.add(source)
        else:
            if frame.said.source == source != here:
                group.take_in(frame, monotonic())
    members = {source: each for source, each in group.members.items() if not each.stopped}
    yield from _count(config, len(members))
    for source in sorted(members):
        yield from _member(source, members[source])
    for source in sorted(strangers - members.keys()):
        found = f"{source} runs a kevip with id {config.vip_id}, and its password, VIP or version is not ours"
        yield warning("group", found, "if it should be a peer, set --password and --vip to the same on all hosts")


def _count(config: Config, others: int) -> Iterator[Finding]:
    if config.expect and others + 1 < config.expect:
        yield warning("group", f"{others} other replicas are heard, of {config.expect} with this one", _FEW)
    elif not others:
        yield ok("group", "no other replica is heard: this host would be alone")


def _member(source: IPv4Address, member: Member) -> Iterator[Finding]:
    reaches = {True: ", reaches TARGET", False: ", does not reach TARGET", None: ""}[member.target]
    who = f"{member.name} ({source})"
    yield ok("group", f"{who} is {member.role}, {member.engine}, rank {member.rank}, kevip {member.version}{reaches}")
    if member.unlike:
        yield failed("settings", f"{who} has another {', another '.join(member.unlike)}", _SAME)
    if other := [each for each in member.differs if each not in member.unlike]:
        yield warning("settings", f"{who} has another {', another '.join(other)}", f"better {_SAME}")
