"""ICMP redirects, which are off on the VIP's interface while this host sends on there what came in there.

A client on the VIP's network, whose pod is behind another node, would be told of that node. Conntrack drops that; but
the kernel takes each packet that asks for a redirect off what it grants for ICMP errors to that client, and says no
more that a UDP port is refused.

A table of nftables, which does nothing, remembers what was on. So that outlives a kevip that is killed, and its
container, as its rules do.
"""

from contextlib import nullcontext, suppress
from ipaddress import IPv4Address

from kevip.dataplane.backend import Changes
from kevip.host import command, kernel, nfnetlink

_SET = "redirecting"
_NFT = ["nft", "-f", "-"]


def follow(vip: IPv4Address, interface: str, changes: Changes, *, off: bool) -> None:
    """Have redirects sent on an interface, where they were, or not; raises KevipError."""
    if off:
        _switch_off(vip, interface, changes)
    else:
        restore(vip, changes)


def _switch_off(vip: IPv4Address, interface: str, changes: Changes) -> None:
    """Have no redirects sent on an interface, if that can be; raises KevipError."""
    if not (found := kernel.redirecting(interface)) or not kernel.may_redirect(found):
        return
    table, names = _table(vip), sorted({*_remembered(vip), *found})
    elements = ", ".join(f'"{each}"' for each in names)
    text = f"{table}\ndelete {table}\n{table} {{ set {_SET} {{ type ifname; elements = {{ {elements} }}; }}; }}\n"
    with changes():
        command.run_now(_NFT, stdin=text)
        _redirect(found, on=False)


def restore(vip: IPv4Address, changes: Changes = nullcontext) -> bool:
    """Have redirects sent again where they were; say whether they were off. Raises KevipError."""
    if not (names := _remembered(vip)):
        return False
    with changes():
        _redirect(names, on=True)
        command.run_now(_NFT, stdin=f"delete {_table(vip)}\n")
    return True


def _redirect(names: list[str], *, on: bool) -> None:
    for each in names:
        with suppress(OSError):  # the interface is gone
            kernel.redirect(each, on=on)


def _table(vip: IPv4Address) -> str:
    return f"table ip kevip-redirects-{vip}"


def _remembered(vip: IPv4Address) -> list[str]:
    """Return which of an interface, and "all", were on."""
    return [key.rstrip(b"\0").decode() for key in nfnetlink.keys(_table(vip).split()[-1], _SET)]
