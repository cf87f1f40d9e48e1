"""The rules in nftables for a TARGET that somebody else translates, as kube-proxy does a Service's cluster-IP.

A connection is translated once. So a packet to the VIP becomes one to TARGET before conntrack sees it, and what
kube-proxy does is the one translation that there is. ::

                    prerouting                                          postrouting
   client ── VIP ─► -301 zone, daddr = TARGET                           95 SNAT to VIP ───► pod
                    -100 kube-proxy: DNAT to a pod
                    -95 refuse what nobody has translated
   pod ──── VIP ──► conntrack undoes SNAT and DNAT ───────────────────► 301 saddr = VIP ──► client

Processes of this host are served in the same way in output and input. The zone is a tag of the original direction: it
tells these connections from direct ones to TARGET, and needs no mark. Only with ports is the source the VIP: what is
sent to them is then known from what pods answer. Else it is the host.

ICMP errors quote a packet of the connection, whose addresses change too. What ``nft`` cannot say is that a checksum
covers them: 16 bits of the message that nobody uses take up the difference (RFC 1624). That of the quoted header is
left wrong; nobody verifies it.
"""

from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import NamedTuple

from kevip.dataplane.rules import Part, Parts, Ports, Proxy

_ADMIT, _REWRITE = -302, -301  # before raw (-300) and conntrack (-200); fragments are put together at -400
_STRAY = -155  # behind conntrack, before the mangle of others
_UNDONE = -95  # behind what translates (-100), before others refuse, quoting an address that no client knows
_LAST = 301  # behind all that translates (100) and its helpers (300)

_ERRORS = "icmp type { 3, 11 } @th,64,8 0x45"  # unreachable, time exceeded, that quote a header without options
_QUOTED_PROTOCOL, _QUOTED_PORT = "@th,136,8", "@th,224,16"
_QUOTED_SOURCE, _QUOTED_DESTINATION = "@th,160,32", "@th,192,32"
_UNUSED = "@th,32,16"
_LENGTHS = (0, 32)  # what is found there: nothing, or how long that is which is quoted, if more follows (RFC 4884)
_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}


REFUSED = "refused"
"""A set: what was refused in the last seconds, a protocol and port each."""
REFUSED_TYPE = "inet_proto . inet_service; size 1024; flags dynamic,timeout; timeout 10s;"


class Chain(NamedTuple):
    """A base chain: its name, its type and hook, its priority, and its rules."""

    name: str
    hook: str
    priority: int
    rules: list[str]


def zone(vip: IPv4Address) -> int:
    """Return the zone of a VIP's connections; 65521 is a prime, so VIPs with the same last octets have others."""
    return int(vip) % 65521 or 65521


def tag(vip: IPv4Address) -> str:
    """Return what matches a VIP's connections, in both directions."""
    return f"ct original zone {zone(vip)}"


def pings(local: str, parts: Parts) -> list[str]:
    """Return what lets this host answer a ping of the VIP, which no Service does; else it is TARGET's matter."""
    return [f"{local} icmp type echo-request accept"] if Part.REWRITE in parts else []


def chains(proxy: Proxy, parts: Parts, ports: list[Ports], source: int) -> Iterator[Chain]:
    """Yield the chains that are others than those of a proxy that translates itself.

    ``ports`` are the proxy's, without overlaps; ``source`` is the priority of source NAT.
    """
    vip, target, ours = proxy.vip, proxy.target, tag(proxy.vip)
    local = f"ip daddr {vip} fib daddr type local"
    wanted = [f"{local} {each}" for each in _to(ports)]
    rewrites = [f"{each} ct original zone set {zone(vip)} counter ip daddr set {target}" for each in wanted]
    if proxy.sources:
        allow = [f"{each} ip saddr != @sources counter drop" for each in wanted]
        yield Chain("admit", "filter hook prerouting", _ADMIT, allow)
    if ports:  # after a failover, pods' packets may come before the client's: a reset would end the connection
        stray = f"{local} ct state invalid,new,untracked tcp flags & (syn | ack) != syn counter drop"
        yield Chain("stray", "filter hook prerouting", _STRAY, [stray])
    errors = [f"{each} ip daddr set {target}" for each in _errors(proxy, local, ports)]
    refusal = "ct direction reply return"  # only what this host refuses itself has a connection so early
    yield Chain("rewrite", "filter hook prerouting", _REWRITE, [refusal, *rewrites, *errors])
    if proxy.allows_itself:
        yield Chain("own", "route hook output", _REWRITE, [refusal, *rewrites])
    undone = f"{ours} ct status & dnat == 0 ct state new"
    refuse = [
        f"{undone} update @{REFUSED} {{ meta l4proto . th dport }}",  # by itself, for it fails if there are too many
        f"{undone} meta l4proto tcp ip daddr set {vip} counter reject with tcp reset",
        f"{undone} ip daddr set {vip} counter reject",
    ]
    yield Chain("undone", "filter hook prerouting", _UNDONE, refuse)
    yield Chain("unsent", "filter hook output", _UNDONE, refuse)
    if Part.SNAT in parts:
        clash = [f"{ours} meta l4proto . th sport @ports counter masquerade"] if ports else []
        snat = f"{ours} counter {f'snat to {vip}' if ports else 'masquerade'}"
        yield Chain("postrouting", "nat hook postrouting", source, [*clash, snat])
    quoted = _quoted(_QUOTED_DESTINATION, target, vip)
    replies = f"{ours} ct direction reply"
    error, back = f"{_ERRORS} {quoted}", f"{replies} ip saddr set {vip}"
    # What this host says to itself is translated once more when it comes in, and not to the VIP.
    yield Chain("reply", "filter hook postrouting", _LAST, [f'{replies} oifname != "lo" {error}', back])
    # What refuses before it is translated what this host sends itself, as kube-proxy does, belongs to no connection.
    refused = f"iifname lo {_ERRORS} {_QUOTED_SOURCE} {int(vip):#x} {quoted}"
    yield Chain("inward", "filter hook input", _LAST, [f"{replies} {error}", back, refused])


def _to(ports: list[Ports]) -> list[str]:
    """Return what matches packets to ports, a rule for each protocol.

    One set of protocols and ports would do; but to look into one of ranges costs each packet half of the throughput.
    """
    if not ports:
        return [f"meta l4proto {{ {', '.join(_PROTOCOLS)} }}"]
    return [f"{name} dport {{ {numbers} }}" for name in _PROTOCOLS if (numbers := _numbers(ports, name))]


def _numbers(ports: list[Ports], protocol: str) -> str:
    return ", ".join(f"{each.first}-{each.last}" for each in ports if each.protocol == protocol)


def _errors(proxy: Proxy, local: str, ports: list[Ports]) -> Iterator[str]:
    """Yield the rules for ICMP errors about what was sent to clients."""
    change = f"ct original zone set {zone(proxy.vip)} counter {_quoted(_QUOTED_SOURCE, proxy.vip, proxy.target)}"
    for name, number in _PROTOCOLS.items():
        numbers = _numbers(ports, name)
        if numbers or not ports:
            from_ports = f"{_QUOTED_PORT} {{ {numbers} }} " if ports else ""
            yield f"{local} {_ERRORS} {_QUOTED_PROTOCOL} {number} {from_ports}{change}"


def _quoted(field: str, old: IPv4Address | None, new: IPv4Address | None) -> str:
    """Return what replaces a quoted address; it matches only what quotes the old one."""
    assert old  # noqa: S101 - nothing is rewritten without a TARGET
    assert new  # noqa: S101
    less = sum(divmod(int(old), 1 << 16)) - sum(divmod(int(new), 1 << 16))
    unused = ", ".join(f"{each} : {(each + less) % 0xFFFF}" for each in _LENGTHS)
    return f"{field} {int(old):#x} {_UNUSED} set {_UNUSED} map {{ {unused} }} {field} set {int(new):#x}"
