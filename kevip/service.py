"""The VIP as this host serves it: the rules and the address, put in place and taken away together."""

from ipaddress import IPv4Address

from kevip.errors import KevipError
from kevip.host import address, firewall, interface
from kevip.nat import Proxy, teardown


class Service:
    """Serves a VIP with the rules of a proxy; ``active`` says whether it does now."""

    def __init__(self, proxy: Proxy, iptables: firewall.Iptables) -> None:
        self._proxy = proxy
        self._iptables = iptables
        self._interface = ""
        self.active = False

    @property
    def _vip(self) -> IPv4Address:
        return self._proxy.vip

    def take_over(self, name: str) -> None:
        """Install the rules, then add the VIP to the interface. Undone if either fails; raises KevipError."""
        self._interface = name
        try:
            self._iptables.apply(self._proxy.setup())
            address.hold(self._vip, name)
        except KevipError as error:
            try:
                self.release()
            except KevipError as further:
                raise KevipError(*error.problems, *further.problems) from error
            raise
        self.active = True

    def renew(self) -> None:
        """Renew the lease of the address; raises CommandError."""
        address.hold(self._vip, self._interface)

    def release(self) -> None:
        """Remove the address, then the rules, whichever of them are there; raises CommandError."""
        self.active = False
        try:
            address.drop(self._vip, self._interface)
        finally:
            self._remove_rules(self._iptables)

    def remove_leftovers(self) -> list[str]:
        """Remove what an earlier kevip left for this VIP, on any interface and in either back end; say what it was."""
        leases = address.leases(interface.listing(), self._vip)
        for name in leases:
            address.drop(self._vip, name)
        cleaned = [iptables.prefix for iptables in firewall.installed().values() if self._remove_rules(iptables)]
        return [*(f"address on {name}" for name in leases), *(f"rules in {prefix}" for prefix in cleaned)]

    def _remove_rules(self, iptables: firewall.Iptables) -> bool:
        """Remove all rules of this VIP; say whether there were any."""
        text = teardown(iptables.save(), self._vip)
        if text:
            iptables.apply(text)
        return bool(text)
