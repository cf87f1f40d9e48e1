"""``kevip cleanup``: removes what a killed daemon left, as a start would, and starts nothing."""

from kevip.dataplane import plane
from kevip.dataplane.iptables import select
from kevip.errors import HostError
from kevip.host import kernel, lock
from kevip.status.runfile import StateFile


def cleanup(state: StateFile) -> list[str]:
    """Remove lease, rules, connections and runtime file of a VIP, and say what there was.

    Raises BusyError while a kevip serves the VIP here, HostError, CommandError.
    """
    if "NET_ADMIN" in kernel.missing_capabilities():
        raise HostError("capability NET_ADMIN is missing: run it as root")
    with lock.take(state.vip):
        removed = plane.cleanup(state.vip, select("auto")[0])
        try:
            if state.remove():
                removed.append(str(state.path))
        except OSError as error:
            raise HostError(f"cannot remove {state.path}: {error.strerror}") from None
    return removed
