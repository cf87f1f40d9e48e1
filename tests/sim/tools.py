"""The programs that kevip runs, as far as it uses them: ip, iptables-save, conntrack and so on; slow or failing."""

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from math import inf
from typing import TYPE_CHECKING, Literal

from kevip.dataplane.plane import RENEWAL
from kevip.host import command
from kevip.host.command import TIMEOUT, CommandError
from sim.world import Killed, Process

if TYPE_CHECKING:
    from sim.host import Host

Behaviour = float | Literal["fail", "hang"]

USUAL: dict[str, float] = {"ip": 0.0015, "save": 0.003, "restore": 0.003, "conntrack": 0.0015, "conntrackd": 0.003}
"""Seconds that each program takes."""

SLOW = 1.0
"""Seconds of a program, or of a turn, from which a host is not well."""

_FOREVER = 2**32 - 1
_SHORT = 0.1
"""Seconds of a program that nobody kills meanwhile."""


class _Program:
    """A program that runs, as far as it can be killed."""

    def __init__(self, parent: Process) -> None:
        self._parent = parent
        self.killed = False

    def wait(self, seconds: float) -> None:
        """Wait for its end, as its parent."""
        end = self._parent.world.now + seconds
        while self._parent.world.now < end and not self.killed:
            self._parent.sleep(min(0.05, end - self._parent.world.now) if seconds > _SHORT else seconds)

    def kill(self) -> None:
        """End it."""
        self.killed = True


class Tools:
    """The programs of a host; ``behaviour`` says which take how long, fail or hang, ``failed`` until when one did.

    ``under_way`` is how many run that will have an effect, ``took`` what each of them took last.
    """

    def __init__(self, host: "Host") -> None:
        self._host = host
        self.behaviour: dict[str, Behaviour] = {}
        self.tables: dict[str, list[str]] = {}
        self.flushed = self.failed = -inf
        self.under_way = 0
        self.took: dict[str, float] = {}
        self.boot = 1

    @property
    def are_well(self) -> bool:
        """Whether none of them fails, hangs or is slow."""
        return all(isinstance(each, float) and each < SLOW for each in self.behaviour.values())

    @property
    def has_rules(self) -> bool:
        """Whether all tables have rules of ours."""
        return all(any(line.startswith("-A") for line in self.tables.get(table, [])) for table in _TABLES)

    @property
    def renews(self) -> bool:
        """Whether ``ip`` does what it is told, in the time that it has to renew a lease."""
        behaviour = self.behaviour.get("ip", USUAL["ip"])
        return isinstance(behaviour, float) and behaviour < RENEWAL

    def flush(self) -> None:
        """Remove all rules, as somebody does who reloads his own."""
        self.flushed = self._host.world.now
        self.tables.clear()

    def run(self, argv: Sequence[str], *, stdin: str = "") -> str:
        """Run a program as the process that runs now, which waits for it; raises CommandError."""
        name = _NAMES[argv[0]]
        behaviour = self.behaviour.get(name, USUAL[name])
        process, boot = self._parent(argv), self.boot
        if behaviour == "fail":
            self.failed = self._host.world.now
            process.sleep(USUAL[name])
            raise CommandError(argv, 1, "it is made to fail")
        scope = command._SCOPE.get()  # noqa: SLF001 - what runs in it shares its time
        most = min(TIMEOUT, scope.left()) if scope else TIMEOUT
        seconds = TIMEOUT if behaviour == "hang" else float(behaviour)
        self.took[name] = min(seconds, most)
        if seconds >= most:
            self.failed = self._host.world.now + most
        program = _Program(process)
        done = list[str | CommandError]()

        def end() -> None:
            self.under_way -= 1
            done.append("" if program.killed else self._done(argv, stdin, boot))

        if seconds < most:  # its effect comes also if kevip is killed meanwhile
            self.under_way += 1
            self._host.world.after(seconds, end)
        with scope.running(program) if scope else nullcontext():  # type: ignore[arg-type]
            program.wait(min(seconds, most))
        if program.killed or not done:
            raise CommandError(argv, None, f"stopped after {most:.2g} s")
        if isinstance(done[0], CommandError):
            raise done[0]
        return done[0]

    def _parent(self, argv: Sequence[str]) -> Process:
        """Return the process that runs now; one that was killed, and unwinds, runs nothing any more."""
        process = self._host.world.running
        if not process:
            raise RuntimeError(f"nobody runs {argv}")
        if process.dead:
            raise Killed
        return process

    def _done(self, argv: Sequence[str], stdin: str, boot: int) -> str | CommandError:
        try:
            return self._effect(argv, stdin) if boot == self.boot else ""
        except CommandError as error:
            return error

    def _effect(self, argv: Sequence[str], stdin: str) -> str:  # noqa: C901, PLR0911 - one case for each program
        match argv:
            case ["ip", "-json", "address", "show"]:
                return json.dumps(self._addresses())
            case ["ip", "-json", "address", "show", "to", _]:
                return json.dumps(self._leases())
            case ["ip", "-batch", "-"]:
                return self._address(argv, stdin.split())
            case ["ip", "-json", "-batch", "-"]:
                before = json.dumps(self._leases())
                self._address(argv, stdin.splitlines()[1].split())
                return before
            case ["ip", "address", *_]:
                return self._address(argv, list(argv)[1:])
            case ["ip", "-json", "route", "get", _]:
                return self._route(argv)
            case ["conntrack", "--dump", *_]:
                return "0 flow entries have been shown."
            case ["conntrack", "--delete", *conditions]:
                if "--reply-src" not in conditions:  # else those that were not translated
                    self._host.forget()
                return ""
            case ["conntrackd", *_]:
                if not self._host.conntrackd:
                    raise CommandError(argv, 1, "can't connect to it: it does not run")
                return self._host.conntrackd.do(argv)
        return self._iptables(argv, stdin)

    def _iptables(self, argv: Sequence[str], stdin: str) -> str:
        match argv:
            case [program] if program.endswith("-save"):
                return "".join("\n".join([f"*{table}", *lines, "COMMIT\n"]) for table, lines in self.tables.items())
            case [_, "--noflush", _]:
                return self._restore(argv, stdin)
        raise NotImplementedError(argv)

    def _route(self, argv: Sequence[str]) -> str:
        if not self._host.route or self._host.link != "up":
            raise CommandError(argv, 2, "RTNETLINK answers: Network is unreachable")
        return json.dumps([{"dev": self._host.interface}])

    def _addresses(self) -> list[dict[str, object]]:
        host = self._host
        if host.link == "gone":
            return []
        permanent = {"valid_life_time": _FOREVER, "preferred_life_time": _FOREVER}
        addresses = [{"family": "inet", "local": str(host.address), "prefixlen": 24, **permanent}]
        if host.lease:
            left = {"valid_life_time": int(host.lease - host.world.now), "preferred_life_time": 0}
            addresses.append({"family": "inet", "local": _VIP, "prefixlen": 32, **left})
        flags = ["BROADCAST", "MULTICAST", *(["UP"] if host.link == "up" else [])]
        flags += [] if host.carrier else ["NO-CARRIER"]
        return [{"ifname": host.interface, "flags": flags, "link_type": "ether", "mtu": 1500, "addr_info": addresses}]

    def _leases(self) -> list[dict[str, object]]:
        return self._addresses() if self._host.lease else []

    def _address(self, argv: Sequence[str], words: list[str]) -> str:
        host, action = self._host, words[1]
        if host.link == "gone":
            raise CommandError(argv, 1, "Cannot find device")
        if action == "delete":
            if not host.lease:
                raise CommandError(argv, 2, "RTNETLINK answers: Cannot assign requested address")
            host.drop()
        elif action == "add" and host.lease:
            raise CommandError(argv, 2, "RTNETLINK answers: File exists")
        else:
            if not host.lease:
                host.note("vip.held", rules=self.has_rules)
            host.hold(float(words[words.index("valid_lft") + 1]))
        return ""

    def _restore(self, argv: Sequence[str], text: str) -> str:
        """Do what the text says, a table at a time, or nothing of that."""
        for block in filter(None, text.split("COMMIT\n")):
            head, *commands = block.splitlines()
            lines = list(self.tables.get(head[1:], []))
            for each in commands:
                command, _, rest = each.partition(" ")
                try:
                    _RULES[command[0] if each.startswith(":") else command](lines, each if each[0] == ":" else rest)
                except ValueError:
                    raise CommandError(argv, 1, f"Bad rule (does a matching rule exist?): {each}") from None
            self.tables[head[1:]] = lines
            if not lines:
                del self.tables[head[1:]]
        return ""


_VIP = "10.77.0.100"
_TABLES = ("mangle", "nat")
_NAMES = {
    "ip": "ip",
    "conntrack": "conntrack",
    "conntrackd": "conntrackd",
    **{f"iptables-{backend}-{kind}": kind for backend in ("nft", "legacy") for kind in ("save", "restore")},
}


def _insert(lines: list[str], rest: str) -> None:
    chain, _, rule = rest.partition(" ")
    at = next((at for at, line in enumerate(lines) if line.startswith("-A")), len(lines))
    lines.insert(at, f"-A {chain} {rule.removeprefix('1 ')}")


def _declare(lines: list[str], chain: str) -> None:
    if chain not in lines:
        lines.insert(0, chain)


def _remove(lines: list[str], *starts: str) -> None:
    lines[:] = [line for line in lines if not line.startswith(starts)]


_RULES: dict[str, Callable[[list[str], str], None]] = {
    ":": _declare,
    "-A": lambda lines, rest: lines.append(f"-A {rest}"),
    "-I": _insert,
    "-D": lambda lines, rest: lines.remove(f"-A {rest}"),
    "-F": lambda lines, rest: _remove(lines, f"-A {rest} "),
    "-X": lambda lines, rest: _remove(lines, f":{rest} "),
}
