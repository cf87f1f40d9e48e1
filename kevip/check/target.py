"""TARGET: how it is reached, whether it answers, and whether it is a Service's cluster-IP."""

from ipaddress import IPv4Address

from kevip.check.finding import Finding, failed, ok, warning
from kevip.health.ask import Answer, Check
from kevip.host.kubernetes import Mode
from kevip.host.route import Route


def route(target: IPv4Address, way: Route) -> Finding:
    """Say which way packets for TARGET go."""
    if way.local:
        return ok("route", f"TARGET {target} is on this host")
    return ok("route", f"TARGET {target} by {way.interface}{f', gateway {way.gateway}' if way.gateway else ''}")


def service(target: IPv4Address, mode: Mode | None) -> Finding:
    """Say how a cluster-IP is handled; any other way than this is a problem that the start refuses."""
    if mode is None:
        return ok("service", f"TARGET {target} is no cluster-IP that this node knows of")
    return ok("service", f"TARGET {target} is a cluster-IP, handled by {mode} with conntrack")


def answer(check: Check | None, target: IPv4Address | None, answer: Answer) -> Finding:
    """Say whether TARGET, or what serves a VIP that is only held, answered: what the settings ask, else a ping."""
    subject = target or "what serves the VIP here"
    if not answer.problem:
        return ok("TARGET", f"{subject} answers {check or 'a ping'} in {answer.seconds * 1000:.1f} ms")
    if check:
        return failed(
            "TARGET",
            f"{subject} does not answer {check}: {answer.problem}",
            "see whether it is up, and whether it takes what comes from this host",
        )
    return warning(
        "TARGET",
        f"{subject} does not answer a ping: {answer.problem}",
        "if a firewall drops that, all is well; else see whether it is up",
    )
