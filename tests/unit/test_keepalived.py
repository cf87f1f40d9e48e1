"""What keepalived is told, and the settings that are its own."""

import os
import stat
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kevip.config import load
from kevip.election.vrrpd import FIT, MASTER, RANKS, Candidacy, Home, configuration, is_in_clear, secret
from kevip.errors import SettingsError

VIP = IPv4Address("10.0.0.100")
CANDIDACY = Candidacy(
    vip=VIP,
    vip_id=100,
    interface="eth0",
    source=IPv4Address("10.0.0.11"),
    password="a long password",  # noqa: S106
    interval=0.1,
    priority=7,
    dead_ratio=3,
    preempt=False,
    realtime=True,
    run_dir=Path("/run/kevip"),
)
TEXT = """\
global_defs {
    router_id kevip
    vrrp_notify_fifo /run/kevip/10.0.0.100.keepalived/events
    script_user root
    enable_script_security
    vrrp_garp_master_refresh 0
    vrrp_rt_priority 50
}
track_file rank {
    file /run/kevip/10.0.0.100.keepalived/rank
    weight 1
}
vrrp_instance kevip {
    interface eth0
    state BACKUP
    virtual_router_id 100
    priority 7
    version 3
    advert_int 0.1
    down_timer_adverts 3
    mcast_src_ip 10.0.0.11
    track_file {
        rank
    }
    virtual_ipaddress {
        10.0.0.100/32 dev lo
    }
}
"""


def text(candidacy: Candidacy) -> str:
    return configuration(candidacy, candidacy.group(), Home(candidacy.run_dir, candidacy.vip))


def test_the_configuration() -> None:
    assert text(CANDIDACY) == TEXT


def test_a_host_that_has_no_right_to_it_asks_for_no_real_time() -> None:
    assert text(replace(CANDIDACY, realtime=False)) == TEXT.replace("    vrrp_rt_priority 50\n", "")


def test_it_advertises_to_its_peers_without_itself() -> None:
    peers = tuple(IPv4Address(f"10.0.0.{number}") for number in (11, 12, 13))
    told = "    unicast_src_ip 10.0.0.11\n    unicast_peer {\n        10.0.0.12\n        10.0.0.13\n    }\n"
    assert text(replace(CANDIDACY, peers=peers)) == TEXT.replace("    mcast_src_ip 10.0.0.11\n", told)


def test_whole_seconds_in_version_3_have_no_password() -> None:
    found = text(replace(CANDIDACY, interval=1.0, vrrp_version="3"))
    assert found == TEXT.replace("advert_int 0.1", "advert_int 1")


def test_whole_seconds_have_a_password_that_does_not_tell_ours() -> None:
    found = text(replace(CANDIDACY, interval=1.0))
    assert "    version 2\n    advert_int 1\n" in found
    assert (
        f"    authentication {{\n        auth_type PASS\n        auth_pass {secret('a long password', VIP).decode()}\n"
        in found
    )
    assert "a long" not in found


@pytest.mark.parametrize(("password", "expected"), [
    ("secret", b"secret"),
    ("12345678", b"12345678"),
    ("123456789", b"MADxQq0E"),
    ("with #x", b""),
    ("ä", b""),
])  # fmt: skip
def test_a_short_password_is_sent_as_it_is_and_no_other(password: str, expected: bytes) -> None:
    assert secret(password, VIP) == expected or not expected
    assert (secret(password, VIP) == os.fsencode(password)) is is_in_clear(
        replace(CANDIDACY, password=password, interval=2.0)
    )


def test_a_password_is_another_one_for_another_vip() -> None:
    assert secret("a long password", VIP) != secret("a long password", IPv4Address("10.0.0.101"))


@given(st.sampled_from([replace(CANDIDACY, priority=own) for own in RANKS]), st.sampled_from([0.02, 0.1, 1.0, 40.0]))
def test_patience_is_the_adverts_missed_and_less_than_one_more(candidacy: Candidacy, interval: float) -> None:
    patience = replace(candidacy, interval=interval).patience
    assert 3 * interval < patience < 3 * interval + max(interval, 1 if interval == int(interval) else 0)


def test_each_reason_to_be_preferred_outweighs_what_is_below_it() -> None:
    """In VRRP a higher priority takes over: a master has more than each backup that is as fit."""
    least, most = RANKS
    assert least >= 1
    assert most < least + MASTER
    assert most + MASTER < least + FIT
    assert most + MASTER + FIT <= 254


def test_its_directory_is_private_and_goes_again(tmp_path: Path) -> None:
    home = Home(tmp_path / "run", VIP)
    home.make()
    home.make()
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    assert stat.S_ISFIFO(home.events.stat().st_mode)
    assert home.remove()
    assert not home.remove()


GOOD = {"vip": VIP, "target": IPv4Address("192.0.2.9"), "password": "x"}


def problems(**given: object) -> list[str]:
    """Return what settings are refused with."""
    with pytest.raises(SettingsError) as caught:
        load(GOOD | given)
    return list(caught.value.problems)


def test_settings_of_keepalived() -> None:
    config = load(GOOD | {"engine": "keepalived", "advert_interval": 0.02, "priority": 61, "broadcast": False})
    assert (config.engine, config.advert_interval, config.priority) == ("keepalived", 0.02, 61)


def test_the_interval_of_ucarp_has_two_names() -> None:
    assert load(GOOD | {"advert_interval": 2.0}).advbase == load(GOOD | {"advbase": 2}).advbase == 2
    assert problems(advert_interval=2.0, advbase=2) == [
        "--advbase (ADVBASE) is an older name of --advert-interval (ADVERT_INTERVAL): leave one of them out"
    ]


@pytest.mark.parametrize(("given", "expected"), [
    ({"advert_interval": 0.5},
     ["--advert-interval (ADVERT_INTERVAL): 0.5 is no whole number of seconds from 1 to 255, as ucarp wants it"]),
    ({"advert_interval": 0.0},
     ["--advert-interval (ADVERT_INTERVAL): 0 is no whole number of seconds from 1 to 255, as ucarp wants it"]),
    ({"priority": 3}, ["--priority (PRIORITY) means nothing with --engine (ENGINE) ucarp: use --advskew (ADVSKEW)"]),
    ({"engine": "keepalived", "advskew": 3},
     ["--advskew (ADVSKEW) means nothing with --engine (ENGINE) keepalived: use --priority (PRIORITY)"]),
    ({"engine": "keepalived", "advbase": 1},
     ["--advbase (ADVBASE) means nothing with --engine (ENGINE) keepalived: use --advert-interval (ADVERT_INTERVAL)"]),
    ({"engine": "keepalived", "broadcast": True},
     ["--broadcast (BROADCAST) means nothing with --engine (ENGINE) keepalived: use --peers (PEERS)"]),
    ({"peers": (VIP,)},
     ["--peers (PEERS) means nothing with --engine (ENGINE) ucarp: use --broadcast (BROADCAST)",
      "--peers (PEERS): 10.0.0.100 is the VIP: list the hosts' own addresses"]),
    ({"engine": "keepalived", "run_dir": Path("/run/my kevip")},
     ["--run-dir (RUN_DIR): keepalived takes a path of letters, digits and ./_+:@- only"]),
    ({"engine": "keepalived", "peers": (IPv4Address("127.0.0.1"),)},
     ["--peers (PEERS): 127.0.0.1 is a loopback address: list the hosts' own addresses"]),
    ({"engine": "keepalived", "dead_ratio": 101},
     ["--dead-ratio (DEAD_RATIO): with --engine (ENGINE) keepalived, 100 is the most"]),
    ({"engine": "keepalived", "advert_interval": 0.01},
     ["--advert-interval (ADVERT_INTERVAL): 0.01 is not from 0.02 to 40 seconds"]),
    ({"engine": "keepalived", "advert_interval": 41.0},
     ["--advert-interval (ADVERT_INTERVAL): 41 is not from 0.02 to 40 seconds"]),
    ({"engine": "keepalived", "advert_interval": 0.1, "vrrp_version": "2"},
     ["--advert-interval (ADVERT_INTERVAL): --vrrp-version (VRRP_VERSION) 2 wants whole seconds, not 0.1"]),
    ({"vrrp_version": "3"},
     ["--vrrp-version (VRRP_VERSION) means nothing with --engine (ENGINE) ucarp: it speaks CARP"]),
])  # fmt: skip
def test_what_an_engine_cannot_do_is_refused(given: dict[str, object], expected: list[str]) -> None:
    assert problems(**given) == expected


@pytest.mark.parametrize(("wanted", "given", "interval", "version"), [
    ("auto", None, None, "3"),
    ("auto", 1.0, 1.0, "2"),
    ("auto", 0.5, 0.5, "3"),
    ("2", None, 1.0, "2"),
    ("2", 5.0, 5.0, "2"),
    ("3", 1.0, 1.0, "3"),
])  # fmt: skip
def test_the_version_of_vrrp_and_what_other_replicas_are_told_of_it(
    wanted: str, given: float | None, interval: float | None, version: str
) -> None:
    settings = {"engine": "keepalived", "vrrp_version": wanted, "advert_interval": given}
    config = load({"vip": VIP, "target": IPv4Address("203.0.113.10"), "password": "secret", **settings})
    assert config.advert_interval == interval
    assert config.alike()["VRRP_VERSION"] == version
