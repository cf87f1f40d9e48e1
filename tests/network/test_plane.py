"""The plane with real tools: each level is the whole host state, whatever came before and whatever is slow."""

import os
import random
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from unittest import mock

import pytest
from lab.network import Namespace

from kevip.core.messages import Level
from kevip.dataplane.backend import Backend
from kevip.dataplane.iptables import Iptables
from kevip.dataplane.nftables import Nftables
from kevip.dataplane.plane import Plane
from kevip.dataplane.rules import Proxy
from kevip.dataplane.ruleset import Ruleset
from kevip.dataplane.survey import Drift, Kind
from kevip.errors import HostError, KevipError
from kevip.host import command, kernel
from kevip.loop import Loop

VIP = IPv4Address("10.77.0.100")
TARGET = IPv4Address("10.77.0.9")
CANARY = '-d 10.77.0.100/32 -m comment --comment "kevip:10.77.0.1" -j ACCEPT'

NONE = f"""\
eth0 10.77.0.11/24 forever
nat -A PREROUTING {CANARY}
"""
RULES = f"""\
eth0 10.77.0.11/24 forever
mangle -A PREROUTING -m comment --comment "kevip:10.77.0.100" -j KEVIP-GUARD-10.77.0.100
mangle -A FORWARD -m conntrack --ctstate DNAT --ctorigdst 10.77.0.100 -m comment --comment "kevip:10.77.0.100"
mangle -A KEVIP-GUARD-10.77.0.100 -s 10.77.0.9/32 -d 10.77.0.100/32 -m addrtype --dst-type LOCAL -m conntrack \
--ctstate INVALID,NEW -m comment --comment "kevip:10.77.0.100" -j DROP
nat -A PREROUTING -m comment --comment "kevip:10.77.0.100" -j KEVIP-DNAT-10.77.0.100
nat -A PREROUTING {CANARY}
nat -A OUTPUT -m comment --comment "kevip:10.77.0.100" -j KEVIP-DNAT-10.77.0.100
nat -A POSTROUTING -m comment --comment "kevip:10.77.0.100" -j KEVIP-SNAT-10.77.0.100
nat -A KEVIP-DNAT-10.77.0.100 -d 10.77.0.100/32 -m addrtype --dst-type LOCAL -m comment --comment \
"kevip:10.77.0.100" -j DNAT --to-destination 10.77.0.9
nat -A KEVIP-SNAT-10.77.0.100 -m conntrack --ctstate DNAT --ctorigdst 10.77.0.100 -m comment --comment \
"kevip:10.77.0.100" -j SNAT --to-source 10.77.0.100
"""
HELD = RULES.replace("forever\n", "forever\neth0 10.77.0.100/32 lease\n", 1)
ACCEPT = (
    'filter -A FORWARD -m conntrack --ctstate DNAT --ctorigdst 10.77.0.100 -m comment --comment "kevip:10.77.0.100" '
    "-j ACCEPT\n"
)

NFT, LEGACY = Iptables("iptables-nft", "nft"), Iptables("iptables-legacy", "legacy")


class Host:
    """A plane on a host, its listener, and the tools that it runs; ``offset`` sets its clock forward."""

    def __init__(self, space: Namespace, tools: Path, backend: Backend = NFT, **settings: object) -> None:
        self.space, self.backend = space, backend.name
        self.tools = tools
        self.told: list[object] = []
        self.offset = 0.0
        self.loop = Loop(lambda: time.monotonic() + self.offset)
        self.proxy = Proxy(vip=VIP, target=TARGET, **settings)  # type: ignore[arg-type]
        self.rules = Ruleset(self.proxy, backend, follows=True)
        self.plane = Plane(self.rules, self.loop, self, self.warn)
        self.plane.interface = "eth0"

    def cleared(self, level: Level, *, ok: bool) -> None:
        """Note it."""
        self.told.append(f"cleared {level.name} {ok}")

    def unfit(self, detail: str) -> None:
        """Note it."""
        self.told.append(f"unfit: {detail}")

    def drifted(self, drifts: tuple[Drift, ...]) -> None:
        """Note them."""
        self.told += drifts

    def warn(self, event: str, subject: object, **context: object) -> None:
        """Note it; context is what makes it useful."""
        self.told.append(event if subject is None else f"{event} {subject}")
        assert context

    def turn(self, until: Callable[[], object] | None = None, within: float = 20.0) -> None:
        """Let the loop turn until something is so, or nothing is under way any more."""
        end = time.monotonic() + within
        self._turn()
        while not (until() if until else not self.plane._beside.is_busy):  # noqa: SLF001
            assert time.monotonic() < end, self.told
            self._turn()

    def _turn(self) -> None:
        self.loop.after(0.02, self._pass)
        self.loop.turn()

    def _pass(self) -> None:
        """Wake the loop."""

    def look(self) -> None:
        """Look, at the rules too, to the end."""
        self.turn()
        self.offset += 1000
        self.plane.look()
        self.turn()

    def state(self) -> str:
        """Return addresses and rules, the rules of others among them."""
        saved, table = [], ""
        for line in self.space.run(f"{self.backend}-save").splitlines():
            table = line[1:] if line.startswith("*") else table
            saved += [f"{table} {line}"] if line.startswith("-A") else []
        order = ("mangle", "filter", "nat")
        saved.sort(key=lambda rule: order.index(rule.split()[0]))
        return "".join(f"{line}\n" for line in [*map(" ".join, self.space.addresses()), *saved])

    def tool(self, name: str, script: str) -> None:
        """Replace a tool by a script, which has the real one as $real."""
        path = self.tools / name
        path.write_text(f"#!/bin/sh\nreal={command.find(name)}\n{script}\n")
        path.chmod(0o755)
        for standby in (self.rules._restore, self.plane._ip):  # noqa: SLF001 - they are the real ones
            standby.stop()

    def mend(self) -> None:
        """Have the real tools again."""
        for path in self.tools.iterdir():
            path.unlink()


@pytest.fixture
def tools(tmp_path: Path) -> Iterator[Path]:
    """Give the directory in which tools are looked for first."""
    directory = tmp_path / "tools"
    directory.mkdir()
    path = os.pathsep.join([str(directory), command.ENVIRONMENT["PATH"]])
    with mock.patch.dict(command.ENVIRONMENT, {"PATH": path}):
        yield directory


def prepare(host: Namespace, backend: Iptables = NFT) -> None:
    """Switch forwarding on, and add a rule of somebody else's."""
    host.sysctl("net.ipv4.ip_forward", "1")
    host.run("sh", "-c", f"{backend.name} -t nat -A PREROUTING {CANARY}")


@pytest.fixture
def it(host: Namespace, tools: Path) -> Iterator[Host]:
    """Give a host with a plane."""
    prepare(host)
    with host.entered():
        made = Host(host, tools)
        yield made
        made.mend()
        made.plane.end()
        assert made.state() == NONE
        made.loop.close()


@pytest.mark.parametrize("backend", [NFT, LEGACY])
@pytest.mark.parametrize("seed", range(2))
def test_levels_in_any_order_are_the_whole_host_state(
    host: Namespace, tools: Path, backend: Iptables, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311
    prepare(host, backend)
    with host.entered():
        it = Host(host, tools, backend)
        level = Level.NONE
        for _ in range(25):
            level = chance.choice([each for each in Level if each is not Level.DRAINING or level > Level.ARMED])
            it.plane.apply(level)
            if chance.random() < 0.5:
                it.plane.look()
            if chance.random() < 0.6:
                it.turn()
                assert it.state() == (HELD if level is Level.HELD else RULES if level else NONE)
        it.plane.end()
        assert it.state() == NONE
        assert set(it.told) <= {"cleared NONE True", "cleared ARMED True"}
        it.loop.close()


def test_the_rules_are_told_when_they_were_looked_at(it: Host) -> None:
    it.plane.apply(Level.HELD)
    assert it.plane.rules == {}
    it.turn()
    ours = [line for line in RULES.splitlines() if "kevip:10.77.0.100" in line]
    assert it.plane.rules == {"iptables-nft": ours}
    it.plane.apply(Level.NONE)
    assert it.plane.rules == {}


def test_a_level_twice_is_that_level_and_told_once(it: Host) -> None:
    for level in (Level.HELD, Level.NONE):
        it.plane.apply(level)
        it.plane.apply(level)
    it.turn()
    assert it.told == ["cleared NONE True"]


def test_what_others_do_to_a_master_is_repaired_and_told(it: Host) -> None:
    it.plane.apply(Level.HELD)
    it.turn()
    it.space.run("ip", "address", "delete", f"{VIP}/32", "dev", "eth0")
    it.space.run("ip", "address", "add", f"{VIP}/32", "dev", "peer0", "valid_lft", "60", "preferred_lft", "0")
    it.plane.apply(Level.HELD)
    it.space.sysctl("net.ipv4.ip_forward", "0")
    it.space.iptables("-t", "nat", "-F", "OUTPUT")
    it.look()
    assert it.told == [
        Drift(Kind.ADDRESS, "address missing on eth0"),
        Drift(Kind.ADDRESS, "address on peer0"),
        Drift(Kind.FORWARDING, "forwarding off"),
        Drift(
            Kind.RULES,
            'nat rule missing: -A OUTPUT -m comment --comment "kevip:10.77.0.100" -j KEVIP-DNAT-10.77.0.100',
        ),
    ]
    assert it.space.sysctl("net.ipv4.ip_forward") == "1"
    assert it.state() == HELD


def test_forward_is_opened_where_its_policy_is_to_drop_and_closed_where_it_is_not(it: Host) -> None:
    it.plane.apply(Level.HELD)
    it.turn()
    it.space.iptables("-P", "FORWARD", "DROP")
    it.look()
    assert it.told == [Drift(Kind.FORWARDING, "the policy of FORWARD in iptables-nft is to drop")]
    assert it.state() == HELD.replace("nat -A", f"{ACCEPT}nat -A", 1)
    it.space.iptables("-A", "FORWARD", "-s", "192.0.2.1", "-j", "DROP")
    it.look()
    assert it.told[1:] == [Drift(Kind.RULES, "filter FORWARD: others behind our rule")]
    assert ACCEPT in it.state().partition("192.0.2.1/32 -j DROP\n")[2]
    it.space.iptables("-F", "FORWARD")
    it.space.iptables("-P", "FORWARD", "ACCEPT")
    it.look()
    assert (it.state(), it.told[2:]) == (HELD, [])


def test_a_takeover_opens_forward_in_the_other_back_end(it: Host) -> None:
    it.space.iptables("-P", "FORWARD", "DROP", backend="legacy")
    it.plane.look()
    it.turn()
    it.plane.apply(Level.HELD)
    it.turn()
    saved = it.space.rules()
    assert [f"filter {line}\n" for line in saved["iptables-legacy"] if line.startswith("-A")] == [ACCEPT]
    assert (it.state(), it.told) == (HELD, [])
    it.plane.apply(Level.NONE)
    it.turn()
    assert not it.space.has_rules("iptables-legacy")


OTHER = "table ip other { chain post { type nat hook postrouting priority srcnat; ip saddr 10.9.0.0/24 masquerade; }; }"


@pytest.mark.parametrize("level", [Level.HELD, Level.ARMED, Level.NONE])
def test_the_rules_follow_where_others_translate(it: Host, level: Level) -> None:
    it.plane.apply(level)
    it.turn()
    it.space.run("nft", "-f", "-", stdin=OTHER)
    it.look()
    found = "chain post of nftables table ip other translates before iptables-nft: nftables takes over"
    assert it.told[-1] == Drift(Kind.FOREIGN_NAT, found)
    it.told.clear()
    it.plane.apply(Level.HELD)
    it.turn()
    assert it.state() == NONE.replace("forever\n", "forever\neth0 10.77.0.100/32 lease\n", 1)
    assert it.plane.rules.keys() == {"nftables"}
    it.space.run("nft", "flush", "ruleset")
    it.space.run("sh", "-c", f"iptables-nft -t nat -A PREROUTING {CANARY}")
    it.look()
    assert [drift.kind for drift in it.told if isinstance(drift, Drift)] == [Kind.RULES] * 6
    assert it.space.has_rules("nftables")
    it.plane.apply(Level.NONE)
    it.turn()
    assert (it.state(), it.space.rules()["nftables"]) == (NONE, [])


def test_the_rules_follow_where_the_other_iptables_translates(it: Host) -> None:
    it.plane.apply(Level.HELD)
    it.turn()
    it.space.iptables("-t", "nat", "-A", "POSTROUTING", "-s", "10.9.0.0/24", "-j", "MASQUERADE", backend="legacy")
    it.look()
    found = "chain POSTROUTING of iptables-legacy translates before iptables-nft: nftables takes over"
    assert [str(each) for each in it.told] == [found]
    assert (it.rules.backend.name, it.space.has_rules("iptables-nft")) == ("nftables", False)


def test_a_move_leaves_only_what_accepts(it: Host) -> None:
    it.space.iptables("-P", "FORWARD", "DROP")
    it.plane.apply(Level.HELD)
    it.turn()
    it.look()
    it.told.clear()
    it.space.run("nft", "-f", "-", stdin=OTHER)
    it.look()
    assert [each.kind for each in it.told if isinstance(each, Drift)] == [Kind.FOREIGN_NAT]
    saved = it.space.rules()["iptables-nft"]
    assert [f"filter {line}\n" for line in saved if "kevip:10.77.0.100" in line] == [ACCEPT]


def test_rules_of_nftables_in_tables_of_iptables_make_no_master_unfit(it: Host) -> None:
    """Those cannot be read by it any more. What is left there is told at the end; it does nothing."""
    it.plane.apply(Level.HELD)
    it.turn()
    it.space.run("nft", "add rule ip nat POSTROUTING ct state established counter")
    it.look()
    [told] = it.told
    assert str(told).startswith("iptables-nft cannot read nat")
    assert it.rules.backend.name == "nftables"
    it.look()
    assert len(it.told) == 1
    it.plane.apply(Level.NONE)
    it.turn()
    assert it.told[1:] == ["release.failed rules", "cleared NONE False"]
    assert not it.space.has_rules("nftables")
    it.space.run("nft", "flush", "chain", "ip", "nat", "POSTROUTING")
    it.plane.apply(Level.NONE)
    it.turn()
    assert it.told[3:] == ["cleared NONE True"]


def test_a_forward_chain_that_iptables_cannot_read_is_left_alone(host: Namespace, tools: Path) -> None:
    rules = "type filter hook forward priority filter; policy drop; ct state established,related counter accept;"
    host.run("nft", "-f", "-", stdin=f"table ip filter {{ chain FORWARD {{ {rules} }}; }}\n")
    host.sysctl("net.ipv4.ip_forward", "1")
    before = host.run("nft", "--stateless", "list", "ruleset")
    with host.entered():
        it = Host(host, tools, Nftables())
        for level in (Level.NONE, Level.HELD):
            it.plane.apply(level)
            it.turn()
            it.look()
            it.look()
        assert (it.told, set(it.plane.rules)) == (["cleared NONE True"], {"nftables"})
        it.plane.end()
        assert host.run("nft", "--stateless", "list", "ruleset") == before
        it.loop.close()


def test_rules_that_are_doubled_are_drift(it: Host) -> None:
    it.plane.apply(Level.HELD)
    it.turn()
    it.space.run("sh", "-c", "iptables-nft-save -t nat | grep -- '-A OUTPUT' | "
                 "(echo '*nat'; cat; echo COMMIT) | iptables-nft-restore --noflush")  # fmt: skip
    it.look()
    assert len(it.told) == 1
    assert "nat rule foreign: -A OUTPUT" in str(it.told)
    assert it.state() == HELD


def test_what_others_do_to_a_backup_is_repaired_and_told(it: Host) -> None:
    it.plane.apply(Level.HELD)
    it.turn()
    saved = it.space.run("iptables-nft-save")
    it.plane.apply(Level.NONE)
    it.turn()
    it.space.run("iptables-nft-restore", stdin=saved)
    it.space.run("ip", "address", "add", f"{VIP}/32", "dev", "peer0", "valid_lft", "60", "preferred_lft", "0")
    it.look()
    assert it.told == [
        "cleared NONE True",
        Drift(Kind.ADDRESS, "address on peer0"),
        Drift(Kind.RULES, "rules in iptables-nft"),
    ]
    assert it.state() == NONE


@pytest.mark.parametrize("level", [Level.ARMED, Level.HELD])
def test_rules_that_nobody_changed_are_not_read_again(it: Host, level: Level) -> None:
    it.plane.apply(level)
    it.turn()
    it.look()
    it.tool("iptables-nft-save", "exit 1")
    it.look()
    assert it.told == []
    it.space.run("nft", "add table ip other")
    it.look()
    assert len(it.told) == 1


def test_rules_of_legacy_are_read_each_time(host: Namespace, tools: Path) -> None:
    """Of them, the kernel does not tell whether somebody changed any."""
    prepare(host, LEGACY)
    with host.entered():
        it = Host(host, tools, LEGACY)
        it.plane.apply(Level.HELD)
        it.turn()
        it.look()
        it.tool("iptables-legacy-save", "exit 1")
        it.look()
        assert len(it.told) == 1
        it.mend()
        it.plane.end()
        it.loop.close()


def test_an_armed_host_lacks_only_the_address(it: Host) -> None:
    it.plane.apply(Level.ARMED)
    it.turn()
    assert (it.state(), it.told) == (RULES, [])
    assert it.plane.rules == {"iptables-nft": [line for line in RULES.splitlines() if "kevip:10.77.0.100" in line]}
    it.tool("iptables-nft-restore", "exit 1")
    it.tool("iptables-nft-save", "exit 1")
    it.plane.apply(Level.HELD)
    assert it.state() == HELD


def test_what_others_do_to_an_armed_host_is_repaired_and_told(it: Host) -> None:
    it.plane.apply(Level.ARMED)
    it.turn()
    it.space.iptables("-t", "nat", "-F", "OUTPUT")
    it.space.sysctl("net.ipv4.ip_forward", "0")
    it.space.run("ip", "address", "add", f"{VIP}/32", "dev", "peer0", "valid_lft", "60", "preferred_lft", "0")
    it.look()
    missing = 'nat rule missing: -A OUTPUT -m comment --comment "kevip:10.77.0.100" -j KEVIP-DNAT-10.77.0.100'
    assert list(map(str, it.told)) == ["address on peer0", "forwarding off", missing]
    assert (it.state(), it.space.sysctl("net.ipv4.ip_forward")) == (RULES, "1")


def test_what_drained_is_forgotten_and_the_rules_stay(it: Host) -> None:
    it.plane.apply(Level.HELD)
    it.turn()
    connect(it.space, 3)
    it.plane.apply(Level.DRAINING)
    it.turn()
    assert len(it.space.run("conntrack", "--dump", "--orig-dst", str(VIP)).splitlines()) == 3
    it.plane.apply(Level.ARMED)
    it.turn()
    assert it.space.run("conntrack", "--dump", "--orig-dst", str(VIP)) == ""
    assert (it.state(), it.told) == (RULES, ["cleared ARMED True"])


def test_a_host_whose_rules_could_not_be_looked_at_installs_them_when_it_takes_over(it: Host) -> None:
    it.plane.apply(Level.ARMED)
    it.turn()
    it.tool("iptables-nft-save", "echo no >&2; exit 4")
    it.space.iptables("-t", "nat", "-F", "OUTPUT")
    it.look()
    assert it.told == ["drift.not_repaired"]
    it.plane.apply(Level.HELD)
    assert it.space.iptables("-t", "nat", "-S", "OUTPUT").count("kevip") == 1
    it.mend()
    it.turn()
    assert it.state() == HELD


@pytest.mark.parametrize("backend", [NFT, Nftables()])
def test_what_masquerades_all_comes_and_goes_with_the_vip(host: Namespace, tools: Path, backend: Backend) -> None:
    prepare(host)
    with host.entered():
        it = Host(host, tools, backend, global_masquerade=True)
        for level, masquerades in ((Level.ARMED, 0), (Level.HELD, 1), (Level.DRAINING, 1), (Level.ARMED, 0)):
            it.plane.apply(level)
            it.turn()
            it.look()
            assert it.space.run("nft", "list", "ruleset").lower().count("masquerade") == masquerades
            sizes = [len(rules) for rules in it.plane.rules.values()]
            assert sizes == [backend.size(it.proxy, it.proxy.parts) - 1 + masquerades]
        assert it.told == ["cleared ARMED True"]
        it.plane.end()
        it.loop.close()


def test_of_many_drifts_ten_are_told_and_how_many_more(host: Namespace, tools: Path) -> None:
    prepare(host)
    with host.entered():
        it = Host(host, tools, allow_from=tuple(IPv4Network(f"10.{number}.0.0/16") for number in range(50)))
        it.plane.apply(Level.HELD)
        it.turn()
        it.space.iptables("-t", "mangle", "-F")
        it.look()
        assert len(it.told) == 11
        assert str(it.told[-1]) == "and 45 more"
        it.plane.end()
        it.loop.close()


def test_a_master_that_cannot_forward_is_unfit(it: Host) -> None:
    it.plane.apply(Level.HELD)
    it.turn()
    it.space.sysctl("net.ipv4.ip_forward", "0")
    with mock.patch.object(kernel, "enable_forwarding", side_effect=HostError("IP forwarding is off")):
        it.look()
    assert it.told == ["unfit: IP forwarding is off"]


SLOW = 'sleep 2; exec "$real" "$@"'


def test_a_takeover_does_not_wait_for_a_look(it: Host) -> None:
    it.tool("iptables-nft-save", 'sleep 30; exec "$real" "$@"')
    it.plane.look()
    it.turn(lambda: "sleep 30" in it.space.run("ps", "-A", "-o", "args=").splitlines())
    begin = time.monotonic()
    it.plane.apply(Level.HELD)
    assert time.monotonic() - begin < 4
    it.mend()
    it.turn()
    assert (it.state(), it.told) == (HELD, [])


def test_rules_are_no_drift_while_the_first_look_is_slow(it: Host) -> None:
    it.tool("iptables-nft-save", SLOW)
    it.plane.apply(Level.HELD)
    for _ in range(5):
        it.plane.look()
        it.turn(lambda: True)
    it.turn()
    it.look()
    assert (it.state(), it.told) == (HELD, [])


@pytest.mark.parametrize("tool", ["iptables-nft-save", "iptables-nft-restore", "conntrack"])
@pytest.mark.parametrize("pause", [0.0, 0.3, 1.0, 2.2, 2.8])
def test_a_takeover_during_a_removal_leaves_each_rule_once(it: Host, tool: str, pause: float) -> None:
    it.plane.apply(Level.HELD)
    it.turn()
    it.tool(tool, 'sleep 1; "$real" "$@"')
    it.plane.apply(Level.NONE)
    end = time.monotonic() + pause
    it.turn(lambda: time.monotonic() >= end)
    it.plane.apply(Level.HELD)
    it.mend()
    it.turn()
    assert it.state() == HELD
    assert it.told in ([], ["cleared NONE True"])


def test_a_tool_that_hangs_ends_the_takeover_in_time_and_leaves_nothing(it: Host) -> None:
    it.tool("iptables-nft-restore", "sleep 62 & wait")
    begin = time.monotonic()
    with pytest.raises(KevipError, match="stopped after"):
        it.plane.apply(Level.HELD)
    assert time.monotonic() - begin < 5
    assert "sleep 62" not in it.space.run("ps", "-A", "-o", "args=")
    it.mend()
    it.plane.apply(Level.NONE)
    it.turn()
    assert (it.state(), it.told) == (NONE, ["cleared NONE True"])
    it.plane.apply(Level.HELD)
    it.turn()
    assert it.state() == HELD


def test_a_look_that_hangs_is_told_and_is_not_unfit(it: Host) -> None:
    it.plane.apply(Level.HELD)
    it.turn()
    it.space.run("nft", "add table ip other")
    it.tool("iptables-nft-save", "sleep 61 & wait")
    with mock.patch.object(command, "TIMEOUT", 0.5):
        it.look()
    assert it.told == ["look.slow"]


def test_a_removal_that_fails_is_told_and_may_be_tried_again(it: Host) -> None:
    it.plane.apply(Level.HELD)
    it.turn()
    it.tool("iptables-nft-restore", "echo no >&2; exit 4")
    it.plane.apply(Level.NONE)
    it.turn()
    assert it.told == ["release.failed rules", "cleared NONE False"]
    assert it.state() == RULES
    it.mend()
    it.plane.apply(Level.NONE)
    it.turn()
    assert (it.state(), it.told[2:]) == (NONE, ["cleared NONE True"])


def test_an_end_with_a_tool_that_hangs_is_over_soon(it: Host) -> None:
    it.plane.apply(Level.HELD)
    it.turn()
    it.tool("iptables-nft-save", "sleep 61 & wait")
    begin = time.monotonic()
    with pytest.raises(KevipError, match=r"rules for .* are left"):
        it.plane.end(1.0)
    assert time.monotonic() - begin < 5
    it.mend()
    second = Host(it.space, it.tools)
    assert list(map(str, second.plane.cleanup())) == ["rules in iptables-nft"]
    it.plane = second.plane


def connect(host: Namespace, number: int) -> None:
    """Track so many connections to the VIP."""
    for port in range(number):
        host.run("sh", "-c", f"conntrack -I -s 10.77.0.50 -d {VIP} -p udp -t 60 --sport {port + 1} --dport 53")


def test_an_entry_that_expires_meanwhile_is_no_failure(it: Host, tmp_path: Path) -> None:
    it.plane.apply(Level.HELD)
    it.turn()
    connect(it.space, 3)
    said = "conntrack v1.4.7 (conntrack-tools): Operation failed: such conntrack doesn't exist"
    it.tool(
        "conntrack", f'[ -e {tmp_path}/once ] && exec "$real" "$@"; touch {tmp_path}/once; echo "{said}" >&2; exit 1'
    )
    it.plane.apply(Level.NONE)
    it.turn()
    assert it.told == ["cleared NONE True"]
    assert it.space.run("conntrack", "--dump", "--orig-dst", str(VIP)) == ""


@pytest.mark.parametrize("counts", ['--dump) exec "$real" "$@";;', ""], ids=["in time", "not in time"])
def test_connections_that_are_too_many_are_counted_and_are_no_rules(it: Host, counts: str) -> None:
    it.plane.apply(Level.HELD)
    it.turn()
    connect(it.space, 3)
    it.tool("conntrack", f'case "$1" in {counts} *) sleep 61;; esac')
    begin = time.monotonic()
    it.plane.apply(Level.NONE)
    it.turn()
    assert time.monotonic() - begin < 5
    assert it.told == ["release.slow", "cleared NONE True"]
