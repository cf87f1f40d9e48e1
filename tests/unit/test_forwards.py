"""Forwards: how they are written, what is refused, and which rules a group comes to."""

from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kevip.config import Config, load
from kevip.dataplane.iptables import Iptables
from kevip.dataplane.nftables import Nftables
from kevip.dataplane.rules import Forward, Ports, Proxy
from kevip.errors import SettingsError
from kevip.forwards import Spec, parse_spec, parse_specs
from kevip.health.ask import UNANSWERED, Answer, ask_all, parse_checks, together

VIP, VIP2, VIP3 = map(IPv4Address, ("10.0.0.100", "10.0.0.101", "10.0.0.102"))
TARGET, TARGET2 = map(IPv4Address, ("192.0.2.9", "192.0.2.10"))

numbers = st.integers(1, 65535)
addresses = st.integers(0, 2**32 - 1).map(IPv4Address)
ranges = st.builds(
    lambda protocol, one, other: Ports(protocol, min(one, other), max(one, other)),
    st.sampled_from(["tcp", "udp"]), numbers, numbers,
)  # fmt: skip
specs = st.builds(Spec, addresses, st.none() | addresses, st.none() | ranges, st.none() | numbers)


@given(spec=specs)
def test_what_is_written_is_read_as_it_was(spec: Spec) -> None:
    assert parse_spec(str(spec)) == spec


@given(many=st.lists(specs), separator=st.sampled_from([",", " ", "\n", "\t, ", " # a comment = with, all\n"]))
def test_many_are_separated_by_commas_space_and_comments(many: list[Spec], separator: str) -> None:
    assert list(parse_specs(separator.join(map(str, many)))) == many


@given(text=st.text() | st.text("0123456789.:-/=udptc# ,"))
def test_nothing_but_a_value_error_comes_of_any_text(text: str) -> None:
    with suppress(ValueError):
        assert all(parse_spec(str(each)) == each for each in parse_specs(text))


@pytest.mark.parametrize(("text", "forward"), [
    ("10.0.0.101=192.0.2.9", Forward(VIP2, TARGET)),
    (":5432=192.0.2.9", Forward(VIP, TARGET, Ports("tcp", 5432, 5432))),
    ("10.0.0.101:443=192.0.2.9:8443", Forward(VIP2, TARGET, Ports("tcp", 443, 443), 8443)),
    (":53/udp=192.0.2.9", Forward(VIP, TARGET, Ports("udp", 53, 53))),
    (":53/tcp=192.0.2.9", Forward(VIP, TARGET, Ports("tcp", 53, 53))),
    (":8000-8010=192.0.2.9", Forward(VIP, TARGET, Ports("tcp", 8000, 8010))),
    ("10.0.0.101/udp=192.0.2.9", Forward(VIP2, TARGET, Ports("udp", 1, 65535))),
    ("=192.0.2.9", Forward(VIP, TARGET)),
])  # fmt: skip
def test_each_form_says_what_goes_where(text: str, forward: Forward) -> None:
    assert parse_spec(text).of(VIP) == forward


def problems(text: str, **settings: Any) -> list[str]:
    """Return what is wrong with forwards, in a group whose first VIP goes to a target."""
    given = {"vip": VIP, "target": TARGET, "password": "secret", **settings}
    with pytest.raises(SettingsError) as caught:
        load(given | {"forwards": parse_specs(text)})
    return list(caught.value.problems)


NO_PORT = "is no port, such as 443, 53/udp or 8000-8010"
NO_IP = "is not an IPv4 address, such as 192.0.2.10"


@pytest.mark.parametrize(("text", "problem"), [
    *((text, "is no forward, such as 10.0.0.101:443=192.0.2.10")
      for text in ("x", "10.0.0.1", "10.0.0.1:443", ":443", "/udp")),
    *((f"{text}=192.0.2.9", f"'{text}' {NO_IP}")
      for text in ("10.0.0", "10.0.0.256", "10.0.0.0.1", "1", "*", "10.0.0.1-2", "010.0.0.1", "+1.2.3.4")),
    *((f"{text}=192.0.2.9", "is a name, not an IPv4 address") for text in ("vip", "vip.example", "vip-1")),
    *((f":{text}=192.0.2.9", f"'{text}' {NO_PORT}")
      for text in ("", "0", "65536", "-1", "1-", "80-70", "http", "80-90-100", "1.5", "1e3", "53/", "53/icmp", "53/UDP",
                   "/udp", "x/tcp", "53/udp/tcp")),
    *((f"=192.0.2.9:{text}", f"'{text}' is no port of TARGET, such as 8443")
      for text in ("", "0", "65536", "-1", "80-90", "53/udp", "https", "80:81")),
    *((f"={text}", f"'{text}' {NO_IP}") for text in ("", "10.0.0", "192.0.2.9/32", "1.2.3.4.5")),
    *((f"10.0.0.101/{text}=192.0.2.9", f"'1-65535/{text}' {NO_PORT}") for text in ("", "sctp", "icmp")),
])  # fmt: skip
def test_what_is_malformed_is_refused_with_the_reason(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=r"is no|is a name") as caught:
        parse_specs(text)
    assert problem in str(caught.value)
    assert repr(text.split(",", maxsplit=1)[0]) in str(caught.value)


@pytest.mark.parametrize(("text", "problem"), [
    ("=192.0.2.10", "all else of 10.0.0.100 is for 192.0.2.9 already, by --target (TARGET) 192.0.2.9"),
    ("10.0.0.101=10.0.0.100", "10.0.0.100 is a VIP of this group: a target is another host"),
    ("10.0.0.101=192.0.2.10:443", "which port becomes 443 is missing: write 10.0.0.101:443=192.0.2.10:443, say"),
    (":80-90=192.0.2.10:443", "several ports cannot all become 443: write a forward for each"),
    ("127.0.0.1=192.0.2.10", "VIP 127.0.0.1 is a loopback address"),
    (":80=224.0.0.1", "target 224.0.0.1 is a multicast address"),
])  # fmt: skip
def test_what_does_not_fit_together_is_refused_by_its_number(text: str, problem: str) -> None:
    assert problems(text) == [f"--forward (FORWARDS) 1, {text}: {problem}"]


def test_two_that_overlap_are_both_named() -> None:
    first, second = ":80=192.0.2.10", ":70-90=192.0.2.11"
    overlap = f"some of these ports are for 192.0.2.10 already, by --forward (FORWARDS) 1, {first}"
    assert problems(f"{first} {second}") == [f"--forward (FORWARDS) 2, {second}: {overlap}"]


def test_all_that_does_not_fit_is_told_at_once() -> None:
    found = problems("10.0.0.101:22=192.0.2.10,10.0.0.101:22=10.0.0.100", ports=(Ports("tcp", 443, 443),), source=VIP3)
    assert len(found) == 5


@pytest.mark.parametrize(("settings", "problem"), [
    ({"ports": (Ports("tcp", 443, 443),)},
     "--forward (FORWARDS) 1, :80=192.0.2.10: not all of it is among --port (PORTS)"),
    ({"source": VIP2}, "--source (SOURCE): 10.0.0.101 is no VIP of this group: set it to one, or to own"),
    ({"source": VIP, "global_masquerade": True},
     "--source (SOURCE) and --global-masquerade (GLOBAL_MASQUERADE) contradict each other: leave one of them out"),
])  # fmt: skip
def test_settings_that_do_not_fit_forwards_are_refused(settings: dict[str, Any], problem: str) -> None:
    assert problems(":80=192.0.2.10", **settings) == [problem]


@pytest.mark.parametrize(("target", "text", "problem"), [
    (TARGET, "10.0.0.101=192.0.2.10", "copies connections to one target, and here are several"),
    ("db.example", "10.0.0.101=db.example", "needs the address of a target, for conntrackd filters by it"),
])  # fmt: skip
def test_copies_are_of_one_target_that_is_known(target: object, text: str, problem: str) -> None:
    [found] = problems(text, target=target, sync=True, sync_interface="eth1")
    assert problem in found


def test_a_target_is_needed_unless_a_forward_has_the_first_vip(tmp_path: Path) -> None:
    given = {"vip": VIP, "password": "secret"}
    with pytest.raises(SettingsError, match=r"--target \(TARGET\) is missing"):
        load(given | {"forwards": parse_specs("10.0.0.101=192.0.2.9")})
    assert load(given | {"forwards": parse_specs(":80=192.0.2.9")}).target is None
    file = tmp_path / "forwards"
    file.write_text("10.0.0.101=192.0.2.9 # one\n:80=192.0.2.10\n")
    assert load(given | {"forwards_file": file}).vips == (VIP, VIP2)
    with pytest.raises(SettingsError, match="both given"):
        load(given | {"forwards_file": file, "forwards": parse_specs(":80=192.0.2.9")})
    with pytest.raises(SettingsError, match="No such file"):
        load(given | {"forwards_file": tmp_path / "nothing"})
    file.write_text("x\n:80=192.0.2.9\ny")
    with pytest.raises(SettingsError, match=r"'x' is no forward.*'y' is no forward"):
        load(given | {"forwards_file": file})


# Checks


def test_checks_are_of_a_vip_each_and_written_as_they_are_read() -> None:
    text = "tcp:443 10.0.0.101=tcp:5432 10.0.0.102=http://10.0.0.102/?a=b,c icmp"
    found = parse_checks(text)
    assert [each.vip for each in found] == [None, VIP2, VIP3, None]
    assert " ".join(map(str, found)) == text
    assert parse_checks("icmp  icmp") == parse_checks("icmp")


@pytest.mark.parametrize("text", ["10.0.0.101=", "10.0.0=icmp", "10.0.0.101=tcp", "vip=icmp", "icmp 10.0.0.101", " "])
def test_checks_that_are_malformed_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is none of|Expected 4 octets"):
        parse_checks(text)


@pytest.mark.parametrize(("settings", "problem"), [
    ({"check": parse_checks("10.0.0.109=icmp")},
     "--check (CHECK): 10.0.0.109=icmp: 10.0.0.109 is no VIP of this group"),
    ({"check": parse_checks("10.0.0.102=tcp:80"), "forwards": "10.0.0.102:443=192.0.2.10"},
     "--check (CHECK): 10.0.0.102=tcp:80: that port of 10.0.0.102 goes nowhere"),
    ({"check": parse_checks("icmp"), "check_any": True},
     "--check-any (CHECK_ANY) means nothing without several of --check (CHECK)"),
])  # fmt: skip
def test_checks_that_do_not_fit_the_group_are_refused(settings: dict[str, Any], problem: str) -> None:
    assert problems(settings.pop("forwards", "10.0.0.101=192.0.2.10"), **settings) == [problem]


def test_a_check_asks_where_its_port_leads() -> None:
    ways = [(VIP, 80), (VIP, 0), (VIP2, 5432), (VIP3, 443), (VIP3, 80), (VIP3, 0)]
    found = [GROUP.route(*each) for each in ways]
    whole, second, third = GROUP.routes[:2] + GROUP.routes[3:]
    assert found == [whole, whole, second, third, None, third]
    check = parse_checks("10.0.0.102=tcp:443")[0].question(GROUP)
    assert (str(check[0]), check[1]) == ("tcp:8443", TARGET2)


def test_the_worst_answer_counts_or_any() -> None:
    asked, good, bad = parse_checks("icmp 10.0.0.101=icmp"), Answer(seconds=0.1), Answer(problem="refused")
    assert together(asked, [good, good], any_counts=False) == good
    assert together(asked, [good, bad], any_counts=False).problem == "10.0.0.101=icmp: refused"
    assert together(asked, [good, bad], any_counts=True) == good
    assert together(asked, [bad, bad], any_counts=True).problem == "icmp: refused; 10.0.0.101=icmp: refused"
    assert together(asked[:1], [bad], any_counts=False) == bad


def test_several_are_asked_at_once_and_none_holds_up_the_others() -> None:
    released = Event()

    def hangs() -> Answer:
        released.wait()
        return Answer()

    answers = ask_all([hangs, lambda: Answer(seconds=0.2), hangs], 0.3)
    released.set()
    assert answers == [UNANSWERED, Answer(seconds=0.2), UNANSWERED]


# Rules


MORE = "10.0.0.101=192.0.2.10 :53/udp=192.0.2.10 10.0.0.102:443=192.0.2.10:8443"
GROUP = Proxy(vip=VIP, target=TARGET, forwards=tuple(each.of(VIP) for each in parse_specs(MORE)))


def test_in_nftables_a_packet_costs_the_same_whatever_the_number_of_vips() -> None:
    text = Nftables().setup(GROUP, GROUP.parts)
    many = Proxy(vip=VIP, target=TARGET, forwards=tuple(Forward(VIP + each, TARGET2) for each in range(1, 250)))
    of_many = Nftables().setup(many, many.parts)
    assert of_many.count("counter") <= text.count("counter")
    for each in (
        "elements = { 10.0.0.100 : 192.0.2.9, 10.0.0.101 : 192.0.2.10 }",
        "elements = { 10.0.0.102 . tcp . 443-443 : 192.0.2.10 . 8443 }",
        "elements = { 10.0.0.100 . udp . 53-53 : 192.0.2.10 }",
        "set limited {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.102 }",
        "ip daddr @vips fib daddr type local ip daddr @whole counter dnat to ip daddr map @targets",
        "ct status dnat ct original ip daddr @vips counter snat to ct original ip daddr",
    ):
        assert each in text


def test_in_iptables_ports_are_sent_on_before_the_rest_and_each_vip_is_a_source() -> None:
    lines = Iptables("iptables-nft", "nft").setup(GROUP, GROUP.parts).splitlines()
    dnat = [line.rpartition("--to-destination ")[2] for line in lines if "-j DNAT" in line]
    assert dnat == ["192.0.2.10", "192.0.2.10:8443", "192.0.2.9", "192.0.2.10"]
    assert [line.split()[-1] for line in lines if "-j SNAT" in line] == [str(VIP), str(VIP2), str(VIP3)]
    assert all("kevip:10.0.0.100" in line for line in lines if line.startswith("-"))


def test_targets_may_see_one_vip_for_all() -> None:
    one = Proxy(vip=VIP, target=TARGET, forwards=GROUP.forwards, source=VIP2)
    assert "counter snat to 10.0.0.101" in Nftables().setup(one, one.parts)
    assert set(one.returns) == {(TARGET, VIP2), (TARGET2, VIP2)}


def test_settings_know_all_vips_and_targets() -> None:
    specs = parse_specs("10.0.0.101=192.0.2.10 :53/udp=192.0.2.9")
    config = Config(vip=VIP, target=TARGET, password="secret", forwards=specs)  # noqa: S106 - a test
    assert (config.vips, config.targets) == ((VIP, VIP2), (TARGET, TARGET2))
    assert config.alike()["FORWARDS"] == "10.0.0.101=192.0.2.10,:53/udp=192.0.2.9"
