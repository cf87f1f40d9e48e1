"""The settings: from flags, from variables, from both; what is refused, and that all of it is told at once."""

import os
import string
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any
from unittest import mock

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kevip import cli
from kevip.config import RANGES, Config
from kevip.dataplane.rules import Ports
from kevip.errors import SettingsError

GOOD = {"vip": "10.0.0.100", "target": "192.0.2.9", "password": "secret"}


def read(flags: dict[str, str], env: dict[str, str]) -> Config:
    """Return the Config that the command line makes of flags and variables."""
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    return run(arguments, env)


def run(arguments: list[str], env: dict[str, str]) -> Config:
    """Return the Config that the command line makes of arguments and variables."""
    with (
        mock.patch.dict("os.environ", {name.upper(): value for name, value in env.items()}, clear=True),
        mock.patch.object(cli, "serve") as serve,
        mock.patch("kevip.host.kernel.hide_argument"),
    ):
        cli.cli.main(arguments, standalone_mode=False, prog_name="kevip")
        config: Config = serve.call_args.args[0]
        return config


def problems(flags: dict[str, str] | None = None, env: dict[str, str] | None = None) -> list[str]:
    """Return what the settings are refused with."""
    with pytest.raises(SettingsError) as caught:
        read(flags or {}, env or {})
    return list(caught.value.problems)


usable = (
    st.integers(min_value=1 << 24, max_value=(224 << 24) - 1)
    .map(IPv4Address)
    .filter(lambda address: not address.is_loopback and int(address) & 0xFF)
)
passwords = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)
settings = st.fixed_dictionaries(
    {"vip": usable.map(str), "target": usable.map(str), "password": passwords},
    optional={
        **{
            name: st.integers(*limits).map(str)
            for name, limits in RANGES.items()
            if name not in {"priority", "preempt_delay"}
        },
        "interface": st.text(string.ascii_lowercase, min_size=1, max_size=15),
        "dataplane": st.sampled_from(["auto", "nftables", "iptables-nft", "iptables-legacy"]),
        "run_dir": st.just("/tmp/x"),  # noqa: S108 - only parsed
        "log_format": st.sampled_from(["auto", "json", "text"]),
        "log_level": st.sampled_from(["debug", "info", "warning", "error"]),
    },
).filter(lambda each: each["vip"] != each["target"])


@given(settings, st.randoms())
def test_settings_mean_the_same_as_flags_as_variables_and_mixed(values: dict[str, str], random: Any) -> None:
    values.setdefault("advskew", "7")  # the default is random
    mixed = {name for name in values if random.random() < 0.5}
    as_flags = read(values, {})
    assert as_flags == read({}, values)
    assert as_flags == read(
        {name: values[name] for name in values if name in mixed},
        {name: values[name] for name in values if name not in mixed},
    )


@given(settings, settings)
def test_a_flag_wins_over_its_variable(flags: dict[str, str], env: dict[str, str]) -> None:
    config = read(flags, env)
    assert {name: str(getattr(config, name)) for name in flags} == flags


@given(
    st.dictionaries(
        st.sampled_from(
            [*GOOD, *RANGES, "dataplane", "iptables", "preempt", "log_level", "ports", "allow_from", "check"]
        ),
        st.text().filter(bool),
    )
)
def test_any_nonsense_is_refused_with_problems_of_one_line_each(env: dict[str, str]) -> None:
    flawed = {"vip": "not an address"} | {name: value.replace("\0", "") for name, value in env.items()}
    found = problems({"target": "nor this"}, flawed)
    assert all(problem and "\n" not in problem for problem in found)


@given(settings)
def test_the_password_is_not_in_the_representation_of_the_settings(values: dict[str, str]) -> None:
    values["password"] = f"\N{SNOWMAN}{values['password']}\N{SNOWMAN}"
    assert values["password"] not in repr(read(values, {}))


def test_defaults() -> None:
    config = read(GOOD, {})
    assert 1 <= config.advskew <= 25
    assert config == Config(
        vip=IPv4Address("10.0.0.100"),
        target=IPv4Address("192.0.2.9"),
        password="secret",  # noqa: S106
        global_masquerade=False,
        vip_id=100,
        interface=None,
        advbase=1,
        advskew=config.advskew,
        dead_ratio=3,
        preempt=False,
        broadcast=False,
        dataplane="auto",
        run_dir=Path("/run/kevip"),
        log_format="auto",
        log_level="info",
        hold_only=False,
        allow_from=(),
        ports=(),
        check=(),
        check_interval=5,
        check_fall=3,
        check_rise=2,
    )


def test_an_empty_variable_counts_as_absent() -> None:
    config = read(GOOD, {"vip_id": "", "interface": "", "global_masquerade": "", "password_file": "", "advskew": ""})
    assert (config.vip_id, config.interface, config.global_masquerade) == (100, None, False)
    assert read(GOOD | {"advskew": "7"}, {"ports": "", "allow_from": "", "check": ""}) == read(GOOD, {"advskew": "7"})


@pytest.mark.parametrize("name", ["global_masquerade", "preempt", "broadcast"])
@pytest.mark.parametrize(("text", "value"), [
    ("true", True), ("1", True), ("YES", True), ("On", True),
    ("false", False), ("0", False), ("No", False), ("OFF", False),
])  # fmt: skip
def test_a_switch_takes_eight_words_in_any_case(name: str, text: str, value: bool) -> None:
    assert getattr(read(GOOD, {name: text}), name) is value


@pytest.mark.parametrize("text", ["y", "t", "2", "enabled", " true", "TRÜE"])
def test_a_switch_takes_no_other_word(text: str) -> None:
    assert problems(GOOD, {"preempt": text}) == [
        f"--preempt (PREEMPT): {text!r} is none of true, 1, yes, on, false, 0, no, off"
    ]


def test_a_switch_can_be_switched_off_by_flag() -> None:
    flags = [f"--{name}={value}" for name, value in GOOD.items()]
    config = run([*flags, "--no-preempt", "--broadcast"], {"preempt": "yes", "broadcast": "no"})
    assert (config.preempt, config.broadcast) == (False, True)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    env = {
        "vip": "10.0.0.256",
        "password": "x",
        "password_file": str(tmp_path / "none"),
        "vip_id": "256",
        "advbase": "0",
        "dead_ratio": "x",
        "iptables": "bpf",
        "global_masquerade": "maybe",
    }
    assert problems({}, env) == [
        "--vip (VIP): '10.0.0.256' is not an IPv4 address, such as 192.0.2.10",
        "--global-masquerade (GLOBAL_MASQUERADE): 'maybe' is none of true, 1, yes, on, false, 0, no, off",
        "--vip-id (VIP_ID): '256' is not a whole number from 1 to 255",
        "--advbase (ADVBASE): '0' is not a whole number from 1 to 255",
        "--dead-ratio (DEAD_RATIO): 'x' is not a whole number from 1 to 255",
        "--iptables (IPTABLES): 'bpf' is none of auto, nft, legacy",
        "--target (TARGET) is missing: set it to an IPv4 address",
        "--password (PASSWORD) and --password-file (PASSWORD_FILE) are both given: leave one of them out",
    ]


@pytest.mark.parametrize(("older", "dataplane"), [
    ("auto", "auto"), ("nft", "iptables-nft"), ("legacy", "iptables-legacy"),
])  # fmt: skip
def test_the_older_name_of_the_dataplane(older: str, dataplane: str) -> None:
    assert read(GOOD, {"iptables": older}).dataplane == dataplane
    assert problems(GOOD, {"iptables": older, "dataplane": "nftables"}) == [
        "--iptables (IPTABLES) is an older name of --dataplane (DATAPLANE): leave one of them out"
    ]


def test_nothing_given() -> None:
    assert problems() == [
        "--vip (VIP) is missing: set it to an IPv4 address",
        "--target (TARGET) is missing: set it to an IPv4 address",
        "--password (PASSWORD) is missing: set it, or --password-file (PASSWORD_FILE), to what all replicas share",
    ]


NOTHING = (
    "the password is empty: set --password (PASSWORD), or --password-file (PASSWORD_FILE), to what all replicas share"
)


@pytest.mark.parametrize(("flags", "problem"), [
    ({"vip": "db.example"},
     "--vip (VIP): 'db.example' is a name, not an IPv4 address: getent ahostsv4 db.example shows its address"),
    ({"target": "2001:db8::1"},
     "--target (TARGET): '2001:db8::1' is not an IPv4 address (ucarp and kevip do not speak IPv6)"),
    ({"vip": ""}, "--vip (VIP): '' is not an IPv4 address, such as 192.0.2.10"),
    ({"vip": "10.0.0.100/24"}, "--vip (VIP): '10.0.0.100/24' is not an IPv4 address, such as 192.0.2.10"),
    ({"vip": "192.0.2.9"},
     "--vip (VIP) and --target (TARGET) are both 192.0.2.9: the VIP must be an address of its own"),
    ({"vip": "224.0.0.18"}, "--vip (VIP): 224.0.0.18 is a multicast address: set it to the address of a host"),
    ({"vip": "127.0.0.2"}, "--vip (VIP): 127.0.0.2 is a loopback address: set it to the address of a host"),
    ({"vip": "255.255.255.255"},
     "--vip (VIP): 255.255.255.255 is a reserved or broadcast address: set it to the address of a host"),
    ({"target": "127.0.0.1"}, "--target (TARGET): 127.0.0.1 is a loopback address: set it to the address of a host"),
    ({"vip": "10.1.0.0"},
     "--vip-id (VIP_ID) is missing: VIP 10.1.0.0 ends in .0, which is no valid id; set one from 1 to 255"),
    ({"vip_id": "0"}, "--vip-id (VIP_ID): '0' is not a whole number from 1 to 255"),
    ({"advskew": "255"}, "--advskew (ADVSKEW): '255' is not a whole number from 0 to 254"),
    ({"advskew": "-1"}, "--advskew (ADVSKEW): '-1' is not a whole number from 0 to 254"),
    ({"dead_ratio": "٣"}, "--dead-ratio (DEAD_RATIO): '٣' is not a whole number from 1 to 255"),
    ({"password": ""}, NOTHING),
    ({"allow_from": "10.0.0.0/8,nobody"},
     "--allow-from (ALLOW_FROM): 'nobody' is not an IPv4 network, such as 192.0.2.0/24"),
    ({"allow_from": "10.0.0.1/8"},
     "--allow-from (ALLOW_FROM): '10.0.0.1/8' has bits beyond its prefix: 10.0.0.0/8 may be what is meant"),
    ({"allow_from": ""}, "--allow-from (ALLOW_FROM): '' is not an IPv4 network, such as 192.0.2.0/24"),
    *(({"port": text}, f"--port (PORTS): {text!r} is no port, such as 443, 53/udp or 8000-8010")
      for text in ("", "0", "65536", "80-70", "80/icmp", "http", "٨٠", "-1", "1-")),
    *(({"check": text}, f"--check (CHECK): {text!r} is none of tcp:PORT, icmp, http[s]://HOST[:PORT]/PATH")
      for text in ("", "tcp", "tcp:0", "tcp:65536", "ftp://10.0.0.1/", "http://", "http://:80/", "http://10.0.0.1:x/",
                   "http://user@10.0.0.1/", "http://:pw@10.0.0.1/", "http://10.0.0.1/\r\n", "ICMP",
                   "http://[::1/", "http://a..b/", f"http://{64 * 'x'}.example/")),
    ({"check": "icmp", "advskew": "204"},
     "--advskew (ADVSKEW): with --check (CHECK), 204 is too much: set one below 204"),
    ({"check_interval": "0"}, "--check-interval (CHECK_INTERVAL): '0' is not a whole number from 1 to 3600"),
    ({"hold_only": "true"},
     "--hold-only (HOLD_ONLY) and --target (TARGET) contradict each other: leave one of them out"),
    ({"notify": "'unbalanced"}, "--notify (NOTIFY): No closing quotation"),
    ({"preempt_delay": "5"}, "--preempt-delay (PREEMPT_DELAY) means nothing without --preempt (PREEMPT)"),
    ({"notify": " "}, "--notify (NOTIFY): ' ' is no command"),
    ({"log_level": "loud"}, "--log-level (LOG_LEVEL): 'loud' is none of debug, info, warning, error"),
    ({"run_dir": ""}, "--run-dir (RUN_DIR): '' is not a path"),
])  # fmt: skip
def test_refuses(flags: dict[str, str], problem: str) -> None:
    switches = {name: value for name, value in flags.items() if value == "true"}
    assert problems(GOOD | {name: flags[name] for name in flags if name not in switches}, switches) == [problem]


def test_what_proxies_contradicts_holding_the_vip_only() -> None:
    env = {"hold_only": "1", "global_masquerade": "1", "ports": "80", "allow_from": "10.0.0.0/8", "check": "icmp"}
    assert [problem.partition(":")[0] for problem in problems({"vip": "10.0.0.100", "password": "x"}, env)] == [
        "--hold-only (HOLD_ONLY) and --global-masquerade (GLOBAL_MASQUERADE) contradict each other",
        "--hold-only (HOLD_ONLY) and --allow-from (ALLOW_FROM) contradict each other",
        "--hold-only (HOLD_ONLY) and --ports (PORTS) contradict each other",
        "--check (CHECK)",
    ]


TRUST = "who can send to conntrackd there writes into the hosts' kernels, so let it be a network of their own"


@pytest.mark.parametrize(("env", "found"), [
    ({"sync": "1"},
     [f"--sync (SYNC) needs --sync-interface (SYNC_INTERFACE), or --sync-peers (SYNC_PEERS) of two hosts: {TRUST}"]),
    ({"sync_interface": "eth1", "sync_peers": "10.0.0.1"},
     ["--sync-interface (SYNC_INTERFACE) means nothing without --sync (SYNC)",
      "--sync-peers (SYNC_PEERS) means nothing without --sync (SYNC)"]),
    ({"sync": "1", "sync_peers": "10.0.0.1,10.0.0.2,10.0.0.3"},
     [("--sync-peers (SYNC_PEERS): conntrackd sends to one host only, unless by multicast: "
      "set --sync-interface (SYNC_INTERFACE), for more than two")]),
    ({"sync": "1", "sync_peers": "10.0.0.1,10.0.0.100"},
     ["--sync-peers (SYNC_PEERS): 10.0.0.100 is the VIP: list the hosts' own addresses"]),
    ({"sync": "1", "sync_interface": "eth1", "global_masquerade": "1"},
     [("--sync (SYNC) and --global-masquerade (GLOBAL_MASQUERADE) contradict each other, "
      "for other hosts do not have the address that it gives connections: leave one of them out")]),
    ({"sync": "1", "sync_interface": "e}", "run_dir": "/r u"},
     ["--run-dir (RUN_DIR): conntrackd takes a path of letters, digits and ./_+:@- only",
      "--sync-interface (SYNC_INTERFACE): conntrackd takes a name of letters, digits and ./_+:@- only"]),
])  # fmt: skip
def test_refuses_copies_of_connections_that_cannot_be(env: dict[str, str], found: list[str]) -> None:
    assert problems(GOOD, env) == found


def test_a_vip_that_is_only_held_has_no_connections_to_copy() -> None:
    env = {"hold_only": "1", "sync": "1", "sync_interface": "eth1"}
    assert problems({"vip": "10.0.0.100", "password": "x"}, env) == [
        "--hold-only (HOLD_ONLY) and --sync (SYNC) contradict each other: leave one of them out"
    ]


@pytest.mark.parametrize("env", [
    {"sync_interface": "eth1"}, {"sync_peers": "10.0.0.1,10.0.0.2"},
    {"sync_interface": "bond0.7", "sync_peers": "10.0.0.1,10.0.0.2,10.0.0.3"},
])  # fmt: skip
def test_connections_are_copied_on_a_network_or_to_a_peer(env: dict[str, str]) -> None:
    config = read(GOOD, {"sync": "1", **env})
    assert config.sync
    assert ",".join(map(str, config.sync_peers)) == env.get("sync_peers", "")


def test_who_and_what_is_proxied() -> None:
    config = read(GOOD | {"allow_from": "10.0.0.0/8, 192.0.2.1,10.0.0.0/8"}, {"ports": "443,53/udp,8000-8010/tcp,443"})
    assert config.allow_from == (IPv4Network("10.0.0.0/8"), IPv4Network("192.0.2.1"))
    assert config.ports == (Ports("tcp", 443, 443), Ports("udp", 53, 53), Ports("tcp", 8000, 8010))
    assert [str(ports) for ports in config.ports] == ["443", "53/udp", "8000-8010"]


@pytest.mark.parametrize("text", ["tcp:443", "icmp", "http://192.0.2.9", "http://db.example:8080/health?x=1"])
def test_checks_are_written_as_they_are_read(text: str) -> None:
    [asked] = read(GOOD | {"check": text}, {}).check
    assert str(asked) == text


def test_a_held_vip_needs_no_target() -> None:
    config = read({"vip": "10.0.0.100", "password": "x"}, {"hold_only": "true", "check": "http://127.0.0.1/"})
    assert (config.target, config.hold_only) == (None, True)


def test_refuses_an_unspecified_vip_once_for_each_reason() -> None:
    assert problems(GOOD | {"vip": "0.0.0.0"}) == [  # noqa: S104 - refused
        "--vip (VIP): 0.0.0.0 is the unspecified address: set it to the address of a host",
        "--vip-id (VIP_ID) is missing: VIP 0.0.0.0 ends in .0, which is no valid id; set one from 1 to 255",
    ]


def test_a_vip_that_ends_in_zero_is_fine_with_an_id() -> None:
    assert read(GOOD | {"vip": "10.1.0.0", "vip_id": "7"}, {}).vip_id == 7


@pytest.mark.parametrize(("content", "password"), [
    (b"secret\n", "secret"), (b"secret", "secret"), (b"secret\r\n", "secret"), (b"secret\n\n", "secret\n"),
    (b" a b ", " a b "), (b"\xff", "\udcff"),
])  # fmt: skip
def test_a_password_file_loses_one_trailing_line_break(tmp_path: Path, content: bytes, password: str) -> None:
    file = tmp_path / "password"
    file.write_bytes(content)
    del (flags := dict(GOOD))["password"]
    assert read(flags | {"password_file": str(file)}, {}).password == password


@pytest.mark.timeout(10)
@pytest.mark.parametrize(("name", "problem"), [
    ("none", "No such file or directory"),
    (".", "not a regular file"),
    ("fifo", "not a regular file"),
    ("/dev/zero", "not a regular file"),
    ("large", "larger than 65536 bytes"),
])  # fmt: skip
def test_refuses_a_password_file_that_cannot_be_read_to_its_end(tmp_path: Path, name: str, problem: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(bytes(65537))
    file = tmp_path / name
    del (flags := dict(GOOD))["password"]
    assert problems(flags | {"password_file": str(file)}) == [
        f"--password-file (PASSWORD_FILE): cannot read {file}: {problem}"
    ]


def test_a_config_cannot_be_built_from_values_that_do_not_fit() -> None:
    with pytest.raises(SettingsError, match="256 is not a whole number"):
        Config(vip=IPv4Address("10.0.0.1"), target=IPv4Address("10.0.0.2"), password="x", vip_id=256)  # noqa: S106


@pytest.mark.parametrize(("name", "value"), [
    ("engine", "keepalived"), ("dataplane", "iptables-nft"), ("log_format", "json"), ("log_level", "debug"),
])  # fmt: skip
def test_names_are_shown_as_they_are_and_taken_in_any_case(name: str, value: str) -> None:
    option = next(param for param in cli.cli.params if param.name == name)
    with click.Context(cli.cli) as context:
        assert value in option.make_metavar(context).split("|")
    assert getattr(read(GOOD, {name: value.upper()}), name) == getattr(read(GOOD | {name: value.title()}, {}), name)
    assert getattr(read(GOOD, {name: value.upper()}), name) == value


@pytest.mark.parametrize("arguments", [["--vipp=1"], ["serve"], ["--vip"]])
def test_an_unknown_argument_is_a_usage_error(arguments: list[str]) -> None:
    with pytest.raises(click.UsageError):
        run(arguments, {})


@pytest.mark.parametrize(("text", "endpoint"), [
    ("127.0.0.1:9112", "127.0.0.1:9112"), ("0.0.0.0:1", "0.0.0.0:1"), ("localhost:65535", "127.0.0.1:65535"),
    ("[::]:9112", "[::]:9112"), ("[FE80::1]:80", "[fe80::1]:80"), ("", "None"), (":9112", ":9112"),
    ("eth0:9112", "eth0:9112"), ("bond0.7:80", "bond0.7:80"),
])  # fmt: skip
def test_metrics_listen_on_an_address(text: str, endpoint: str) -> None:
    assert str(read(GOOD, {"metrics": text}).metrics) == endpoint


@pytest.mark.parametrize("text", [
    "9112", ":0", "eth0", "eth 0:9112", "an-interface-too-long:9112",
    "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:x", "::1:9112", "[::1]",
    "[127.0.0.1]:9112", "1.2.3:9112", "127.0.0.1:9112 ", "127.0.0.1:٩", "[::g]:9112", "*:9112",
])  # fmt: skip
def test_metrics_elsewhere_are_refused(text: str) -> None:
    assert problems(GOOD, {"metrics": text}) == [
        f"--metrics (METRICS): {text!r} is no [HOST]:PORT, such as :9112, 127.0.0.1:9112 or eth0:9112"
    ]
