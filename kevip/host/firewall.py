"""Iptables: which of its two back ends this host uses, and rule sets applied in one transaction per table."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from kevip.errors import HostError
from kevip.host import command

Backend = Literal["nft", "legacy"]
BACKENDS: tuple[Backend, ...] = ("nft", "legacy")

_WAIT = "--wait=4"
"""Seconds to wait for another program's xtables lock: less than the watchdog does. The nft back end has no lock."""

_TABLES = ("mangle", "filter", "nat")

_KUBERNETES = (":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY ")
"""Chains that a kubelet makes in the back end that the host uses, for others to find (KEP-3178)."""


@dataclass(frozen=True, slots=True)
class Iptables:
    """One back end, by the name that its programs begin with: ``iptables-nft``, ``iptables-legacy``, ``iptables``."""

    prefix: str

    def save(self, run: command.Runner = command.run, *, counters: bool = False) -> str:
        """Return all rules as ``iptables-save`` prints them; raises CommandError, HostError if it cannot read some."""
        saved = run([f"{self.prefix}-save", *(["--counters"] if counters else [])])
        if unreadable := [table for table in _TABLES if f"# Table `{table}' is incompatible" in saved]:
            raise HostError(
                f"{self.prefix} cannot read {' and '.join(unreadable)}: rules made with nft are in there; "
                "keep them in a table of their own (nft list ruleset shows them)"
            )
        return saved

    def works(self) -> bool:
        """Whether this back end can be used: its programs may be there without the kernel's part of it."""
        try:
            self.save(command.run_now)
        except (command.CommandError, HostError):
            return False
        return True

    def apply(self, text: str) -> None:
        """Apply ``iptables-restore`` text, a table at a time, leaving all other rules alone; raises CommandError."""
        command.run_now(self._restore(), stdin=text)

    def standby(self) -> command.Standby:
        """Return what applies a text as ``apply`` does, and can be started in advance."""
        return command.Standby(self._restore())

    def _restore(self) -> list[str]:
        return [f"{self.prefix}-restore", "--noflush", _WAIT]


def installed() -> dict[Backend, Iptables]:
    """Return the back ends that have programs on this host. A lone ``iptables`` says itself which one it is."""
    found: dict[Backend, Iptables] = {
        backend: Iptables(f"iptables-{backend}") for backend in BACKENDS if command.find(f"iptables-{backend}-restore")
    }
    if not found and command.find("iptables-restore"):
        found[default()] = Iptables("iptables")
    return found


def save_all() -> dict[str, str]:
    """Return what ``iptables-save`` prints in each back end that works here, by its prefix."""
    saved = {}
    for each in installed().values():
        with suppress(command.CommandError, HostError):
            saved[each.prefix] = each.save(command.run_now)
    return saved


def default() -> Backend:
    """Return the back end that plain ``iptables`` stands for on this host; raises CommandError."""
    return "nft" if "nf_tables" in command.run(["iptables", "--version"]) else "legacy"


def choose(saved: Mapping[Backend, str], preset: Backend) -> tuple[Backend, str]:
    """Choose the back end that the host uses, and say why.

    Rules in the other back end would work, but not in the order that we count on. ``saved`` is each back end's
    ``iptables-save``; ``preset`` is what plain ``iptables`` stands for.
    """
    for backend, text in saved.items():
        if any(chain in text for chain in _KUBERNETES):
            return backend, "the kubelet uses it"
    used = [backend for backend, text in saved.items() if "\n-A " in text]
    if len(used) == 1:
        return used[0], "it has rules"
    if preset in saved:
        return preset, "it is this host's default"
    return next(iter(saved)), "it is the only one that works"


def select(wanted: Backend | Literal["auto"]) -> tuple[Iptables, str]:
    """Return the back end to use and why; raises HostError if it is not there."""
    found = installed()
    if not found:
        raise HostError("iptables is not installed: apt-get install iptables")
    if wanted != "auto":
        if wanted not in found:
            raise HostError(f"iptables-{wanted} is not installed: apt-get install iptables, or set --iptables to auto")
        found[wanted].save()
        return found[wanted], "--iptables says so"
    saved, errors = {}, list[str]()
    for each, iptables in found.items():
        try:
            saved[each] = iptables.save()
        except command.CommandError as error:
            errors += error.problems
    if not saved:
        raise HostError(*errors)
    backend, reason = choose(saved, default())
    return found[backend], reason
