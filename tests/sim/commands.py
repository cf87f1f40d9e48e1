"""What can be done to a course of events, and asked of it, as lines of text: those of schedules and of scenarios."""

import operator
import re
import signal
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address
from itertools import product
from math import inf
from typing import get_args

from kevip.core.messages import Standby
from kevip.election.carp import Advert, Group, Interval, build
from sim.attacker import Attacker
from sim.course import Course
from sim.host import VIP, Host, Link
from sim.network import CLIENT, Carriage
from sim.tools import USUAL

Words = list[str]


def do(course: Course, line: str) -> list[str]:
    """Do what a line says, and return what is not as expected; raises LookupError, ValueError."""
    verb, *words = line.split()
    match verb:
        case "run":
            course.world.run(seconds(words[0]))
        case "mark":
            course.mark()
        case "presence" | "attack":  # which is no excuse for anything
            _PRESENCE[verb](course, words)
        case "expect":
            return list(filter(None, [_EXPECT[words[0]](course, words)]))
        case _:
            _fault(course, verb, words)
    return []


def seconds(text: str) -> float:
    """Parse a duration: ``3s``, ``200ms``."""
    return float(text.removesuffix("ms")) / 1000 if text.endswith("ms") else float(text.removesuffix("s"))


def _fault(course: Course, verb: str, words: Words) -> None:
    was_calm = course.is_calm
    course.disturbed = course.world.now
    if verb in _NETWORK:
        _NETWORK[verb](course, words)
    else:
        for host in _hosts(course, words[0]):
            if verb in _NOTED:
                host.note("fault.stop" if verb == "stop" else "fault.loss", calm=was_calm)
            _HOST[verb](host, words[1:])
    course.look()


_NOTED = {"stop", "crash", "kill", "carrier", "link"}
"""What takes a host away, or may."""


def _hosts(course: Course, text: str) -> list[Host]:
    return course.hosts if text == "all" else [course.network.hosts[name] for name in text.split(",")]


# What is done to the network


def _hosts_are(course: Course, words: Words) -> None:
    """``hosts 3 advskew=1,9 check``: make them, with settings of kevip's, and start kevip on each.

    With ``engine=keepalived``, a skew of 1 is the highest of its priorities.
    """
    number = int(words[0])
    course.add(number)
    settings = {name: value for name, _, value in (word.partition("=") for word in words[1:])}
    for at, host in enumerate(course.hosts):
        host.settings["advskew"] = 1 + 10 * at % 250
        for name, value in settings.items():
            values = value.split(",")
            host.settings[name] = not value or _value(values[min(at, len(values) - 1)])
        host.node.start()


def _value(text: str) -> float | str:
    if text.isdigit():
        return int(text)
    return float(text) if text.replace(".", "").isdigit() else text


def _cut(course: Course, words: Words) -> None:
    """``cut n1``, ``cut n1 n2``, ``cut n1 > n2``, ``cut n1 n2 | n3``: both ways, with all or one; one way; in parts."""
    text, everybody = " ".join(words), [*course.network.hosts, CLIENT]
    if ">" in text:
        course.network.cuts.add((words[0], words[2]))
        return
    some, _, others = (text if "|" in text else text.replace(" ", "|")).partition("|")
    for one, other in product(some.split(), others.split() or everybody):
        if one != other:
            course.network.cuts |= {(one, other), (other, one)}


def _mend(course: Course, words: Words) -> None:
    course.network.cuts = {ends for ends in course.network.cuts if words and not set(words) & set(ends)}


def _set(name: str, course: Course, words: Words) -> None:
    """``loss 10%``, ``delay 500ms``, ``duplication 30%``; ``copy_loss 10%``, ``copy_delay 500ms``: of the copies."""
    [value] = words
    setattr(course.network, name, _share(value))


def _share(value: str) -> float:
    return float(value[:-1]) / 100 if value.endswith("%") else seconds(value)


def _forge(course: Course, words: Words) -> None:
    """``forge digest``, ``forge truncated``: an advert of somebody who has not the password, or one that is damaged."""
    group = Group(vhid=int(VIP) & 0xFF, vip=VIP, key=b"guessed" if words == ["digest"] else b"correct horse")
    packet = build(group, Advert(source=IPv4Address("10.77.0.50"), interval=Interval(1, 0), counter=1))
    cut = {"digest": len(packet), "truncated": 30}[words[0]]
    for host in course.hosts:
        host.hear(b"\xff" * 6 + bytes(6) + b"\x08\0" + packet[:cut])


def _presence(course: Course, words: Words) -> None:
    """``presence loss=60% delay=20s duplication=30%``, ``presence n1 > n2``: lost on that way; ``presence well``."""
    carriage = course.network.presence = Carriage()
    if ">" in words:
        carriage.cuts.add((words[0], words[2]))
        return
    for word in words if words != ["well"] else []:
        name, value = word.split("=")
        setattr(carriage, name, _share(value))


def _attack(course: Course, words: Words) -> None:
    """``attack replay,forge``: see ``sim.attacker``; ``attack off``."""
    if course.attacker:
        course.attacker.end()
    course.attacker = Attacker(course.network, words[0].split(",")) if words != ["off"] else None


_PRESENCE: dict[str, Callable[[Course, Words], None]] = {"presence": _presence, "attack": _attack}

_NETWORK: dict[str, Callable[[Course, Words], None]] = {
    "hosts": _hosts_are,
    "cut": _cut,
    "mend": _mend,
    "forge": _forge,
    "loss": partial(_set, "loss"),
    "delay": partial(_set, "delay"),
    "copy_loss": partial(_set, "copy_loss"),
    "copy_delay": partial(_set, "copy_delay"),
    "apart": lambda course, words: course.network.apart.update(words[0].split(",")),
    "together": lambda course, _words: course.network.apart.clear(),
    "duplication": partial(_set, "duplication"),
}

# What is done to a host


def _start(host: Host, _words: Words) -> None:
    host.node.start()


def _signal(number: signal.Signals, host: Host, words: Words) -> None:
    """Send a signal to kevip, or to its engine, its watchdog or its parent, or to conntrackd."""
    if not words:
        host.node.send(number)
    elif words == ["conntrackd"] and host.conntrackd:
        host.conntrackd.kill()
    else:
        _signal_engines(number, host, words)


def _signal_engines(number: signal.Signals, host: Host, words: Words) -> None:
    for engine in tuple(host.engines):
        if words == ["watchdog"]:
            engine.lose_watchdog()
        elif words == ["parent"]:
            engine.lose_parent()
        elif number == signal.SIGKILL:
            engine.die(-number)
        elif number == signal.SIGSTOP:
            engine.process.stop()
        else:
            engine.process.carry_on()


def _crash(host: Host, _words: Words) -> None:
    for engine in tuple(host.engines):
        engine.die(-signal.SIGKILL)
    host.node.send(signal.SIGKILL)
    host.tools.boot += 1
    host.tools.tables.clear()
    host.tracked.clear()
    host.drop()


def _link(host: Host, words: Words) -> None:
    [link] = [each for each in get_args(Link) if each == words[0]]
    host.set_link(link)


def _tools(host: Host, words: Words) -> None:
    """``tools n1 save=6s ip=fail``, ``tools n1 all=hang``, ``tools n1 well``."""
    host.tools.behaviour.clear()
    for word in words if words != ["well"] else []:
        name, value = word.split("=")
        for each in USUAL if name == "all" else [name]:
            host.tools.behaviour[each] = "fail" if value == "fail" else "hang" if value == "hang" else seconds(value)


def _standby(host: Host, words: Words) -> None:
    """``standby n1``, ``standby n1 60s``, ``standby n1 out``; ``resume n1``."""
    until = host.world.now + seconds(words[0]) if words and words[0].endswith("s") else inf
    host.asked = Standby(until, out=words == ["out"])
    host.node.send(signal.SIGUSR1)


def _resume(host: Host, _words: Words) -> None:
    host.asked = Standby(-inf)
    host.node.send(signal.SIGUSR1)


def _target(host: Host, words: Words) -> None:
    """``target n1 gone``: no answer; ``target n1 refused``: one at once; ``target n1 back``."""
    host.target, host.refused = {"back": (True, False), "gone": (False, False), "refused": (False, True)}[words[0]]


def _carrier(host: Host, words: Words) -> None:
    host.set_carrier(on={"on": True, "off": False}[words[0]])


def _turn(name: str, host: Host, words: Words) -> None:
    setattr(host, name, {"on": True, "back": True, "off": False, "gone": False}[words[0]])


def _delete(host: Host, _words: Words) -> None:
    host.deleted = host.world.now
    host.drop("deleted by hand")


def _track(host: Host, words: Words) -> None:
    """``track n1 100000``: so many connections more, on which nobody speaks."""
    first = min(host.tracked, default=0)
    host.track(range(first - int(words[0]), first))


def _step(host: Host, words: Words) -> None:
    host.clock += seconds(words[0])


def _renumber(host: Host, words: Words) -> None:
    host.address = IPv4Address(words[0])


_HOST: dict[str, Callable[[Host, Words], None]] = {
    "start": _start,
    "stop": partial(_signal, signal.SIGTERM),
    "kill": partial(_signal, signal.SIGKILL),
    "freeze": partial(_signal, signal.SIGSTOP),
    "thaw": partial(_signal, signal.SIGCONT),
    "crash": _crash,
    "link": _link,
    "carrier": _carrier,
    "route": partial(_turn, "route"),
    "target": _target,
    "forwarding": partial(_turn, "forwarding"),
    "tools": _tools,
    "flush": lambda host, _words: host.tools.flush(),
    "delete": _delete,
    "track": _track,
    "clock": _step,
    "standby": _standby,
    "resume": _resume,
    "starve": lambda host, words: host.node.starve(seconds(words[0])),
    "renumber": _renumber,
}

# What is expected

_COMPARE = {"<": operator.lt, "<=": operator.le, "=": operator.eq, ">=": operator.ge, ">": operator.gt}


def _holders(course: Course, words: Words) -> str:
    """``expect one holder``, ``expect no holder``."""
    found = [host.name for host in course.hosts if host.holds]
    return "" if len(found) == {"one": 1, "no": 0}[words[0]] else f"{' and '.join(found) or 'nobody'} has the VIP"


def _holder(course: Course, words: Words) -> str:
    return "" if course.network.hosts[words[1]].holds else f"{words[1]} has not the VIP"


def _seen(course: Course, words: Words) -> str:
    """``expect outage < 4s``, ``expect moves <= 2``: since the mark."""
    what, comparison, bound = words
    course.look()
    value = float(getattr(course.seen, what))
    return "" if _COMPARE[comparison](value, seconds(bound)) else f"{what} {value:.2f}"


def _knows(course: Course, words: Words) -> str:
    """``expect knows n1 2``: so many others are there, as far as they were heard; ``expect knows n1 n2 backup``."""
    known = course.network.hosts[words[1]].node.known
    if words[2].isdigit():
        here = [each.name for each in known.values() if each.is_here(course.world.now)]
        return "" if len(here) == int(words[2]) else f"{words[1]} knows {', '.join(here) or 'nobody'}"
    roles = [each.role for each in known.values() if each.name == words[2]]
    return "" if roles == [words[3]] else f"{words[2]} is {', '.join(roles) or 'unknown'} to {words[1]}"


def _role(course: Course, words: Words) -> str:
    role = course.network.hosts[words[1]].node.role
    return "" if role == words[2] else f"{words[1]} is {role}"


def _clean(course: Course, words: Words) -> str:
    host = course.network.hosts[words[1]]
    return f"{words[1]} is not clean" if host.holds or host.tools.tables or host.engines else ""


def _logged(course: Course, words: Words) -> str:
    """``expect logged PATTERN``, ``expect unlogged PATTERN``: since the mark."""
    found = [line for note in course.notes[course.marked :] if re.search(" ".join(words[1:]), line := str(note))]
    if bool(found) == (words[0] == "logged"):
        return ""
    return f"logged: {found[0]}" if found else "not logged"


_EXPECT: dict[str, Callable[[Course, Words], str]] = {
    "one": _holders,
    "no": _holders,
    "holder": _holder,
    **dict.fromkeys(("outage", "absence", "moves", "holders", "engines"), _seen),
    "role": _role,
    "knows": _knows,
    "clean": _clean,
    **dict.fromkeys(("logged", "unlogged"), _logged),
}
