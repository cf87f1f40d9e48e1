"""Which back end this host is to have our rules in: the one that others use, and whose NAT comes before theirs."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Literal

from kevip.dataplane import iptables
from kevip.dataplane.backend import Backend
from kevip.dataplane.iptables import Iptables, Kind
from kevip.dataplane.nftables import PREFIX, Nftables
from kevip.errors import HostError, KevipError
from kevip.host import command, nfnetlink
from kevip.host.nfnetlink import DSTNAT, SRCNAT, Chain

Dataplane = Literal["auto", "nftables", "iptables-nft", "iptables-legacy"]

_HOOKS = {"postrouting": SRCNAT, "prerouting": DSTNAT, "output": DSTNAT}
_INPUT = "ip filter INPUT"  # of iptables
_IPTABLES = {f"ip nat {chain}" for chain in ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")}


def installed() -> dict[str, Backend]:
    """Return the back ends that have programs on this host, by name."""
    found: dict[str, Backend] = {each.name: each for each in iptables.installed().values()}
    return found | ({Nftables.name: Nftables()} if command.find("nft") else {})


def save_all() -> dict[str, str]:
    """Return what is saved in each back end that works here, by name."""
    saved = {}
    for each in installed().values():
        try:
            saved[each.name] = each.save()
        except KevipError:
            continue
    return saved


def base_chains(backend: Backend) -> list[Chain]:
    """Return all base chains of nftables, and as such the NAT chains of an iptables that others use beside a back end.

    Raises HostError.
    """
    chains = nfnetlink.base_chains()
    found = own(chains)
    if isinstance(backend, Iptables):
        found += [chain for each in iptables.installed().values() if each != backend for chain in _nat(each, chains)]
    return found


def own(chains: Iterable[Chain]) -> list[Chain]:
    """Return those of nftables itself."""
    return [each for each in chains if each.path not in _IPTABLES]


def _nat(other: Iptables, chains: list[Chain]) -> list[Chain]:
    """Return the NAT chains of an iptables, if others than kevip have rules there."""
    with suppress(KevipError):
        if (other.kind == "legacy" or any(each.path in _IPTABLES for each in chains)) and other.translates():
            return [
                Chain(
                    family=other.name,
                    table="nat",
                    name=hook.upper(),
                    type="nat",
                    hook=hook,
                    priority=priority,
                    drops=False,
                )
                for hook, priority in _HOOKS.items()
            ]
    return []


def strangers(chains: Iterable[Chain]) -> list[Chain]:
    """Return the NAT chains of others that may translate what is proxied."""
    return [each for each in chains if each.type == "nat" and each.hook in _HOOKS and not each.table.startswith(PREFIX)]


def ahead(backend: Backend, chains: Iterable[Chain], *, source: bool = True) -> list[Chain]:
    """Return those that may do so before a back end's, for of one priority the last that was made is the first.

    ``source`` says whether it matters who translates sources.
    """
    dstnat, srcnat = backend.priorities
    latest = {"prerouting": dstnat, "output": dstnat} | ({"postrouting": srcnat} if source else {})
    return [each for each in strangers(chains) if each.hook in latest and each.priority <= latest[each.hook]]


def closed(chains: Iterable[Chain]) -> list[Chain]:
    """Return those of nftables itself that drop what comes to this host and that no rule there accepts."""
    return [each for each in chains if each.hook == "input" and each.drops and each.path != _INPUT]


def select(wanted: Dataplane) -> tuple[Backend, str]:
    """Return the back end to use and why; raises HostError if it is not there, CommandError if it does not work."""
    native, kinds = Nftables(), iptables.installed()
    if wanted == "auto":
        return _select(kinds, native if command.find("nft") and native.works() else None)
    if wanted == "nftables":
        if not command.find("nft"):
            raise HostError("nft is not installed: apt-get install nftables, or set --dataplane to auto")
        if not native.works():
            raise HostError("nft, or the kernel, is too old for kevip's rules: set --dataplane to auto")
        return native, "--dataplane says so"
    kind: Kind = "nft" if wanted == "iptables-nft" else "legacy"
    if kind not in kinds:
        raise HostError(f"{wanted} is not installed: apt-get install iptables, or set --dataplane to auto")
    kinds[kind].save()
    return kinds[kind], "--dataplane says so"


def _select(kinds: dict[Kind, Iptables], native: Nftables | None) -> tuple[Backend, str]:
    saved, problems = {}, list[str]()
    for kind, each in kinds.items():
        try:
            saved[kind] = each.save(run=command.run)
        except command.CommandError as error:
            problems += error.problems
        except HostError:  # somebody has rules of nftables in there
            if not native:
                raise
            return native, f"{each.name} cannot read all tables"
    if not saved and native:
        return native, "iptables does not work here" if problems else "iptables is not installed"
    if not saved:
        raise HostError(*problems or ["iptables is not installed: apt-get install iptables"])
    kind, reason = iptables.choose(saved, iptables.default())
    if native and (others := ahead(kinds[kind], base_chains(kinds[kind]))):
        return native, f"{others[0]} translates too"
    return kinds[kind], reason
