"""The VIP as this host serves it: rules and address, put in place, kept in place, and taken away."""

from ipaddress import IPv4Address
from time import monotonic

from kevip.errors import KevipError
from kevip.host import address, conntrack, firewall, interface, kernel, route
from kevip.host.command import run_now
from kevip.nat import Proxy, ours, teardown

CHECK = 2.5
"""Seconds between looks at the rules, at least."""

_SHARE = 100
"""A look at the rules is followed by that many times its duration without one: where there are many, it is dear."""


KINDS = ("address", "forwarding", "rules")
"""What can be wrong; whatever is not said to be one of the others is about rules."""


def kind_of(flaw: str) -> str:
    """Return what kind of thing ``Service.tend`` says that was wrong."""
    kind = flaw.partition(" ")[0]
    return kind if kind in KINDS else "rules"


class Service:
    """Serves a VIP with the rules of a proxy; ``active`` says whether the address is here."""

    def __init__(self, proxy: Proxy, iptables: firewall.Iptables) -> None:
        self._proxy = proxy
        self._iptables = iptables
        self._setup = proxy.setup()
        self._restore = iptables.standby()
        self._ip = address.standby()
        self._interface = ""
        self._rules_are_in = False
        self._whole: list[str] = []
        self._next_look = self._renewed = 0.0
        self.active = False

    @property
    def _vip(self) -> IPv4Address:
        return self._proxy.vip

    @property
    def rules(self) -> list[str]:
        """The rules that are here when all is well, as ``nat.ours`` returns them; none until they were looked at."""
        return self._whole if self.active else []

    def stand_by(self) -> None:
        """Start what a takeover runs, so that it need not wait for that; raises CommandError."""
        if self._setup:
            self._restore.start()
        self._ip.start()

    def take_over(self, name: str) -> None:
        """Install the rules, then add the VIP to the interface. Undone if either fails; raises KevipError."""
        self._interface = name
        try:
            if self._setup and not self._rules_are_in:
                self._restore.run(self._setup)
                self._rules_are_in = True
            address.take(self._vip, name, self._ip)
            self._renewed = monotonic()
        except KevipError as error:
            self._undo(error)
            raise
        self.active = True

    def _undo(self, error: KevipError) -> None:
        """Remove the rules; the address, which comes last, is not there, or is somebody else's."""
        try:
            self.leave_rules()
        except KevipError as further:
            raise KevipError(*error.problems, *further.problems) from error

    def complete(self) -> None:
        """Do what a takeover needs but need not wait for; raises KevipError."""
        if not self._setup:
            return
        conntrack.forget_untranslated(self._vip)
        saved = self._iptables.save(run_now)
        self._whole = ours(saved, self._vip)
        self._next_look = monotonic() + CHECK
        if len(self._whole) != self._proxy.rules():
            self._repair(saved)

    def renew(self) -> None:
        """Renew the lease of the address, or take it anew; raises CommandError."""
        address.hold(self._vip, self._interface)
        self._renewed = monotonic()

    def extend(self) -> None:
        """Renew the lease of the address unless it has ended: others may be master by now. Raises CommandError."""
        if monotonic() - self._renewed < address.LEASE:
            self.renew()

    def tend(self) -> list[str]:
        """Repair what is not as it should be, as master or as backup, and return what that was.

        Raises KevipError if this host cannot serve as it is.
        """
        leases = address.leases(interface.listing(run_now), self._vip)
        if self.active:
            return self._tend_address(leases) + (self._tend_proxy(self._proxy.target) if self._proxy.target else [])
        self.stand_by()
        if self._rules_are_in or (not leases and monotonic() < self._next_look):
            return []
        return self.clear()

    def _tend_address(self, leases: list[str]) -> list[str]:
        self.renew()
        strays = [name for name in leases if name != self._interface]
        for name in strays:
            address.drop(self._vip, name)
        missing = [f"address missing on {self._interface}"] if self._interface not in leases else []
        return missing + [f"address on {name}" for name in strays]

    def _tend_proxy(self, target: IPv4Address) -> list[str]:
        route.require(target)
        return self._tend_forwarding() + self._tend_rules()

    def _tend_forwarding(self) -> list[str]:
        if kernel.forwards(self._interface):
            return []
        kernel.enable_forwarding(self._interface)
        return ["forwarding off"]

    def _tend_rules(self) -> list[str]:
        begin = monotonic()
        if begin < self._next_look:
            return []
        saved = self._iptables.save(run_now)
        flaws = self._proxy.flaws(saved, self._whole)
        if flaws:
            self._repair(saved)
        self._next_look = begin + max(CHECK, (monotonic() - begin) * _SHARE)
        return flaws

    def _repair(self, saved: str) -> None:
        self._iptables.apply(self._proxy.repair(saved))
        self._whole = ours(self._iptables.save(run_now), self._vip)

    def leave_address(self) -> None:
        """Remove the address; what came in for it is still translated, until ``leave_rules``. Raises CommandError."""
        self.active = False
        address.drop(self._vip, self._interface)

    def leave_rules(self) -> None:
        """Remove the rules, and forget the connections; raises KevipError, and may be called again then."""
        if self._setup:
            self._rules_are_in = False  # or not all of them, if this fails: then the next takeover installs them again
            _remove_rules(self._vip, self._iptables)
            conntrack.forget(self._vip)

    def end(self) -> None:
        """Release what is still here at the end; raises CommandError."""
        self._restore.stop()
        self._ip.stop()
        if self.active or self._rules_are_in:
            self.release()

    def release(self) -> None:
        """Remove the address, then the rules, whichever of them are there; raises CommandError."""
        try:
            self.leave_address()
        finally:
            self.leave_rules()

    def clear(self) -> list[str]:
        """Remove what must not be here while this host does not serve, in either back end; say what it was.

        That is what an earlier kevip left for this VIP, or what somebody restored. Raises KevipError.
        """
        begin = monotonic()
        removed = clear(self._vip, self._iptables)
        self._next_look = begin + max(CHECK, (monotonic() - begin) * _SHARE)
        return removed


def clear(vip: IPv4Address, iptables: firewall.Iptables) -> list[str]:
    """Remove each lease of the VIP, then its rules in this back end, and in the other one if that works here.

    Say what was there. Raises KevipError.
    """
    leases = address.leases(interface.listing(run_now), vip)
    for name in leases:
        address.drop(vip, name)
    others = [each for each in firewall.installed().values() if each != iptables and each.works()]
    cleared = [each.prefix for each in (iptables, *others) if _remove_rules(vip, each)]
    removed = [*(f"address on {name}" for name in leases), *(f"rules in {prefix}" for prefix in cleared)]
    if cleared and (connections := conntrack.forget(vip)):
        removed.append(f"{connections} tracked connection{'' if connections == 1 else 's'}")
    return removed


def _remove_rules(vip: IPv4Address, iptables: firewall.Iptables) -> bool:
    """Remove all rules of the VIP; say whether there were any."""
    disarm, delete = teardown(iptables.save(run_now), vip)
    if disarm:
        iptables.apply(disarm)
    if delete:
        try:
            iptables.apply(delete)
        except KevipError as error:
            raise KevipError(*error.problems, f"empty chains of {vip} stay: a rule of others jumps there") from None
    return bool(disarm)
